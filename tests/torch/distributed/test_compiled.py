"""Classes split over processes, under `torch.compile`: the loss runs as it is, between graphs."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from tests.torch.distributed.ranks import Checks, K, assert_passed, plain_case  # noqa: E402
from xent.torch.distributed import vocab_parallel_cross_entropy as sharded  # noqa: E402
from xent.torch.distributed import vocab_parallel_linear_cross_entropy as sharded_linear  # noqa: E402
from xent.torch.distributed import vocab_parallel_linear_kl_divergence as sharded_divergence  # noqa: E402
from xent.torch.distributed import vocab_parallel_linear_row_statistics as sharded_statistics  # noqa: E402
from xent.torch.distributed import vocab_parallel_linear_topk_kl_divergence as sharded_topk  # noqa: E402

# PyTorch warns of its own use of what it has deprecated.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")]

CHECKS = Checks()


@CHECKS
def compiled() -> None:
    hidden, weight, bias, y = plain_case()

    def dense(hidden, weight, bias):
        return 2 * sharded(hidden @ weight.T + bias, y, group=None)

    def linear(hidden, weight, bias):
        return 2 * sharded_linear(torch.tanh(hidden), weight, y, bias=bias, group=None)

    entries = torch.stack([y, (y + 1) % K], -1)
    constant = hidden.detach()

    def topk(hidden, weight, bias):
        teacher = entries, torch.full(entries.shape, -1.0)
        return 2 * sharded_topk(torch.tanh(hidden), weight, *teacher, bias=bias, group=None)

    def divergence(hidden, weight, bias):
        teacher = constant, weight.detach() + 0.1
        return 2 * sharded_divergence(torch.tanh(hidden), weight, *teacher, bias=bias, group=None)

    def statistics(hidden, weight, bias):
        want = ("log_prob", "entropy", "log_sum_sq_probs")
        stats = sharded_statistics(2 * hidden, weight, y, bias=bias, group=None, want=want)
        return (stats.log_prob * stats.entropy + stats.log_sum_sq_probs).sum()

    for function in (dense, linear, topk, divergence, statistics):
        found = []
        for way in (function, torch.compile(function, backend="eager")):
            loss = way(hidden, weight, bias)
            found.append((loss, *torch.autograd.grad(loss, (hidden, weight, bias))))
        for a, b in zip(*found, strict=True):
            assert torch.equal(a, b)


def test_ranks():
    assert_passed(__name__, 2, "compiled")
