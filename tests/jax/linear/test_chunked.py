"""What the loops over chunks cost: matrix products, and memory that does not grow with rows × classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

import xent.jax  # noqa: E402

WIDTH, CLASSES, CHUNK_ROWS = 4, 1000, 16
FEW, MANY = 128, 512


def products(jaxpr: Any) -> int:
    """Matrix products of a program: those in the body of a loop count once."""
    count = 0
    for equation in jaxpr.eqns:
        count += equation.primitive.name == "dot_general"
        count += sum(products(inner) for value in equation.params.values() for inner in _jaxprs(value))
    return count


def _jaxprs(value: Any) -> Iterator[Any]:
    for x in value if isinstance(value, (tuple, list)) else (value,):
        if hasattr(x, "jaxpr") or hasattr(x, "eqns"):
            yield getattr(x, "jaxpr", x)


def arguments(num_rows: int) -> tuple[Any, ...]:
    """Shapes of inputs, weight and labels."""
    shapes = ((num_rows, WIDTH), jnp.float32), ((CLASSES, WIDTH), jnp.float32), ((num_rows,), jnp.int32)
    return tuple(jax.ShapeDtypeStruct(*shape) for shape in shapes)


def make(reduction: str) -> Callable[..., Any]:
    """A scalar of the losses, with a curvature of its own where they are of rows."""

    def loss(x: Any, w: Any, y: Any) -> Any:
        budget = CHUNK_ROWS * CLASSES * 4
        losses = xent.jax.linear_cross_entropy(x, w, y, reduction=reduction, chunk_bytes=budget)
        return losses if reduction == "mean" else jnp.sin(losses).sum()

    return loss


def test_products() -> None:
    mean, rows = make("mean"), make("none")
    for function, expected in (
        (mean, 1),
        (jax.grad(mean, (0, 1)), 3),
        (jax.value_and_grad(mean, (0, 1)), 3),
        (jax.grad(mean, 0), 2),
        (jax.grad(mean, 1), 2),
        (lambda x, w, y: jax.jvp(lambda x: mean(x, w, y), (x,), (x,)), 2),
        (rows, 1),
        (jax.grad(rows, (0, 1)), 4),
    ):
        assert products(jax.make_jaxpr(function)(*arguments(FEW)).jaxpr) == expected


def along(loss: Callable[..., Any], x: Any, w: Any, y: Any) -> Any:
    """The derivative along inputs and weight themselves."""
    return jax.jvp(lambda x, w: loss(x, w, y), (x, w), (x, w))[1]


ROUTES = {
    "value": lambda loss: loss,
    "grad": lambda loss: jax.grad(loss, (0, 1)),
    "forward over reverse": lambda loss: lambda *a: along(jax.grad(loss, (0, 1)), *a),
    "reverse over reverse": lambda loss: (
        lambda x, w, y: jax.vjp(lambda x, w: jax.grad(loss, (0, 1))(x, w, y), x, w)[1]((x, w))
    ),
    "reverse over forward": lambda loss: jax.grad(lambda *a: along(loss, *a), (0, 1)),
}


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("route", ROUTES)
def test_memory_does_not_grow_with_rows_times_classes(route: str, reduction: str) -> None:
    function = jax.jit(ROUTES[route](make(reduction)))
    few, many = (
        function.lower(*arguments(n)).compile().memory_analysis().temp_size_in_bytes for n in (FEW, MANY)
    )
    assert many - few < (MANY - FEW) * CLASSES * 4 // 10
    assert many < MANY * CLASSES * 4
