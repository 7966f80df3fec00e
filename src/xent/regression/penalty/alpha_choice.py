"""Choose alpha by the cross-entropy on held-out folds."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from sklearn.model_selection import check_cv

from xent.api.cross_entropy import cross_entropy
from xent.core.spec import LossSpec
from xent.regression import features
from xent.regression.class_targets import ClassTargets, as_target, class_factors
from xent.regression.fitting import objective_of
from xent.regression.objective import SMALL, Objective
from xent.regression.penalty.penalty_path import PenaltyPath
from xent.regression.solvers import generator
from xent.regression.sums.partition_sums import as_logits
from xent.regression.sums.partitions import Local, Partition, with_entries
from xent.regression.sums.threads import few_threads

Array = np.ndarray[Any, Any]
OnAlpha = Callable[[float, float], None]  # alpha, mean held-out loss

STEP = 10**0.5  # between the alphas that are tried
FIRST = 10**-1.5  # that is tried, for features of variance 1


class Choice(NamedTuple):
    """The alphas that were tried, in descending order, and how well they did on held-out rows."""

    alphas: Array  # (A,)
    scores: Array  # (A, F) mean cross-entropy of each fold, nats
    mean: Array  # (A,) mean over all held-out rows, (49)
    standard_error: Array  # (A,) of the mean, (50)
    best: int  # index of the least mean
    sparest: int  # index of the largest alpha whose mean is at most one standard error above the least


class _Fold(NamedTuple):
    """The rows of one fold, held out."""

    rows: Any  # features
    targets: Array
    weight: Array  # 0 for a class that the other rows lack: it cannot be learnt


class CrossValidation:
    """The held-out losses of the optima for one alpha after the other.

    Parameters
    ----------
    estimator : SoftmaxRegression
        With checked parameters.
    X : (N, D) array or CSR matrix
    targets : ClassTargets
    spec : LossSpec
    cv : int, cross-validation splitter or iterable of (training rows, held-out rows)
    """

    def __init__(self, estimator: Any, X: Any, targets: ClassTargets, spec: LossSpec, cv: Any) -> None:
        self.narrow = X if X.dtype == np.float32 or _entries(X) < SMALL else _float32(X)
        weight = np.ones(X.shape[0]) if targets.weight is None else targets.weight

        def objective(rows: Array | None) -> Objective:
            part = targets if rows is None else targets._replace(weight=np.where(rows, weight, 0.0))
            factors = class_factors(estimator.class_weight, targets.classes, part.mass)
            local = Local([Partition(self.narrow, as_target(part, factors, spec))])
            return objective_of(estimator, local, len(targets.classes), spec)

        self.whole = objective(None)
        self.folds: list[_Fold] = []
        without = []
        for training, held_out in _splits(cv, X, targets):
            mask = np.zeros(X.shape[0], bool)
            mask[training] = True
            without.append(objective(mask))
            known = targets._replace(weight=np.where(mask, weight, 0.0)).mass > 0
            self.folds.append(self._fold(held_out, targets, weight, known))
        self.path = PenaltyPath(self.whole, without, generator(estimator.random_state, "lbfgs"))
        self.losses: dict[float, list[Array]] = {}  # alpha → losses of the rows of each fold

    def _fold(self, rows: Array, targets: ClassTargets, weight: Array, known: Array) -> _Fold:
        each = targets.targets[rows]
        can_be_learnt = known[each] if each.ndim == 1 else each[:, ~known].sum(1) == 0
        return _Fold(self.narrow[rows], each, weight[rows] * can_be_learnt)

    def mean(self, alpha: float) -> float:
        """The mean held-out loss, (49), at ``alpha``, which is computed if it was not yet."""
        if alpha not in self.losses:
            self.losses[alpha] = [
                self._loss(fold, parameters)
                for fold, parameters in zip(self.folds, self.path.at(alpha)[1:], strict=True)
            ]
        return self._moments(alpha)[0]

    def _loss(self, fold: _Fold, parameters: Array) -> Array:
        coef, intercept = (each.astype(self.narrow.dtype) for each in self.whole.unpack(parameters))
        scores = as_logits(features.scores(fold.rows, coef, intercept))
        return np.asarray(cross_entropy(scores, fold.targets, reduction="none"), np.float64)

    def _moments(self, alpha: float) -> tuple[float, float]:
        """(mean, its standard error): (49) and (50)."""
        weight = np.concatenate([fold.weight for fold in self.folds])
        losses = np.concatenate(self.losses[alpha])
        total = weight.sum()
        mean = float(weight @ losses / total)
        return mean, float(np.sqrt(weight**2 @ (losses - mean) ** 2) / total)

    def choice(self) -> Choice:
        """The result for the alphas so far."""
        alphas = sorted(self.losses, reverse=True)
        mean, error = np.array([self._moments(alpha) for alpha in alphas]).T
        scores = [
            [
                np.average(losses, weights=fold.weight) if fold.weight.any() else np.nan
                for losses, fold in each
            ]
            for each in (zip(self.losses[alpha], self.folds, strict=True) for alpha in alphas)
        ]
        best = int(mean.argmin())
        return Choice(
            np.array(alphas),
            np.array(scores),
            mean,
            error,
            best,
            int(np.argmax(mean <= mean[best] + error[best])),
        )


def search(validation: CrossValidation, most: int, on_alpha: OnAlpha) -> Choice:
    """Try at most ``most`` alphas: from `FIRST` down, or else up, to where the loss rises again.

    Then up to where it is more than one standard error above the least.
    """
    variance = validation.whole.feature_moments[1]
    scale = float(variance @ variance / variance.sum()) if variance.any() else 1.0

    def mean(step: int) -> float:
        alpha = scale * FIRST * STEP**step
        value = validation.mean(alpha)
        on_alpha(alpha, value)
        return value

    tried = {step: mean(step) for step in (0, -1)[:most]}
    downwards = -1 in tried and tried[-1] < tried[0]
    while downwards and len(tried) < most and min(tried, key=tried.__getitem__) == min(tried):
        tried[min(tried) - 1] = mean(min(tried) - 1)
    while len(tried) < most:
        choice = validation.choice()
        if choice.sparest > 0 and choice.best > 0:
            break
        tried[max(tried) + 1] = mean(max(tried) + 1)
    return validation.choice()


def try_each(validation: CrossValidation, alphas: Array, on_alpha: OnAlpha) -> Choice:
    """Try each of ``alphas``, from the largest to the smallest."""
    for alpha in sorted(alphas.tolist(), reverse=True):
        on_alpha(alpha, validation.mean(alpha))
    return validation.choice()


def choose(
    estimator: Any,
    X: Any,
    targets: ClassTargets,
    spec: LossSpec,
    alphas: int | Array,
    cv: Any,
    on_alpha: OnAlpha = lambda alpha, loss: None,
) -> tuple[Choice, PenaltyPath]:
    """(the losses for each alpha, the optima). ``alphas`` are those to try, or how many at most."""
    scores = len(targets.classes) if len(targets.classes) > 2 else 1
    with few_threads(_entries(X), scores, 1, hasattr(X, "indptr")), np.errstate(all="ignore"):
        validation = CrossValidation(estimator, X, targets, spec, cv)
        if isinstance(alphas, int):
            return search(validation, alphas, on_alpha), validation.path
        return try_each(validation, alphas, on_alpha), validation.path


def _splits(cv: Any, X: Any, targets: ClassTargets) -> list[tuple[Array, Array]]:
    """[(training rows, held-out rows)], stratified by class if ``cv`` is a number and ``y`` labels."""
    y = np.zeros(X.shape[0]) if targets.labels is None else targets.labels
    splitter = check_cv(cv, y, classifier=targets.labels is not None)
    with warnings.catch_warnings():
        # Rows of classes that the other folds lack are left out of the mean: see `_Fold`.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        return [(np.asarray(one), np.asarray(other)) for one, other in splitter.split(X, y)]


def _entries(X: Any) -> int:
    return int(X.size)


def _float32(X: Any) -> Any:
    return with_entries(X, X.data.astype(np.float32)) if hasattr(X, "indptr") else X.astype(np.float32)
