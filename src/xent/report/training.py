"""One run of `xent fit`: split, preprocess, train, check the gradient, diagnose."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from sklearn.model_selection import StratifiedKFold

from xent import information
from xent.api.cross_entropy import cross_entropy
from xent.check import GradientCheck, gradient_check
from xent.files.dataset import Dataset
from xent.files.preprocess import Preprocessor, describe_surprises
from xent.files.tables import DataError
from xent.regression.estimator import SoftmaxRegression
from xent.regression.file_rows.cached_rows import Reads
from xent.regression.fitting import Step, last_step
from xent.regression.objective import Objective
from xent.regression.parameters import check_parameters
from xent.regression.penalty.estimator_cv import SoftmaxRegressionCV
from xent.regression.saved import checkpoints
from xent.regression.saved.model_file import Model, PreparedRegression
from xent.regression.sums.partition_sums import as_logits
from xent.report.data_checks import Finding, findings
from xent.report.diagnosis import Diagnosis, Reason, Summary, diagnose, reasons, summarise_rows

Array = np.ndarray[Any, Any]

CHECK_WORK = 1 << 27  # multiplications in the gradient check: about 0.1 s
CHECK_ROWS = 64  # least number of rows to check it on
CHECK_PARAMETERS = (16, 256)  # least and largest number of parameters to check
FOLDS = 5  # for the choice of alpha
EXPONENTIAL = 16  # multiplications that take the time of one exponential


class Settings(NamedTuple):
    """The options of a run."""

    test_size: float = 0.2  # share of the rows to hold out; 0 trains on all of them
    seed: int = 0
    alpha: float = 1e-3
    max_iter: int = 1000
    tol: float = 1e-4
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    balanced: bool = False
    solver: Literal["auto", "lbfgs", "newton-cg", "sgd"] = "auto"
    auto_alpha: bool = False  # whether to choose alpha by cross-validation on the rows to train on

    @property
    def is_plain(self) -> bool:
        """Whether the training minimises the plain mean loss, and the penalty."""
        return not (self.balanced or self.focal_gamma or self.label_smoothing)


class Restart(NamedTuple):
    """The checkpoint that a training writes, and the one from which it goes on."""

    checkpoint: Path | None = None
    resume: Path | None = None


NO_RESTART = Restart()


class TrainingRows(Protocol):
    """The rows of a run: all in memory, `InMemory`, or read from files, `streamed.FromFiles`.

    Attributes
    ----------
    data : rows in memory: all, or those held out and some of those to train on
    train, test : the indices in ``data`` of rows to train on and of all rows held out
    is_sample : whether ``train`` are some of the rows to train on only
    classes, class_rows : (K,) the classes, sorted, and how many rows each has, held out or not
    learnt : the preprocessing, learnt from the rows to train on
    """

    data: Dataset
    train: Array
    test: Array
    is_sample: bool
    classes: Array
    class_rows: Array
    learnt: Preprocessor

    def fit(self, estimator: SoftmaxRegression) -> Objective:
        """Fit the estimator to the rows to train on; return what it has minimised."""
        ...

    def training_loss(self, step: Step) -> float:
        """Mean cross-entropy of the rows to train on after a step, nats."""
        ...


class TriedAlphas(NamedTuple):
    """The penalties that were tried on folds of the rows to train on, the largest first."""

    alphas: list[float]
    losses: list[float]  # mean cross-entropy where a row was held out, nats
    standard_errors: list[float]
    folds: int


class InMemory:
    """All rows in memory; DataError if they are too few to hold some out."""

    is_sample = False

    def __init__(self, data: Dataset, settings: Settings) -> None:
        self.data = data
        self.classes, labels = np.unique(data.labels, return_inverse=True)
        self.class_rows = np.bincount(labels)
        self.train, self.test = _split(data, self.classes, labels, settings)
        try:
            self.learnt = Preprocessor.fit(data.features[self.train], data.feature_names)
        except ValueError as error:
            raise DataError(f"{data.name}: {error}") from None
        self._x, self._y = self.learnt.transform(data.features[self.train]), labels[self.train]

    def fit(self, estimator: SoftmaxRegression) -> Objective:
        """See `TrainingRows`."""
        labels = self.data.labels[self.train]
        estimator.fit(self._x, labels)
        return estimator.objective(self._x, labels)

    def training_loss(self, step: Step) -> float:
        """See `TrainingRows`."""
        return float(cross_entropy(class_scores(self._x, step.coef, step.intercept), self._y))


class Run(NamedTuple):
    """The results of one run."""

    data: Dataset
    classes: list[Any]
    settings: Settings
    train: Summary
    held_out: Array  # indices of the held-out rows in the data
    class_rows: Array  # (K,) how many of these each class has, or of all rows if none are held out
    diagnosis: Diagnosis | None  # of the held-out rows, if there are any
    reasons: list[list[Reason]]  # for each of the costliest rows
    findings: list[Finding]
    uniform: float  # ln K
    # (training, held-out) mean cross-entropy from `first_step` on; None if no rows are held out
    curve: list[tuple[float, float | None]]
    gradient: GradientCheck
    optimality_gap: float | None  # bound on the relative distance from the optimum, if known
    solver: str
    steps: int
    seconds: float
    converged: bool
    surprises: list[str]  # sentences on what was left out of the data and what was new in held-out rows
    model: Model
    sample: int | None = None  # training rows in ``data``, if they are not all
    reads: Reads | None = None  # of files that were read piece by piece
    first_step: int = 0  # after which the training went on, if from a checkpoint
    tried: TriedAlphas | None = None  # if alpha was to be chosen

    @property
    def test(self) -> Summary | None:
        """The summary of the held-out rows, if there are any."""
        return None if self.diagnosis is None else self.diagnosis.summary

    @property
    def error(self) -> float | None:
        """Standard error of the held-out loss, if there is one, nats."""
        return None if self.diagnosis is None else self.diagnosis.error

    @property
    def validated(self) -> tuple[float, float] | None:
        """(loss on held-out folds, its standard error) of the alpha that was chosen, nats."""
        if self.tried is None:
            return None
        chosen = self.tried.alphas.index(self.settings.alpha)
        return self.tried.losses[chosen], self.tried.standard_errors[chosen]

    @property
    def frequencies(self) -> float:
        """Entropy of the frequencies in ``class_rows``: the loss of guessing by them."""
        return float(information.entropy(self.class_rows / self.class_rows.sum()))


def run(
    data: Dataset,
    settings: Settings,
    on_step: Callable[[Step], None] | None = None,
    restart: Restart = NO_RESTART,
) -> Run:
    """Train on rows in memory; ``on_step`` is called at each step.

    Raises DataError; OSError or ValueError for a checkpoint that cannot be read or written, or is of another
    training.
    """
    if data.held_out is not None:
        settings = settings._replace(test_size=len(data.held_out) / len(data.labels))
    estimator = estimator_for(settings, restart)
    rows = InMemory(data, settings)
    if isinstance(estimator, SoftmaxRegressionCV):
        most = int(np.unique(data.labels[rows.train], return_counts=True)[1].max())
        estimator.cv = StratifiedKFold(min(FOLDS, most), shuffle=True, random_state=settings.seed)
    return results(rows, estimator, settings, on_step)


def estimator_for(settings: Settings, restart: Restart) -> SoftmaxRegression:
    """The estimator of a run, to be fitted; errors for settings and checkpoints as its `fit` raises."""
    options: dict[str, Any] = {
        "max_iter": settings.max_iter,
        "tol": settings.tol,
        "solver": settings.solver,
        "random_state": settings.seed,
        "label_smoothing": settings.label_smoothing,
        "focal_gamma": settings.focal_gamma,
        "class_weight": "balanced" if settings.balanced else None,
    }
    if settings.auto_alpha:
        if restart != NO_RESTART:
            raise ValueError(
                "`--alpha` must be a number with --checkpoint and --resume, as a checkpoint is of a training "
                "with one alpha; got auto"
            )
        return SoftmaxRegressionCV(**options)
    estimator = PreparedRegression(alpha=settings.alpha, **options, **restart._asdict())
    check_parameters(estimator)
    checkpoints.check(estimator)
    return estimator


def results(
    rows: TrainingRows,
    estimator: SoftmaxRegression,
    settings: Settings,
    on_step: Callable[[Step], None] | None = None,
) -> Run:
    """Fit the estimator to the rows, check its gradient, and evaluate it on the held-out rows."""
    from sklearn.exceptions import ConvergenceWarning

    data, classes, test, learnt = rows.data, rows.classes, rows.test, rows.learnt
    x_test, y_test = learnt.transform(data.features[test]), np.searchsorted(classes, data.labels[test])
    surprises = [*data.notes, *describe_surprises(learnt.surprises(data.features[test]), "held-out row")]
    curve: list[tuple[float, float | None]] = []

    def losses(step: Step) -> tuple[float, float | None]:
        if not len(test):
            return rows.training_loss(step), None
        held_out = cross_entropy(class_scores(x_test, step.coef, step.intercept), y_test)
        return rows.training_loss(step), float(held_out)

    def callback(step: Step) -> None:
        curve.append(losses(step))
        if on_step is not None:
            on_step(step)

    if isinstance(estimator, PreparedRegression):
        estimator.prepared_by(learnt, _notes(data, settings))
    begun = None if estimator.resume is None else checkpoints.read(estimator).model  # may be written over
    estimator.callback = callback
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        objective = rows.fit(estimator)
    seconds = time.perf_counter() - start
    tried = None
    if isinstance(estimator, SoftmaxRegressionCV):
        settings = settings._replace(alpha=estimator.alpha_)
        tried = TriedAlphas(
            estimator.alphas_.tolist(),
            estimator.mean_scores_.tolist(),
            estimator.standard_errors_.tolist(),
            estimator.scores_.shape[1],
        )
        estimator = estimator.single()
    estimator.set_params(callback=None, checkpoint=None, resume=None)  # they are no part of the model
    uniform = math.log(len(classes))
    guess = (uniform, uniform if len(test) else None)
    curve.insert(0, guess if begun is None else losses(last_step(begun)))

    diagnosis, class_rows = None, rows.class_rows
    if len(test):
        diagnosis = diagnose(class_scores(x_test, estimator.coef_, estimator.intercept_), y_test)
        class_rows = np.bincount(y_test, minlength=len(classes))
    return Run(
        data=data,
        classes=[c.item() for c in classes],
        settings=settings,
        train=summarise_rows(objective, estimator.coef_, estimator.intercept_),
        held_out=test,
        class_rows=class_rows,
        diagnosis=diagnosis,
        reasons=[]
        if diagnosis is None
        else _reasons(diagnosis, x_test, estimator.coef_, learnt.feature_names),
        findings=findings(data, rows.train, test, (classes, rows.class_rows)),
        uniform=uniform,
        curve=curve,
        gradient=_check_gradient(objective, settings.seed),
        optimality_gap=estimator.optimality_gap_,
        solver=estimator.solver_,
        steps=estimator.n_iter_,
        seconds=seconds,
        converged=not caught,
        surprises=surprises,
        model=Model(estimator, learnt, _notes(data, settings)),
        sample=len(rows.train) if rows.is_sample else None,
        first_step=0 if begun is None else begun.n_iter_,
        tried=tried,
    )


def _split(data: Dataset, classes: Array, labels: Array, settings: Settings) -> tuple[Array, Array]:
    """(training rows, held-out rows), stratified by class."""
    from sklearn.model_selection import train_test_split

    if data.held_out is not None:
        return _given_split(data.name, data.held_out, classes, labels)
    if not settings.test_size:
        return np.arange(len(labels)), np.zeros(0, np.int64)
    counts = np.bincount(labels)
    if counts.min() < 2:
        raise DataError(
            f"{data.name}: class {classes[counts.argmin()].item()!r} has one row; at least 2 are needed, "
            "one to train on and one to hold out: --drop-rare leaves such rows out"
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


def _given_split(name: str, test: Array, classes: Array, labels: Array) -> tuple[Array, Array]:
    """(training rows, ``test``) of a file that has both; DataError if a part lacks what it needs."""
    train = np.setdiff1d(np.arange(len(labels)), test)
    counts = np.bincount(labels[train], minlength=len(classes))
    if not counts.all():
        absent = classes[counts.argmin()].item()
        raise DataError(f"{name}: class {absent!r} is in the rows for testing alone; none can teach it")
    if not len(test):
        raise DataError(f"{name}: its arrays for testing have no rows; leave them out of the file")
    return train, test


def _check_gradient(objective: Objective, seed: int) -> GradientCheck:
    """Check the gradient at random parameters, on as many rows and parameters as `CHECK_WORK` allows."""
    rng = np.random.default_rng(seed)
    rows, scores, parameters = objective.num_rows, objective.num_scores, objective.num_parameters
    entries = objective.totals.entries / rows
    point = rng.normal(0.0, 1 / math.sqrt(max(1.0, entries)), parameters)
    fewest, most = (min(parameters, each) for each in CHECK_PARAMETERS)
    of_row, of_parameters = (entries + EXPONENTIAL) * scores, 4 * parameters  # work of one evaluation
    checked = int(np.clip((CHECK_WORK / (2 * most) - of_parameters) / of_row, min(rows, CHECK_ROWS), rows))
    most = int(np.clip(CHECK_WORK / (2 * (checked * of_row + of_parameters)), fewest, most))
    if checked < rows:
        sample = np.sort(rng.choice(rows, checked, replace=False))
        objective = objective.subset(sample, objective.divisor * checked / rows)
    return gradient_check(objective, point, most, seed)._replace(rows=checked)


def class_scores(x: Array, coef: Array, intercept: Array) -> Array:
    """Logits (N, K)."""
    return as_logits(x @ coef.T + intercept)


def _reasons(diagnosis: Diagnosis, x: Any, coef: Array, names: list[str]) -> list[list[Reason]]:
    """The reasons for each of the costliest rows; ``x`` are all held-out rows, dense or CSR."""
    of_class = class_scores(coef.T, np.eye(len(coef)), np.zeros(len(coef))).T
    rows = x[[sample.position for sample in diagnosis.costliest]]
    dense = rows.toarray() if hasattr(rows, "toarray") else rows
    return [reasons(*each, of_class, names) for each in zip(diagnosis.costliest, dense, strict=True)]


def _notes(data: Dataset, settings: Settings) -> dict[str, Any]:
    """Notes on the training for the model file."""
    return {
        "dataset": data.name,
        "target": data.target,
        "dialect": data.dialect._asdict() | {"missing": list(data.dialect.missing)},
        "settings": settings._asdict(),
    }
