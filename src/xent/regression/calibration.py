"""The temperature that calibrates scores, the minimum of the mean loss over 1/T, and what it saves."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from xent.core.link import Link
from xent.kernels import registry

Array = np.ndarray[Any, Any]

FOLDS = 5
FIRST = 0.05  # the first step of log 1/T
FAR, UP = 0.3, 0.5  # a step that a secant is not trusted with, and the step up instead of it
LAST = 1e-4, 0.02  # a step after which no other follows: its length, or its share of the standard error
LONGEST = 1.0  # from the best log 1/T of all rows to that of a part, which may have none
STEPS = 20


class Calibrated(NamedTuple):
    """The losses of rows before and after a temperature that was fitted on other rows."""

    losses: Array  # (N,)
    calibrated: Array  # (N,), unchanged if no temperature can be fitted
    temperature: float | None  # fitted on all rows; None if there is no best one, as if all are right
    temperature_se: float

    @property
    def saved(self) -> float:
        """The decrease of the mean loss, 0 if it does not decrease."""
        return max(0.0, float(np.mean(self.losses - self.calibrated)))

    @property
    def saved_se(self) -> float:
        """The standard error of the decrease."""
        n = len(self.losses)
        return float((self.losses - self.calibrated).std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan


def fit_temperature(logits: Array, targets: Array, sample_weight: Array | None = None) -> float:
    """The T > 0 that minimises the mean cross-entropy of ``softmax(logits/T)`` (Guo et al., 2017).

    With ``b = 1/T`` the mean loss F(b) is convex and by (2) ``F'(b) = Σ ω ⟨p − t, z⟩ / D``, which is the
    mean of ``ω (ℓ − V·H(p)) / b`` (47): its one root is found to the last digits of float64.

    Parameters
    ----------
    logits : (N, K) array, preferably of held-out rows
    targets : (N,) integers, labels; or (N, K) floats, probabilities
    sample_weight : (N,) array >= 0, default None

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If F has no minimum at a finite T > 0: every row is right (T → 0), or the logits are no better
        than uniform probabilities (T → ∞).

    Examples
    --------
    Three of four rows are right, where the logits claim 98%; log 3 is the logit of 3/4:

    >>> import numpy as np
    >>> from xent.regression.calibration import fit_temperature
    >>> T = fit_temperature(np.array([[4.0, 0.0]] * 4), np.array([0, 0, 0, 1]))
    >>> print(f"{T:.6f}", f"{4.0 / T:.6f}", f"{np.log(3):.6f}")
    3.640957 1.098612 1.098612
    """
    z = np.ascontiguousarray(logits, np.float64)
    return math.exp(-_best(z, np.asarray(targets), sample_weight))


def cross_fitted(logits: Array, targets: Array) -> Calibrated:
    """The losses of ``logits/T``, T of each of `FOLDS` parts of the rows fitted on the others.

    So no row has a part in its own temperature, and what T saves is not exaggerated. T of a part is one
    Newton step from T of all rows: what is left is of second order in the step, of the order of 1/N.

    Parameters
    ----------
    logits : (N, K) array of floats, which are not widened
    targets : (N,) integers, labels; or (N, K) floats, probabilities

    Returns
    -------
    Calibrated

    Examples
    --------
    >>> import numpy as np
    >>> from xent.regression.calibration import cross_fitted
    >>> fitted = cross_fitted(np.array([[4.0, 0.0]] * 20), np.tile([0, 0, 0, 1], 5))
    >>> print(f"{fitted.temperature:.2f} saves {fitted.saved:.4f} nats")
    3.64 saves 0.4558 nats
    """
    losses, slope = _losses(logits, targets, 1.0)
    try:
        best, slope, curvature = _secant(logits, targets, slope)
    except ValueError:
        return Calibrated(losses, losses, None, math.nan)
    calibrated = losses.copy()
    fold = np.arange(len(losses)) % min(FOLDS, len(losses))
    for f in range(fold.max() + 1):
        own, others = fold == f, fold != f
        step = _newton_step(slope[others], curvature[others])
        log_b = best + min(max(step, -LONGEST), LONGEST)
        calibrated[own], _ = _losses(logits[own], targets[own], math.exp(log_b))
    temperature = math.exp(-best)
    return Calibrated(losses, calibrated, temperature, temperature * _error(slope, curvature))


def _secant(z: Array, targets: Array, slope: Array) -> tuple[float, Array, Array]:
    """(the best log b, the slopes there, the curvatures (N,)), by a few reads, from the slopes at log b = 0.

    ValueError if there is none.
    """
    before, log_b = 0.0, FIRST if slope.sum() < 0 else -FIRST
    at_zero: float | None = None  # F' at b = 0, if it was needed
    for _ in range(STEPS):
        slope_before, (_, slope) = slope, _losses(z, targets, math.exp(log_b))
        curvature = (slope - slope_before) / (log_b - before)
        step = _newton_step(slope, curvature)
        near = abs(log_b - before) < FAR
        if near and abs(step) < max(LAST[0], LAST[1] * _error(slope, curvature)):
            return log_b + step, slope + step * curvature, curvature
        if abs(step) > FAR:
            if at_zero is None:
                at_zero = _slope_at_zero(z, targets, None)
            # F' is linear in b where b is small: the root of the line from 0 cannot fall below 0.
            step = UP if step > 0 else -math.log1p(-float(slope.sum()) / math.exp(log_b) / at_zero)
        before, log_b = log_b, log_b + step
    best = _best(z, targets, None)
    slope, after = (_losses(z, targets, math.exp(best + way))[1] for way in (0.0, FIRST))
    return best, slope, (after - slope) / FIRST


def _newton_step(slope: Array, curvature: Array) -> float:
    """The step to the best log b; infinite where F is not convex in log b."""
    slopes, curvatures = float(slope.sum()), float(curvature.sum())
    return -slopes / curvatures if curvatures > 0 else math.copysign(math.inf, -slopes)


def _error(slope: Array, curvature: Array) -> float:
    """The standard error of the best log b."""
    total = float(curvature.sum())
    # Not a product of BLAS, whose threads would hold up those of the next read.
    return math.sqrt(float(np.square(slope).sum())) / total if total > 0 else math.nan


def _best(z: Array, targets: Array, sample_weight: Array | None) -> float:
    """log b at the minimum of F; ValueError if there is none."""
    _slope_at_zero(z, targets, sample_weight)
    from scipy.optimize import brentq  # half a second to import, and most samples do without

    def slope(log_b: float) -> float:
        _, each = _losses(z, targets, math.exp(log_b))
        return float(each.sum() if sample_weight is None else sample_weight @ each)

    low = high = 0.0
    while slope(low) > 0:
        low -= 1.0
    while slope(high) < 0:
        high += 1.0
    precise = z.dtype == np.float64
    xtol, rtol = (1e-15, 4 * np.finfo(np.float64).eps) if precise else (1e-7, 1e-7)
    return float(brentq(slope, low, high, xtol=xtol, rtol=rtol)) if low < high else 0.0


def _losses(z: Array, targets: Array, b: float) -> tuple[Array, Array]:
    """(losses of ``b z`` (N,), their derivatives in log b), which are ℓ − V·H(p) by (47)."""
    kernels, link = registry.get("cpu"), Link(1 / b)
    if targets.ndim == 1:
        labels = np.ascontiguousarray(targets, np.int64)
        stats = kernels.row_stats(z, labels, None, link, ("log_prob", "entropy"))
        return -stats.log_prob, -stats.log_prob - stats.entropy
    dense = np.ascontiguousarray(targets, np.float64)
    stats = kernels.row_stats(z, None, dense, link, ("dense_log_prob", "entropy"))
    return -stats.dense_log_prob, -stats.dense_log_prob - dense.sum(1) * stats.entropy


def _slope_at_zero(z: Array, targets: Array, sample_weight: Array | None) -> float:
    """D F' at b = 0, −Σω(⟨t, z⟩ − V·mean z); ValueError unless it is < 0, and F' > 0 at b = ∞.

    There F' is Σω(V·max z − ⟨t, z⟩)/D. Logits of −∞ have no part in the mean, nor in p at any b > 0.
    """
    if z.dtype.itemsize < 4:
        z = z.astype(np.float32)
    if targets.ndim == 1:
        mass, target_logit = np.ones(len(z)), z[np.arange(len(z)), targets].astype(np.float64)
    else:
        mass, target_logit = targets.sum(1), (targets * z).sum(1)
    weight = np.ones(len(z)) if sample_weight is None else sample_weight
    if not weight @ (mass * z.max(1) - target_logit) > 0:
        raise ValueError(
            "no temperature > 0 calibrates these scores: every row has its highest score where `y` says; "
            "calibrate on rows that had no part in the training, and on more of them"
        )
    mean = z.mean(1, dtype=np.float64)
    if not np.isfinite(mean).all():
        mean = z.mean(1, dtype=np.float64, where=z > -np.inf)
    slope = -float(weight @ (target_logit - mass * mean))
    if not slope < 0:
        raise ValueError(
            "no finite temperature calibrates these scores: on these rows they are no better than uniform "
            "probabilities; is `y` in the order of the rows of `X`?"
        )
    return slope
