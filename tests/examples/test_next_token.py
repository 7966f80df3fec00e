"""The recipe for a model of the next token: the same training as by PyTorch's loss."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import xent.torch  # noqa: E402
from examples import next_token  # noqa: E402


@pytest.mark.parametrize("name", next_token.MODELS)
def test_next_token_losses_agree_step_by_step(name):
    ours = next_token.train(name, xent.torch.CrossEntropyLoss(), steps=40)
    theirs = next_token.train(name, torch.nn.CrossEntropyLoss(), steps=40)
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-4, atol=0)
    assert ours[-1] < 0.8 * ours[0]
