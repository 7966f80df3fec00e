"""Checks of NumPy arguments: each is checked here, once, and converted to a plain array."""

from __future__ import annotations

import math
import reprlib
import sys
from typing import Any

import numpy as np

from xent.core import target
from xent.core.spec import LossSpec, as_float, require_no_gradient
from xent.core.target import Target
from xent.engine import memory
from xent.kernels import cpu

Array = np.ndarray[Any, Any]

FLOAT32 = np.dtype(np.float32)
FLOATING = "float64, float32, float16, bfloat16"


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Whether ``dtype`` is one of FLOATING, of any byte order. (`dtype.name` takes 4 µs of a 10 µs call.)"""
    return dtype.char in "dfe" or is_bfloat16(dtype)


def is_half(dtype: np.dtype[Any]) -> bool:
    """Whether ``dtype`` is float16 or bfloat16."""
    return dtype.char == "e" or is_bfloat16(dtype)


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Whether ``dtype`` is ml_dtypes's bfloat16, which NumPy itself does not know."""
    return dtype.kind == "V" and dtype.name == "bfloat16"


def as_logits(x: Any, name: str = "logits") -> Array:
    """``x`` as a native floating array (..., K); integers become float64."""
    array = as_array(x, name)
    dtype = array.dtype
    if not is_floating(dtype):
        if dtype.kind not in "iu":
            raise TypeError(f"`{name}` must be an array of {FLOATING}, or of integers; got {dtype}")
        array = array.astype(np.float64)
    if array.ndim == 0:
        raise ValueError(f"`{name}` must have at least one axis, the classes; got a scalar")
    if not dtype.isnative:
        return array.astype(array.dtype.newbyteorder("="))
    return array if array.flags.aligned else array.copy()


def is_tensor(x: Any) -> bool:
    """Whether ``x`` is a torch.Tensor, without loading PyTorch."""
    return type(x) is not np.ndarray and "torch" in sys.modules and isinstance(x, sys.modules["torch"].Tensor)


def is_jax_array(x: Any) -> bool:
    """Whether ``x`` is a jax.Array, traced or not, without loading JAX."""
    return type(x) is not np.ndarray and "jax" in sys.modules and isinstance(x, sys.modules["jax"].Array)


def as_array(x: Any, name: str) -> Array:
    """``x`` as an ndarray, refusing types that would silently lose gradients, masks or sparsity."""
    if type(x) is np.ndarray:
        return x
    module = type(x).__module__.partition(".")[0]
    if module in ("torch", "jax", "jaxlib"):
        raise TypeError(
            f"`{name}` must be a NumPy array here; got {module} `{type(x).__name__}`, whose gradient "
            f"this function cannot carry: pass `numpy.asarray({name})` if that is meant"
        )
    if isinstance(x, np.ma.MaskedArray) or module == "scipy":
        raise TypeError(
            f"`{name}` must be a plain dense array; got `{type(x).__name__}`; mark rows to leave out "
            "by `ignore_index` or `sample_weight`"
        )
    try:
        return np.asarray(x)
    except ValueError as error:
        raise ValueError(f"`{name}` must be a rectangular array; {error}") from None


def as_integers(x: Any, name: str) -> Array:
    """``x`` as an ndarray of an integer dtype."""
    array = as_array(x, name)
    if array.dtype.kind not in "iu":
        raise TypeError(f"`{name}` must have an integer dtype; got {array.dtype}")
    return array


def loss_dtype(logits: Array) -> np.dtype[Any]:
    """float64 for float64 logits, float32 for all others (docs/differences.md, 3)."""
    return logits.dtype if logits.dtype.char == "d" else FLOAT32


def as_target(
    targets: Any,
    logits: Array,
    spec: LossSpec,
    class_weight: Any = None,
    sample_weight: Any = None,
    validate: bool = True,
    name: str = "targets",
) -> Target:
    """Labels (...) of an integer dtype, or probabilities (..., K) of a floating one, as a measure."""
    array = as_array(targets, name)
    num_classes = logits.shape[-1]
    if class_weight is not None:
        class_weight = as_class_weight(class_weight, num_classes, validate)
    if sample_weight is not None:
        sample_weight = as_weights(sample_weight, "sample_weight", logits.shape[:-1], validate)
    if is_labels(array, logits.shape, name):
        labels, ignored = as_labels(array, num_classes, spec.ignore_index, validate, name)
        return target.from_labels(labels, ignored, num_classes, class_weight, sample_weight, spec, np)
    q = as_probabilities(array, loss_dtype(logits))
    if validate:
        check_probabilities(q)
    return target.from_probabilities(q, class_weight, sample_weight, spec, np)


def is_labels(targets: Array, shape: tuple[int, ...], name: str = "targets") -> bool:
    """Whether ``targets`` are labels, not probabilities, by dtype; raises if the shape fits neither."""
    if targets.dtype.kind in "iu":
        if targets.shape != shape[:-1]:
            raise ValueError(
                f"`{name}` of an integer dtype are labels and must have the shape of the rows, "
                f"{shape[:-1]}; got {targets.shape} (one-hot rows must have a floating dtype)"
            )
        return True
    if not is_floating(targets.dtype):
        raise TypeError(
            f"`{name}` must have an integer dtype (labels) or a floating dtype (probabilities); "
            f"got {targets.dtype}"
        )
    if targets.shape != shape:
        raise ValueError(
            f"`{name}` of a floating dtype are probabilities and must have the shape of the "
            f"logits, {shape}; got {targets.shape} (labels must have an integer dtype)"
        )
    return False


def as_probabilities(q: Array, dtype: np.dtype[Any]) -> Array:
    """``q`` as kernels read it; half precision, foreign byte order and unaligned memory become ``dtype``."""
    return q.astype(dtype) if is_half(q.dtype) or not (q.dtype.isnative and q.flags.aligned) else q


def as_class_weight(weights: Any, num_classes: int, validate: bool) -> Array:
    """Finite weights (K,), none negative, as float64."""
    return as_weights(weights, "class_weight", (num_classes,), validate, is_signed=False)


def as_weights(
    weights: Any, name: str, shape: tuple[int, ...], validate: bool, is_signed: bool = True
) -> Array:
    """Finite weights of ``shape`` as float64."""
    array = as_array(weights, name)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"`{name}` must be an array of numbers; got {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"`{name}` must have shape {shape}; got {array.shape}")
    array = array.astype(np.float64)
    if validate:
        check_weights(array, name, is_signed, "class" if name == "class_weight" else "row")
    return array


def check_weights(weights: Array, name: str, is_signed: bool, axis: str = "row") -> None:
    """Raise ValueError at the first of float64 ``weights`` that is not finite, or negative unless signed."""
    bad = ~np.isfinite(weights)
    expected = "finite"
    if not bad.any() and not is_signed:
        bad, expected = weights < 0, ">= 0"
    if bad.any():
        where = np.unravel_index(int(bad.argmax()), bad.shape)
        at = f"class {where[0]}" if axis == "class" else describe_index(where)
        raise ValueError(f"`{name}` must be {expected}; got {weights[where]} at {at}")


def as_labels(
    labels: Array, num_classes: int, ignore_index: int, validate: bool, name: str = "targets"
) -> tuple[Array, Array | None]:
    """(labels as int64, the mask of ignored ones or None if there are none)."""
    y = labels.astype(np.int64, order="C", copy=False)
    if not y.flags.aligned:
        y = y.copy()
    ignored = None
    if 0 <= ignore_index < num_classes or not cpu.all_in_range(y, num_classes):
        outside = np.greater_equal(y.view(np.uint64), num_classes)  # also negative labels
        ignored = labels == ignore_index
        if validate and np.count_nonzero(bad := outside & ~ignored):
            where = np.unravel_index(int(bad.argmax()), bad.shape)
            raise ValueError(
                f"`{name}` must be in [0, {num_classes}) or equal ignore_index={ignore_index}; "
                f"got {labels[where]} at {describe_index(where)}"
            )
        if not validate:  # a label out of range, also a negative one, makes its row NaN
            y = np.where(outside & ~ignored, num_classes, y)
    return y, ignored


def all_within(x: Array, upper: float) -> bool:
    """Whether all of ``x`` is in [0, upper]; NaN is not. bfloat16 may come as its bits."""
    flags = x.flags
    if x.dtype.char in "dfeH" and x.dtype.isnative and flags.forc and flags.aligned:
        return cpu.all_within(x.ravel("K"), upper)
    return not x.size or bool(x.min() >= 0 and x.max() <= upper)


def check_probabilities(q: Array, name: str = "targets", upper: float = math.inf) -> None:
    """Raise ValueError at the first entry of ``q`` that is NaN, negative or above ``upper``."""
    if not all_within(q, upper):
        where = np.unravel_index(int((~((q >= 0) & (q <= upper))).argmax()), q.shape)
        expected = "not negative and not NaN" if upper == math.inf else f"in [0, {upper:g}]"
        raise ValueError(f"`{name}` must be {expected}; got {q[where]} at {describe_index(where)}")


def check_pair_targets(q: Array, name: str = "targets", option: str | None = None) -> None:
    """Raise ValueError at an entry of ``q`` outside [0, 1], or not 0 or 1 if an ``option`` needs labels."""
    check_probabilities(q, name, upper=1.0)
    if option is not None and (bad := (q != 0) & (q != 1)).any():
        where = np.unravel_index(int(bad.argmax()), q.shape)
        raise ValueError(
            f"`{name}` must be 0 or 1, the labels that `{option}` needs; got {q[where]} at "
            f"{describe_index(where)}"
        )


def as_out(out: Any, like: Array, *inputs: Any) -> Array:
    """The caller's buffer for a gradient, checked; or a new one that keeps the layout of ``like``.

    Those of ``inputs`` that are arrays must not share memory with it.
    """
    if out is None:
        return memory.empty_like(like)
    if not isinstance(out, np.ndarray):
        raise TypeError(f"`out` must be a NumPy array; got `{type(out).__name__}`")
    if out.dtype != like.dtype:
        raise TypeError(f"`out` must have the dtype of the logits, {like.dtype}; got {out.dtype}")
    if out.shape != like.shape:
        raise ValueError(f"`out` must have the shape of the logits, {like.shape}; got {out.shape}")
    flags = out.flags
    if not (flags.writeable and flags.aligned):
        raise ValueError("`out` must be writeable and aligned; got a read-only or unaligned array")
    if not flags.forc and _overlaps_itself(out):
        raise ValueError(
            "`out` must own each of its elements; got an array of stride 0 or of overlapping windows"
        )
    for x in (like, *inputs):
        if not isinstance(x, np.ndarray) or (flags.owndata and x.flags.owndata and x is not out):
            continue  # arrays that own their memory share none; faster than may_share_memory
        if np.may_share_memory(x, out) and not (x is like and _coincide(x, out)):
            raise ValueError("`out` must be the logits themselves or overlap no input; it overlaps one")
    return out


def _overlaps_itself(x: Array) -> bool:
    """Whether a stride is shorter than the extent of the smaller strides; a slice of an array has none."""
    reach = 0
    for stride, length in sorted((abs(s), n) for s, n in zip(x.strides, x.shape, strict=True) if n > 1):
        if stride <= reach:
            return True
        reach += stride * (length - 1)
    return False


def _coincide(x: Array, y: Array) -> bool:
    return x.ctypes.data == y.ctypes.data and x.strides == y.strides


def as_denominator(value: Any) -> Any:
    """``None``, ``"rows"`` or a number that is finite and not negative, as a float."""
    expected = '`denominator` must be None, "rows" or a number, finite and >= 0'
    if value is None or isinstance(value, str):
        if value not in (None, "rows"):
            raise ValueError(f"{expected}; got {value!r}")
        return value
    is_plain = isinstance(value, (int, float)) and not isinstance(
        value, bool
    )  # first: PyTorch can trace this
    is_bool = not is_plain and (isinstance(value, bool) or getattr(value, "dtype", None) == np.bool_)
    number = None if is_bool or (not is_plain and is_tensor(value)) else as_float(value)
    if number is None:
        raise TypeError(f"{expected}; got {value!r}")
    if not 0 <= number < math.inf:
        raise ValueError(f"{expected}; got {reprlib.repr(value)}")
    return number


def as_pos_weight(pos_weight: Any) -> float:
    """A number, finite and not negative; 1 for None."""
    if pos_weight is None:
        return 1.0
    require_no_gradient("pos_weight", pos_weight)
    weight = None if is_tensor(pos_weight) else as_float(pos_weight)
    if weight is None:
        raise TypeError(f"`pos_weight` must be a number, finite and >= 0; got {pos_weight!r}")
    if not 0 <= weight < float("inf"):
        raise ValueError(f"`pos_weight` must be finite and >= 0; got {reprlib.repr(pos_weight)}")
    return weight


def as_alpha(alpha: Any) -> float | None:
    """None, or a number in [0, 1]."""
    if alpha is None:
        return None
    require_no_gradient("alpha", alpha)
    number = as_float(alpha)
    if number is None:
        raise TypeError(f"`alpha` must be None or a number in [0, 1]; got {alpha!r}")
    if not 0 <= number <= 1:
        raise ValueError(f"`alpha` must be None or in [0, 1]; got {reprlib.repr(alpha)}")
    return number


def describe_index(index: tuple[Any, ...]) -> str:
    """An index in words: "row 17", or "index (2, 0, 5)"."""
    numbers = tuple(int(i) for i in index)
    if len(numbers) == 1:
        return f"row {numbers[0]}"
    return f"row {numbers[0]}, column {numbers[1]}" if len(numbers) == 2 else f"index {numbers}"
