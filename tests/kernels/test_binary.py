"""The kernel of the binary loss against the plain formulas in extended precision; its odd inputs."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import xent
from tests.conftest import Backend
from tests.tables.tolerance import DTYPES
from xent.kernels import _native

Array = Any

# Empty, one vector, one block and their neighbours, many blocks for several threads.
SHAPES = [(0,), (), (1,), (63,), (65, 1), (31, 33), (8, 128), (5, 205)]
LARGE = (3, 30_001)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "pos_weight": {"pos_weight": 2.5},
    "pos_weight 0": {"pos_weight": 0.0, "label_smoothing": 0.2},
    "smoothing others": {"label_smoothing": 0.3, "smoothing_over": "others"},
    "softcap": {"softcap": 4.0, "temperature": 1.5, "pos_weight": 2.5},
    "temperature": {"temperature": 0.3},
}
EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-23, "bfloat16": 2.0**-23}
TARGETS = ("probabilities", "integers", "booleans")


def exact(z: Array, q: Array, weight: Array, options: dict[str, Any]) -> tuple[Array, ...]:
    """(losses, their derivatives, the sizes of the terms of both), in long double."""
    z, q = z.astype(np.longdouble), q.astype(np.longdouble)
    c, t = options.get("softcap"), np.longdouble(options.get("temperature", 1.0))
    u = z / t if c is None else np.where(np.isfinite(z), c * np.tanh(z / (t * c)), z)
    slope = np.where(np.isinf(u), 0, 1 - (u / c) ** 2) / t if c is not None else 1 / t
    epsilon = options.get("label_smoothing", 0.0)
    share = epsilon * (2 if options.get("smoothing_over") == "others" else 1)
    q = (1 - np.longdouble(share)) * q + np.longdouble(share) / 2
    v1, v0 = options.get("pos_weight", 1.0) * q, 1 - q
    u = np.where(u == np.inf, np.nan, u)
    zero = np.longdouble(0)
    part1, part0 = (np.where(v == 0, zero, v * np.logaddexp(zero, s)) for v, s in ((v1, -u), (v0, u)))
    p1, p0 = 1 / (1 + np.exp(-u)), 1 / (1 + np.exp(u))
    up, down = v0 * p1, v1 * p0
    counts = weight != 0
    return tuple(
        np.where(counts, weight * x, 0)
        for x in (part1 + part0, slope * (up - down), abs(part1 + part0), abs(slope) * (up + down))
    )


def make(shape: tuple[int, ...], dtype: str, targets: str, scale: float) -> tuple[Array, Array]:
    rng = np.random.default_rng(sum(shape) + 1)
    z = np.asarray(rng.normal(size=shape) * scale).astype(DTYPES[dtype])
    y = np.asarray(rng.random(shape) < 0.4)
    soft = np.asarray(rng.random(shape)).astype(np.float64 if dtype == "float64" else np.float32)
    return z, {"probabilities": soft, "integers": y.astype(np.int64), "booleans": y}[targets]


def assert_right(z: Array, q: Array, weight: Array | None, dtype: str, options: dict[str, Any]) -> None:
    given = options if weight is None else options | {"sample_weight": weight}
    losses, grad = xent.binary_cross_entropy_with_grad(z, q, reduction="none", **given)
    full = np.ones(z.shape) if weight is None else weight
    with np.errstate(all="ignore"):
        expected, derivative, size, terms = exact(z.astype(np.float64), q, full, options)
    eps = EPS[dtype]
    # A smoothed probability is rounded as a number near 1; a capped slope as 1 − t².
    floor = 3 * eps * full * options.get("pos_weight", 1.0)
    u = np.abs(z.astype(np.float64)) / options.get("temperature", 1.0)
    units = 12 + np.nan_to_num(u, posinf=0.0)  # without fused multiply-add u·log2(e) is rounded
    rounding = 0.0 if dtype in ("float64", "float32") else {"float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    smallest = {"float16": 2.0**-25}.get(dtype, 1e-37)
    for actual, e, unit, one in ((losses, expected, size, 0.0), (grad, derivative, terms, rounding)):
        good = np.isfinite(e)
        a = np.asarray(actual, np.longdouble)
        np.testing.assert_array_equal(a[~good], e[~good])
        a, e, unit = a[good], e[good], (units * unit)[good]
        allowed = eps * unit + (floor[good] if options else 0.0) + one * np.abs(e) + smallest
        ratio = np.abs(a - e) / allowed
        worst = int(ratio.argmax()) if a.size else 0
        where = (z[good][worst], q[good][worst], a[worst], e[worst]) if a.size else ()
        assert not where or ratio[worst] <= 1, where
    for reduction, whole in (("sum", expected.sum()), ("mean", expected.sum() / max(z.size, 1))):
        if weight is None and np.isfinite(whole):
            loss = xent.binary_cross_entropy(z, q, reduction=reduction, **given)
            np.testing.assert_allclose(float(loss), float(whole), rtol=16 * eps, atol=1e-30)
    assert losses.dtype == (np.float64 if dtype == "float64" else np.float32)
    assert grad.dtype == z.dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("option", OPTIONS)
def test_kernel(backend: Backend, option: str, dtype: str) -> None:
    for _ in backend.each():
        for shape, targets, scale in itertools.product(SHAPES, TARGETS, (1.0, 30.0)):
            z, q = make(shape, dtype, targets, scale)
            assert_right(z, q, None, dtype, OPTIONS[option])
        z, q = make(LARGE, dtype, "probabilities", 3.0)
        weight = np.random.default_rng(0).integers(0, 3, z.shape) / 2.0
        assert_right(z, q, weight, dtype, OPTIONS[option])


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_numbers(backend: Backend, dtype: str) -> None:
    values = np.array([0.0, -0.0, 80.0, -80.0, 1e4, -1e4, np.inf, -np.inf, np.nan, 1e-3, 60000.0], np.float64)
    z, q = (x.ravel() for x in np.meshgrid(values, [0.0, 1.0, 0.25]))
    z, q = z.astype(DTYPES[dtype]), q.astype(np.float64 if dtype == "float64" else np.float32)
    for _, options in itertools.product(backend.each(), (OPTIONS["plain"], OPTIONS["softcap"])):
        assert_right(z, q, None, dtype, options)
        weight = (np.arange(z.size) % 2).astype(float)  # of 0: not read
        assert_right(z, q, weight, dtype, options)


def test_logits_of_any_layout_and_in_place() -> None:
    z, q = make((31, 33), "float32", "probabilities", 3.0)
    loss, grad = xent.binary_cross_entropy_with_grad(z, q)
    wide = np.zeros((31, 66), np.float32)
    wide[:, ::2] = z
    for other, back in ((np.asfortranarray(z), z), (wide[:, ::2], z), (z[::-1, ::-1].copy()[::-1, ::-1], z)):
        out = np.empty_like(wide)[:, ::2]
        for given in (None, out, other):
            found, gradient = xent.binary_cross_entropy_with_grad(other, q, out=given)
            assert found == loss
            np.testing.assert_array_equal(gradient, grad)
            assert given is None or gradient is given
        other[...] = back


def test_same_bits_with_and_without_the_gradient_on_any_number_of_threads() -> None:
    threadpoolctl = pytest.importorskip("threadpoolctl")
    z, q = make(LARGE, "float32", "probabilities", 3.0)
    weight = np.random.default_rng(0).random(z.shape)
    found = set()
    for threads in (1, 2, 3):
        with threadpoolctl.threadpool_limits(threads):
            loss, grad = xent.binary_cross_entropy_with_grad(z, q, sample_weight=weight, pos_weight=2.0)
            alone = xent.binary_cross_entropy(z, q, sample_weight=weight, pos_weight=2.0)
            found.add((loss.tobytes(), alone.tobytes(), grad.tobytes()))
    ((loss_bits, alone_bits, _),) = found
    assert loss_bits == alone_bits


def test_labels_that_are_none() -> None:
    z = np.zeros(4, np.float32)
    for labels in (np.array([0, 1, 2, -1]), np.array([0, 1, 7, 255], np.uint8)):
        losses = xent.binary_cross_entropy(z, labels, reduction="none", validate=False)
        np.testing.assert_array_equal(np.isnan(losses), [False, False, True, True])


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.uint16])
def test_ranges(backend: Backend, dtype: Any) -> None:
    """uint16 are the bits of bfloat16."""
    for _, size in itertools.product(backend.each(), (0, 1, 1023, 1025, 200_003)):
        bits = np.random.default_rng(size).random(size).astype(np.float32)
        bits[: size // 2] = np.round(bits[: size // 2])
        x = (bits.view(np.uint32) >> 16).astype(np.uint16) if dtype == np.uint16 else bits.astype(dtype)
        assert _native.all_within(x, 1.0)
        for place, value in itertools.product(
            {0, size // 2, size - 1} & set(range(size)), (-0.5, 1.5, np.nan)
        ):
            wrong, number = x.copy(), np.array([value], np.float32)
            wrong[place] = number.view(np.uint32)[0] >> 16 if dtype == np.uint16 else number[0]
            assert not _native.all_within(wrong, 1.0)
            assert _native.all_within(wrong, 2.0) == (value == 1.5)


@pytest.mark.parametrize(
    "message", ["flat", "one length", "targets must be", "as long as", "dtype of the loss"]
)
def test_what_the_kernel_refuses(message: str) -> None:
    z, scalars = np.zeros(4, np.float32), (1.0, 0.0, 1.0, 0.0, 1.0)
    calls = {
        "flat": (z.reshape(2, 2), z, None, None, None, *scalars, None, None),
        "one length": (z, z[:3], None, None, None, *scalars, None, None),
        "targets must be": (z, z.astype(float), None, None, None, *scalars, None, None),
        "as long as": (z, z, None, None, None, *scalars, None, z[:2].copy()),
        "dtype of the loss": (z, z, None, np.ones(4), None, *scalars, None, None),
    }
    with pytest.raises((ValueError, TypeError), match=message):
        _native.binary_loss(*calls[message])
