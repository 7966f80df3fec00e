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
        self.losses: dict[float, list[Array]] = {}  # alpha → losses of the rows of each fold
        self.weight = np.concatenate([fold.weight for fold in self.folds])
        self._plain = self.whole.row_loss._replace(spec=LossSpec(), dtype=self.whole.totals.dtype)

    def mean(self, alpha: float) -> float:
        """The mean held-out loss, (49), at ``alpha``, which is computed if it was not yet."""
        if alpha not in self.losses:
            self.losses[alpha] = [
                row_losses(fold.rows, *self.whole.unpack(parameters), self._plain)
                for fold, parameters in zip(self.folds, self.path.at(alpha)[1:], strict=True)
            ]
        return self.moments(alpha)[0]

    def moments(self, alpha: float) -> tuple[float, float]:
        """(mean, its standard error): (49) and (50)."""
        losses = np.concatenate(self.losses[alpha])
        total = self.weight.sum()
        mean = float(self.weight @ losses / total)
        return mean, float(np.sqrt(self.weight**2 @ (losses - mean) ** 2) / total)

    def choice(self) -> Choice:
        """The result for the alphas so far."""
        alphas = sorted(self.losses, reverse=True)
        mean, error = np.array([self.moments(alpha) for alpha in alphas]).T
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
    """Try at most ``most`` alphas: from `FIRST` down as long as the loss falls, by more than `FLAT` errors.

    Then up to where it is more than one standard error above the least.
    """
    variance = validation.whole.feature_moments[1]
    scale = float(variance @ variance / variance.sum()) if variance.any() else 1.0

    def mean(step: int) -> float:
        alpha = scale * FIRST * STEP**step
        value = validation.mean(alpha)
        on_alpha(alpha, value)
        return value

    def falls() -> bool:
        """Whether the loss still falls, noticeably, towards smaller alphas."""
        last = min(tried)
        error = validation.moments(scale * FIRST * STEP**last)[1]
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
    with np.errstate(all="ignore"):
        validation = CrossValidation(estimator, X, targets, spec, cv)
    whole = validation.whole
    threads = few_threads(int(X.size), whole.num_scores, 1, whole.is_sparse or whole.is_fused)
    with threads, np.errstate(all="ignore"):
        if isinstance(alphas, int):
            return search(validation, alphas, on_alpha), validation.path
        return try_each(validation, alphas, on_alpha), validation.path
