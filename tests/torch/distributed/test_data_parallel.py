"""Data parallelism: a process whose batch is wholly ignored takes part, and changes nothing."""

from __future__ import annotations

import os

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402

import xent.torch as xt  # noqa: E402

if not dist.is_available():
    pytest.skip("this PyTorch has no torch.distributed", allow_module_level=True)

LABELS = torch.tensor([[0, 1, 2, -100], [-100, -100, -100, -100]])  # of the two processes


def features():
    return torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))


def layer():
    torch.manual_seed(0)
    return torch.nn.Linear(3, 3)


def loss_of(logits, labels):
    """Of a process: the sum over the number of labels of all processes."""
    return xt.cross_entropy(logits, labels, denominator=float((LABELS >= 0).sum()))


def work(rank: int, store: str, results: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model = torch.nn.parallel.DistributedDataParallel(layer())
    loss = loss_of(model(features()[rank]), LABELS[rank])
    loss.backward()
    torch.save((loss.item(), model.module.weight.grad), f"{results}{rank}")
    dist.destroy_process_group()


def test_a_batch_that_is_wholly_ignored(tmp_path):
    arguments = (str(tmp_path / "store"), str(tmp_path / "result"))
    torch.multiprocessing.spawn(work, arguments, nprocs=2)
    (loss, grad), (none, same) = (torch.load(f"{arguments[1]}{rank}") for rank in range(2))
    model = layer()
    expected = loss_of(model(features().flatten(0, 1)), LABELS.flatten())
    expected.backward()
    assert none == 0
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(grad, same, rtol=0, atol=0)
    torch.testing.assert_close(2 * grad, model.weight.grad)  # DDP takes the mean over processes
