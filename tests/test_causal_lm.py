"""The recipe for a causal language model: one line instead of the model's own loss, the same training."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from examples import causal_lm  # noqa: E402


def test_losses_agree_step_by_step():
    one, two = causal_lm.train(causal_lm.theirs, steps=12), causal_lm.train(causal_lm.ours, steps=12)
    torch.testing.assert_close(torch.tensor(two), torch.tensor(one), rtol=1e-4, atol=0)
    assert two[-1] < 0.8 * two[0]


def test_gradients_are_those_of_the_models_own_loss():
    (tokens, labels), *_ = causal_lm.batches(1)
    found = []
    for loss in (causal_lm.theirs, causal_lm.ours):
        model = causal_lm.make_model()
        loss(model, tokens, labels).backward()
        found.append([p.grad for p in model.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)
