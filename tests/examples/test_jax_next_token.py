"""The models of examples/jax_next_token.py train as they do by optax."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("optax")
pytest.importorskip("flax")

from examples import jax_next_token


@pytest.mark.parametrize("name", jax_next_token.MODELS)
def test_losses_agree_step_by_step(name):
    ours, theirs = (jax_next_token.train(name, library, steps=30) for library in ("xent", "optax"))
    np.testing.assert_allclose(ours, theirs, rtol=2e-5)
    assert ours[-1] < 0.8 * ours[0]
