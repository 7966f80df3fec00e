"""Add up the scores of all rows, and make the result of an evaluation of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from xent import information
from xent.evaluation import standard_errors
from xent.evaluation.calibration import bins
from xent.evaluation.calibration.bins import Bin, CalibrationErrors
from xent.evaluation.calibration.classwise import Classwise
from xent.evaluation.calibration.refinement import Refinement, RowSample
from xent.evaluation.class_scores import ClassScores
from xent.evaluation.scoring import Columns, Scores
from xent.evaluation.standard_errors import Estimate, UnitSums
from xent.kernels import cpu_evaluate

Array = np.ndarray[Any, Any]

# Columns of the sums over rows or groups: rows, loss, right rows, rows right in the top k, Brier score; then
# the counts of --units.
COLUMNS = 5


class UnitScore(NamedTuple):
    """The loss per byte, word or other unit of the text."""

    name: str
    total: float  # units in all rows
    bits: float  # per unit
    bits_se: float
    perplexity: float  # exp of the loss per unit


class Evaluation(NamedTuple):
    """The result of an evaluation. Losses are in nats. Means are over ``rows``: not ignored, with a loss.

    A name ending in ``_se`` is the standard error of a mean, clustered by ``groups`` if there are any. An
    ``_interval`` is one of 95%.
    """

    num_classes: int
    rows: int
    ignored: int
    undefined: int  # rows with a NaN or +inf, left out
    first_undefined: int | None  # the first of these, counted from 1
    infinite: int  # rows whose target has probability 0, which makes loss, KL and shares infinite
    unnormalised: int  # rows of probabilities that do not sum to 1; they were divided by their sum
    unnormalised_targets: int  # rows of targets that do not sum to 1; they were not changed
    like_probabilities: bool  # whether all sampled rows of logits lie in [0, 1] and sum to 1
    groups: int | None  # groups of rows that the standard errors are clustered by
    loss: float
    loss_se: float
    loss_interval: tuple[float, float]
    entropy: float  # H(q) of the targets, 0 for labels
    divergence: float  # KL(q‖p)
    frequencies: float  # entropy of the mean target, the loss of always predicting it
    units: list[UnitScore]
    accuracy: float
    accuracy_se: float
    accuracy_interval: tuple[float, float]
    top_k: int
    top_k_accuracy: float
    top_k_accuracy_se: float
    brier: float  # mean Brier score, in [0, 2]
    brier_se: float
    refinement: Refinement | None  # None if no temperature can be fitted
    calibration: CalibrationErrors
    classwise: Classwise | None  # None with very many classes
    calibration_gap: float  # mean confidence − accuracy
    bins: list[Bin]
    classes: ClassScores

    @property
    def perplexity(self) -> float:
        """exp(loss), infinite above 709 nats."""
        return perplexity(self.loss)

    @property
    def perplexity_interval(self) -> tuple[float, float]:
        """exp of the interval of the loss."""
        low, high = self.loss_interval
        return perplexity(low), perplexity(high)

    @property
    def bits(self) -> float:
        """Loss in bits."""
        return float(information.bits(self.loss))

    @property
    def bits_se(self) -> float:
        """Standard error of the loss in bits."""
        return float(information.bits(self.loss_se))

    @property
    def calibration_error(self) -> float:
        """The mean gap between confidence and accuracy over 15 equal bins."""
        return self.calibration.error


def perplexity(loss: float) -> float:
    """exp(loss), infinite above 709 nats."""
    with np.errstate(over="ignore"):
        return float(information.perplexity(loss))


class ColumnSums:
    """Sums of `Columns` over rows; they depend on the order in which rows are added."""

    def __init__(self, num_classes: int) -> None:
        self.by_class = np.zeros((num_classes, 4))  # rows, right rows, rows right in the top k, loss
        self.predicted = np.zeros(num_classes)  # rows predicted to be of the class
        # Of each bin of confidence: rows, right rows, confidence, infinite losses.
        self.by_bin = np.zeros((bins.BINS * bins.FINE, 4))
        self.moments = np.zeros(4)  # loss − shift, its square, Brier score, its square
        self.shift: float | None = None  # a loss near the mean
        self.ignored = self.undefined = 0
        self.first_undefined: int | None = None

    def add(self, columns: Columns, top_k: int, start: int) -> None:
        """Add rows, the first of which is row ``start``."""
        if self.shift is None:
            losses = columns.loss[columns.label >= 0]
            losses = losses[np.isfinite(losses)]
            self.shift = float(losses.mean()) if len(losses) else None
        sums = self.by_class, self.predicted, self.by_bin, self.moments
        ignored, undefined, first = cpu_evaluate.evaluate_fold(*columns, top_k, self.shift or 0.0, *sums)
        self.ignored += ignored
        self.undefined += undefined
        if self.first_undefined is None and first >= 0:
            self.first_undefined = start + first

    def totals(self) -> tuple[Array, Array, int]:
        """As `UnitSums.totals`, of rows; only the products that a mean over rows needs."""
        rows, right, near, _ = self.by_class.sum(0)
        loss, loss2, brier, brier2 = self.moments
        sums = np.array([rows, loss, right, near, brier])
        products = np.diag([rows, loss2, right, near, brier2])
        products[0], products[:, 0] = sums, sums
        return products, sums, int(rows)


class Tally:
    """All sums of an evaluation.

    ``groups`` is the number of groups of rows, or None. ``units`` are the numbers of units of the text by
    their names, or None where each row has a number of its own, which `add` is given.
    """

    def __init__(
        self,
        num_classes: int,
        top_k: int,
        sample: RowSample,
        groups: int | None = None,
        units: Mapping[str, float | None] | None = None,
    ) -> None:
        self.sums = ColumnSums(num_classes)
        self.top_k = top_k
        self.sample = sample
        self.units = units or {}
        self.counted = [name for name, count in self.units.items() if count is None]
        self.groups = groups
        columns = COLUMNS + len(self.counted)
        self.unit_sums = UnitSums(columns, groups) if groups is not None or self.counted else None
        self.gaps = None if groups is None else bins.GroupSums(groups)
        self.entropy = 0.0
        self.target: Array | None = None
        self.unnormalised = self.unnormalised_targets = 0
        self.sampled = self.like_probabilities = 0

    @property
    def may_be_probabilities(self) -> bool:
        """Whether all sampled rows so far were like probabilities."""
        return self.sampled == self.like_probabilities

    def add(self, part: Scores, groups: Array | None = None, counts: Sequence[Array] = ()) -> None:
        """Add the scores of some rows; ``groups`` and ``counts`` have an entry for each row."""
        self.sums.add(part.columns, self.top_k, part.start)
        if self.unit_sums is not None:
            c, counts_of = part.columns, part.columns.counts
            loss = c.loss - (self.sums.shift or 0.0)
            rows = [np.ones(len(loss)), loss, c.label == c.predicted, c.above < self.top_k, c.brier, *counts]
            x = np.stack([column[counts_of] for column in rows], 1, dtype=np.float64)
            self.unit_sums.add(x, None if groups is None else groups[counts_of])
            if self.gaps is not None and groups is not None:
                self.gaps.add(c.confidence[counts_of], x[:, 2], groups[counts_of])
        self.unnormalised += part.unnormalised
        self.unnormalised_targets += part.unnormalised_targets
        self.sampled += part.sampled
        self.like_probabilities += part.like_probabilities
        if part.entropy is not None:
            self.entropy += part.entropy
            self.target = part.target if self.target is None else self.target + part.target

    def evaluation(self) -> Evaluation:
        """The result: means of the sums."""
        sums = self.sums
        support, right, _, losses = sums.by_class.T
        rows, total = int(support.sum()), float(losses.sum())

        def mean(sum_: Any) -> float:
            return float(sum_) / rows if rows else math.nan

        totals = sums.totals() if self.unit_sums is None else self.unit_sums.totals
        loss, accuracy, near, brier = (self._mean(totals, column) for column in range(1, COLUMNS))
        # The sum of the losses themselves has no shift, and the bits of the loss that was always printed.
        loss = loss._replace(value=mean(total), se=loss.se if math.isfinite(total) else math.nan)
        shares = support if self.target is None else self.target
        return Evaluation(
            num_classes=len(support),
            rows=rows,
            ignored=sums.ignored,
            undefined=sums.undefined,
            first_undefined=None if sums.first_undefined is None else sums.first_undefined + 1,
            infinite=int(sums.by_bin[:, 3].sum()),
            unnormalised=self.unnormalised,
            unnormalised_targets=self.unnormalised_targets,
            like_probabilities=self.sampled > 0 and self.may_be_probabilities,
            groups=None if self.groups is None else totals[2],
            loss=loss.value,
            loss_se=loss.se,
            loss_interval=loss.interval,
            entropy=mean(self.entropy),
            divergence=mean(total - self.entropy),
            frequencies=float(information.entropy(shares / shares.sum())) if rows else math.nan,
            units=[self._unit(name, totals, loss, total) for name in self.units] if rows else [],
            accuracy=mean(right.sum()),
            accuracy_se=accuracy.se,
            accuracy_interval=standard_errors.proportion_interval(accuracy),
            top_k=self.top_k,
            top_k_accuracy=near.value,
            top_k_accuracy_se=near.se,
            brier=brier.value,
            brier_se=brier.se,
            refinement=self.sample.refinement(loss.value),
            calibration=bins.calibration_errors(sums.by_bin, self.gaps),
            classwise=self.sample.classwise(),
            calibration_gap=mean((sums.by_bin[:, 2] - sums.by_bin[:, 1]).sum()),
            bins=bins.equal_widths(sums.by_bin),
            classes=ClassScores(sums.by_class, sums.predicted),
        )

    def _mean(self, totals: tuple[Array, Array, int], column: int) -> Estimate:
        unit = np.eye(len(totals[1]))
        return standard_errors.ratio(*totals, unit[column], unit[0])

    def _unit(self, name: str, totals: tuple[Array, Array, int], loss: Estimate, total: float) -> UnitScore:
        """The loss per unit: of a fixed number of them, or of as many as each row has."""
        count = self.units[name]
        if count is None:
            column = COLUMNS + self.counted.index(name)
            unit = np.eye(len(totals[1]))
            summed = unit[1] + (self.sums.shift or 0.0) * unit[0]
            estimate, count = standard_errors.ratio(*totals, summed, unit[column]), float(totals[1][column])
        else:
            rows = float(totals[1][0])
            estimate = Estimate(total / count, loss.se * rows / count, loss.freedom)
        bits, se = (float(information.bits(x)) for x in (estimate.value, estimate.se))
        return UnitScore(name, count, bits, se, perplexity(estimate.value))
