"""`xent.jax.linear_kl_divergence` against PyTorch's, and against the formula of whole logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

import xent.jax  # noqa: E402
from tests.jax.linear.problems import CHUNK, ROWS, assert_near, labels, operands  # noqa: E402
from tests.jax.linear.test_chunked import products  # noqa: E402


def teacher() -> tuple[Any, Any, Any]:
    """Inputs, weight and bias of a teacher."""
    return operands(np.float32, 1)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_value_and_gradients_are_pytorchs(direction: Any, reduction: str) -> None:
    torch = pytest.importorskip("torch")
    import xent.torch

    (x, w, b), (s, v, c) = operands(np.float32), teacher()
    arrays = x, w, s, v, b, c, jnp.linspace(0.5, 2, ROWS)

    def divergence(function: Any, y: Any, x: Any, w: Any, s: Any, v: Any, b: Any, c: Any, weight: Any) -> Any:
        given = {"temperature": 1.7, "direction": direction, "reduction": reduction}
        return function(x, w, s, v, bias=b, teacher_bias=c, labels=y, sample_weight=weight, **CHUNK, **given)

    tensors = [torch.tensor(np.asarray(a, np.float64), requires_grad=True) for a in arrays]
    expected = divergence(xent.torch.linear_kl_divergence, torch.tensor(labels()), *tensors)
    (3 * expected.sin()).sum().backward()

    def total(*arrays: Any) -> Any:
        found = divergence(xent.jax.linear_kl_divergence, labels(), *arrays)
        return (3 * jnp.sin(found)).sum(), found

    gradients, found = jax.jit(jax.grad(total, tuple(range(7)), has_aux=True))(*arrays)
    assert_near(found, expected.detach().numpy(), 1e-5)
    assert_near(list(gradients), [tensor.grad.numpy() for tensor in tensors], 1e-5)


def test_second_derivatives_are_those_of_whole_logits() -> None:
    (x, w, _), (s, v, _) = operands(np.float32), teacher()

    def whole(w: Any, v: Any) -> Any:
        log_q, log_p = jax.nn.log_softmax(x @ w.T), jax.nn.log_softmax(s @ v.T)
        return (jnp.exp(log_p) * (log_p - log_q)).sum(-1).mean()

    def chunked(w: Any, v: Any) -> Any:
        return xent.jax.linear_kl_divergence(x, w, s, v.T.T, **CHUNK)

    found, expected = (
        jax.jit(lambda f=f: jax.jvp(jax.grad(f, (0, 1)), (w, v), (v, w))[1])() for f in (chunked, whole)
    )
    assert_near(found, expected, 1e-5)


def test_a_frozen_teacher_costs_one_product() -> None:
    (x, w, _), (s, v, _) = operands(np.float32), teacher()
    gradient = jax.grad(lambda x, w: xent.jax.linear_kl_divergence(x, w, s, v, **CHUNK), (0, 1))
    assert products(jax.make_jaxpr(gradient)(x, w).jaxpr) == 4


def test_rows_that_are_left_out() -> None:
    (x, w, _), (s, v, _) = operands(np.float32), teacher()
    where, kept = np.arange(ROWS) != 4, [0, 1, 3, 5, 6]
    x, s = x.at[4].set(jnp.nan), s.at[4].set(jnp.inf)

    def divergence(x: Any, w: Any, s: Any) -> Any:
        return xent.jax.linear_kl_divergence(x, w, s, v, labels=labels(), where=where, **CHUNK)

    value, gradients = jax.value_and_grad(divergence, (0, 1, 2))(x, w, s)
    expected = xent.jax.linear_kl_divergence(x[np.array(kept)], w, s[np.array(kept)], v)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert (np.asarray(gradients[0])[[2, 4]] == 0).all()
    assert (np.asarray(gradients[2])[[2, 4]] == 0).all()
    assert np.isfinite(gradients[1]).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"direction": "backward"}, "`direction` must be one of forward, reverse"),
        (
            {"teacher_weight": np.ones((6, 4))},
            r"`teacher_inputs` and `teacher_weight` must have the rows \(7,\)",
        ),
        ({"teacher_weight": np.ones((5, 3))}, r"`teacher_weight` must have shape \(K, 4\)"),
        ({"temperature": 0.0}, "`temperature` must be"),
    ],
)
def test_errors_name_the_argument(changed: dict[str, Any], message: str) -> None:
    layer = {"inputs": np.ones((7, 4)), "weight": np.ones((5, 4))}
    given: dict[str, Any] = layer | {f"teacher_{name}": x for name, x in layer.items()}
    with pytest.raises(ValueError, match=message):
        xent.jax.linear_kl_divergence(**{**given, **changed})
