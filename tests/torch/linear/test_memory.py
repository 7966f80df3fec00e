"""Linear losses never have the matrix of logits in memory, in any way, nor do divergences and statistics."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("torch")


PEAK = """
import os, sys, torch, xent.torch as xt
from pathlib import Path

def sweep(way, num_rows, num_classes):
    x = torch.randn(num_rows, 4, requires_grad=True)
    w = torch.randn(num_classes, 4, requires_grad=True)
    y = Q[:num_rows, :num_classes] if way == "soft" else torch.arange(num_rows) % num_classes
    small = {"chunk_bytes": 8 << 20}
    if way == "statistics":
        stats = xt.linear_row_statistics(x, w, y, **small)
        loss = stats.log_prob.sum() + stats.entropy.sum()
    elif way == "top-k":
        entries = (y[:, None] + torch.arange(4)) % num_classes, torch.full((num_rows, 4), -2.0)
        loss = xt.linear_topk_kl_divergence(x, w, *entries, direction="reverse", **small)
    elif way == "divergence":
        loss = xt.linear_kl_divergence(x, w, x.detach().cos(), w.detach(), **small)
    else:
        reduction = "none" if way == "none" else "mean"
        if way == "temperatures":
            small["temperature"] = torch.ones(num_rows, requires_grad=True)
        if way == "shifts":
            small["shift"] = (1, 2, 3)
        if way == "values":
            small["want"] = ("loss", "plain", "z_loss", "accuracy")
        loss = xt.linear_cross_entropy(
            x, w, y, reduction=reduction, label_smoothing=0.1, z_loss=0.1, **small
        )
        loss = (loss.loss if way == "values" else loss).sum()
    if way == "second order":
        loss = torch.autograd.grad(loss, w, create_graph=True)[0].square().sum()
    loss.backward()
    assert x.grad.isfinite().all()

def measure(way):
    global Q
    Q = torch.full((16000, 4000), 1 / 4000) if way == "soft" else None
    sweep(way, 160, 400)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    peak = lambda: int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
    before = peak()
    sweep(way, 16000, 4000)
    print(way, (peak() - before) // 1024, sep="=", flush=True)

for way in sys.argv[1:]:  # each in a process of its own, for which PyTorch is imported already
    if os.fork() == 0:
        measure(way)
        os._exit(0)
    assert os.wait()[1] == 0, way
"""


LOSSES = ["mean", "none", "temperatures", "values", "shifts", "second order", "soft"]


WAYS = [*LOSSES, "statistics", "divergence", "top-k"]


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the peak")
def test_the_matrix_of_logits_is_never_in_memory():
    whole = 16000 * 4000 * 4 >> 20
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # threads do not outlive a fork
    run = subprocess.run(
        [sys.executable, "-c", PEAK, *WAYS], capture_output=True, text=True, check=True, env=environment
    )
    peaks = dict(line.split("=") for line in run.stdout.splitlines())
    assert list(peaks) == WAYS
    assert max(map(int, peaks.values())) < whole / 2, peaks
