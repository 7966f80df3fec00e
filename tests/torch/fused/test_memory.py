"""A training step of a fused layer never has the matrix of logits in memory."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("torch")

PEAK = """
import os, sys, torch, xent.torch
from pathlib import Path

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

def measure(way):
    step(way, 160, 400)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    peak = lambda: int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
    before = peak()
    step(way, 12000, 4000)
    print(way, (peak() - before) // 1024, sep="=", flush=True)

for way in ("fused", "as before"):  # each in a process of its own, for which PyTorch is imported already
    if os.fork() == 0:
        measure(way)
        os._exit(0)
    assert os.wait()[1] == 0, way
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the peak")
def test_the_matrix_of_logits_is_never_in_memory():
    whole = 12000 * 4000 * 4 >> 20
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # threads do not outlive a fork
    run = subprocess.run(
        [sys.executable, "-c", PEAK], capture_output=True, text=True, check=True, env=environment
    )
    peaks = {way: int(mib) for way, mib in (line.split("=") for line in run.stdout.splitlines())}
    assert peaks["fused"] < whole / 2, peaks
    assert peaks["as before"] > 2 * whole, peaks
