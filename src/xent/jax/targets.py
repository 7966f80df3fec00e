"""Labels or probabilities with options as a measure t = α·e_y + β·v, in operations that can be traced."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xent.core import target as targeting
from xent.core.spec import LossSpec
from xent.core.target import Target
from xent.engine import checks
from xent.jax import arguments

Array = Any


class Batch(NamedTuple):
    """The arrays of one call except its logits: checked, not yet converted."""

    targets: Array
    where: Array | None
    class_weight: Array | None
    sample_weight: Array | None

    @classmethod
    def checked(
        cls,
        logits: Array,
        targets: Any,
        axis: int,
        where: Any,
        class_weight: Any,
        sample_weight: Any,
        spec: LossSpec,
        validate: bool | None,
        name: str = "targets",
    ) -> Batch:
        """Raise for shapes and dtypes, and for values if they are known and `arguments.is_checked`.

        Of the logits only shape and dtype are read.
        """
        axis = arguments.checked_axis(axis, logits.shape) % len(logits.shape)
        shape = (*logits.shape[:axis], *logits.shape[axis + 1 :], logits.shape[axis])
        dtype = arguments.loss_dtype(logits)
        y = arguments.as_given(targets, name)
        require_fit(y, logits.shape, shape[:-1], name)
        mask = None if where is None else arguments.as_array(where, "where")
        if mask is not None:
            require_mask(mask, logits.shape, shape[:-1])
        if class_weight is not None:
            class_weight = arguments.as_weights(
                class_weight, "class_weight", shape[-1:], dtype, validate, is_signed=False
            )
        if sample_weight is not None:
            sample_weight = arguments.as_weights(sample_weight, "sample_weight", shape[:-1], dtype, validate)
        if not jnp.issubdtype(y.dtype, jnp.integer):
            spec.require_labels(name)
        if arguments.is_checked(validate, y):
            check_values(y, shape[-1], spec, name)
        if isinstance(y, np.ndarray) and y.dtype.kind in "iu":
            y = narrow_labels(y, spec.ignore_index)
        return cls(jnp.asarray(y), mask, class_weight, sample_weight)

    def measure(self, logits: Array, axis: int, spec: LossSpec) -> tuple[Array, Target]:
        """(logits (..., K), −inf for classes that are left out; their target); classes were on ``axis``."""
        num_classes, dtype = logits.shape[-1], arguments.loss_dtype(logits)
        rows, classes = _masks(self.where, axis, logits.shape)
        targets = self.targets
        is_soft = targets.ndim == logits.ndim
        if is_soft:
            targets = jnp.moveaxis(targets, axis, -1).astype(dtype)
        if classes is None:
            measure = as_target(
                targets, num_classes, spec, self.class_weight, self.sample_weight, rows, dtype
            )
            return logits, measure
        dense = smoothed_over(targets, classes, spec, dtype) if is_soft or spec.label_smoothing else None
        if is_soft:
            targets, spec = dense, replace(spec, label_smoothing=0.0)
        measure = as_target(targets, num_classes, spec, self.class_weight, self.sample_weight, rows, dtype)
        if dense is not None and not is_soft:
            factors = 1 if self.class_weight is None else self.class_weight
            measure = measure._replace(alpha=0.0, dense=dense * factors, beta=1.0)
        return jnp.where(classes, logits, -jnp.inf), measure


def require_fit(targets: Array, shape: tuple[int, ...], rows: tuple[int, ...], name: str) -> None:
    """Raise unless ``targets`` are labels of ``rows`` or probabilities of logits of ``shape``."""
    if jnp.issubdtype(targets.dtype, jnp.integer):
        if targets.shape != rows:
            raise ValueError(
                f"`{name}` of an integer dtype are labels and must have the shape of the rows, {rows}; "
                f"got {targets.shape} (one-hot rows must have a floating dtype)"
            )
    elif targets.dtype.name not in arguments.FLOATING:
        raise TypeError(
            f"`{name}` must have an integer dtype (labels) or a floating dtype (probabilities); "
            f"got {targets.dtype}"
        )
    elif targets.shape != shape:
        raise ValueError(
            f"`{name}` of a floating dtype are probabilities and must have the shape of the logits, {shape}; "
            f"got {targets.shape} (labels must have an integer dtype)"
        )


def require_mask(mask: Array, shape: tuple[int, ...], rows: tuple[int, ...]) -> None:
    """Raise unless ``mask`` is boolean, of the shape of the rows or as many axes as the logits."""
    if mask.dtype != bool:
        raise TypeError(f"`where` must be boolean; got {mask.dtype}")
    is_full = mask.ndim == len(shape) and all(n in (1, m) for n, m in zip(mask.shape, shape, strict=True))
    if mask.shape != rows and not is_full:
        raise ValueError(
            f"`where` must have the shape of the rows, {rows}, or as many axes as the logits, {shape}, "
            f"each of their length or 1; got {mask.shape}"
        )


def check_values(targets: Any, num_classes: int, spec: LossSpec, name: str) -> None:
    """Raise ValueError, as for NumPy, at a value that is out of range."""
    array = np.asarray(targets)
    if array.dtype.kind in "iu":
        checks.as_labels(array, num_classes, spec.ignore_index, True, name)
    else:
        checks.check_probabilities(array.astype(np.float64), name)


def narrow_labels(labels: Any, ignore_index: int) -> Any:
    """NumPy labels as int32 unless 64 bits are enabled; those beyond 32 bits stay out of range."""
    if labels.dtype.itemsize <= jax.dtypes.canonicalize_dtype(labels.dtype).itemsize:
        return labels
    bounds = np.iinfo(np.int32)
    if not bounds.min <= ignore_index <= bounds.max and (labels == ignore_index).any():
        raise ValueError(
            f"`ignore_index` must fit into 32 bits unless `jax_enable_x64` is set; got {ignore_index}"
        )
    fits = (labels >= bounds.min) & (labels <= bounds.max)
    return np.where(fits, labels, bounds.max).astype(np.int32)


def _masks(where: Array | None, axis: int, shape: tuple[int, ...]) -> tuple[Array | None, Array | None]:
    """(mask (...) of the rows that count, mask (..., K) of the classes that do) of logits of ``shape``."""
    if where is None or where.ndim == len(shape) - 1:
        return where, None
    mask = jnp.moveaxis(where, axis, -1)
    if mask.shape[-1] == 1:
        return jnp.broadcast_to(mask[..., 0], shape[:-1]), None
    mask = jnp.broadcast_to(mask, shape)
    return mask.any(-1), mask


def as_target(
    targets: Array,
    num_classes: int,
    spec: LossSpec,
    class_weight: Array | None,
    weight: Array | None,
    is_counted: Array | None,
    dtype: Any,
) -> Target:
    """The measure of labels (...) or probabilities (..., K); rows not ``is_counted`` (...) are ignored."""
    if jnp.issubdtype(targets.dtype, jnp.integer):
        labels, ignored = kernel_labels(targets, num_classes, spec.ignore_index)
        if is_counted is not None:
            ignored = ignored | ~is_counted
        measure = targeting.from_labels(labels, ignored, num_classes, class_weight, weight, spec, jnp)
    else:
        if is_counted is not None:
            weight = jnp.where(is_counted, 1.0 if weight is None else weight, 0.0)
        if weight is not None:  # before they meet class weights, whose gradient would be 0·NaN
            unread = (weight == 0) & ~jnp.isfinite(targets).all(-1)
            targets = jnp.where(unread[..., None], 0, targets)
        measure = targeting.from_probabilities(targets.astype(dtype), class_weight, weight, spec, jnp)
    return _converted(measure, dtype)


def unread(measure: Target, rows: Array | None) -> Target:
    """The measure whose labels of ``rows`` (a mask, or None for no rows) are negative, so not read."""
    if rows is None or measure.labels is None:
        return measure
    return measure._replace(labels=jnp.where(rows, -1, measure.labels))


def kernel_labels(labels: Array, num_classes: int, ignore_index: int) -> tuple[Array, Array]:
    """(labels as int32, −1 for ignored rows and K for those out of range; the mask of ignored rows)."""
    bounds = jnp.iinfo(labels.dtype)
    can_be_ignored = bounds.min <= ignore_index <= bounds.max
    ignored = labels == ignore_index if can_be_ignored else jnp.zeros(labels.shape, bool)
    in_range = labels >= 0
    if num_classes <= bounds.max:
        in_range = in_range & (labels < num_classes)
    inside = jnp.where(in_range, labels, 0).astype(jnp.int32)
    return jnp.where(ignored, -1, jnp.where(in_range, inside, num_classes)), ignored


def smoothed_over(targets: Array, mask: Array, spec: LossSpec, dtype: Any) -> Array:
    """v (..., K) of labels or probabilities whose ε is shared by the classes of ``mask`` alone."""
    count = mask.sum(-1, keepdims=True).astype(dtype)
    epsilon = spec.label_smoothing
    q = targets
    if jnp.issubdtype(targets.dtype, jnp.integer):
        q = targets[..., None] == jnp.arange(mask.shape[-1])
    q = jnp.where(mask, q, 0).astype(dtype)
    if spec.smoothing_over == "others":
        spread = jnp.where(count > 1, (1 - q) / jnp.where(count > 1, count - 1, 1), q)
    else:
        spread = 1 / jnp.where(count > 0, count, 1)
    return jnp.where(mask, (1 - epsilon) * q + epsilon * spread, 0)


def _converted(measure: Target, dtype: Any) -> Target:
    """Coefficients and masses in the dtype of the statistics."""

    def convert(x: Any) -> Any:
        return x.astype(dtype) if hasattr(x, "astype") else x

    return measure._replace(
        alpha=convert(measure.alpha),
        dense=convert(measure.dense),
        weight=convert(measure.weight),
        total=convert(measure.total),
    )
