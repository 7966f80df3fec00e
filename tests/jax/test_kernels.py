"""Which of the two ways computes rows: the C++ kernels in large programs for the CPU, else the formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

import xent.jax  # noqa: E402
from xent.jax import ffi, kernels  # noqa: E402

LARGE = (256, 64)


def value_and_grad(logits: Any, labels: Any, **options: Any) -> Any:
    def loss(z: Any) -> Any:
        return xent.jax.cross_entropy(z, labels, label_smoothing=0.1, **options)

    return jax.value_and_grad(loss)(logits)


@pytest.fixture
def data() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=LARGE), jnp.float32), jnp.asarray(rng.integers(0, LARGE[1], LARGE[0]))


def compiled_text(logits: Any, labels: Any) -> str:
    program = jax.jit(jax.value_and_grad(xent.jax.cross_entropy)).lower(logits, labels).compile()
    return str(program.as_text())


def test_one_call_of_the_kernels_is_all_that_reads_large_logits(data: Any) -> None:
    text = compiled_text(*data)
    assert (
        text.count("custom_call_target=") == text.count('custom_call_target="xent_row_stats_and_grad"') == 1
    )
    entry = text[text.index("ENTRY") :]
    makers = [line for line in entry.splitlines() if f"= f32[{LARGE[0]},{LARGE[1]}]" in line]
    assert [line for line in makers if "fusion(" in line] == []
    assert "xent_row" not in compiled_text(data[0][:2], data[1][:2])


@pytest.mark.parametrize(
    "options", [{}, {"z_loss": 0.1}, {"reduction": "sum"}], ids=["plain", "z-loss", "sum"]
)
def test_both_ways_agree(data: Any, options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = value_and_grad(*data, **options)
    monkeypatch.setattr(kernels, "choose", lambda logits: kernels.Formulas)
    jax.clear_caches()
    for a, b in zip(fast, value_and_grad(*data, **options), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-8 * LARGE[0])
    jax.clear_caches()


def test_without_kernels_the_formulas_serve(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ffi, "_available", False)
    jax.clear_caches()
    assert "xent_row" not in compiled_text(*data)
    jax.clear_caches()


def test_a_second_derivative_goes_through_the_formulas(data: Any) -> None:
    z, y = data
    r = jnp.ones_like(z).at[:, 0].set(3)
    _, product = jax.jvp(jax.grad(lambda z: xent.jax.cross_entropy(z, y)), (z,), (r,))
    expected = xent.cross_entropy_hvp(np.asarray(z), np.asarray(y), np.asarray(r))
    np.testing.assert_allclose(product, expected, rtol=1e-4, atol=1e-9)
