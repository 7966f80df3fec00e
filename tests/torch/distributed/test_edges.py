"""Classes split over processes: the tail, what is not finite, labels that are none, errors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402

import xent  # noqa: E402
import xent.torch as xt  # noqa: E402
from tests.tables.variants import VARIANTS  # noqa: E402
from tests.torch.distributed.ranks import (  # noqa: E402
    ROWS,
    WORLDS,
    Checks,
    K,
    arrays,
    assert_passed,
    assert_same_everywhere,
    leaf,
    made,
    mine,
    plain_case,
    shard_of,
    sizes,
)
from xent.torch.distributed import vocab_parallel_cross_entropy as sharded  # noqa: E402
from xent.torch.distributed import vocab_parallel_linear_cross_entropy as sharded_linear  # noqa: E402

# PyTorch warns of its own use of what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

CHECKS = Checks()


# What must not be left to chance.


@CHECKS
def tail_keeps_its_digits() -> None:
    y = np.arange(K)  # labels of every rank, next to the shard's other classes and without
    found = []
    for dtype, gap in ((torch.float64, 40.0), (torch.float64, 300.0), (torch.float32, 20.0)):
        for others in (0.0, -torch.inf):
            z = torch.full((K, K), others, dtype=dtype)
            z[y, y], z[y, (y + 5) % K] = gap, 0.0
            shard, soft_shard = (z[:, mine()].clone().requires_grad_() for _ in range(2))
            rows = sharded(shard, torch.tensor(y), group=None, reduction="none")
            soft = sharded(soft_shard, torch.eye(K, dtype=dtype)[:, mine()], group=None, reduction="none")
            torch.autograd.backward([rows.sum(), soft.sum()])
            f = xent.CrossEntropyLoss(reduction="none")
            whole = f(z.double().numpy(), y), f.backward(np.ones(K))
            found.append((dtype, whole, (rows, soft), shard.grad, soft_shard.grad))
    for dtype, (expected, slope), losses, grad, soft_grad in found:
        assert ((expected > 0) & (expected < 1e-7)).all()
        rtol = 1e-13 if dtype == torch.float64 else 1e-6
        for actual in losses:
            np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=rtol)
        np.testing.assert_allclose(grad.numpy(), slope[:, mine()], rtol=10 * rtol)
        # One l for all classes has no room for the tail of each: to a rounding of l.
        np.testing.assert_allclose(soft_grad.numpy(), slope[:, mine()], rtol=10 * rtol, atol=2.0**-52 * 300)


def edge_rows():
    """(logits (R, K), labels (R,)) with all that is not finite, wherever it may be."""
    rng = np.random.default_rng(3)
    z = rng.normal(size=(12, K))
    y = rng.integers(0, K, 12)
    start = 0
    for row, size in enumerate(sizes()):  # a shard of −inf, its own label or another's
        z[row, start : start + size] = -np.inf
        start += size
    y[:4] = 0, K - 1, 0, K - 1
    z[4] = -np.inf  # no softmax
    z[5, 0], z[6, K - 1], z[7, 4] = np.nan, np.inf, np.nan
    z[8, y[8]] = -np.inf
    z[9] = 1e4
    z[10, :] = -np.inf
    z[10, y[10]] = 3.0  # certain
    return z, y


@CHECKS
def edges() -> None:
    z, y = edge_rows()
    found = []
    for targets, kind, options in (
        (y, "labels", {}),
        (y, "labels", {"z_loss": 0.1}),
        (y, "labels", {"focal_gamma": 2.0}),
        (y, "labels", {"softcap": 5.0}),
        (y, "labels", {"label_smoothing": 1.0, "smoothing_over": "others"}),
        (y, "labels", {"sample_weight": np.eye(12)[11]}),
        (np.eye(K)[y], "probabilities", {}),
    ):
        part, keywords = shard_of(targets, options, kind)
        shard = leaf(z[:, mine()])
        rows = sharded(shard, part, reduction="none", **keywords)
        rows.sum().backward()
        found.append((rows.detach().numpy(), shard.grad.numpy(), targets, options))
    for rows, grad, targets, options in found:
        f = xent.CrossEntropyLoss(reduction="none", **options)
        # x is found by way of l, to its rounding at the largest logits.
        np.testing.assert_allclose(rows, f(z, targets), rtol=1e-13, atol=2.0**-52 * 1e4, err_msg=str(options))
        expected = f.backward(np.ones(12))[:, mine()]
        np.testing.assert_allclose(grad, expected, rtol=1e-11, atol=2.0**-52 * 1e4, err_msg=str(options))


@CHECKS
def linear_shard_of_minus_inf() -> None:
    """A bias of −inf excludes all classes of a rank."""
    x, w, b = arrays((6, 5), (K, 5), (K,))
    b[: sizes()[0]] = -np.inf
    y = np.full(6, K - 1)
    expected, slopes = xent.linear_cross_entropy_with_grad(x, w, y, bias=b)
    hidden, weight = leaf(x), leaf(w[mine()])
    loss = sharded_linear(hidden, weight, torch.tensor(y), bias=torch.tensor(b[mine()]), group=None)
    loss.backward()
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-13)
    np.testing.assert_allclose(hidden.grad.numpy(), slopes.dinputs, rtol=1e-11)
    np.testing.assert_allclose(weight.grad.numpy(), slopes.dweight[mine()], rtol=1e-11, atol=1e-15)


@CHECKS
def labels_that_are_no_class() -> None:
    z, _, _ = made(VARIANTS[0], "labels")
    y = torch.arange(12).reshape(ROWS) % K
    y[0, 0], y[1, 1], y[2, 2] = K, -3, 10**12
    weights = torch.rand(K, generator=torch.Generator().manual_seed(0))
    for weight in (None, weights):
        shard = leaf(z[..., mine()])
        rows = sharded(
            shard,
            y,
            group=None,
            weight=None if weight is None else weight[mine()],
            reduction="none",
            validate=False,
        )
        rows.sum().backward()
        bad = (y < 0) | (y >= K)
        assert torch.equal(rows.isnan(), bad)
        assert torch.equal(shard.grad.isnan().all(-1) & bad, bad)
        assert not shard.grad[~bad].isnan().any()
    with pytest.raises(ValueError, match=r"`labels` must be in \[0, 11\) .* got 11 at index \(0, 0\)|row 0"):
        sharded(shard, y, group=None)


@CHECKS
def no_rows_and_no_classes() -> None:
    shard = torch.zeros(0, len(range(K)[mine()]), requires_grad=True)
    loss = sharded(shard, torch.zeros(0, dtype=torch.long), group=None)
    loss.backward()
    assert loss.item() == 0
    hidden, weight = (
        torch.zeros(0, 5, requires_grad=True),
        torch.zeros(len(range(K)[mine()]), 5, requires_grad=True),
    )
    loss = sharded_linear(hidden, weight, torch.zeros(0, dtype=torch.long), group=None)
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad.shape == (0, 5)
    assert not weight.grad.any()


WRONG = {  # words of the error: the options
    '`denominator` needs `reduction`="mean"': {"reduction": "none", "denominator": 3.0},
    "`denominator` must be None": {"denominator": "tokens"},
    "`reduction` must be one of": {"reduction": "average"},
    "`sizes` must be the number of classes of each of": {"sizes": (1,)},
    "`focal_gamma` and `label_smoothing` cannot be": {"focal_gamma": 1.0, "label_smoothing": 0.1},
    "`sample_weight` must have the shape of the rows": {"sample_weight": torch.ones(3)},
}


@CHECKS
def refused_by_one_is_refused_by_all() -> None:
    z, w, y = (
        torch.zeros(4, len(range(K)[mine()])),
        torch.zeros(len(range(K)[mine()]), 5),
        torch.zeros(4).long(),
    )
    first = dist.get_rank() == 0
    words = "weight tensor should be defined" if first else "rank 0 of `group` refused its arguments"
    with pytest.raises(ValueError, match=words):
        sharded(z, y, group=None, weight=torch.ones(K + 1 if first else z.shape[1]))
    with pytest.raises(ValueError, match="must have shape" if first else "rank 0"):
        sharded_linear(torch.zeros(4, 6 if first else 5), w, y, group=None)
    q = torch.full(z.shape, -1.0 if first else 0.0)
    with pytest.raises(ValueError, match="not negative" if first else "rank 0"):
        sharded(z, q, group=None)
    with pytest.raises(ValueError, match=r"every rank of `group` must give the same rows; got \[3, 4"):
        sharded(z[: 3 if first else 4], y[: 3 if first else 4], group=None)
    for call, words in (
        (lambda: sharded(z, None if first else y, group=None), r"`labels` must be a torch\.Tensor"),
        (lambda: sharded(z[0, 0] if first else z, y, group=None), "must be \\(\\.\\.\\., K_s\\)"),
        (
            lambda: sharded_linear(torch.zeros(4, 5), w, y, group=None, shift=-1 if first else 0),
            "`shift` must",
        ),
    ):
        own = "rank 0 of `group`"
        with pytest.raises((ValueError, TypeError), match=words if first else own):
            call()
    for options, words in (
        ({"weight": torch.ones(z.shape[1])}, "`weight` is 'torch.float32' on rank 0, None"),
        ({"z_loss": 0.1}, "`z_loss` is 0.1 on rank 0, 0.0"),
        ({"reduction": "sum"}, "`reduction` is 'sum' on rank 0, 'mean'"),
    ):
        with pytest.raises(ValueError, match=f"must give the same options .* {words} on rank 1"):
            sharded(z, y, group=None, **(options if first else {}))
    with pytest.raises(ValueError, match="must give the same options"):
        sharded_linear(torch.zeros(4, 5), w, y, group=None, bias=w[:, 0] if first else None)
    for words, options in WRONG.items():
        with pytest.raises(ValueError, match=words):
            sharded(z, y, group=None, **options)
        with pytest.raises(ValueError, match=words):
            sharded_linear(torch.zeros(4, 5), w, y, group=None, **options)
    assert sharded(z, y, group=None).item() == pytest.approx(np.log(K))  # and they are still in step


@CHECKS
def shift() -> None:
    x, w = arrays((*ROWS, 5), (K, 5))
    y = np.arange(12).reshape(ROWS) % K
    y[0, 1] = -100
    omega = np.linspace(0, 1, 12).reshape(ROWS)
    q = np.random.default_rng(0).dirichlet(np.ones(K), ROWS)
    for targets, kind in ((y, "labels"), (q, "probabilities")):
        for reduction in ("mean", "none"):
            options = {"sample_weight": omega, "reduction": reduction}
            expected = xent.linear_cross_entropy(x, w, targets, shift=1, **options)
            part, keywords = shard_of(targets, options, kind)
            loss = sharded_linear(leaf(x), leaf(w[mine()]), part, shift=1, **keywords)
            assert loss.shape == np.shape(expected)
            np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=1e-13)


@CHECKS
def temperatures_of_rows() -> None:
    hidden, weight, bias, labels = plain_case()
    x, w, b = (leaf(a) for a in arrays((*ROWS, 5), (K, 5), (K,)))
    labels[0, 1] = -100
    options = {"label_smoothing": 0.1, "z_loss": 0.1}
    for reduction, is_learnt in itertools.product(("mean", "none"), (False, True)):
        t, own_t = (torch.linspace(0.5, 2, 12, dtype=torch.float64).reshape(ROWS) for _ in range(2))
        t[0, 1] = own_t[0, 1] = torch.nan
        learnt, own_learnt = (a.requires_grad_(is_learnt) for a in (t, own_t))
        more = {"reduction": reduction, "chunk_bytes": 300, "shift": 0, **options}
        expected = xt.linear_cross_entropy(x, w, labels, linear_bias=b, temperature=learnt, **more).sum()
        loss = sharded_linear(
            hidden, weight, labels, bias=bias, group=None, temperature=own_learnt, **more
        ).sum()
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-14)
        found = torch.autograd.grad(loss, (hidden, weight, bias, own_t)[: 3 + is_learnt])
        whole = torch.autograd.grad(expected, (x, w, b, t)[: 3 + is_learnt])
        whole = (whole[0], whole[1][mine()], whole[2][mine()], *whole[3:])
        torch.testing.assert_close(found, whole, rtol=1e-11, atol=1e-14)
    z = torch.nn.functional.linear(x, w, b).detach()
    shard = z[..., mine()].clone().requires_grad_()
    loss = sharded(shard, labels, group=None, temperature=t.detach(), **options)
    z.requires_grad_()
    expected = xt.cross_entropy(z.movedim(-1, 1), labels, temperature=t.detach(), **options)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-14)
    (found,), (whole_grad,) = torch.autograd.grad(loss, shard), torch.autograd.grad(expected, z)
    torch.testing.assert_close(found, whole_grad[..., mine()], rtol=1e-11, atol=1e-14)
    with pytest.raises(NotImplementedError, match="`temperature` of logits"):
        sharded(shard, labels, group=None, temperature=t)
    wrong = torch.ones(ROWS)
    wrong[1, 1] = 0.0
    for call in (
        lambda: sharded(shard, labels, group=None, temperature=wrong),
        lambda: sharded_linear(hidden, weight, labels, bias=bias, group=None, temperature=wrong),
    ):
        with pytest.raises(ValueError, match=r"`temperature` must be finite and > 0 .* at row 1, column 1"):
            call()


@CHECKS
def several_values_and_shifts() -> None:
    hidden, weight, bias, labels = plain_case()
    x, w, b = (leaf(a) for a in arrays((*ROWS, 5), (K, 5), (K,)))
    labels[0, 1] = labels[2] = -100
    omega = torch.linspace(0, 2, 12, dtype=torch.float64).reshape(ROWS)
    factors = torch.linspace(0, 2, K, dtype=torch.float64)
    weights = {"sample_weight": omega, "weight": factors}
    want = ("loss", "plain", "z_loss", "accuracy")
    smoothed = {"label_smoothing": 0.1, "z_loss": 0.1}
    cases = [
        {"want": want, **smoothed},
        {"want": want, "reduction": "none", "shift": 1, **weights, **smoothed},
        {"want": want, "denominator": "rows", **weights},
        {"want": ("accuracy",), "reduction": "sum", **weights},
        {"shift": (1, 2), "shift_weight": (1.0, 0.5), **smoothed},
        {"want": (*want, "by_shift"), "shift": (0, 1, 3), **weights, **smoothed},
        {"want": (*want, "by_shift"), "shift": (2, 1), "temperature": omega + 0.5, "focal_gamma": 2.0},
    ]
    for case in cases:
        own = case | ({"weight": factors[mine()]} if "weight" in case else {})
        expected = xt.linear_cross_entropy(x, w, labels, linear_bias=b, **case)
        found = sharded_linear(hidden, weight, labels, bias=bias, group=None, chunk_bytes=300, **own)
        loss, whole = (a if isinstance(a, torch.Tensor) else a.loss for a in (found, expected))
        if "want" in case:
            for value, other in zip(found, expected, strict=True):
                assert (value is None) == (other is None)
                if value is not None:
                    torch.testing.assert_close(value, other, rtol=1e-12, atol=1e-14)
                    assert_same_everywhere(value)
        if whole is None:
            continue
        torch.testing.assert_close(loss, whole, rtol=1e-12, atol=1e-14)
        upstream = torch.linspace(1, 2, whole.numel(), dtype=torch.float64).reshape(whole.shape)
        gradients = torch.autograd.grad(loss, (hidden, weight, bias), upstream)
        dx, dw, db = torch.autograd.grad(whole, (x, w, b), upstream)
        torch.testing.assert_close(gradients, (dx, dw[mine()], db[mine()]), rtol=1e-11, atol=1e-14)
    with torch.no_grad():
        loss = sharded_linear(hidden, weight, labels, bias=bias, group=None, **cases[4])
        torch.testing.assert_close(loss, xt.linear_cross_entropy(x, w, labels, linear_bias=b, **cases[4]))
    with pytest.raises(ValueError, match="`want` must be None or a sequence"):
        sharded_linear(hidden, weight, labels, bias=bias, group=None, want=("losses",))


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("world", WORLDS)
def test_ranks(world, name):
    assert_passed(__name__, world, name)
