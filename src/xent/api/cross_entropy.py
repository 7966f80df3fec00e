"""The NumPy front end: cross-entropy from logits, its gradient and its Hessian product."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np

from xent.core.contract import Cotangents, RowStats
from xent.core.link import Link
from xent.core.spec import LossSpec, Options, as_index, require_reduction, with_options
from xent.engine import checks, memory
from xent.engine.batch_loss import Problem, mean_loss_and_grad
from xent.kernels import registry

Array = np.ndarray[Any, Any]


@with_options()
def cross_entropy(
    logits: Any,
    targets: Any,
    *,
    reduction: str = "mean",
    denominator: Any = None,
    validate: bool = True,
    **options: Unpack[Options],
) -> Any:
    """Cross-entropy of raw logits with labels or probabilities, in nats: equations (1) and (4).

    For one row of logits ``z`` and a label ``y`` this is ``−z_y + log Σ exp z_i`` (Bishop, *Pattern
    Recognition and Machine Learning*, 4.108, from logits).

    Parameters
    ----------
    logits : (..., K) array, torch.Tensor or jax.Array, of float64, float32, float16 or bfloat16
        Unnormalised log-probabilities, classes on the last axis; any strides. Integers in an array
        count as float64. Never written. For a tensor the loss is a tensor that autograd differentiates; for
        a JAX array it is `xent.jax.cross_entropy`, which can be traced.
    targets : (...) integers, or (..., K) floats
        Labels in [0, K), or a distribution (row of non-negative numbers) for each row.
    reduction : {"mean", "sum", "none"}, default "mean"
        "none" gives one loss for each row, (...).
    denominator : None, "rows" or float, default None
        What a mean divides by: the total weight, the number of rows that count, or this number.
    validate : bool, default True
        Check the range of labels and the sign of probabilities. If False, a label out of range makes the
        loss of its row NaN.

    OPTIONS

    Returns
    -------
    loss : float64 scalar or array for float64 logits, float32 for all others
        0 for a mean over no rows.

    Raises
    ------
    TypeError
        For another dtype or type.
    ValueError
        For a value or shape that is not valid; the message has the argument, what was expected, the value
        and its place.

    Examples
    --------
    >>> import numpy as np, xent
    >>> round(float(xent.cross_entropy(np.array([[2.0, 3.0, 4.0]]), np.array([1]))), 6)
    1.407606
    """
    if checks.is_tensor(logits):
        from xent.torch import api

        return api.cross_entropy(logits, targets, reduction, denominator, validate, options)
    if checks.is_jax_array(logits):
        from xent import jax

        given = {"reduction": reduction, "denominator": denominator, **options}
        return jax.cross_entropy(logits, targets, validate=None if validate else False, **given)
    problem = Problem.from_arguments(logits, targets, reduction, denominator, validate, options)
    return problem.loss(problem.stats())


@with_options()
def cross_entropy_with_grad(
    logits: Any,
    targets: Any,
    *,
    reduction: str = "mean",
    denominator: Any = None,
    out: Array | None = None,
    validate: bool = True,
    **options: Unpack[Options],
) -> tuple[Any, Array]:
    """Cross-entropy and its gradient in the logits, in one read of them: equations (1), (2) and (4).

    With labels and no options the gradient of the mean is ``(softmax(logits) − one_hot) / N``.

    Parameters
    ----------
    logits, targets, reduction, denominator, validate
        As for `cross_entropy`.
    out : array of the logits' shape and dtype, default None
        Where to write the gradient; may be ``logits`` itself.

    OPTIONS

    Returns
    -------
    loss
        As for `cross_entropy`.
    dlogits : (..., K) array of the logits' dtype and layout
        Gradient of the loss; of the sum of the losses for ``reduction="none"``.

    Raises
    ------
    TypeError, ValueError
        As for `cross_entropy`, and for an ``out`` that does not fit.

    Examples
    --------
    >>> import numpy as np, xent
    >>> loss, dlogits = xent.cross_entropy_with_grad(np.array([[2.0, 3.0, 4.0]]), np.array([1]))
    >>> dlogits.round(4)
    array([[ 0.09  , -0.7553,  0.6652]])
    """
    are_arrays = type(logits) is type(targets) is np.ndarray
    if are_arrays and not options and denominator is None and reduction == "mean":
        result = mean_loss_and_grad(logits, targets, lambda z: checks.as_out(out, z, targets))
        if result is not None:
            return result
    problem = Problem.from_arguments(logits, targets, reduction, denominator, validate, options)
    return problem.loss_and_grad(_gradient_buffer(problem, out, targets))


@with_options()
def cross_entropy_hvp(
    logits: Any,
    targets: Any,
    vector: Any,
    *,
    reduction: str = "mean",
    denominator: Any = None,
    out: Array | None = None,
    validate: bool = True,
    **options: Unpack[Options],
) -> Array:
    """Hessian of cross-entropy in the logits, times ``vector``: equation (3).

    With labels and no options a row of the product is ``p∘(r − ⟨p, r⟩) / N``.

    Parameters
    ----------
    logits, targets, reduction, denominator, validate, out
        As for `cross_entropy_with_grad`.
    vector : (..., K) array
        The direction ``r``, of the logits' shape; converted to their dtype.

    OPTIONS

    Returns
    -------
    product : (..., K) array of the logits' dtype and layout
        The Hessian of the loss (of the sum of the losses for ``reduction="none"``) times ``r``.

    Raises
    ------
    TypeError, ValueError
        As for `cross_entropy_with_grad`.

    Examples
    --------
    >>> import numpy as np, xent
    >>> xent.cross_entropy_hvp(np.zeros((1, 2)), np.array([0]), np.array([[1.0, 0.0]]))
    array([[ 0.25, -0.25]])
    """
    problem = Problem.from_arguments(logits, targets, reduction, denominator, validate, options)
    direction = checks.as_logits(vector, "vector")
    if direction.shape != problem.logits.shape:
        raise ValueError(
            f"`vector` must have the shape of the logits, {problem.logits.shape}; got {direction.shape}"
        )
    direction = direction.astype(problem.logits.dtype, copy=False)
    return problem.hvp(direction, _gradient_buffer(problem, out, targets, vector))


class CrossEntropyLoss:
    """The loss as an object with fixed options: ``loss = f(logits, targets)``, then ``f.backward()``.

    Parameters
    ----------
    reduction, denominator, validate, **options
        As for `cross_entropy`.

    Raises
    ------
    TypeError, ValueError
        At construction for a bad number or string, at the call for bad arrays.

    Examples
    --------
    >>> import numpy as np, xent
    >>> loss = xent.CrossEntropyLoss(label_smoothing=0.1)
    >>> value = loss(np.array([[2.0, 3.0, 4.0]]), np.array([1]))
    >>> round(float(value), 6)
    1.407606
    >>> loss.backward().round(4)
    array([[ 0.0567, -0.6886,  0.6319]])
    """

    @with_options()
    def __init__(
        self,
        *,
        reduction: str = "mean",
        denominator: Any = None,
        validate: bool = True,
        **options: Unpack[Options],
    ) -> None:
        require_reduction(reduction)
        LossSpec.from_options(options)
        self.reduction = reduction
        self.denominator = checks.as_denominator(denominator)
        self.validate = validate
        self.options = options
        self._problem: Problem | None = None
        self._targets: Any = None
        self._stats = RowStats()

    def __call__(self, logits: Any, targets: Any) -> Any:
        """The loss, as `cross_entropy` gives it. ``logits`` are kept (not copied) for `backward`."""
        self._problem = Problem.from_arguments(
            logits, targets, self.reduction, self.denominator, self.validate, self.options
        )
        self._targets = targets
        self._stats = self._problem.stats_for_grad()
        return self._problem.loss(self._stats)

    def backward(self, dloss: Any = 1.0, *, out: Array | None = None) -> Array:
        """Gradient of the last call's loss in its logits, times ``dloss``. May be called several times.

        ``dloss`` is a number, or an array (...) of upstream gradients for ``reduction="none"``.
        ``out`` may be the logits; they are overwritten then, and `backward` cannot be called again.
        Raises RuntimeError before the first call, ValueError for a ``dloss`` of another shape, TypeError for
        one that is not a number.
        """
        if self._problem is None:
            raise RuntimeError("`backward` needs a loss: call the object on logits and targets first")
        upstream = checks.as_array(dloss, "dloss")
        if upstream.dtype.kind not in "biuf":
            raise TypeError(f"`dloss` must be a number or an array of numbers; got {dloss!r}")
        upstream = upstream.astype(np.float64)
        rows = self._problem.logits.shape[:-1] if self.reduction == "none" else ()
        if upstream.shape not in ((), rows):
            raise ValueError(f"`dloss` must be a number or have shape {rows}; got {upstream.shape}")
        dlogits = _gradient_buffer(self._problem, out, self._targets)
        problem, scalar = self._problem, upstream.ndim == 0
        if out is not None and np.may_share_memory(out, problem.logits):
            self._problem = None
        return problem.grad(self._stats, float(upstream) if scalar else upstream, dlogits)

    def __repr__(self) -> str:
        options = {"reduction": self.reduction, "denominator": self.denominator} | self.options
        return f"CrossEntropyLoss({', '.join(f'{k}={v!r}' for k, v in options.items())})"


def logsumexp(logits: Any, axis: int = -1) -> Any:
    """``log Σ exp z_i`` along ``axis``, in the loss's dtype.

    −inf where all are −inf, +inf where one is +inf, NaN where one is NaN.

    >>> import xent
    >>> round(float(xent.logsumexp([0.0, 0.0, 0.0, 0.0])), 6)
    1.386294
    """
    z = _axis_last(checks.as_logits(logits), axis)
    lse = registry.get("cpu").row_stats(z, None, None, Link(), ("lse",)).lse
    if (has_none := np.isnan(lse)).any():  # the kernels return NaN for a row without a softmax
        lse[has_none] = z[has_none].astype(np.float64).max(-1)
    return lse.astype(checks.loss_dtype(z), copy=False)[()]


def softmax(logits: Any, axis: int = -1, *, out: Array | None = None) -> Array:
    """``exp z_i / Σ exp z_j`` along ``axis``, in the dtype of the logits: the gradient of `logsumexp`.

    >>> import xent
    >>> xent.softmax([0.0, 0.0])
    array([0.5, 0.5])
    """
    z = checks.as_logits(logits)
    rows = _axis_last(z, axis)
    p = checks.as_out(out, z)
    registry.get("cpu").row_stats_and_grad(
        rows, None, None, Link(), Cotangents(lse=1.0), (), _axis_last(p, axis)
    )
    return p


def log_softmax(logits: Any, axis: int = -1) -> Array:
    """``z_i − log Σ exp z_j`` along ``axis``, in the dtype of the logits; also exact as p → 1.

    >>> import xent
    >>> xent.log_softmax([0.0, 0.0]).round(4)
    array([-0.6931, -0.6931])
    """
    z = checks.as_logits(logits)
    moved = _axis_last(z, axis)
    if not z.size:
        return np.empty_like(z, subok=False)
    kernels = registry.get("cpu")
    likeliest = kernels.row_stats(moved, None, None, Link(), ("argmax",)).argmax
    largest = np.take_along_axis(moved, likeliest[..., None], -1).astype(np.float64)
    # log p = (z − max) + log p of the likeliest class. With logits of 1e4, z − log Σ exp z would lose 1e-13.
    highest = kernels.row_stats(moved, likeliest, None, Link(), ("log_prob",)).log_prob
    wide = z.astype(np.float32) if checks.is_half(z.dtype) else z
    log_p = memory.empty_like(wide)
    # inf − inf gives NaN for a row without a softmax; differences too large for the dtype become −inf.
    with np.errstate(invalid="ignore", over="ignore"):
        np.subtract(wide, np.moveaxis(largest, -1, axis), out=log_p, dtype=np.float64, casting="same_kind")
        np.add(log_p, np.expand_dims(highest, axis), out=log_p, dtype=np.float64, casting="same_kind")
        return log_p.astype(z.dtype, copy=False)


def _axis_last(x: Array, axis: int) -> Array:
    """A view of ``x`` with ``axis`` last."""
    index = as_index("axis", axis)
    if not -x.ndim <= index < x.ndim:
        raise ValueError(
            f"`axis` must be in [-{x.ndim}, {x.ndim}) for an array of shape {x.shape}; got {axis}"
        )
    return np.moveaxis(x, index, -1)


def _gradient_buffer(problem: Problem, out: Array | None, *inputs: Any) -> Array:
    if out is None:
        return memory.empty_like(problem.logits)
    return checks.as_out(out, problem.logits, problem.target.labels, problem.target.dense, *inputs)
