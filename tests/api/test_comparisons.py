"""Values and gradients beside what nobody here wrote: definitions in NumPy, SciPy, PyTorch."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import scipy.special

import xent
from tests.tables.tolerance import DTYPES
from tests.tables.variants import Kind, Variant, chosen

Array = np.ndarray[Any, Any]


def close(actual: Any, expected: Any, rtol: float = 1e-12, atol: float = 1e-13) -> None:
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def test_focal_loss_is_its_definition() -> None:
    """−α_t (1 − p)^γ log p (Lin et al., 2017, equation 5)."""
    rng = np.random.default_rng(0)
    logits, labels, alpha = rng.normal(size=(9, 6)), rng.integers(0, 6, 9), rng.random(6)
    p = scipy.special.softmax(logits, -1)[np.arange(9), labels]
    for gamma in (0.5, 1, 2, 5):
        losses = xent.cross_entropy(logits, labels, focal_gamma=gamma, class_weight=alpha, reduction="none")
        close(losses, -alpha[labels] * (1 - p) ** gamma * np.log(p))


def test_temperature_and_softcap_are_their_definitions() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(9, 6)) * 5, rng.integers(0, 6, 9)
    for temperature, softcap in itertools.product((1.0, 0.5, 3.0), (None, 2.0, 30.0)):
        u = logits / temperature if softcap is None else softcap * np.tanh(logits / (temperature * softcap))
        options = {"temperature": temperature, "softcap": softcap, "z_loss": 0.01}
        close(xent.cross_entropy(logits, labels, **options), xent.cross_entropy(u, labels, z_loss=0.01))


@pytest.mark.parametrize("dtype", DTYPES)
def test_binary_is_two_classes(dtype: str) -> None:
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(5, 8)) * 4).astype(DTYPES[dtype])
    labels = rng.integers(0, 2, (5, 8))
    q = rng.random((5, 8)).astype(np.float32 if dtype != "float64" else np.float64)
    pairs = np.stack([np.zeros_like(logits), logits], -1)
    sample_weight = rng.random((5, 8))
    wide = 1e-12 if dtype == "float64" else {"float32": 1e-6, "float16": 2e-3, "bfloat16": 1.6e-2}[dtype]
    for options in (
        {},
        {"sample_weight": sample_weight},
        {"z_loss": 0.1},
        {"softcap": 2.0, "temperature": 2.0},
    ):
        for reduction, pos_weight in itertools.product(("mean", "sum", "none"), (None, 3.0)):
            weight = None if pos_weight is None else np.array([1.0, pos_weight])
            for target, two in ((labels, np.eye(2)[labels]), (q, np.stack([1 - q, q], -1))):
                loss, grad = xent.binary_cross_entropy_with_grad(
                    logits, target, pos_weight=pos_weight, reduction=reduction, **options
                )
                expected = xent.cross_entropy_with_grad(
                    pairs, two, class_weight=weight, reduction=reduction, **options
                )
                tight = 1e-12 if dtype == "float64" else 1e-6
                close(loss, expected[0], rtol=tight, atol=tight)
                close(grad.astype(float), expected[1][..., 1].astype(float), rtol=wide, atol=wide / 10)
                separate = xent.binary_cross_entropy(
                    logits, target, pos_weight=pos_weight, reduction=reduction, **options
                )
                np.testing.assert_array_equal(loss, separate)


def test_binary_focal_smoothing_and_ignored() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=40), rng.integers(0, 2, 40)
    labels[::7] = -100
    pairs = np.stack([np.zeros(40), logits], -1)
    for options in ({}, {"focal_gamma": 2.0}, {"label_smoothing": 0.1}):
        loss, grad = xent.binary_cross_entropy_with_grad(logits, labels, **options)
        two = xent.cross_entropy_with_grad(pairs, labels, **options)
        close(loss, two[0])
        close(grad, two[1][:, 1])
        np.testing.assert_array_equal(grad[::7], 0)


def test_binary_over_more_than_one_block() -> None:
    rng = np.random.default_rng(0)
    logits, q = rng.normal(size=70001).astype(np.float32), rng.random(70001).astype(np.float32)
    loss, grad = xent.binary_cross_entropy_with_grad(logits, q)
    z = logits.astype(np.float64)
    close(loss, np.mean(np.logaddexp(0, z) - q * z), rtol=1e-6)
    close(grad, (scipy.special.expit(z) - q) / z.size, rtol=1e-5, atol=1e-11)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_is_projection_and_loss(dtype: str, bias: bool) -> None:
    rng = np.random.default_rng(0)
    kind = DTYPES[dtype]
    x, w = rng.normal(size=(2, 5, 4)).astype(kind), rng.normal(size=(7, 4)).astype(kind)
    b = rng.normal(size=7).astype(kind) if bias else None
    labels = rng.integers(0, 7, (2, 5))
    wide = [a.astype(np.float64) for a in (x, w, b if bias else np.zeros(7))]
    logits = wide[0] @ wide[1].T + wide[2]
    tolerance = {"float64": 1e-12, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}[dtype]
    for options in ({}, {"label_smoothing": 0.1, "z_loss": 0.01}, {"focal_gamma": 2.0, "reduction": "sum"}):
        loss, gradients = xent.linear_cross_entropy_with_grad(x, w, labels, bias=b, **options)
        expected, g = xent.cross_entropy_with_grad(logits, labels, **options)
        close(loss, expected, rtol=min(tolerance, 1e-5))
        close(xent.linear_cross_entropy(x, w, labels, bias=b, **options), loss, rtol=1e-7)
        flat, rows = g.reshape(-1, 7), wide[0].reshape(-1, 4)
        for a, e in zip(gradients, (g @ wide[1], flat.T @ rows, flat.sum(0)), strict=True):
            if a is None:
                assert not bias
                continue
            assert a.dtype == kind
            close(a.astype(float), e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("axis", [-1, 0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_family_is_scipys(dtype: str, axis: int) -> None:
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(6, 5, 4)) * 10).astype(DTYPES[dtype])
    logits[0, 0, 0] = -np.inf
    wide = logits.astype(np.float64)
    rounding = {"float64": 1e-13, "float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}[dtype]
    lse_rounding = 1e-13 if dtype == "float64" else 1e-6
    close(
        xent.logsumexp(logits, axis),
        scipy.special.logsumexp(wide, axis),
        rtol=lse_rounding,
        atol=lse_rounding,
    )
    for ours, theirs in (
        (xent.softmax, scipy.special.softmax),
        (xent.log_softmax, scipy.special.log_softmax),
    ):
        result = ours(logits, axis)
        assert result.dtype == logits.dtype
        close(result.astype(np.float64), theirs(wide, axis), rtol=rounding, atol=rounding / 10)
    out = np.empty_like(logits)
    assert xent.softmax(logits, axis, out=out) is out
    np.testing.assert_array_equal(out, xent.softmax(logits, axis))


def test_log_softmax_of_large_logits_keeps_its_digits() -> None:
    """At logits of 1e4 a float32 log-sum-exp is 5e-4 off; the difference is taken in float64."""
    logits = np.float32(1e4) + np.random.default_rng(0).integers(-4, 5, (6, 9)).astype(np.float32)
    expected = scipy.special.log_softmax(logits.astype(np.float64), -1)
    close(xent.log_softmax(logits), expected, rtol=3e-7)
    labels = np.arange(6)
    close(xent.cross_entropy(logits, labels, reduction="none"), -expected[labels, labels], rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_row_statistics_are_their_definitions(dtype: str) -> None:
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(6, 5, 9)) * 3).astype(DTYPES[dtype])
    labels = rng.integers(0, 9, (6, 5))
    labels[2, 3] = -100
    wide = logits.astype(np.float64)
    log_p = scipy.special.log_softmax(wide, -1)
    lse, log_prob, entropy, argmax, *others = xent.row_statistics(logits, labels)
    assert others == [None] * 3
    read = labels >= 0
    rounding = 1e-13 if dtype == "float64" else 2e-6
    close(lse, np.where(read, scipy.special.logsumexp(wide, -1), 0), rtol=rounding, atol=rounding)
    chosen = np.take_along_axis(log_p, labels.clip(0)[..., None], -1)[..., 0]
    close(log_prob, np.where(read, chosen, 0), rtol=rounding, atol=rounding)
    close(entropy, np.where(read, scipy.special.entr(np.exp(log_p)).sum(-1), 0), rtol=rounding, atol=rounding)
    np.testing.assert_array_equal(argmax, np.where(read, logits.argmax(-1), 0))
    assert argmax.dtype == np.int64
    assert lse.dtype == (np.float64 if dtype == "float64" else np.float32)
    assert xent.row_statistics(logits).log_prob is None
    np.testing.assert_array_equal(xent.row_statistics(logits).lse[read], lse[read])


def is_in_pytorch(variant: Variant, kind: Kind) -> bool:
    """Whether PyTorch has these options, and a mean of them: it divides by 0 where no row counts."""
    known = {"class_weight", "label_smoothing", "ignore_index"}
    return set(variant.options) <= known and variant.ignored < 1 and variant.denominator is None


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@chosen(is_in_pytorch)
def test_pytorch_cross_entropy(variant: Variant, kind: Kind, reduction: str) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(11, 6))
    targets, ours = variant.make(kind, (11,), 6, rng)
    z = torch.tensor(logits, requires_grad=True)
    theirs = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in ours.items()}
    theirs["weight"] = theirs.pop("class_weight", None)
    expected = torch.nn.functional.cross_entropy(z, torch.tensor(targets), reduction=reduction, **theirs)
    expected.sum().backward()
    loss, grad = xent.cross_entropy_with_grad(logits, targets, reduction=reduction, **ours)
    close(loss, expected.detach().numpy())
    close(grad, z.grad.numpy())


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("pos_weight", [None, 0.3, 4.0])
@pytest.mark.parametrize("soft", [False, True])
def test_pytorch_binary_cross_entropy(soft: bool, pos_weight: float | None, reduction: str) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 6)) * 5
    targets = rng.random((5, 6)) if soft else rng.integers(0, 2, (5, 6))
    z = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        z,
        torch.tensor(targets, dtype=torch.float64),
        reduction=reduction,
        pos_weight=None if pos_weight is None else torch.tensor(pos_weight, dtype=torch.float64),
    )
    expected.sum().backward()
    loss, grad = xent.binary_cross_entropy_with_grad(
        logits, targets, pos_weight=pos_weight, reduction=reduction
    )
    close(loss, expected.detach().numpy())
    close(grad, z.grad.numpy())


def test_pytorch_hessian_product() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits, vector, labels = rng.normal(size=(4, 5)), rng.normal(size=(4, 5)), rng.integers(0, 5, 4)
    y = torch.tensor(labels)
    _, expected = torch.autograd.functional.hvp(
        lambda z: torch.nn.functional.cross_entropy(z, y, label_smoothing=0.1),
        torch.tensor(logits),
        torch.tensor(vector),
    )
    close(xent.cross_entropy_hvp(logits, labels, vector, label_smoothing=0.1), expected.numpy())
