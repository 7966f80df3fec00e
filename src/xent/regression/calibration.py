"""The temperature that calibrates scores: the minimum of the mean loss over 1/T, a convex problem."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.optimize import brentq

from xent.api.cross_entropy import cross_entropy_with_grad

Array = np.ndarray[Any, Any]


def fit_temperature(logits: Array, targets: Array, sample_weight: Array | None = None) -> float:
    """The T > 0 that minimises the mean cross-entropy of ``softmax(logits/T)`` (Guo et al., 2017).

    With ``b = 1/T`` the mean loss F(b) is convex and by (2) ``F'(b) = Σ ω ⟨p − t, z⟩ / D``: its one root
    is found to the last digits of float64.

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
    _require_minimum(z, targets, sample_weight)

    def slope(log_b: float) -> float:
        b = math.exp(log_b)
        _, dlogits = cross_entropy_with_grad(z, targets, sample_weight=sample_weight, temperature=1 / b)
        return float(np.vdot(dlogits, z)) / b

    low = high = 0.0
    while slope(low) > 0:
        low -= 1.0
    while slope(high) < 0:
        high += 1.0
    root = brentq(slope, low, high, xtol=1e-15, rtol=4 * np.finfo(np.float64).eps) if low < high else 0.0
    return math.exp(-root)


def _require_minimum(z: Array, targets: Array, sample_weight: Array | None) -> None:
    """Raise ValueError unless F' < 0 at b = 0 and F' > 0 at b = ∞.

    F' is −Σω(⟨t, z⟩ − V·mean z)/D at b = 0 and Σω(V·max z − ⟨t, z⟩)/D at b = ∞.
    """
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
