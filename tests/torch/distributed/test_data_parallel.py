"""Data parallelism: a process whose batch is wholly ignored takes part, and changes nothing."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

import xent.torch as xt  # noqa: E402
from tests.torch.distributed.ranks import Checks, assert_passed, assert_same_everywhere  # noqa: E402

CHECKS = Checks()

LABELS = torch.tensor([[0, 1, 2, -100], [-100, -100, -100, -100]])  # of the two processes


def features():
    return torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))


def layer():
    torch.manual_seed(0)
    return torch.nn.Linear(3, 3)


def loss_of(logits, labels):
    """Of a process: the sum over the number of labels of all processes."""
    return xt.cross_entropy(logits, labels, denominator=float((LABELS >= 0).sum()))


@CHECKS
def a_batch_that_is_wholly_ignored() -> None:
    rank, model, whole = dist.get_rank(), layer(), layer()
    parallel = DistributedDataParallel(model)
    loss = loss_of(parallel(features()[rank]), LABELS[rank])
    loss.backward()
    expected = loss_of(whole(features().flatten(0, 1)), LABELS.flatten())
    expected.backward()
    assert loss.item() == pytest.approx(0 if rank else expected.item(), rel=1e-6)
    assert_same_everywhere(model.weight.grad)
    torch.testing.assert_close(2 * model.weight.grad, whole.weight.grad)  # DDP: the mean over processes


def test_ranks():
    assert_passed(__name__, 2, "a_batch_that_is_wholly_ignored")
