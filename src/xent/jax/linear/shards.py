"""Classes split over a mesh axis: the row statistics of logits of which each device has some classes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from xent.core import target as targeting
from xent.core.link import Link
from xent.core.spec import LossSpec, as_index
from xent.core.target import Target
from xent.jax.kernels import Formulas
from xent.jax.softmax import Softmax, exp
from xent.jax.targets import as_target

Array = Any


class Shard(NamedTuple):
    """The mesh axis over which the classes are split, and how many they are without padding."""

    axis_name: Any
    num_classes: int

    def psum(self, x: Array) -> Array:
        """Σ over the devices."""
        return lax.psum(x, self.axis_name)

    def classes(self, count: int) -> Array:
        """The classes of this device, which has ``count``."""
        return lax.axis_index(self.axis_name) * count + jnp.arange(count, dtype=jnp.int32)

    def on_first(self, x: Array) -> Array:
        """``x`` on the first device, 0 on the others: their sum is ``x``."""
        return jnp.where(lax.axis_index(self.axis_name) == 0, x, 0)

    def formulas(self) -> type[Formulas]:
        """`kernels.Formulas` of the logits of all devices; a gradient is of the classes that are here."""

        class ShardFormulas(Formulas):
            softmax = staticmethod(partial(ShardSoftmax, self))

        return ShardFormulas


def as_shard(axis_name: Any, num_classes: Any, count: int) -> Shard | None:
    """The checked shard of a device with ``count`` classes; None without ``axis_name``."""
    if axis_name is None:
        if num_classes is not None:
            raise ValueError(f"`num_classes` needs `axis_name`; got num_classes={num_classes!r}")
        return None
    most = count * int(lax.psum(1, axis_name))
    total = most if num_classes is None else as_index("num_classes", num_classes)
    if not 0 < total <= max(1, most):
        raise ValueError(f"`num_classes` must be in [1, {most}], the rows of all shards; got {num_classes!r}")
    return Shard(axis_name, total)


def shard_target(
    shard: Shard,
    targets: Array,
    count: int,
    spec: LossSpec,
    class_weight: Array | None,
    weight: Array | None,
    is_counted: Array | None,
    dtype: Any,
) -> Target:
    """`targets.as_target` with the dense part of the ``count`` classes of this device.

    ``class_weight`` is that of all classes.
    """
    if jnp.issubdtype(targets.dtype, jnp.integer):
        measure = as_target(targets, shard.num_classes, spec, class_weight, weight, is_counted, dtype)
        dense = measure.dense
        return measure if dense is None else measure._replace(dense=_local(shard, dense, count))
    q = targeting.smoothed(targets.astype(dtype), shard.num_classes, spec)
    q = jnp.where(shard.classes(count) < shard.num_classes, q, 0)
    factors = None if class_weight is None else _local(shard, class_weight, count)
    spec = replace(spec, label_smoothing=0.0)
    return as_target(q, count, spec, factors, weight, is_counted, dtype)


def _local(shard: Shard, x: Array, count: int) -> Array:
    """The classes of this device, of ``x (..., K)``; 0 for padding."""
    classes = shard.classes(count)
    taken = jnp.take(x, jnp.minimum(classes, shard.num_classes - 1), axis=-1)
    return jnp.where(classes < shard.num_classes, taken, 0)


class ShardSoftmax(Softmax):
    """`Softmax` of rows of which each device has the logits of its classes; the labels are of all classes."""

    def __init__(self, shard: Shard, logits: Array, labels: Array, dense: Array, link: Link) -> None:
        self.shard, self.classes = shard, shard.classes(logits.shape[-1])
        self.is_class = self.classes < shard.num_classes
        super().__init__(logits, labels, dense, link, shard.num_classes)

    def lse(self) -> Array:
        """l = u − log p, at the class of the largest u."""
        u = self._without_padding(self.link.value(self.logits, jnp))
        is_largest = self.classes == _largest(u, self.shard)
        return self._class_sum(jnp.where(is_largest, u - self.log_p, 0))[..., 0]

    def argmax(self) -> Array:
        """The first class with the largest logit; NaN counts as −inf."""
        z = self._without_padding(self.logits)
        return _largest(jnp.where(jnp.isnan(z), -jnp.inf, z), self.shard)[..., 0]

    def _log_softmax(self, u: Array) -> Array:
        return _log_softmax(self._without_padding(u), self.shard)

    def _without_padding(self, u: Array) -> Array:
        return jnp.where(self.is_class, u, -jnp.inf)

    def _class_sum(self, x: Array) -> Array:
        return self.shard.psum(x.sum(-1, keepdims=True))

    def _likeliest(self) -> Array:
        return _largest(self.log_p, self.shard)

    def _classes(self) -> Array:
        return self.classes


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _log_softmax(u: Array, shard: Shard) -> Array:
    """`softmax.log_softmax_rows` of the logits of all devices."""
    top = lax.pmax(jnp.max(u, -1, keepdims=True), shard.axis_name)
    is_largest = shard.classes(u.shape[-1]) == _largest(u, shard)
    shifted = u - top
    rest = shard.psum(jnp.where(is_largest, 0, exp(shifted)).sum(-1, keepdims=True))
    return shifted - jnp.log1p(rest + (top - top))


@_log_softmax.defjvp
def _log_softmax_jvp(shard: Shard, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (u,), (du,) = primals, tangents
    log_p = _log_softmax(u, shard)
    is_largest = shard.classes(u.shape[-1]) == _largest(u, shard)
    r = du - shard.psum(jnp.where(is_largest, du, 0).sum(-1, keepdims=True))
    return log_p, r - shard.psum((exp(log_p) * r).sum(-1, keepdims=True))


def _largest(u: Array, shard: Shard) -> Array:
    """The first class of the largest ``u`` of all devices (..., 1)."""
    u = lax.stop_gradient(u)
    top = lax.pmax(jnp.max(u, -1, keepdims=True), shard.axis_name)
    first = jnp.where(u < top, shard.num_classes, shard.classes(u.shape[-1])).min(-1, keepdims=True)
    return lax.pmin(first, shard.axis_name)
