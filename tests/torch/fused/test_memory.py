"""A training step of a fused layer never has the matrix of logits in memory."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("torch")

from tests.torch.peak_memory import peaks

STEP = """
import torch, xent.torch

F = torch.nn.functional

class Model(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = torch.nn.Linear(4, num_classes)

    def forward(self, hidden, labels):
        logits = 30 * torch.tanh(self.head(hidden) / 30)
        shifted = logits[:, :-1].float().contiguous().view(-1, logits.shape[-1])
        return F.cross_entropy(shifted, labels[:, 1:].reshape(-1), label_smoothing=0.1), logits

def step(way, num_rows, num_classes):
    model = Model(num_classes)
    if way == "fused":
        xent.torch.fuse(model.head)
    hidden = torch.randn(4, num_rows // 4, 4, requires_grad=True)
    loss, logits = model(hidden, torch.arange(num_rows).reshape(4, -1) % num_classes)
    loss.backward()
    assert logits.shape == (4, num_rows // 4, num_classes)
    assert model.head.weight.grad.isfinite().all()

def prepare(way):
    pass
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the peak")
def test_the_matrix_of_logits_is_never_in_memory():
    whole = 12000 * 4000 * 4 >> 20
    found = peaks(STEP, ("fused", "as before"), 12000, 4000)
    assert found["fused"] < whole / 2, found
    assert found["as before"] > 2 * whole, found
