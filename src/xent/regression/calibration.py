"""The temperature that calibrates scores, the minimum of the mean loss over 1/T, and what it saves."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from xent.core.link import Link
from xent.kernels import registry

Array = np.ndarray[Any, Any]

FOLDS = 5
# Steps of log 1/T: the first, the longest, the last, and one from all rows to a part that may be the last.
FIRST, LONGEST, LAST, SMALL = 0.05, 2.0, 1e-4, 2e-2
STEPS = 10


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

    So no row has a part in its own temperature, and what T saves is not exaggerated.

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
    >>> print(f"{fitted.temperature:.4f} saves {fitted.saved:.4f} nats")
    3.6410 saves 0.4558 nats
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
        log_b = _near(best, logits[others], targets[others], slope[others], float(curvature[others].sum()))
        calibrated[own], _ = _losses(logits[own], targets[own], math.exp(log_b))
    temperature = math.exp(-best)
    error = math.sqrt(float(slope @ slope)) / float(curvature.sum()) if curvature.sum() > 0 else math.nan
    return Calibrated(losses, calibrated, temperature, temperature * error)


def _secant(z: Array, targets: Array, slope: Array) -> tuple[float, Array, Array]:
    """(the best log b, the slopes there, the curvatures (N,)), by a few reads, from the slopes at log b = 0.

    ValueError if there is none.
    """
    before, log_b = 0.0, FIRST if slope.sum() < 0 else -FIRST
    for _ in range(STEPS):
        slope_before, (_, slope) = slope, _losses(z, targets, math.exp(log_b))
        curvature = (slope - slope_before) / (log_b - before)
        step = float(slope.sum()) / total if (total := float(curvature.sum())) > 0 else math.inf
        if abs(step) < LAST:
            return log_b - step, slope - step * curvature, curvature
        if not abs(step) < LONGEST:
            break
        before, log_b = log_b, log_b - step
    best = _best(z, targets, None)
    slope, after = (_losses(z, targets, math.exp(best + way))[1] for way in (0.0, FIRST))
    return best, slope, (after - slope) / FIRST


def _near(log_b: float, z: Array, targets: Array, slope: Array, curvature: float) -> float:
    """The best log b of other rows, by steps from ``log_b``, where slopes and curvature are known.

    It is at most `LONGEST` away, as a part of the rows may have none.
    """
    start = log_b
    for _ in range(STEPS):
        total = float(slope.sum())
        step = total / curvature if curvature > 0 else math.copysign(math.inf, total)
        if not abs(log_b - step - start) < LONGEST:
            return start - math.copysign(LONGEST, step)
        log_b -= step
        if abs(step) < SMALL:  # what is left is of second order in the step
            break
        _, slope = _losses(z, targets, math.exp(log_b))
    return log_b


def _best(z: Array, targets: Array, sample_weight: Array | None) -> float:
    """log b at the minimum of F; ValueError if there is none."""
    _require_minimum(z, targets, sample_weight)
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


def _require_minimum(z: Array, targets: Array, sample_weight: Array | None) -> None:
    """Raise ValueError unless F' < 0 at b = 0 and F' > 0 at b = ∞.

    F' is −Σω(⟨t, z⟩ − V·mean z)/D at b = 0 and Σω(V·max z − ⟨t, z⟩)/D at b = ∞.
    """
    z = np.asarray(z, np.float64)
    if targets.ndim == 1:
        mass, target_logit = np.ones(len(z)), z[np.arange(len(z)), targets]
    else:
        mass, target_logit = targets.sum(1), (targets * z).sum(1)
    weight = np.ones(len(z)) if sample_weight is None else sample_weight
    if not weight @ (mass * z.max(1) - target_logit) > 0:
        raise ValueError(
            "no temperature > 0 calibrates these scores: every row has its highest score where `y` says; "
            "calibrate on rows that had no part in the training, and on more of them"
        )
    if not weight @ (target_logit - mass * z.mean(1)) > 0:
        raise ValueError(
            "no finite temperature calibrates these scores: on these rows they are no better than uniform "
            "probabilities; is `y` in the order of the rows of `X`?"
        )
