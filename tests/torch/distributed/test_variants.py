"""Classes split over processes: every variant, in shards of uneven sizes, equals the whole."""

from __future__ import annotations

import functools
import importlib.util
import itertools
from unittest import mock

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import xent  # noqa: E402
import xent.torch as xt  # noqa: E402
from tests.tables.variants import CASE_IDS, CASES, FEW_CASES  # noqa: E402
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
    shard_of,
    sizes,
)
from xent.torch import devices  # noqa: E402
from xent.torch.distributed import vocab_parallel_cross_entropy as sharded  # noqa: E402
from xent.torch.distributed import vocab_parallel_linear_cross_entropy as sharded_linear  # noqa: E402

# PyTorch warns of its own use of what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

CHECKS = Checks()

SCALES = (0.02, 2.0, 1e4)  # of logits


def dense_variant(variant, kind) -> None:
    for scale in SCALES if (variant, kind) in FEW_CASES else (2.0,):
        z, targets, options = made(variant, kind, scale)
        y, keywords = shard_of(targets, options, kind)
        mean, dmean = xent.cross_entropy_with_grad(z, targets, **options)
        shard = leaf(z[..., mine()])
        loss = sharded(shard, y, **keywords)
        loss.backward()
        np.testing.assert_allclose(loss.item(), mean, rtol=1e-13, atol=1e-15)
        np.testing.assert_allclose(shard.grad.numpy(), dmean[..., mine()], rtol=1e-11, atol=1e-15)
    if variant.denominator is None:
        f = xent.CrossEntropyLoss(reduction="none", **options)
        rows = sharded(shard, y, reduction="none", **keywords)
        np.testing.assert_allclose(rows.detach().numpy(), f(z, targets), rtol=1e-13, atol=1e-15)
        upstream = np.linspace(-1, 2, rows.numel()).reshape(ROWS)
        (grad,) = torch.autograd.grad(rows, shard, torch.tensor(upstream))
        np.testing.assert_allclose(grad, f.backward(upstream)[..., mine()], rtol=1e-11, atol=1e-15)
    assert_same_everywhere(loss)


def linear_variant(variant, kind) -> None:
    _, targets, options = made(variant, kind)
    y, keywords = shard_of(targets, options, kind)
    x, w, b = arrays((*ROWS, 5), (K, 5), (K,))
    for reduction in ("mean", "none") if variant.denominator is None else ("mean",):
        whole = "sum" if reduction == "none" else reduction
        expected, (dx, dw, db) = xent.linear_cross_entropy_with_grad(
            x, w, targets, bias=b, reduction=whole, **options
        )
        hidden, weight, bias = leaf(x), leaf(w[mine()]), leaf(b[mine()])
        more = {"bias": bias, "reduction": reduction, "chunk_bytes": 300, **keywords}
        loss = sharded_linear(hidden, weight, y, **more).sum()
        loss.backward()
        np.testing.assert_allclose(loss.item(), expected, rtol=1e-13, atol=1e-14)
        for operand, slope in ((hidden, dx), (weight, dw[mine()]), (bias, db[mine()])):
            np.testing.assert_allclose(operand.grad.numpy(), slope, rtol=1e-11, atol=1e-14)
        assert_same_everywhere(torch.cat([loss.detach().reshape(1), hidden.grad.reshape(-1)]))


for (_variant, _kind), _name in zip(CASES, CASE_IDS, strict=True):
    CHECKS[f"dense {_name}"] = functools.partial(dense_variant, _variant, _kind)
    CHECKS[f"linear {_name}"] = functools.partial(linear_variant, _variant, _kind)


@CHECKS
def triton() -> None:
    """The kernels of a GPU, in their interpreter."""
    if importlib.util.find_spec("triton") is None or len(sizes()) != 3:
        return
    with mock.patch.dict(devices.KERNELS, cpu="triton"):
        for variant, kind in FEW_CASES:
            dense_variant(variant, kind)
            linear_variant(variant, kind)


DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def assert_as_good(actual, exact, whole, unit, eps) -> None:
    """No further from ``exact`` than three times one process's way in the same dtype, and a rounding."""
    actual, whole = (x.detach().double().numpy() for x in (actual, whole))
    worst = np.max(np.abs(whole - exact) / unit, initial=0)
    excess = np.abs(actual - exact) / unit
    assert excess.max(initial=0) <= 3 * worst + eps, (excess.max(), worst, eps)


@CHECKS
def lower_precision() -> None:
    for (variant, kind), dtype in itertools.product(FEW_CASES, DTYPES.values()):
        z, targets, options = made(variant, kind)
        y, keywords = shard_of(targets, options, kind)
        whole_y = torch.tensor(targets)
        weight = options.get("class_weight")
        whole_keywords = {k: v for k, v in keywords.items() if k not in ("group", "sizes")}
        whole_keywords["weight"] = None if weight is None else torch.tensor(weight)
        rounded = torch.tensor(z).to(dtype)
        _, exact = xent.cross_entropy_with_grad(rounded.double().numpy(), targets, **options)
        unit = np.abs(exact).max(-1, keepdims=True) + 1e-300
        whole = rounded.clone().requires_grad_()
        xt.cross_entropy(
            whole.movedim(-1, 1), whole_y.movedim(-1, 1) if kind != "labels" else whole_y, **whole_keywords
        ).backward()
        shard = rounded[..., mine()].clone().requires_grad_()
        loss = sharded(shard, y, **keywords)
        assert loss.dtype == torch.float32
        loss.backward()
        assert shard.grad.dtype == dtype
        eps = 16 * 2.0**-23 + torch.finfo(dtype).eps
        where = (..., mine())
        assert_as_good(shard.grad, exact[where], whole.grad[where], unit, eps)

        x, w = (torch.tensor(a).to(dtype) for a in arrays((*ROWS, 5), (K, 5)))
        logits = x.double() @ w.double().T
        exact_loss, dlogits = xent.cross_entropy_with_grad(logits.numpy(), targets, **options)
        dlogits = dlogits.reshape(-1, K)
        hidden, head_weight = x.double().numpy(), w.double().numpy()
        units = (
            (np.abs(dlogits) @ np.abs(head_weight)).reshape(hidden.shape) + 1e-300,
            np.abs(dlogits).T @ np.abs(hidden).reshape(-1, 5),
        )
        exacts = ((dlogits @ head_weight).reshape(hidden.shape), dlogits.T @ hidden.reshape(-1, 5))
        whole = [x.clone().requires_grad_(), w.clone().requires_grad_()]
        xt.linear_cross_entropy(*whole, whole_y, **whole_keywords).backward()
        parts = [x.clone().requires_grad_(), w[mine()].clone().requires_grad_()]
        sharded_linear(*parts, y, **keywords).backward()
        eps = 64 * 2.0**-23 + (1 + len(sizes())) * torch.finfo(dtype).eps  # the sum over ranks rounds too
        assert_as_good(parts[0].grad, exacts[0], whole[0].grad, units[0], eps)
        assert_as_good(parts[1].grad, exacts[1][mine()], whole[1].grad[mine()], units[1][mine()], eps)
        wide = sharded_linear(*parts, y, logits_dtype=torch.float32, **keywords)
        np.testing.assert_allclose(wide.detach(), exact_loss, rtol=2e-6)


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("world", WORLDS)
def test_ranks(world, name):
    assert_passed(__name__, world, name)
