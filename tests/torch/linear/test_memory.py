"""Linear losses never have the matrix of logits in memory, in any way, nor do divergences and statistics."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("torch")

from tests.torch.peak_memory import peaks

STEP = """
import torch, xent.torch as xt

def step(way, num_rows, num_classes):
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

def prepare(way):
    global Q
    Q = torch.full((16000, 4000), 1 / 4000) if way == "soft" else None
"""
LOSSES = ["mean", "none", "temperatures", "values", "shifts", "second order", "soft"]
WAYS = [*LOSSES, "statistics", "divergence", "top-k"]


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the peak")
def test_the_matrix_of_logits_is_never_in_memory():
    whole = 16000 * 4000 * 4 >> 20
    found = peaks(STEP, WAYS, 16000, 4000)
    assert max(found.values()) < whole / 2, found
