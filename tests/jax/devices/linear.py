"""Losses of linear layers whose rows, or classes, are split over two devices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

import xent.jax
from tests.jax.linear.problems import assert_near

REST, SPLIT = PartitionSpec(), PartitionSpec("x")
ROWS, WIDTH, CLASSES, PADDED = 6, 4, 7, 8


def problem() -> tuple[Any, Any, Any, Any]:
    """Inputs (6, 4), weight (8, 4) and bias (8,), each with one row of padding, and labels (6,)."""
    rng = np.random.default_rng(0)
    shapes = (ROWS, WIDTH), (PADDED, WIDTH), (PADDED,)
    x, w, b = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    return x, w.at[CLASSES:].set(50), b, jnp.asarray(rng.integers(0, CLASSES, ROWS)).at[2].set(-100)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "focal": {
        "focal_gamma": 2.0,
        "z_loss": 0.1,
        "softcap": 3.0,
        "class_weight": np.linspace(0.2, 2, CLASSES),
    },
    "smoothing": {"label_smoothing": 0.2, "class_weight": np.linspace(0.2, 2, CLASSES)},
    "probabilities": {"label_smoothing": 0.2, "class_weight": np.linspace(0.2, 2, CLASSES)},
}


def check(name: str, is_split_by_class: bool, check_vma: bool, is_second: bool = False) -> None:
    """Value, gradients and tangents, and second derivatives, beside those of one device."""
    options, (x, w, b, y) = OPTIONS[name], problem()
    whole, parts = y, y
    if name == "probabilities":
        whole = jax.nn.softmax(jnp.sin(jnp.arange(42.0)).reshape(ROWS, CLASSES))
        parts = jnp.pad(whole, ((0, 0), (0, PADDED - CLASSES)))
    reduction = {"reduction": "sum"}
    specs: tuple[Any, ...] = SPLIT, REST, REST, SPLIT
    given: dict[str, Any] = {}
    if is_split_by_class:
        by_column = PartitionSpec(None, "x") if name == "probabilities" else REST
        specs = REST, SPLIT, SPLIT, by_column
        given, reduction = {"axis_name": "x", "num_classes": CLASSES}, {"reduction": "mean"}
    else:
        w, b, parts = w[:CLASSES], b[:CLASSES], whole

    def expected(x: Any, w: Any, b: Any) -> Any:
        w, b = w[:CLASSES], b[:CLASSES]
        return 3 * xent.jax.linear_cross_entropy(x, w, whole, bias=b, **reduction, **options)

    def inside(x: Any, w: Any, b: Any, y: Any) -> Any:
        loss = xent.jax.linear_cross_entropy(x, w, y, bias=b, chunk_bytes=60, **given, **reduction, **options)
        return 3 * (loss if is_split_by_class else jax.lax.psum(loss, "x"))

    mesh = Mesh(np.array(jax.devices()), ("x",))
    mapped = jax.shard_map(inside, mesh=mesh, in_specs=specs, out_specs=REST, check_vma=check_vma)

    def found(x: Any, w: Any, b: Any) -> Any:
        return mapped(x, w, b, parts)

    arrays = x, w, b
    vector = tuple(jnp.sin(a + 1) for a in arrays)

    def derivatives(loss: Any) -> Any:
        gradient = jax.grad(loss, (0, 1, 2))
        first = jax.value_and_grad(loss, (0, 1, 2))(*arrays), jax.jvp(loss, arrays, vector)
        if not is_second:
            return first
        return *first, jax.jvp(gradient, arrays, vector)[1], jax.vjp(gradient, *arrays)[1](vector)

    reference = jax.jit(lambda: derivatives(expected))()
    assert_near(jax.jit(lambda: derivatives(found))(), reference, 3e-6)
    if check_vma:
        gradient = jax.grad(inside, (0, 1, 2))
        gradient = jax.shard_map(gradient, mesh=mesh, in_specs=specs, out_specs=specs[:3])
        assert_near(jax.jit(gradient)(*arrays, parts), reference[0][1], 3e-6)


def check_rows() -> None:
    """Losses of rows: the tail of a probability near 1, a label out of range, and a row of -inf."""
    logits = jnp.zeros((4, PADDED)).at[0, 5].set(20).at[2, 1].set(-jnp.inf).at[3].set(-jnp.inf)
    y = jnp.array([5, CLASSES, 1, 0])

    def losses(x: Any, w: Any, b: Any) -> Any:
        return xent.jax.linear_cross_entropy(
            x, w, y, bias=b, reduction="none", axis_name="x", num_classes=CLASSES, validate=False
        )

    mesh = Mesh(np.array(jax.devices()), ("x",))
    mapped = jax.jit(jax.shard_map(losses, mesh=mesh, in_specs=(REST, SPLIT, SPLIT), out_specs=REST))
    one = jnp.ones((4, 1))
    found = [mapped(one, jnp.zeros((PADDED, 1)), row)[i] for i, row in enumerate(logits)]
    tail = 6 * np.exp(-20.0)
    np.testing.assert_allclose(found[0], np.log1p(tail), rtol=1e-6)
    assert np.isnan(found[1])
    assert found[2] == np.inf
    assert np.isnan(found[3])


if __name__ == "__main__":
    assert len(jax.devices()) == 2
    check("plain", False, True, True)
    check("focal", False, False)
    check("plain", True, False, True)
    check("focal", True, True, True)
    check("smoothing", True, False)
    check("probabilities", True, True)
    check_rows()
