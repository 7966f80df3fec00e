"""Checks of JAX arguments: shapes and dtypes always, values where they are known."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xent.core.spec import as_index
from xent.core.target import divisor
from xent.engine import checks

Array = Any

FLOATING = ("float64", "float32", "float16", "bfloat16")


def as_array(x: Any, name: str) -> Array:
    """``x`` as a JAX array; the same refusals as for NumPy."""
    return jnp.asarray(as_given(x, name))


def as_given(x: Any, name: str) -> Array:
    """``x`` as a JAX array, or as a NumPy one, whose values are known also while others are traced."""
    if isinstance(x, jax.Array):
        return x
    if checks.is_tensor(x):
        raise TypeError(f"`{name}` must be a JAX array here; got a `torch.{type(x).__name__}`")
    array = checks.as_array(x, name)
    if array.dtype.name not in (*FLOATING, "bool") and array.dtype.kind not in "iuc":
        raise TypeError(f"`{name}` must be an array of numbers; got {array.dtype}")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def as_logits(x: Any, name: str = "logits") -> Array:
    """``x`` as floats (..., K); integers become floats of the widest enabled type."""
    array = as_array(x, name)
    if array.dtype.name not in FLOATING:
        if not jnp.issubdtype(array.dtype, jnp.integer):
            raise TypeError(
                f"`{name}` must be an array of {', '.join(FLOATING)}, or of integers; got {array.dtype}"
            )
        array = array.astype(float)
    if array.ndim == 0:
        raise ValueError(f"`{name}` must have at least one axis, the classes; got a scalar")
    return array


def as_labels(x: Any, name: str = "labels") -> Array:
    """``x`` as an array of integers."""
    array = as_array(x, name)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"`{name}` must have an integer dtype; got {array.dtype}")
    return array


def loss_dtype(logits: Array) -> Any:
    """float64 for float64 logits, float32 for all others (docs/differences.md, 3)."""
    return logits.dtype if logits.dtype == np.float64 else jnp.dtype(np.float32)


def axis_last(x: Array, axis: Any) -> Array:
    """``x`` with ``axis`` last."""
    return jnp.moveaxis(x, checked_axis(axis, x.shape), -1)


def checked_axis(axis: Any, shape: tuple[int, ...]) -> int:
    """``axis`` as an index from the end, −1 for the last; raises if an array of ``shape`` has none."""
    index, ndim = as_index("axis", axis), len(shape)
    if not -ndim <= index < ndim:
        raise ValueError(f"`axis` must be in [-{ndim}, {ndim}) for an array of shape {shape}; got {axis}")
    return index if index < 0 else index - ndim


def as_weights(
    weights: Any,
    name: str,
    shape: tuple[int, ...],
    dtype: Any,
    validate: bool | None = False,
    is_signed: bool = True,
) -> Array:
    """Numbers of ``shape`` in the dtype of the loss; where `is_checked`, finite, and ≥ 0 unless signed."""
    array = as_given(weights, name)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(f"`{name}` must be an array of numbers; got {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"`{name}` must have shape {shape}; got {array.shape}")
    if is_checked(validate, array):
        axis = "class" if name == "class_weight" else "row"
        checks.check_weights(np.asarray(array, np.float64), name, is_signed, axis)
    return jnp.asarray(array).astype(dtype)


def as_denominator(value: Any) -> Any:
    """None, "rows", or a number or 0-d array, which may be traced."""
    if isinstance(value, jax.Array):
        if value.ndim or value.dtype == bool or jnp.issubdtype(value.dtype, jnp.complexfloating):
            raise TypeError(
                f'`denominator` must be None, "rows" or a number, finite and >= 0; got an array of '
                f"{value.dtype} and shape {value.shape}"
            )
        if is_known(value):
            checks.as_denominator(value.item())
        return value
    return checks.as_denominator(value)


def split_denominator(value: Any, reduction: str) -> tuple[str | None, Any]:
    """(None, "rows" or "number"; the number, or None): what is static of ``denominator`` and what is not."""
    denominator = as_denominator(value)
    if reduction != "mean":
        divisor(0, 0, reduction, denominator)  # raises for a denominator
    if denominator is None or isinstance(denominator, str):
        return denominator, None
    return "number", denominator


def is_known(*arrays: Any) -> bool:
    """Whether the values of the arrays can be looked at: none of them is traced."""
    return not any(isinstance(x, jax.core.Tracer) for x in arrays)


def is_checked(validate: bool | None, *arrays: Any) -> bool:
    """Whether values are to be checked: known, and by default on the CPU, where looking at them is free."""
    given = [x for x in arrays if x is not None]
    if validate is False or not is_known(*given):
        return False
    return bool(validate) or all(_is_on_cpu(x) for x in given)


def _is_on_cpu(x: Any) -> bool:
    if not isinstance(x, jax.Array):
        return True
    return x.is_fully_addressable and all(device.platform == "cpu" for device in x.devices())
