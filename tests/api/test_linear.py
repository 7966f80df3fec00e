"""The projected loss on arrays, equation (19): that of the product, a chunk of which is in memory."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest

import xent
from tests.tables.variants import CASE_IDS, CASES, every_case
from xent.engine import chunked_projection

ROWS, D, K = (3, 7), 5, 11
close = np.testing.assert_allclose


def operands(rng: np.random.Generator, rows: tuple[int, ...] = ROWS, dtype: Any = np.float64) -> Any:
    arrays = rng.normal(size=(*rows, D)), rng.normal(size=(K, D)), rng.normal(size=K)
    arrays = tuple(a.astype(dtype) for a in arrays)
    for a in arrays:
        a.flags.writeable = False
    return arrays


def from_logits(x: Any, w: Any, b: Any, targets: Any, **options: Any) -> Any:
    """Loss and gradients by way of the whole matrix of logits."""
    loss, g = xent.cross_entropy_with_grad(x @ w.T + b, targets, **options)
    flat = g.reshape(-1, K)
    return loss, (g @ w, flat.T @ x.reshape(-1, D), flat.sum(0))


@pytest.mark.parametrize("rows_at_a_time", [1, 4, 21])
@every_case
def test_variants(variant, kind, rows_at_a_time):
    rng = np.random.default_rng(0)
    x, w, b = operands(rng)
    targets, options = variant.make(kind, ROWS, K, rng)
    options |= {"denominator": variant.denominator}
    expected, gradients = from_logits(x, w, b, targets, **options)
    options |= {"chunk_bytes": rows_at_a_time * K * 8}
    loss, found = xent.linear_cross_entropy_with_grad(x, w, targets, bias=b, **options)
    close(loss, expected, rtol=1e-12)
    for a, e in zip(found, gradients, strict=True):
        close(a, e, rtol=1e-10, atol=1e-13)
    close(xent.linear_cross_entropy(x, w, targets, bias=b, **options), loss, rtol=1e-12)
    options.pop("denominator")
    each = xent.linear_cross_entropy(x, w, targets, bias=b, reduction="none", **options)
    options.pop("chunk_bytes")
    close(each, xent.cross_entropy(x @ w.T + b, targets, reduction="none", **options), rtol=1e-10)


SHIFTED = [CASES[0], CASES[1], CASES[-2]]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shift", [1, 2, 7, 9])
@pytest.mark.parametrize(("variant", "kind"), SHIFTED, ids=[CASE_IDS[CASES.index(case)] for case in SHIFTED])
def test_shift_is_slicing(variant, kind, shift, reduction):
    rng = np.random.default_rng(1)
    x, w, b = operands(rng)
    targets, options = variant.make(kind, ROWS, K, rng)
    sliced = dict(options)
    if "sample_weight" in sliced:
        sliced["sample_weight"] = sliced["sample_weight"][:, shift:]
    left = max(0, ROWS[1] - shift)
    expected, (dx, *others) = from_logits(
        x[:, :left], w, b, targets[:, shift:], reduction=reduction, **sliced
    )
    loss, (dinputs, *found) = xent.linear_cross_entropy_with_grad(
        x, w, targets, bias=b, shift=shift, reduction=reduction, chunk_bytes=300, **options
    )
    assert loss.shape == expected.shape
    close(loss, expected, rtol=1e-12)
    close(dinputs[:, :left], dx, atol=1e-13)
    assert not dinputs[:, left:].any()
    for a, e in zip(found, others, strict=True):
        close(a, e, atol=1e-13)


@pytest.mark.parametrize("labels", [False, True])
def test_row_statistics(labels):
    rng = np.random.default_rng(2)
    x, w, b = operands(rng)
    y = np.where(rng.random(ROWS) < 0.3, -100, rng.integers(0, K, ROWS)) if labels else None
    options = {"softcap": 3.0, "temperature": 0.8}
    found = xent.linear_row_statistics(x, w, y, bias=b, chunk_bytes=200, **options)
    for a, e in zip(found, xent.row_statistics(x @ w.T + b, y, **options), strict=True):
        assert (a is None) == (e is None)
        if a is not None:
            close(a, e, rtol=1e-12)
    shifted = xent.linear_row_statistics(x, w, y, bias=b, shift=2, **options)
    sliced = xent.row_statistics(x[:, :-2] @ w.T + b, None if y is None else y[:, 2:], **options)
    close(shifted.lse, sliced.lse, rtol=1e-12)


def test_the_same_chunks_give_the_same_bits():
    rng = np.random.default_rng(3)
    x, w, b = operands(rng, dtype=np.float32)
    y = rng.integers(0, K, ROWS)
    for chunk_bytes in (K * 4, 5 * K * 4, None):
        one, two = (
            xent.linear_cross_entropy_with_grad(x, w, y, bias=b, chunk_bytes=chunk_bytes) for _ in range(2)
        )
        assert one[0] == two[0]
        assert all(np.array_equal(a, c) for a, c in zip(one[1], two[1], strict=True))


def test_rows_that_are_left_out_are_not_even_multiplied(monkeypatch):
    rows = []
    monkeypatch.setattr(
        chunked_projection.np, "matmul", lambda a, b, out=None: rows.append(a.shape) or a @ b, raising=True
    )
    rng = np.random.default_rng(4)
    x, w, _ = operands(rng)
    y = rng.integers(0, K, ROWS)
    y[0] = -100
    weight = np.ones(ROWS)
    weight[1, 3:] = 0
    xent.linear_cross_entropy(x, w, y, sample_weight=weight)
    assert rows == [(10, D)]  # 21 less the 7 ignored and the 4 of weight 0


def test_rows_that_are_left_out_may_hold_anything():
    rng = np.random.default_rng(5)
    x, w, _ = operands(rng)
    y = rng.integers(0, K, ROWS)
    expected = xent.linear_cross_entropy_with_grad(x[1:], w, y[1:])
    x, y = x.copy(), y.copy()
    x[0], y[0] = np.nan, -100
    loss, gradients = xent.linear_cross_entropy_with_grad(x, w, y)
    assert loss == expected[0]
    close(gradients.dweight, expected[1].dweight, rtol=1e-12)
    assert not gradients.dinputs[0].any()


@pytest.mark.parametrize("shape", [(0,), (4, 0), (0, 3)])
def test_no_rows(shape):
    w = np.ones((K, D))
    loss, (dx, dw, db) = xent.linear_cross_entropy_with_grad(
        np.ones((*shape, D)), w, np.zeros(shape, int), bias=np.ones(K)
    )
    assert (loss, dx.shape, dw.any(), db.any()) == (0, (*shape, D), False, False)


@pytest.mark.parametrize("rows", [(), (0,), (3,), (2, 0), (2, 3)])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_no_features(dtype, soft, rows):
    """All logits are the bias, or 0: the loss is log K, and the gradients are of no size but the bias's."""
    x, w, b = np.zeros((*rows, 0), dtype), np.zeros((K, 0), dtype), np.linspace(-1, 1, K).astype(dtype)
    targets = np.full((*rows, K), 1 / K, dtype) if soft else np.ones(rows, int)
    for bias in (None, b):
        logits = np.broadcast_to(np.zeros(K, dtype) if bias is None else bias, (*rows, K))
        for reduction in ("mean", "sum", "none"):
            options = {"reduction": reduction, "z_loss": 0.1}
            expected, g = xent.cross_entropy_with_grad(logits, targets, **options)
            loss, (dx, dw, db) = xent.linear_cross_entropy_with_grad(x, w, targets, bias=bias, **options)
            close(loss, expected, rtol=1e-6)
            close(xent.linear_cross_entropy(x, w, targets, bias=bias, **options), expected, rtol=1e-6)
            assert (dx.shape, dw.shape) == (x.shape, w.shape)
            if bias is not None:
                close(db, g.reshape(math.prod(rows), K).sum(0), rtol=1e-5, atol=1e-6)
        stats = xent.linear_row_statistics(x, w, None if soft else targets, bias=bias)
        close(stats.lse, xent.row_statistics(logits).lse, rtol=1e-6)


@pytest.mark.parametrize("features", [0, 2])
@pytest.mark.parametrize("rows", [(), (0,), (3,), (2, 3)])
def test_no_classes(rows, features):
    """As for logits: nothing to point at, nothing to learn."""
    x, w, b = np.ones((*rows, features)), np.ones((0, features)), np.zeros(0)
    for targets in (np.zeros((*rows, 0)), np.full(rows, -100)):
        options = {} if targets.ndim > len(rows) else {"z_loss": 0.1}
        loss, (dx, dw, db) = xent.linear_cross_entropy_with_grad(x, w, targets, bias=b, **options)
        assert loss == xent.linear_cross_entropy(x, w, targets, **options) == 0
        close(dx, np.zeros(x.shape))
        assert (dw.shape, db.shape) == (w.shape, (0,))
        each = xent.linear_cross_entropy(x, w, targets, reduction="none", **options)
        close(each, np.zeros(rows))
    assert not xent.linear_row_statistics(x, w, np.full(rows, -100)).lse.any()


@pytest.mark.parametrize("rows", [(), (0,), (3,), (2, 3)])
@pytest.mark.parametrize(("num_classes", "features"), [(0, 0), (0, 2), (4, 0)])
@pytest.mark.parametrize("soft", [False, True])
def test_tensors_of_no_classes_or_features(soft, num_classes, features, rows):
    torch = pytest.importorskip("torch")
    from xent.torch import linear_cross_entropy

    x = torch.ones((*rows, features), requires_grad=True)
    w = torch.ones((num_classes, features), requires_grad=True)
    if soft:
        targets = torch.full((*rows, num_classes), 1 / max(num_classes, 1))
    else:
        targets = torch.full(rows, 1 if num_classes else -100)
    options = {} if soft and not num_classes else {"z_loss": 0.1}
    arrays = (np.ones(x.shape, np.float32), np.ones(w.shape, np.float32), targets.numpy())
    for reduction in ("mean", "sum", "none"):
        options["reduction"] = reduction
        loss = linear_cross_entropy(x, w, targets, **options)
        close(loss.detach().numpy(), xent.linear_cross_entropy(*arrays, **options), rtol=1e-6)
        for gradient, operand in zip(torch.autograd.grad(loss.sum(), (x, w)), (x, w), strict=True):
            assert gradient.shape == operand.shape
            assert not gradient.any()


def test_no_row_counts():
    x, w, _ = operands(np.random.default_rng(6))
    loss, (dx, dw, _) = xent.linear_cross_entropy_with_grad(x, w, np.full(ROWS, -100))
    assert (loss, dx.any(), dw.any()) == (0, False, False)


@pytest.mark.parametrize("soft", [False, True])
def test_the_matrix_of_logits_is_never_in_memory(soft):
    num_rows, num_classes, budget = 4096, 2000, 1 << 20
    rng = np.random.default_rng(7)
    x = rng.normal(size=(num_rows, 8)).astype(np.float32)
    w = rng.normal(size=(num_classes, 8)).astype(np.float32)
    q = rng.random((num_rows, num_classes), np.float32) if soft else None
    targets = q if soft else rng.integers(0, num_classes, num_rows)
    options = {"label_smoothing": 0.1, "class_weight": rng.random(num_classes)}
    tracemalloc.start()
    xent.linear_cross_entropy_with_grad(x, w, targets, chunk_bytes=budget, **options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * budget < num_rows * num_classes * 4 / 2  # soft targets are widened, chunk by chunk


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x, w, y: xent.linear_cross_entropy(x, w, y, shift=-1), ValueError, "`shift`"),
        (lambda x, w, y: xent.linear_cross_entropy(x, w, y, shift=1.0), TypeError, "`shift`"),
        (lambda x, w, y: xent.linear_cross_entropy(x, w, y, chunk_bytes=0), ValueError, "`chunk_bytes`"),
        (lambda x, w, y: xent.linear_cross_entropy(x, w, y, chunk_bytes="1"), TypeError, "`chunk_bytes`"),
        (lambda x, w, y: xent.linear_cross_entropy(x, w, y[:1]), ValueError, "`targets`"),
        (lambda x, w, y: xent.linear_row_statistics(x, w, y * 1.0), TypeError, "`labels`"),
        (lambda x, w, y: xent.linear_row_statistics(x, w, y + K), ValueError, "`labels`"),
    ],
)
def test_errors(call, error, words):
    x, w, _ = operands(np.random.default_rng(8))
    with pytest.raises(error, match=words):
        call(x, w, np.zeros(ROWS, int))
