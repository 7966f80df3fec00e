"""Classes split over processes: what is derived once, kept, and costs nothing where it is frozen."""

from __future__ import annotations

import gc

import pytest

torch = pytest.importorskip("torch")

from torch.multiprocessing.reductions import StorageWeakRef  # noqa: E402

from tests.torch.distributed.ranks import (  # noqa: E402
    WORLDS,
    Checks,
    K,
    assert_passed,
    mine,
    plain_case,
)
from xent.torch.distributed import vocab_parallel_cross_entropy as sharded  # noqa: E402
from xent.torch.distributed import vocab_parallel_linear_cross_entropy as sharded_linear  # noqa: E402

# PyTorch warns of its own use of what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

CHECKS = Checks()


@CHECKS
def second_order_is_refused() -> None:
    hidden, weight, _, y = plain_case()
    logits = (hidden @ weight.T).detach().requires_grad_()
    for reduction in ("mean", "none"):
        for loss, of in (
            (sharded(logits, y, group=None, reduction=reduction), logits),
            (sharded_linear(hidden, weight, y, group=None, reduction=reduction), hidden),
        ):
            with pytest.raises(NotImplementedError, match="derivable once: `create_graph` must be False"):
                torch.autograd.grad(loss.sum(), of, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"torch\.func"):
        torch.func.grad(lambda z: sharded(z, y, group=None))(logits.detach())
    factors = torch.ones(len(range(K)[mine()]), requires_grad=True)
    with pytest.raises(NotImplementedError, match="must not require gradients"):
        sharded(logits, y, group=None, weight=factors)
    with torch.no_grad():
        sharded(logits, y, group=None, weight=factors)


@CHECKS
def twice_backward_gives_twice_the_gradient() -> None:
    hidden, weight, bias, y = plain_case()
    loss = sharded_linear(hidden, weight, y, bias=bias, group=None)
    once = torch.autograd.grad(loss, (hidden, weight, bias), retain_graph=True)
    twice = torch.autograd.grad(2 * loss, (hidden, weight, bias))
    for a, b in zip(once, twice, strict=True):
        torch.testing.assert_close(2 * a, b, rtol=1e-14, atol=0)
    loss = sharded_linear(hidden, weight, y, group=None)
    with torch.no_grad():
        weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@CHECKS
def nothing_is_kept() -> None:
    gc.disable()
    for reduction in ("mean", "none"):
        hidden, weight, _, y = plain_case()
        logits = (hidden @ weight.T).detach().requires_grad_()
        kept = [StorageWeakRef(x.untyped_storage()) for x in (logits, hidden)]
        for loss in (
            sharded(logits, y, group=None, reduction=reduction),
            sharded_linear(hidden, weight, y, group=None, reduction=reduction),
        ):
            loss.sum().backward()
        del loss, logits, hidden
        assert all(storage.expired() for storage in kept)
    gc.enable()


@CHECKS
def frozen_costs_nothing() -> None:
    hidden, weight, _, y = plain_case()
    for wanted in ((True, False), (False, True), (False, False)):
        operands = [
            x.detach().clone().requires_grad_(w) for x, w in zip((hidden, weight), wanted, strict=True)
        ]
        loss = sharded_linear(*operands, y, group=None)
        assert loss.requires_grad == any(wanted)
        if any(wanted):
            loss.backward()
        assert [x.grad is not None for x in operands] == list(wanted)
    with torch.no_grad():
        assert not sharded_linear(hidden, weight, y, group=None).requires_grad


@CHECKS
def same_bits_again_and_by_any_way() -> None:
    hidden, weight, bias, y = plain_case()

    def grads(function):
        loss = function(hidden, weight, bias)
        return loss, *torch.autograd.grad(loss, (hidden, weight, bias))

    def loss_of(hidden, weight, bias):
        return sharded_linear(hidden, weight, y, bias=bias, group=None, chunk_bytes=400)

    def checkpointed(*operands):
        return torch.utils.checkpoint.checkpoint(loss_of, *operands, use_reentrant=False)

    first = grads(loss_of)
    for way in (loss_of, checkpointed):
        for a, b in zip(first, grads(way), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("world", WORLDS)
def test_ranks(world, name):
    assert_passed(__name__, world, name)
