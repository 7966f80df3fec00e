"""The recipe for a causal language model: one line, the same training."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from examples import causal_lm  # noqa: E402
from xent.torch import fused  # noqa: E402


def test_losses_agree_step_by_step():
    fused.counts.clear()
    one, two = causal_lm.train(fused=False, steps=12), causal_lm.train(fused=True, steps=12)
    torch.testing.assert_close(torch.tensor(two), torch.tensor(one), rtol=1e-4, atol=0)
    assert two[-1] < 0.8 * two[0]
    assert fused.counts == {"fused": 12}


def test_gradients_are_those_of_the_model_as_it_is():
    (tokens, labels), *_ = causal_lm.batches(1)
    found = []
    for is_fused in (False, True):
        model = causal_lm.make_model(is_fused)
        model(tokens, labels=labels).loss.backward()
        found.append([p.grad for p in model.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)
