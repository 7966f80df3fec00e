"""A linear layer of K classes: its checks, its logits and the products of its gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from xent.core.spec import as_index
from xent.jax import arguments

Array = Any

BLOCK_BYTES = 4 << 20  # of a product that is added to the weight's gradient

NAMES = ("inputs", "weight", "bias")
TEACHER_NAMES = ("teacher_inputs", "teacher_weight", "teacher_bias")


class Layer(NamedTuple):
    """``inputs (..., D)``, ``weight`` (K, D) or (D, K), and ``bias (K,)`` or None."""

    inputs: Array
    weight: Array
    bias: Array | None


class Form(NamedTuple):
    """How logits are computed: the axis of the weight's classes, 0 or 1, and the dtype of the product."""

    class_axis: int
    logits_dtype: Any

    def num_classes(self, layer: Layer) -> int:
        """K."""
        return int(layer.weight.shape[self.class_axis])

    def logits(self, layer: Layer) -> Array:
        """``inputs @ weight.T + bias`` (M, K)."""
        z = _product(layer.inputs, layer.weight, 1, 1 - self.class_axis, self.logits_dtype)
        return z if layer.bias is None else z + layer.bias.astype(z.dtype)

    def input_grad(self, dlogits: Array, layer: Layer) -> Array:
        """G W (M, D), rounded once to the dtype of the inputs."""
        x, w = layer.inputs, layer.weight
        product = _product(dlogits.astype(x.dtype), w, 1, self.class_axis, sum_dtype(x))
        return product.astype(x.dtype)

    def add_weight_grad(self, total: Array, dlogits: Array, layer: Layer) -> Array:
        """``total`` + Gᵀ X, with the axes of the weight; on a CPU in blocks that stay in the cache."""
        axis, width = self.class_axis, layer.inputs.shape[-1]
        num_classes = dlogits.shape[1]
        block = max(1, BLOCK_BYTES // max(1, width * total.dtype.itemsize))
        if num_classes <= block or jax.default_backend() != "cpu":
            return total + self._weight_grad(dlogits, layer)

        def add(start: Any, size: int, total: Array) -> Array:
            part = lax.dynamic_slice_in_dim(dlogits, start, size, 1)
            added = lax.dynamic_slice_in_dim(total, start, size, axis) + self._weight_grad(part, layer)
            return lax.dynamic_update_slice_in_dim(total, added, start, axis)

        blocks, rest = divmod(num_classes, block)
        total = lax.fori_loop(0, blocks, lambda i, total: add(i * block, block, total), total)
        return add(num_classes - rest, rest, total) if rest else total

    def _weight_grad(self, dlogits: Array, layer: Layer) -> Array:
        x = layer.inputs
        factors = (dlogits.astype(x.dtype), x) if self.class_axis == 0 else (x, dlogits.astype(x.dtype))
        return _product(*factors, 0, 0, sum_dtype(x))


def sum_dtype(x: Array) -> Any:
    """The dtype in which gradients are summed: float64 for float64, else float32."""
    return arguments.loss_dtype(x)


def as_layer(
    inputs: Any, weight: Any, bias: Any, class_axis: int, names: tuple[str, str, str] = NAMES
) -> Layer:
    """The operands as arrays, checked for shapes and dtypes."""
    x, w = arguments.as_logits(inputs, names[0]), arguments.as_logits(weight, names[1])
    width = x.shape[-1]
    if w.ndim != 2 or w.shape[1 - class_axis] != width:
        shape = f"(K, {width})" if class_axis == 0 else f"({width}, K)"
        raise ValueError(
            f"`{names[1]}` must have shape {shape} to go with `{names[0]}` {x.shape} where `class_axis` is "
            f"{class_axis}; got {w.shape}"
        )
    if w.dtype != x.dtype:
        raise TypeError(f"`{names[1]}` must have the dtype of `{names[0]}`, {x.dtype}; got {w.dtype}")
    if bias is None:
        return Layer(x, w, None)
    b = arguments.as_logits(bias, names[2])
    if b.shape != (w.shape[class_axis],):
        raise ValueError(f"`{names[2]}` must have shape {(w.shape[class_axis],)}; got {b.shape}")
    if b.dtype != x.dtype:
        raise TypeError(f"`{names[2]}` must have the dtype of `{names[0]}`, {x.dtype}; got {b.dtype}")
    return Layer(x, w, b)


def as_form(class_axis: Any, logits_dtype: Any, dtype: Any) -> Form:
    """The checked form of the logits of operands of ``dtype``."""
    axis = as_class_axis(class_axis)
    wide = jnp.promote_types(dtype, jnp.float32)
    chosen = wide if logits_dtype is None else jnp.dtype(logits_dtype)
    if chosen not in (dtype, wide):
        choices = " or ".join(dict.fromkeys((jnp.dtype(dtype).name, wide.name)))
        raise ValueError(
            f"`logits_dtype` must be None or {choices} for operands of {dtype}; got {logits_dtype!r}"
        )
    return Form(axis, chosen)


def as_class_axis(value: Any) -> int:
    """0 for a weight (K, D), 1 for (D, K)."""
    axis = as_index("class_axis", value)
    if axis not in (0, 1):
        raise ValueError(f"`class_axis` must be 0 for a weight (K, D) or 1 for (D, K); got {value!r}")
    return axis


def _product(a: Array, b: Array, axis_a: int, axis_b: int, dtype: Any) -> Array:
    """Sum over one axis of each of two matrices, computed and returned in ``dtype``."""
    return lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((), ())), preferred_element_type=dtype)
