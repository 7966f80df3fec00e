"""One run of `xent fit`: split, prepare the columns, train, verify the gradient, measure."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from xent.api.cross_entropy import cross_entropy
from xent.check import GradientCheck, gradient_check
from xent.files.dataset import Dataset
from xent.files.preprocess import Preprocessor, describe_surprises
from xent.files.tables import DataError
from xent.regression.estimator import SoftmaxRegression
from xent.regression.model_file import Model
from xent.regression.objective import Objective
from xent.report.data_checks import Finding, findings
from xent.report.diagnosis import Diagnosis, Measures, Reason, diagnose, measures, reasons

Array = np.ndarray[Any, Any]

CHECK_WORK = 1 << 27  # multiplications of the gradient check: about 0.1 s; fewer rows where they are long
CHECK_ROWS = 64  # at least
CHECK_PARAMETERS = (16, 256)  # at least and at most
EXPONENTIAL = 16  # multiplications


class Settings(NamedTuple):
    """What a run depends on beside its data."""

    test_size: float = 0.2
    seed: int = 0
    alpha: float = 1e-3
    max_iter: int = 1000
    tol: float = 1e-4
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    balanced: bool = False
    solver: Literal["auto", "lbfgs", "newton-cg", "sgd"] = "auto"


class Run(NamedTuple):
    """All that there is to tell of one run."""

    data: Dataset
    classes: list[Any]
    settings: Settings
    train: Measures
    held_out: Array  # rows of the data that had no part in the training
    diagnosis: Diagnosis  # of those
    reasons: list[list[Reason]]  # of its costliest rows
    findings: list[Finding]
    uniform: float  # ln K
    curve: list[tuple[float, float]]  # (training, held-out) mean cross-entropy at each step
    gradient: GradientCheck
    optimality_gap: float | None  # bound on the relative distance from the optimum, if there is one
    solver: str
    steps: int
    seconds: float
    converged: bool
    surprises: list[str]  # what was left out of the data, and what was new in the held-out rows, in sentences
    model: Model

    @property
    def test(self) -> Measures:
        """Of the held-out rows."""
        return self.diagnosis.measures

    @property
    def frequencies(self) -> float:
        """Entropy of the class frequencies of the held-out rows: the loss of guessing by them."""
        return self.diagnosis.parts.uncertainty


def run(data: Dataset, settings: Settings, on_step: Callable[[int, float], None] | None = None) -> Run:
    """Train on ``data``; ``on_step(step, objective)`` is called at each step. Raises DataError."""
    from sklearn.exceptions import ConvergenceWarning

    classes, labels = np.unique(data.labels, return_inverse=True)
    train, test = _split(data, classes, labels, settings)
    learnt = _preprocessor(data, train)
    x, x_test = (learnt.transform(data.features[part]) for part in (train, test))
    surprises = [*data.notes, *describe_surprises(learnt.surprises(data.features[test]), "held-out row")]
    y, y_test = labels[train], labels[test]
    curve: list[tuple[float, float]] = []
    estimator = SoftmaxRegression(
        alpha=settings.alpha,
        max_iter=settings.max_iter,
        tol=settings.tol,
        solver=settings.solver,
        random_state=settings.seed,
        label_smoothing=settings.label_smoothing,
        focal_gamma=settings.focal_gamma,
        class_weight="balanced" if settings.balanced else None,
    )

    def losses(coef: Array, intercept: Array) -> tuple[float, float]:
        train, test = _class_scores(x, coef, intercept), _class_scores(x_test, coef, intercept)
        return float(cross_entropy(train, y)), float(cross_entropy(test, y_test))

    def callback(step: Any) -> None:
        curve.append(losses(step.coef, step.intercept))
        if on_step is not None:
            on_step(step.iteration, step.objective)

    estimator.callback = callback
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        estimator.fit(x, data.labels[train])
    seconds = time.perf_counter() - start
    estimator.callback = None  # the run's, not the model's
    curve.insert(0, (math.log(len(classes)),) * 2)

    objective = estimator.objective(x, data.labels[train])
    scores, scores_test = (_class_scores(each, estimator.coef_, estimator.intercept_) for each in (x, x_test))
    names = [c.item() for c in classes]
    found = diagnose(scores_test, y_test)
    return Run(
        data=data,
        classes=names,
        settings=settings,
        train=measures(scores, y),
        held_out=test,
        diagnosis=found,
        reasons=_reasons(found, x_test, estimator.coef_, learnt.feature_names),
        findings=findings(data, train, test),
        uniform=math.log(len(classes)),
        curve=curve,
        gradient=_verified(objective, settings.seed),
        optimality_gap=estimator.optimality_gap_,
        solver=estimator.solver_,
        steps=estimator.n_iter_,
        seconds=seconds,
        converged=not caught,
        surprises=surprises,
        model=Model(estimator, learnt, _notes(data, settings)),
    )


def _split(data: Dataset, classes: Array, labels: Array, settings: Settings) -> tuple[Array, Array]:
    """(training rows, held-out rows), each class in both in its proportion."""
    from sklearn.model_selection import train_test_split

    counts = np.bincount(labels)
    if counts.min() < 2:
        raise DataError(
            f"{data.name}: class {classes[counts.argmin()].item()!r} has one row; at least 2 are needed, "
            "one to train on and one to hold out"
        )
    held_out = math.ceil(settings.test_size * len(labels))
    if min(held_out, len(labels) - held_out) < len(classes):
        raise DataError(
            f"{data.name}: {len(labels)} rows of {len(classes)} classes are too few to hold out "
            f"{settings.test_size:g} of them: each part needs at least {len(classes)} rows"
        )
    train, test = train_test_split(
        np.arange(len(labels)), test_size=held_out, stratify=labels, random_state=settings.seed
    )
    return train, test


def _preprocessor(data: Dataset, train: Array) -> Preprocessor:
    """Learnt from the training rows."""
    try:
        return Preprocessor.fit(data.features[train], data.feature_names)
    except ValueError as error:
        raise DataError(f"{data.name}: {error}") from None


def _verified(objective: Objective, seed: int) -> GradientCheck:
    """The check of the gradient at random parameters, on so many rows that it takes `CHECK_WORK`."""
    rng = np.random.default_rng(seed)
    rows, scores, parameters = objective.num_rows, objective.num_scores, objective.num_parameters
    entries = objective.features.size / rows
    point = rng.normal(0.0, 1 / math.sqrt(max(1.0, entries)), parameters)
    fewest, most = (min(parameters, each) for each in CHECK_PARAMETERS)
    of_row, of_parameters = (entries + EXPONENTIAL) * scores, 4 * parameters  # of one evaluation
    checked = int(np.clip((CHECK_WORK / (2 * most) - of_parameters) / of_row, min(rows, CHECK_ROWS), rows))
    most = int(np.clip(CHECK_WORK / (2 * (checked * of_row + of_parameters)), fewest, most))
    if checked < rows:
        some = np.sort(rng.choice(rows, checked, replace=False))
        objective = objective.subset(some, objective.divisor * checked / rows)
    return gradient_check(objective, point, most, seed)._replace(rows=checked)


def _class_scores(x: Array, coef: Array, intercept: Array) -> Array:
    """Logits (N, K); two classes share one score."""
    scores = x @ coef.T + intercept
    return scores if scores.shape[1] > 1 else np.pad(scores, ((0, 0), (1, 0)))


def _reasons(found: Diagnosis, x: Any, coef: Array, names: list[str]) -> list[list[Reason]]:
    """Of the costliest of the held-out rows ``x``, dense or CSR."""
    of_class = _class_scores(coef.T, np.eye(len(coef)), np.zeros(len(coef))).T
    rows = x[[sample.place for sample in found.costliest]]
    dense = rows.toarray() if hasattr(rows, "toarray") else rows
    return [reasons(*each, of_class, names) for each in zip(found.costliest, dense, strict=True)]


def _notes(data: Dataset, settings: Settings) -> dict[str, Any]:
    """What the model file says of its making."""
    return {
        "dataset": data.name,
        "target": data.target,
        "dialect": data.dialect._asdict() | {"missing": list(data.dialect.missing)},
        "settings": settings._asdict(),
    }
