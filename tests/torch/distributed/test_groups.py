"""What ranks say to each other, in which groups, with rows in shards and DTensors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402

import xent  # noqa: E402
import xent.torch as xt  # noqa: E402
from tests.torch.distributed.ranks import (  # noqa: E402
    WORLDS,
    Checks,
    K,
    Spoken,
    arrays,
    assert_passed,
    leaf,
    mine,
    plain_case,
    sizes,
)
from xent.torch import devices  # noqa: E402
from xent.torch.distributed import vocab_parallel_cross_entropy as sharded  # noqa: E402
from xent.torch.distributed import vocab_parallel_linear_cross_entropy as sharded_linear  # noqa: E402

# PyTorch warns of its own use of what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

CHECKS = Checks()


def shares(num_classes):
    """This rank's classes of so many."""
    every = [n * num_classes // K for n in sizes()]
    start = sum(every[: dist.get_rank()])
    return slice(start, start + every[dist.get_rank()])


BYTES = {
    "plain": ({}, 32),
    "focal, z-loss": ({"focal_gamma": 2.0, "z_loss": 0.1}, 32),
    "class weights": ({"class_weight": True}, 40),
    "smoothing": ({"label_smoothing": 0.1}, 40),
    "smoothing, class weights": ({"label_smoothing": 0.1, "class_weight": True}, 48),
    "probabilities": ({"soft": True}, 40),
    "probabilities, smoothing, class weights": (
        {"soft": True, "label_smoothing": 0.1, "class_weight": True},
        40,
    ),
}


@CHECKS
def bytes_a_row() -> None:
    rows, shared = 20, 8  # the mass of a v that all rows share is one number
    for case, expected in BYTES.values():
        options = dict(case)
        soft, weighted = options.pop("soft", False), options.pop("class_weight", False)
        for num_classes in (K, 100 * K):
            share = len(range(num_classes)[shares(num_classes)])
            every = torch.zeros(len(sizes()), dtype=torch.long)
            every[dist.get_rank()] = share
            dist.all_reduce(every)
            y = torch.rand(rows, share) if soft else torch.arange(rows) % K
            options["weight"] = torch.ones(share) if weighted else None
            z = torch.zeros(rows, share, requires_grad=True)
            with Spoken() as spoken:
                loss = sharded(z, y, group=None, sizes=every.tolist(), **options)
            once = shared if options.get("label_smoothing") and not soft else 0
            assert (spoken.calls, spoken.bytes) == (2, rows * expected + once), (options, spoken.bytes)
            with Spoken() as spoken:
                loss.backward()
            assert spoken.calls == 0
            with Spoken() as spoken:
                sharded(z, y, group=None, **options)
            assert spoken.calls == 3
            assert spoken.bytes == rows * expected + once + 88 * len(sizes())


@CHECKS
def bytes_of_the_projection() -> None:
    x, w = (torch.tensor(a) for a in arrays((20, 5), (K, 5)))
    y = torch.arange(20) % K
    y[:4] = -100  # rows that are left out say nothing
    for hidden_derived, reduction, chunk_bytes, expected in (
        (True, "mean", None, (3, 0)),
        (False, "mean", None, (2, 0)),
        (True, "mean", max(sizes()) * 8 * 4, (9, 0)),  # four chunks of four rows
        (True, "none", max(sizes()) * 8 * 4, (2, 1)),
        (False, "none", None, (2, 0)),
    ):
        hidden, weight = x.clone().requires_grad_(hidden_derived), w[mine()].clone().requires_grad_()
        more = {"group": None, "sizes": sizes(), "reduction": reduction, "chunk_bytes": chunk_bytes}
        with Spoken() as forward:
            loss = sharded_linear(hidden, weight, y, **more)
        with Spoken() as backward:
            loss.sum().backward()
        assert (forward.calls, backward.calls) == expected
        said = forward.bytes + backward.bytes
        assert said == 16 * 32 + (x.numel() * 8 if hidden_derived else 0)


# Rows in shards too, and DTensors.


@CHECKS
def logits_exist_by_chunks() -> None:
    hidden, weight, _, y = plain_case()
    seen, row_stats = [], devices.row_stats
    devices.row_stats = lambda logits, *rest: (seen.append(len(logits)), row_stats(logits, *rest))[1]
    try:
        sharded_linear(hidden, weight, y, group=None, chunk_bytes=max(sizes()) * 8 * 3)
    finally:
        devices.row_stats = row_stats
    assert seen == [3, 3, 3, 3]  # on every rank alike, whatever its classes


@CHECKS
def rows_in_shards_with_a_global_count() -> None:
    """Sequence or data parallelism: the losses of the ranks add up, and so do the gradients of the weight."""
    rank, world = dist.get_rank(), dist.get_world_size()
    x, w = arrays((12, 5), (K, 5))
    y = np.arange(12) % K
    y[3:6] = -100
    expected, slopes = xent.linear_cross_entropy_with_grad(x, w, y)
    rows = slice(rank * 12 // world, (rank + 1) * 12 // world)
    labels = torch.tensor(y[rows])
    count = (labels != -100).sum()
    dist.all_reduce(count)
    hidden, weight = leaf(x[rows]), leaf(w)
    loss = xt.linear_cross_entropy(hidden, weight, labels, denominator=count)
    loss.backward()
    total = loss.detach().clone()
    dist.all_reduce(total)
    dist.all_reduce(weight.grad)
    np.testing.assert_allclose(total.item(), expected, rtol=1e-13)
    np.testing.assert_allclose(weight.grad.numpy(), slopes.dweight, rtol=1e-11, atol=1e-15)
    np.testing.assert_allclose(hidden.grad.numpy(), slopes.dinputs[rows], rtol=1e-11, atol=1e-15)


@CHECKS
def a_group_of_some_ranks() -> None:
    """Two groups of two share the classes, each with its rows; ranks in no group take no part."""
    world = dist.get_world_size()
    pairs = [(0, 1)] if world < 4 else [(0, 2), (1, 3)]
    groups = [dist.new_group(pair) for pair in pairs]
    x, w = arrays((6, 5), (K, 5))
    y = torch.arange(6)
    for which, (pair, group) in enumerate(zip(pairs, groups, strict=True)):
        if dist.get_rank() not in pair:
            with pytest.raises(ValueError, match="one of `group`"):
                sharded_linear(leaf(x), leaf(w), y, group=group)
            continue
        classes = slice(0, 4) if dist.get_rank() == pair[0] else slice(4, K)
        expected = xent.linear_cross_entropy(x + which, w, y.numpy())
        loss = sharded_linear(leaf(x + which), leaf(w[classes]), y, group=group)
        np.testing.assert_allclose(loss.item(), expected, rtol=1e-13)
    dist.barrier()


@CHECKS
def sharded_tensors() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (len(sizes()),))
    z, (x, w, b) = arrays((12, K))[0], arrays((3, 4, 5), (K, 5), (K,))
    y = torch.arange(12) % K
    q = torch.tensor(np.random.default_rng(0).dirichlet(np.ones(K), 12))
    weight = torch.rand(K, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def deal(x, *placements):
        return distribute_tensor(x.detach().clone(), mesh, placements)

    for target, parts in ((y, (y, deal(y, Shard(0)))), (q, (q, deal(q, Shard(1)), deal(q, Replicate())))):
        whole = leaf(z)
        expected = xt.cross_entropy(whole, target, weight, label_smoothing=0.1)
        expected.backward()
        for part, factors in itertools.product(parts, (weight, deal(weight, Shard(0)))):
            logits = deal(whole, Shard(1)).requires_grad_()
            loss = xt.cross_entropy(logits, part, factors, label_smoothing=0.1)
            assert loss.placements == (Replicate(),)
            loss.backward()
            assert logits.grad.placements == (Shard(1),)
            torch.testing.assert_close(loss.full_tensor(), expected, rtol=1e-13, atol=0)
            torch.testing.assert_close(logits.grad.full_tensor(), whole.grad, rtol=1e-12, atol=1e-15)
    labels = y.reshape(3, 4)
    operands = [leaf(a) for a in (x, w, b)]
    expected = xt.linear_cross_entropy(*operands[:2], labels, linear_bias=operands[2], shift=1)
    expected.backward()
    for placement in (Replicate(), Shard(0), Shard(1)):  # rows of hidden states in shards: gathered
        hidden = deal(operands[0], placement).requires_grad_()
        linear, bias = (deal(a, Shard(0)).requires_grad_() for a in operands[1:])
        loss = xt.linear_cross_entropy(hidden, linear, labels, linear_bias=bias, shift=1)
        loss.backward()
        torch.testing.assert_close(loss.full_tensor(), expected, rtol=1e-13, atol=0)
        for part, whole in zip((hidden, linear, bias), operands, strict=True):
            assert part.grad.placements == part.placements
            torch.testing.assert_close(part.grad.full_tensor(), whole.grad, rtol=1e-12, atol=1e-15)
    with pytest.raises(
        NotImplementedError, match=r"`linear_weight` must be a DTensor .* Shard\(0\), or Replicate\(\)"
    ):
        xt.linear_cross_entropy(hidden, operands[1], labels)
    with pytest.raises(ValueError, match="`linear_bias` must be a DTensor"):
        xt.linear_cross_entropy(hidden, linear, labels, linear_bias=operands[2])


@CHECKS
def rows_of_tensors_in_shards() -> None:
    """Logits, or hidden states beside a whole weight: a mean is over the rows of all ranks."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (len(sizes()),))
    x, w, b = arrays((7, 3, 5), (K, 5), (K,))
    y = torch.arange(21).reshape(7, 3) % K
    y[0] = -100
    q = torch.tensor(np.random.default_rng(0).dirichlet(np.ones(K), (7, 3)))
    c, omega = torch.linspace(0.5, 2, K).double(), torch.linspace(0, 1, 21).double().reshape(7, 3)

    def deal(x, placement):
        return distribute_tensor(x.detach().clone(), mesh, [placement])

    for placement, target, options in itertools.product(
        (Shard(0), Replicate()),
        (y, q),
        (
            {},
            {"weight": c, "label_smoothing": 0.1},
            {"sample_weight": omega, "denominator": "rows"},
            {"denominator": 4.0},
            {"reduction": "sum", "z_loss": 0.1},
            {"reduction": "none", "weight": c},
        ),
    ):
        parts = {**options}
        if "sample_weight" in parts:
            parts["sample_weight"] = deal(omega, placement)
        for part in (target, deal(target, placement)):
            whole = leaf(x) @ leaf(w).T
            logits = whole.detach().requires_grad_()
            expected = xt.cross_entropy(
                logits.movedim(-1, 1), target.movedim(-1, 1) if target is q else target, **options
            )
            expected.sum().backward()
            mine = deal(logits, placement).requires_grad_()
            loss = xent.cross_entropy(
                mine, part, **{("class_weight" if k == "weight" else k): v for k, v in parts.items()}
            )
            loss.sum().backward()
            torch.testing.assert_close(loss.full_tensor(), expected, rtol=1e-13, atol=1e-15)
            assert mine.grad.placements == (placement,)
            torch.testing.assert_close(mine.grad.full_tensor(), logits.grad, rtol=1e-11, atol=1e-15)
            for shift in (0, 1):
                operands = [leaf(a) for a in (x, w, b)]
                given = {"shift": shift, **options}
                expected = xt.linear_cross_entropy(*operands[:2], target, linear_bias=operands[2], **given)
                expected.sum().backward()
                hidden = deal(operands[0], placement).requires_grad_()
                head, bias = (deal(a, Replicate()).requires_grad_() for a in operands[1:])
                loss = xt.linear_cross_entropy(hidden, head, part, linear_bias=bias, shift=shift, **parts)
                loss.sum().backward()
                torch.testing.assert_close(loss.full_tensor(), expected, rtol=1e-13, atol=1e-15)
                for mine, own in zip((hidden, head, bias), operands, strict=True):
                    torch.testing.assert_close(mine.grad.full_tensor(), own.grad, rtol=1e-11, atol=1e-15)
    for call in (
        lambda: xt.row_statistics(deal(leaf(x), Shard(0))),
        lambda: xt.linear_kl_divergence(leaf(x), leaf(w), leaf(x), head),
    ):
        with pytest.raises(NotImplementedError, match=r"must be a tensor of this rank; got a DTensor"):
            call()
    with pytest.raises(
        NotImplementedError, match="`shift` must be 0 where the axis that it shifts is sharded"
    ):
        xt.linear_cross_entropy(deal(leaf(x), Shard(1)), head, y, shift=1)


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("world", WORLDS)
def test_ranks(world, name):
    assert_passed(__name__, world, name)
