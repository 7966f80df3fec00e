"""What the tests of JAX share: float64, by the name that each version has for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture
def x64() -> Iterator[None]:
    """With float64 and int64 as dtypes of JAX's arrays."""
    import jax

    if hasattr(jax, "enable_x64"):
        context = jax.enable_x64(True)
    else:  # before 0.8
        import jax.experimental

        context = jax.experimental.enable_x64()
    with context:
        yield
