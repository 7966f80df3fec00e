"""Choose alpha by the cross-entropy on held-out folds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from xent.core.spec import LossSpec
from xent.regression.class_targets import ClassTargets, as_target, class_factors
from xent.regression.fitting import objective_of
from xent.regression.objective import Objective
from xent.regression.penalty.folds import rows_of, sorted_by_fold, splits_of, targets_of
from xent.regression.penalty.penalty_path import PenaltyPath
from xent.regression.penalty.sampled_path import SampledPath, sample_size
from xent.regression.solvers import generator
from xent.regression.sums.partition_sums import row_losses
from xent.regression.sums.partitions import Local, Partition
from xent.regression.sums.threads import few_threads

Array = np.ndarray[Any, Any]
OnAlpha = Callable[[float, float], None]  # alpha, mean held-out loss

STEP = 10**0.5  # between the alphas that are tried
LEAST_SHARE = 1e-9  # of the weight of a class, in the other rows, below which it is rounding
FLAT = 0.03  # decrease of the loss, in its standard error, that is worth no smaller alpha
FIRST = 10**-1.5  # that is tried, for features of variance 1


class Choice(NamedTuple):
    """The alphas that were tried, in descending order, and how well they did on held-out rows."""

    alphas: Array  # (A,)
    scores: Array  # (A, F) mean cross-entropy of each fold, nats
    mean: Array  # (A,) mean over all held-out rows, (49)
    standard_error: Array  # (A,) of the mean, (50)
    best: int  # index of the least mean
    sparest: int  # index of the largest alpha whose mean is at most one standard error above the least


class Tried(NamedTuple):
    """How well an alpha did on held-out rows."""

    by_fold: list[float]  # mean cross-entropy, nats
    mean: float  # over all rows, (49)
    standard_error: float  # of the mean, (50)


class _Fold(NamedTuple):
    """The rows of one fold, held out."""

    rows: Partition  # with the targets of the plain loss
    weight: Array  # 0 for a class that the other rows lack: it cannot be learnt

    @classmethod
    def of(cls, X: Any, targets: ClassTargets, rows: Any, known: Array) -> _Fold:
        """Some of the rows; ``known`` are the classes that the others have."""
        targets = targets_of(targets, rows)
        each = targets.targets
        can_be_learnt = known[each] if each.ndim == 1 else each[:, ~known].sum(1) == 0
        weight = np.ones(len(each)) if targets.weight is None else targets.weight
        plain = as_target(targets._replace(weight=None), None, LossSpec())
        return cls(Partition(rows_of(X, rows), plain), weight * can_be_learnt)


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
        X, targets, splits = sorted_by_fold(X, targets, splits_of(cv, X, targets))

        def objective(mass: Array, *selections: Any) -> Objective:
            factors = class_factors(estimator.class_weight, targets.classes, mass)
            parts = [
                Partition(rows_of(X, rows), as_target(targets_of(targets, rows), factors, spec))
                for rows in selections
            ]
            return objective_of(estimator, Local(parts), len(targets.classes), spec)

        mass = targets.mass
        self.whole = objective(mass, slice(None))
        sampled = None if estimator.class_weight == "balanced" else sample_size(self.whole)
        self.folds: list[_Fold] = []
        objectives = []
        for split in splits:
            without = mass - targets_of(targets, split.left_out).mass
            self.folds.append(_Fold.of(X, targets, split.held_out, without > LEAST_SHARE * mass))
            if sampled:
                objectives.append(objective(mass, split.left_out))
            else:
                objectives.append(objective(without, *split.training))
        random = generator(estimator.random_state, "lbfgs")
        self.path = (
            SampledPath(self.whole, objectives, sampled, random)
            if sampled
            else PenaltyPath(self.whole, objectives, random)
        )
        self.tried: dict[float, Tried] = {}
        self.weight = np.concatenate([fold.weight for fold in self.folds])
        self._plain = self.whole.row_loss._replace(spec=LossSpec(), dtype=self.whole.totals.dtype)

    def at(self, alpha: float) -> Tried:
        """The scores of ``alpha``, which are computed if they were not yet."""
        if alpha not in self.tried:
            losses = [
                row_losses(fold.rows, *self.whole.unpack(parameters), self._plain)
                for fold, parameters in zip(self.folds, self.path.at(alpha)[1:], strict=True)
            ]
            self.tried[alpha] = self._scores(losses)
        return self.tried[alpha]

    def choice(self) -> Choice:
        """The result for the alphas so far."""
        alphas = sorted(self.tried, reverse=True)
        scores, mean, error = (
            np.array(column) for column in zip(*(self.tried[alpha] for alpha in alphas), strict=True)
        )
        best = int(mean.argmin())
        return Choice(
            np.array(alphas), scores, mean, error, best, int(np.argmax(mean <= mean[best] + error[best]))
        )

    def _scores(self, losses: list[Array]) -> Tried:
        """Of the losses of the rows of each fold."""
        by_fold = [
            np.average(each, weights=fold.weight) if fold.weight.any() else np.nan
            for each, fold in zip(losses, self.folds, strict=True)
        ]
        each, total = np.concatenate(losses), self.weight.sum()
        mean = float(self.weight @ each / total)
        return Tried(by_fold, mean, float(np.sqrt(self.weight**2 @ (each - mean) ** 2) / total))


def search(validation: CrossValidation, most: int, on_alpha: OnAlpha) -> Choice:
    """Try at most ``most`` alphas: from `FIRST` down as long as the loss falls, by more than `FLAT` errors.

    Then up to where it is more than one standard error above the least.
    """
    variance = validation.whole.feature_moments[1]
    scale = float(variance @ variance / variance.sum()) if variance.any() else 1.0

    def mean(step: int) -> float:
        alpha = scale * FIRST * STEP**step
        value = validation.at(alpha).mean
        on_alpha(alpha, value)
        return value

    def falls() -> bool:
        """Whether the loss still falls, noticeably, towards smaller alphas."""
        last = min(tried)
        error = validation.at(scale * FIRST * STEP**last).standard_error
        return tried[last + 1] - tried[last] > FLAT * error

    tried = {step: mean(step) for step in (0, -1)[:most]}
    while -1 in tried and len(tried) < most and falls():
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
        on_alpha(alpha, validation.at(alpha).mean)
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
    with np.errstate(all="ignore"):
        validation = CrossValidation(estimator, X, targets, spec, cv)
    whole = validation.whole
    threads = few_threads(int(X.size), whole.num_scores, 1, whole.is_sparse or whole.is_fused)
    with threads, np.errstate(all="ignore"):
        if isinstance(alphas, int):
            return search(validation, alphas, on_alpha), validation.path
        return try_each(validation, alphas, on_alpha), validation.path
