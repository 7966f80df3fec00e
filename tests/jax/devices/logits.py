"""Losses of logits whose rows are split over two devices: in shard_map, under jit, and on explicit axes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import xent.jax

if hasattr(jax, "shard_map"):
    shard_map = jax.shard_map
else:  # its check has no rule for `custom_jvp`, and says so
    from jax.experimental.shard_map import shard_map as experimental_shard_map

    shard_map = partial(experimental_shard_map, check_rep=False)

Array = Any
RNG = np.random.default_rng(0)
Z, V = RNG.normal(size=(2, 8, 6)).astype(np.float32)
Y = RNG.integers(0, 6, 8)
Q = RNG.dirichlet(np.ones(6), 8).astype(np.float32)
OMEGA, FACTORS = RNG.random(8).astype(np.float32), RNG.random(6).astype(np.float32)
OPTIONS = {"label_smoothing": 0.1, "z_loss": 0.1}
MESH = Mesh(np.array(jax.devices()), ("rows",))
close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)


def on_rows(x: Array, mesh: Mesh = MESH) -> Array:
    return jax.device_put(x, NamedSharding(mesh, P("rows", *(None,) * (x.ndim - 1))))


def mapped() -> None:
    """In shard_map with its default checks: sums and rows, derived outside and inside, twice too."""
    for targets, is_sum in ((Q, True), (Y, False)):

        def loss(z: Array, t: Array, omega: Array, factors: Array, is_sum: bool = is_sum) -> Array:
            weights = {"sample_weight": omega, "class_weight": factors}
            reduction = "sum" if is_sum else "none"
            return xent.jax.cross_entropy(z, t, reduction=reduction, validate=False, **weights, **OPTIONS)

        def part(*arrays: Array, loss: Any = loss, is_sum: bool = is_sum) -> Array:
            return jax.lax.psum(loss(*arrays), "rows") if is_sum else loss(*arrays)

        def gradient(*arrays: Array, loss: Any = loss) -> Array:
            return jax.grad(lambda z: loss(z, *arrays[1:]).sum())(arrays[0])

        arrays = (jnp.asarray(Z), jnp.asarray(targets), jnp.asarray(OMEGA), jnp.asarray(FACTORS))
        split = partial(shard_map, mesh=MESH, in_specs=(P("rows"), P("rows"), P("rows"), P()))
        whole = split(part, out_specs=P() if is_sum else P("rows"))
        inside = split(gradient, out_specs=P("rows"))
        compare(arrays, whole, inside, loss, gradient)


def compare(arrays: tuple[Array, ...], whole: Any, inside: Any, loss: Any, gradient: Any) -> None:
    def results(f: Callable[..., Array], inner: Callable[..., Array]) -> Any:
        def total(z: Array, omega: Array, factors: Array) -> Array:
            return (jnp.cos(jnp.arange(8.0)) * f(z, arrays[1], omega, factors)).sum()

        def grads(z: Array) -> Array:
            return jax.grad(total, argnums=(0, 1, 2))(z, *arrays[2:])

        product = jax.jvp(grads, arrays[:1], (jnp.asarray(V),))
        twice = jax.grad(lambda z: (grads(z)[0] * V).sum())(arrays[0])
        return f(*arrays), inner(*arrays), product, twice

    one = jax.tree_util.tree_leaves(jax.jit(partial(results, loss, gradient))())
    two = jax.tree_util.tree_leaves(jax.jit(partial(results, whole, inside))())
    for a, b in zip(two, one, strict=True):
        close(a, b, rtol=1e-4, atol=1e-5)


def partitioned() -> None:
    """Under plain jit the rows stay where they are: no logits are gathered."""
    weights = {"sample_weight": on_rows(OMEGA), "class_weight": FACTORS, "where": on_rows(OMEGA > 0.1)}
    f = jax.jit(jax.value_and_grad(lambda z, y: xent.jax.cross_entropy(z, y, **weights, **OPTIONS)))
    placed = (on_rows(Z), on_rows(Y))
    assert "all-gather" not in f.lower(*placed).compile().as_text()
    for a, b in zip(f(*placed), f(Z, Y), strict=True):
        close(a, b)


def explicit() -> None:
    """On a mesh of explicit axes every result has the sharding of its rows."""
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Explicit,))
    losses = (
        (Y, {"class_weight": FACTORS, **OPTIONS}),
        (Y, {"class_weight": FACTORS, "label_smoothing": 0.9, "smoothing_over": "others"}),
        (Y, {"focal_gamma": 2.0}),
        (Q, {"class_weight": FACTORS, "denominator": 3.0}),
    )
    with jax.set_mesh(mesh):
        z = on_rows(Z, mesh)
        for targets, options in losses:
            placed = {**options, "sample_weight": on_rows(OMEGA, mesh)}
            f = partial(xent.jax.cross_entropy, targets=on_rows(targets, mesh), **placed)
            twice = jax.jit(jax.grad(lambda x, f=f: (jax.grad(f)(x) ** 2).sum()))(z)
            value, gradient = jax.jit(jax.value_and_grad(f))(z)
            assert jax.typeof(gradient).sharding.spec == P("rows", None)
            assert jax.typeof(twice).sharding.spec == P("rows", None)
            loss, dlogits = xent.cross_entropy_with_grad(Z, targets, sample_weight=OMEGA, **options)
            close(value, loss, rtol=1e-5)
            close(gradient, dlogits, rtol=1e-4, atol=1e-6)


if __name__ == "__main__":
    assert len(jax.devices()) == 2
    mapped()
    partitioned()
    if hasattr(jax, "set_mesh"):
        explicit()
