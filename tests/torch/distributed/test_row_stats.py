"""Row statistics whose classes are split over processes: equal to those of one process, with gradients."""

from __future__ import annotations

import gc
import itertools
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
from torch.multiprocessing.reductions import StorageWeakRef  # noqa: E402

import xent.torch as xt  # noqa: E402
from tests.torch.distributed.ranks import (  # noqa: E402
    ROWS,
    WORLDS,
    Checks,
    K,
    arrays,
    assert_passed,
    assert_same_everywhere,
    leaf,
    mine,
    plain_case,
    sizes,
)
from xent.torch import devices  # noqa: E402
from xent.torch.distributed import vocab_parallel_linear_row_statistics as sharded  # noqa: E402

# PyTorch warns of its own use of what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

CHECKS = Checks()

ALL = xt.RowStatistics._fields
DERIVED = ("lse", "log_prob", "entropy", "log_sum_sq_probs", "mean_logits")
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"softcap": 3.0, "temperature": 0.8},
    {"shift": 1, "ignore_index": 3},
)


def weighted(stats: Any, names: Any) -> Any:
    """A sum with another factor for each row and statistic."""
    total: Any = 0.0
    for k, name in enumerate(DERIVED):
        if name in names:
            column = getattr(stats, name).double()
            upstream = torch.linspace(-1, 2 + k, column.numel(), dtype=torch.float64).reshape(column.shape)
            total = total + (column * upstream).sum()
    return total


def assert_equal(found: Any, expected: Any, rtol: float = 1e-13, atol: float = 1e-14) -> None:
    for name, a, e in zip(ALL, found, expected, strict=True):
        assert (a is None) == (e is None), name
        if a is not None:
            message = lambda words, n=name: f"{n}: {words}"  # noqa: E731
            torch.testing.assert_close(a, e, rtol=rtol, atol=atol, equal_nan=True, msg=message)
            assert_same_everywhere(a.detach().double())


@CHECKS
def as_one_process() -> None:
    x, w, b = arrays((*ROWS, 5), (K, 5), (K,))
    y = torch.arange(12).reshape(ROWS) % K
    wants = [*((name,) for name in ALL), ALL]
    for options, want in itertools.product(OPTIONS, wants):
        chunk_bytes = max(sizes()) * 8 * 6 * 4 if want == ALL else None  # three chunks
        labels = None if want == ("entropy",) else y
        whole = [leaf(a) for a in (x, w, b)]
        expected = xt.linear_row_statistics(*whole[:2], labels, bias=whole[2], want=want, **options)
        shard = leaf(x), leaf(w[mine()]), leaf(b[mine()])
        found = sharded(
            *shard[:2], labels, bias=shard[2], group=None, want=want, chunk_bytes=chunk_bytes, **options
        )
        assert_equal(found, expected)
        if not set(want) & set(DERIVED):
            continue
        grads, exact = (
            torch.autograd.grad(weighted(s, want), i) for s, i in ((found, shard), (expected, tuple(whole)))
        )
        for a, e in zip(grads, (exact[0], exact[1][mine()], exact[2][mine()]), strict=True):
            torch.testing.assert_close(a, e, rtol=1e-11, atol=1e-13)
        assert_same_everywhere(grads[0])


@CHECKS
def half_precision() -> None:
    x, w, b = arrays((*ROWS, 5), (K, 5), (K,))
    y = torch.arange(12).reshape(ROWS) % K
    for logits_dtype in (torch.bfloat16, torch.float32):
        given = {"want": ALL, "logits_dtype": logits_dtype}
        whole = [leaf(a, torch.bfloat16) for a in (x, w, b)]
        expected = xt.linear_row_statistics(*whole[:2], y, bias=whole[2], **given)
        shard = [leaf(a, torch.bfloat16) for a in (x, w[mine()], b[mine()])]
        found = sharded(*shard[:2], y, bias=shard[2], group=None, **given)
        assert_equal(found, expected, 1e-5, 1e-5)
        weighted(expected, DERIVED).backward()
        weighted(found, DERIVED).backward()
        for a, e in zip(shard, (whole[0].grad, whole[1].grad[mine()], whole[2].grad[mine()]), strict=True):
            assert a.grad.dtype == torch.bfloat16
            torch.testing.assert_close(a.grad, e, rtol=5e-2, atol=5e-2)


@CHECKS
def rows_that_are_not_finite_or_certain() -> None:
    """A shard of −inf, ties between ranks, a row that is almost certain, NaN, no softmax, ignored NaN."""
    z = np.random.default_rng(3).normal(size=(9, K))
    z[0, : sizes()[0]] = -np.inf
    z[1, K - sizes()[-1] :] = -np.inf
    z[2] = 1.0  # all tied: class 0
    z[3, [2, 9]] = 8.0  # tied on two ranks
    z[4], z[4, 7] = 0.0, 40.0
    z[5, 3] = np.nan
    z[6] = -np.inf
    z[7] = np.nan
    z[8], z[8, 10] = -np.inf, 2.0
    y = torch.tensor([K - 1, 0, 0, 2, 7, 4, 1, -100, 10])
    x, w = torch.zeros(1, 5, dtype=torch.float64), torch.zeros(len(z[0, mine()]), 5, dtype=torch.float64)
    for row, label in zip(torch.tensor(z), y[:, None], strict=True):
        # As a bias: the product of an infinite hidden state would be NaN.
        stats = sharded(x, w, label, group=None, bias=row[mine()], want=ALL)
        assert_equal(stats, xt.row_statistics(row[None], label, want=ALL))


@CHECKS
def labels_that_are_no_class() -> None:
    hidden, weight, bias, y = plain_case()
    y[0, 1], y[2, 3] = K, -3
    stats = sharded(hidden, weight, y, group=None, bias=bias, want=ALL, validate=False)
    for name in DERIVED:
        assert torch.equal(getattr(stats, name).isnan(), (y < 0) | (y >= K)), name
    assert not stats.is_top1[0, 1]


@CHECKS
def certain_rows_keep_their_digits() -> None:
    for gap in (12.0, 30.0):
        for top in range(K):
            bias = torch.zeros(K, dtype=torch.float64)
            bias[top] = gap
            rest = (K - 1) * np.exp(-gap)
            exact = np.log1p(rest * np.exp(-gap)) - 2 * np.log1p(rest)
            shard = bias[mine()].clone().requires_grad_()
            x, w = torch.zeros(1, 5, dtype=torch.float64), torch.zeros(len(shard), 5, dtype=torch.float64)
            (column,) = sharded(x, w, group=None, bias=shard, want=("log_sum_sq_probs",))[4]
            np.testing.assert_allclose(column.item(), exact, rtol=1e-13)
            column.backward()
            p, q = (1 / (1 + rest), 1 / (1 + rest * np.exp(-gap)))
            slope = -2 * p * np.exp(-gap) * -np.expm1(np.log(q) - np.log(p) - gap)
            expected = np.full(K, slope)
            expected[top] = -(K - 1) * slope
            np.testing.assert_allclose(shard.grad.numpy(), expected[mine()], rtol=1e-10)


@CHECKS
def large_logits_in_float32() -> None:
    """The entropy's gradient is built from u − l, whose rounding at 1e4 would be 1e-3."""
    (z,) = arrays((K,))
    z = np.float32(1e4) + np.float32(2.0) * z.round(1).astype(np.float32)
    exact = torch.tensor(z, dtype=torch.float64, requires_grad=True)
    p = exact.softmax(-1)
    (-(p * p.log()).sum()).backward()
    shard = leaf(z[mine()], torch.float32)
    stats = sharded(torch.zeros(1, 5), torch.zeros(len(shard), 5), group=None, bias=shard, want=("entropy",))
    stats.entropy.sum().backward()
    torch.testing.assert_close(shard.grad.double(), exact.grad[mine()], rtol=1e-5, atol=1e-6)


@CHECKS
def what_is_not_wanted_is_not_computed() -> None:
    hidden, weight, bias, y = plain_case()
    asked, said, row_stats, reduce = [], [], devices.row_stats, dist.all_reduce

    def recorded(logits: Any, labels: Any, dense: Any, link: Any, want: Any) -> Any:
        asked.append(tuple(want))
        return row_stats(logits, labels, dense, link, want)

    def counted(x: Any, *rest: Any, **more: Any) -> Any:
        said.append(x.numel())
        return reduce(x, *rest, **more)

    devices.row_stats, dist.all_reduce = recorded, counted
    try:
        for want, expected, calls in (
            (("log_prob",), [("lse", "log_prob")], 2),
            (("mean_logits",), [("lse", "log_prob")], 3),
            (("entropy", "lse"), [("lse", "log_prob", "entropy")], 3),
            (("is_top1",), [("lse", "log_prob", "argmax")], 4),
            (("log_sum_sq_probs",), [("lse", "log_prob", "argmax"), *2 * [("lse", "log_prob")]], 8),
        ):
            asked.clear(), said.clear()
            sharded(hidden, weight, y, group=None, bias=bias, want=want, sizes=sizes())
            assert asked == expected
            assert len(said) == calls
            assert max(said) <= 3 * y.numel()
    finally:
        devices.row_stats, dist.all_reduce = row_stats, reduce


@CHECKS
def logits_exist_by_chunks() -> None:
    hidden, weight, _, y = plain_case()
    seen, row_stats = [], devices.row_stats
    devices.row_stats = lambda logits, *rest: (seen.append(len(logits)), row_stats(logits, *rest))[1]
    try:
        chunk_bytes = max(sizes()) * 8 * 6 * 3
        stats = sharded(hidden, weight, y, group=None, chunk_bytes=chunk_bytes, want=("entropy",))
        assert seen == [3, 3, 3, 3]  # on every rank alike, whatever its classes
        stats.entropy.sum().backward()
    finally:
        devices.row_stats = row_stats


def assert_equal_dtensors(found: Any, expected: Any) -> None:
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a.full_tensor(), e, rtol=1e-13, atol=1e-14)


@CHECKS
def dtensors() -> None:
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

    mesh = init_device_mesh("cpu", (len(sizes()),))
    deal = lambda a, placement: distribute_tensor(a.detach(), mesh, [placement])  # noqa: E731
    x, w, b = arrays((*ROWS, 5), (K, 5), (K,))
    y = torch.arange(12).reshape(ROWS) % K
    y[2, 1] = -100
    # Placements of (inputs, weight, labels), None for a plain tensor; the last three have whole classes.
    layouts = (
        (None, Shard(0), None),
        (Replicate(), Shard(0), Replicate()),
        (Shard(0), Shard(0), Shard(1)),
        (Shard(0), Replicate(), None),
        (Shard(1), Replicate(), Shard(1)),
        (Shard(2), Replicate(), None),
    )
    for (of_x, of_w, of_y), options in zip(layouts, itertools.cycle(OPTIONS[:2])):
        whole = [leaf(a) for a in (x, w, b)]
        expected = xt.linear_row_statistics(*whole[:2], y, bias=whole[2], want=ALL, **options)
        weighted(expected, DERIVED).backward()
        inputs = leaf(x) if of_x is None else deal(leaf(x), of_x).requires_grad_()
        weight, bias = (deal(leaf(a), of_w).requires_grad_() for a in (w, b))
        labels = y if of_y is None else deal(y, of_y)
        found = xt.linear_row_statistics(inputs, weight, labels, bias=bias, want=ALL, **options)
        assert_equal_dtensors(found, expected)
        by_rank = xt.RowStatistics(*(column.full_tensor() for column in found))
        weighted(by_rank, DERIVED).backward()
        for a, e in zip((inputs, weight, bias), whole, strict=True):
            grad = a.grad.full_tensor() if hasattr(a.grad, "full_tensor") else a.grad
            torch.testing.assert_close(grad, e.grad, rtol=1e-11, atol=1e-13)
    shifted = xt.linear_row_statistics(deal(leaf(x), Shard(0)), deal(leaf(w), Replicate()), y, shift=1)
    assert_equal_dtensors(shifted[:4], xt.linear_row_statistics(leaf(x), leaf(w), y, shift=1)[:4])
    head = deal(leaf(w), Shard(0))
    first = dist.get_rank() == 0
    for call, words in (
        (lambda: xt.linear_row_statistics(leaf(x), deal(leaf(w), Replicate()), y), "`weight` must be a DT"),
        (lambda: xt.linear_row_statistics(leaf(x), deal(leaf(w), Shard(1)), y), "`weight` must be a DTensor"),
        (lambda: xt.linear_row_statistics(deal(leaf(x), Shard(0)), leaf(w), y), "`weight` must be a DTensor"),
        (lambda: xt.linear_row_statistics(leaf(x), head, y, bias=leaf(b)), "`bias` must be a DTensor"),
        (lambda: xt.linear_row_statistics(leaf(x), head, y + K), r"`labels` must be in \[0, 11\)"),
        (lambda: xt.linear_row_statistics(leaf(x) + first, head, y), "`inputs` must be the same on every"),
        (lambda: xt.linear_row_statistics(leaf(x), head, want=("is_top1",)), "`labels` must be given"),
        (
            lambda: xt.linear_row_statistics(leaf(x), head, y, want=("no",) if first else ("lse",)),
            "`want` must have names" if first else "rank 0 of the mesh refused",
        ),
    ):
        with pytest.raises((ValueError, NotImplementedError), match=words):
            call()


@CHECKS
def temperatures_of_rows() -> None:
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

    mesh = init_device_mesh("cpu", (len(sizes()),))
    deal = lambda a, placement: distribute_tensor(a.detach(), mesh, [placement]).requires_grad_()  # noqa: E731
    x, w, b = arrays((*ROWS, 5), (K, 5), (K,))
    y = torch.arange(12).reshape(ROWS) % K
    t = torch.linspace(0.5, 2, 12, dtype=torch.float64).reshape(ROWS)
    y[2, 1], t[2, 1] = -100, torch.nan
    whole = [leaf(a) for a in (x, w, b, t)]
    expected = xt.linear_row_statistics(*whole[:2], y, bias=whole[2], temperature=whole[3], want=ALL)
    exact = torch.autograd.grad(weighted(expected, DERIVED), whole)
    own = [leaf(a) for a in (x, w[mine()], b[mine()], t)]
    for learnt in (own[3], own[3].detach()):
        given = {"bias": own[2], "temperature": learnt, "want": ALL, "chunk_bytes": max(sizes()) * 192}
        found = sharded(*own[:2], y, group=None, **given)
        assert_equal(found, expected)
        grads = torch.autograd.grad(weighted(found, DERIVED), own[: 3 + learnt.requires_grad])
        parts = (exact[0], exact[1][mine()], exact[2][mine()], exact[3])
        torch.testing.assert_close(grads, parts[: len(grads)], rtol=1e-11, atol=1e-13)
    # Placements of (inputs, weight, temperature), None for a plain tensor.
    layouts = ((None, Shard(0), None), (Shard(0), Replicate(), None), (Shard(0), Replicate(), Shard(1)))
    for of_x, of_w, of_t in (*layouts, (Shard(0), Shard(0), Shard(0))):
        inputs, learnt = (leaf(a) if p is None else deal(leaf(a), p) for a, p in ((x, of_x), (t, of_t)))
        weight, bias = deal(leaf(w), of_w), deal(leaf(b), of_w)
        found = xt.linear_row_statistics(inputs, weight, y, bias=bias, temperature=learnt, want=ALL)
        assert_equal_dtensors(found, expected)
        by_rank = xt.RowStatistics(*(column.full_tensor() for column in found))
        grads = torch.autograd.grad(weighted(by_rank, DERIVED), (inputs, weight, bias, learnt))
        grads = tuple(g.full_tensor() if hasattr(g, "full_tensor") else g for g in grads)
        torch.testing.assert_close(grads, exact, rtol=1e-11, atol=1e-13)
    wrong = torch.ones(ROWS)
    wrong[1, 1] = 0.0
    head = deal(leaf(w), Shard(0))
    for call in (
        lambda: sharded(*own[:2], y, group=None, temperature=wrong),
        lambda: xt.linear_row_statistics(leaf(x), head, y, temperature=wrong),
        lambda: xt.linear_row_statistics(
            deal(leaf(x), Shard(1)), deal(leaf(w), Replicate()), temperature=wrong
        ),
    ):
        with pytest.raises(ValueError, match=r"`temperature` must be finite and > 0 .* at row 1, column 1"):
            call()
    differs = wrong + 1 + (dist.get_rank() == 0)
    with pytest.raises(ValueError, match="`temperature` must be the same on every rank"):
        sharded(*own[:2], y, group=None, temperature=differs)


@CHECKS
def ignored_rows_and_no_rows() -> None:
    hidden, weight, bias, y = plain_case()
    y[1] = -100
    with torch.no_grad():
        hidden[1] = torch.nan
    stats = sharded(hidden, weight, y, group=None, bias=bias, want=ALL)
    for column in stats:
        assert not column[1].any()
    weighted(stats, DERIVED).backward()
    assert not hidden.grad[1].any()
    for x in (hidden, weight, bias):
        assert x.grad.isfinite().all()
    stats = sharded(hidden[:0], weight, y[:0], group=None, want=ALL)
    assert all(column.shape == (0, 4) for column in stats)
    weighted(stats, DERIVED).backward()


@CHECKS
def nothing_is_kept() -> None:
    gc.disable()
    hidden, weight, _, y = plain_case()
    kept = StorageWeakRef(hidden.untyped_storage())
    stats = sharded(hidden, weight, y, group=None, want=ALL)
    weighted(stats, DERIVED).backward()
    del stats, hidden
    assert kept.expired()
    gc.enable()


@CHECKS
def errors_are_those_of_all() -> None:
    hidden, weight, _, y = plain_case()
    first = dist.get_rank() == 0
    for given, words in (
        ({"want": ("entropi",)}, "`want` must have names"),
        ({"labels": None, "want": ("is_top1",)}, "`labels` must be given"),
        ({"labels": y.double()}, "`labels` must have an integer dtype"),
        ({"temperature": 0.0}, "`temperature`"),
        ({"shift": -1}, "`shift`"),
    ):
        call = {"labels": y, **(given if first else {})}
        with pytest.raises((ValueError, TypeError), match=words if first else "rank 0 of `group` refused"):
            sharded(hidden, weight, group=None, **call)
    for given, words in (
        ({"want": ("lse",)}, "`want` is"),
        ({"softcap": 3.0}, "`softcap` is 3.0 on rank 0, None"),
        ({"labels": None, "want": ("lse",)}, "`labels` is None|`want` is|must give the same"),
    ):
        with pytest.raises(ValueError, match=words):
            sharded(hidden, weight, group=None, **{"labels": y, **(given if first else {})})
    with pytest.raises(ValueError, match="`hidden` must be the same on every rank"):
        sharded(hidden + first, weight, y, group=None)
    with pytest.raises(ValueError, match="`labels` must be the same on every rank"):
        sharded(hidden, weight, y * first, group=None)
    with pytest.raises(ValueError, match=r"`labels` must be in \[0, 11\)"):
        sharded(hidden, weight, y + K, group=None)
    column = sharded(hidden, weight, y, group=None).lse
    with pytest.raises(NotImplementedError, match="derivable once: `create_graph` must be False"):
        torch.autograd.grad(column.sum(), hidden, create_graph=True)


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize(
    "world",
    [
        pytest.param(world, marks=[] if world == 3 else pytest.mark.slow) for world in WORLDS
    ],  # 3 has an empty one
)
def test_ranks(world: int, name: str) -> None:
    assert_passed(__name__, world, name)
