"""Diagnose held-out logits: the parts of the loss, scores of each class, the costliest rows."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from xent import information
from xent.api.cross_entropy import cross_entropy, cross_entropy_with_grad, log_softmax
from xent.evaluation.calibration.bins import BINS, Bin, calibration_error
from xent.regression.calibration import cross_fitted
from xent.regression.objective import Objective
from xent.regression.sums.partition_sums import RowLoss, blocks_of_logits
from xent.regression.sums.partitions import Partition

Array = np.ndarray[Any, Any]

CLASS_BINS = 5  # bins of one class's probability: a class has fewer rows than all
COSTLIEST = 20  # rows to show
MOST_REASONS = 3  # features to name for a row
ENOUGH = 20_000  # rows that are enough to fit a temperature


class Summary(NamedTuple):
    """Loss and accuracy of a set of rows."""

    rows: int
    loss: float  # mean cross-entropy, nats
    accuracy: float
    balanced_loss: float  # the mean over classes of the mean loss of each, as for --balanced
    balanced_accuracy: float


class Parts(NamedTuple):
    """The parts of a mean loss (18), ``uncertainty − discrimination + miscalibration``, in nats."""

    uncertainty: float  # entropy of the class frequencies of these rows
    discrimination: float  # decrease of the loss by the features, once calibrated
    miscalibration: (
        float  # decrease of the loss by a temperature fitted on other rows; 0 if it does not decrease
    )
    temperature: float | None  # fitted on all these rows; None if there is no best one, as if all are right

    @property
    def loss(self) -> float:
        """The sum of the parts."""
        return self.uncertainty - self.discrimination + self.miscalibration


class ClassSummary(NamedTuple):
    """Scores of one class among the held-out rows."""

    rows: int
    loss: float | None  # mean over its rows, nats; None without rows
    share: float  # share of the loss of all rows
    recall: float | None
    precision: float | None  # None if it is never predicted
    pull: float  # Σ |∂ℓ/∂z_k| over all rows, the size of this column of the gradient
    excess: float  # Σ ∂ℓ/∂z_k = Σ p_k − rows: expected number of rows minus actual number
    reliability: list[Bin]


class Sample(NamedTuple):
    """One held-out row."""

    position: int  # among the held-out rows
    label: int
    predicted: int
    loss: float
    probs: Array  # (K,)
    gradient: Array  # (K,) of its loss: p − e_y, summing to 0


class Reason(NamedTuple):
    """A feature of one row, and its part in the difference of another class's logit from the label's."""

    feature: str
    logit: float


class Diagnosis(NamedTuple):
    """All results, for N held-out rows and K classes."""

    summary: Summary
    error: float  # standard error of the mean loss
    parts: Parts
    classes: list[ClassSummary]
    costliest: list[Sample]
    confusion: Array  # (K, K) counts: true class, predicted class
    reliability: list[Bin]
    gradient: Array  # (N, K) gradient (2) of each row's loss in its logits
    losses: Array  # (N,)
    labels: Array  # (N,)

    @property
    def skill(self) -> float:
        """``1 − loss/uncertainty``: 1 is certain and right, 0 is guessing by class frequencies."""
        return 1 - self.summary.loss / self.parts.uncertainty if self.parts.uncertainty > 0 else 0.0

    @property
    def calibration_error(self) -> float:
        """Mean gap between confidence and accuracy, over `BINS` bins of confidence."""
        return calibration_error(self.reliability)


def diagnose(logits: Any, labels: Any) -> Diagnosis:
    """Diagnose ``logits (N, K)``, finite, with ``labels (N,)`` in [0, K); N ≥ 2.

    >>> from xent.report.diagnosis import diagnose
    >>> d = diagnose([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 3.0]], [0, 1, 1, 1])
    >>> d.summary.accuracy, d.confusion.tolist()
    (0.75, [[1, 0], [1, 2]])
    >>> abs(d.parts.loss - d.summary.loss) < 1e-12
    True
    """
    logits = np.asarray(logits, np.float64)
    labels = np.asarray(labels)
    log_p = log_softmax(logits)
    probs, losses = np.exp(log_p), -log_p[np.arange(len(labels)), labels]
    _, gradient = cross_entropy_with_grad(logits, labels, reduction="sum")
    table = confusion(logits, labels)
    return Diagnosis(
        summary=summarise(logits, labels),
        error=float(losses.std(ddof=1) / math.sqrt(len(losses))),
        parts=parts(logits, labels),
        classes=class_summaries(probs, labels, losses, gradient, table),
        costliest=costliest(probs, labels, losses, gradient),
        confusion=table,
        reliability=reliability(probs.max(1), probs.argmax(1) == labels, BINS),
        gradient=gradient,
        losses=losses,
        labels=labels,
    )


def summarise(logits: Array, labels: Array) -> Summary:
    """Number of rows, mean cross-entropy and accuracy, as means over rows and over classes."""
    return _summary(*_class_sums(logits, labels, logits.shape[1]))


def summarise_rows(objective: Objective, coef: Array, intercept: Array) -> Summary:
    """`summarise` for the rows of an objective of labels, in one pass over its partitions."""
    sums = objective.partitions.sum_over(partition_class_sums, coef, intercept, objective.row_loss)
    return _summary(*sums)


def partition_class_sums(
    partition: Partition, coef: Array, intercept: Array, row_loss: RowLoss
) -> tuple[Array, Array, Array]:
    """(rows, sum of the plain cross-entropies, rows predicted right) of each class, (K,) float64."""
    sums = np.zeros((3, row_loss.num_classes))
    for _, target, logits in blocks_of_logits(partition, coef, intercept, row_loss):
        sums += _class_sums(logits, target.labels, row_loss.num_classes)
    return sums[0], sums[1], sums[2]


def _class_sums(logits: Array, labels: Array, num_classes: int) -> Array:
    losses, right = cross_entropy(logits, labels, reduction="none"), logits.argmax(1) == labels
    return np.array([np.bincount(labels, each, num_classes) for each in (None, losses, right)], np.float64)


def _summary(rows: Array, losses: Array, right: Array) -> Summary:
    """The summary of rows with these sums over each class, (K,)."""
    total, present = rows.sum(), rows > 0
    of_rows = losses.sum() / total, right.sum() / total
    of_classes = (np.mean(each[present] / rows[present]) for each in (losses, right))
    return Summary(int(total), *map(float, (*of_rows, *of_classes)))


def parts(logits: Array, labels: Array) -> Parts:
    """Equation (18). The calibrated loss is that of ``logits/T``, T of each fifth fitted on the others.

    Of more than `ENOUGH` rows some, evenly spread, tell the temperature and what it saves.
    """
    uncertainty = float(information.entropy(np.bincount(labels) / len(labels)))
    loss = float(cross_entropy(logits, labels))
    rows = slice(None, None, math.ceil(len(labels) / ENOUGH))
    fitted = cross_fitted(logits[rows], labels[rows])
    return Parts(uncertainty, uncertainty - (loss - fitted.saved), fitted.saved, fitted.temperature)


def class_summaries(
    probs: Array, labels: Array, losses: Array, gradient: Array, table: Array
) -> list[ClassSummary]:
    """Scores of each class; ``table`` is the confusion matrix."""
    total = float(losses.sum())
    result = []
    for k in range(probs.shape[1]):
        own = labels == k
        rows, predicted, right = int(own.sum()), int(table[:, k].sum()), int(table[k, k])
        loss = float(losses[own].sum())
        result.append(
            ClassSummary(
                rows=rows,
                loss=loss / rows if rows else None,
                share=loss / total if total > 0 else 0.0,
                recall=right / rows if rows else None,
                precision=right / predicted if predicted else None,
                pull=float(np.abs(gradient[:, k]).sum()),
                excess=float(gradient[:, k].sum()),
                reliability=reliability(probs[:, k], own, CLASS_BINS),
            )
        )
    return result


def costliest(probs: Array, labels: Array, losses: Array, gradient: Array) -> list[Sample]:
    """The `COSTLIEST` rows with the highest loss, the highest first; rows of equal loss in their order."""
    order = np.argsort(-losses, kind="stable")[:COSTLIEST]
    return [
        Sample(int(n), int(labels[n]), int(probs[n].argmax()), float(losses[n]), probs[n], gradient[n])
        for n in order
    ]


def reasons(sample: Sample, features: Array, coef: Array, names: list[str]) -> list[Reason]:
    """The features that raise the logit of the likeliest other class most above that of the label.

    Logits are ``coef (K, D)`` times ``features (D,)``, so their difference is a sum over features. Returns at
    most `MOST_REASONS`, the largest first.
    """
    order = np.argsort(-sample.probs, kind="stable")
    other = int(order[0] if order[0] != sample.label else order[1])
    terms = (coef[other] - coef[sample.label]) * features
    top = np.argsort(-terms, kind="stable")[:MOST_REASONS]
    return [Reason(names[j], float(terms[j])) for j in top if terms[j] > 0]


def confusion(logits: Array, labels: Array) -> Array:
    """(K, K) counts: true class, predicted class."""
    table = np.zeros((logits.shape[1],) * 2, np.int64)
    np.add.at(table, (labels, logits.argmax(1)), 1)
    return table


def reliability(stated: Array, true: Array, bins: int) -> list[Bin]:
    """Bins of the ``stated`` probabilities (N,) of events, which were ``true`` (N,) or not; none is empty."""
    index = np.minimum((stated * bins).astype(int), bins - 1)
    members = [index == b for b in range(bins)]
    return [Bin(int(m.sum()), float(stated[m].mean()), float(true[m].mean())) for m in members if m.any()]


def spread_rows(labels: Array, losses: Array, most: int) -> Array:
    """At most ``most`` rows, equally many of each class, sorted by label, then by loss."""
    present = np.unique(labels)
    each = max(1, most // len(present))
    chosen = []
    for k in present[np.linspace(0, len(present) - 1, min(len(present), most)).round().astype(int)]:
        own = np.flatnonzero(labels == k)
        own = own[np.argsort(losses[own], kind="stable")]
        chosen.append(own[np.linspace(len(own) - 1, 0, min(each, len(own))).round().astype(int)[::-1]])
    return np.concatenate(chosen)
