"""The recipe for torchtitan: the loss and gradients of its own chunks."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchtitan")

from torchtitan.components.loss import ChunkedLossWrapper  # noqa: E402

import xent.torch  # noqa: E402
from examples.torchtitan_loss import ProjectedLoss  # noqa: E402

N, T, D, K = 2, 16, 8, 50
G = torch.Generator().manual_seed(0)
X = torch.randn(N, T, D, generator=G)
Y = torch.randint(K, (N, T), generator=G).where(torch.rand(N, T, generator=G) > 0.3, -100)


def loss_and_gradients(wrapper: Any, is_training: bool) -> Any:
    torch.manual_seed(0)
    head = torch.nn.Linear(D, K, bias=False)
    loss = wrapper.Config(num_chunks=4).build()
    loss.set_lm_head(head)
    x = X.clone().requires_grad_(is_training)
    value, metrics = loss(x, Y, torch.tensor(37.0))
    assert metrics == {}
    if not is_training:
        return [value]
    (2.5 * value).backward() if wrapper is ProjectedLoss else value.backward()
    factor = 2.5 if wrapper is ProjectedLoss else 1.0
    return [value, x.grad / factor, head.weight.grad / factor]


@pytest.mark.parametrize("is_training", [True, False])
def test_it_is_that_of_torchtitan(is_training: bool) -> None:
    xent.torch.fused.counts.clear()
    found, expected = (loss_and_gradients(w, is_training) for w in (ProjectedLoss, ChunkedLossWrapper))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert xent.torch.fused.counts["fused"] == 1
