"""The conformance table (rule 4): backend × variant × dtype × shape × logit scale × layout.

Every backend must agree with the float64 reference to the tolerances of tolerance.py, which also run
the plain formula beside it. The quick tests sweep each axis with the others at a few values; the slow
one takes the product.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import xent
from tests.conftest import Backend
from tests.tables.tolerance import DTYPES, TOLERANCES, Magnitudes, Plain, assert_close, magnitudes
from tests.tables.variants import CASE_IDS, CASES, FEW, FEW_CASES, Kind, Variant
from xent.core import head
from xent.core.contract import Cotangents, Curvatures, Kernels, RowStats
from xent.engine.batch_loss import Problem
from xent.kernels import _native, reference, registry

Array = np.ndarray[Any, Any]
Layout = Callable[[tuple[int, ...], Any], Array]

SCALES = ("0.02", "1", "30", "1e4", "masked", "ties", "poisoned")
SHAPES = [(n, k) for k in (1, 2, 10, 127, 2049) for n in (1, 63, 257)] + [(16, 3), (128, 10), (2, 128256)]


def _image(shape: tuple[int, ...], dtype: Any) -> Array:
    return np.moveaxis(np.empty((*shape[:-2], shape[-1], shape[-2]), dtype), -2, -1)


# Each makes an empty array of (rows..., K) with its own strides; the values are filled in afterwards.
LAYOUTS: dict[str, Layout] = {
    "contiguous": np.empty,
    "rows_strided": lambda s, d: np.empty((2 * s[0], *s[1:]), d)[::2],
    "classes_strided": lambda s, d: np.empty((*s[:-1], 2 * s[-1]), d)[..., ::2],
    "both_strided": lambda s, d: np.empty((3 * s[0], *s[1:-1], 2 * s[-1]), d)[::3, ..., ::2],
    "class_first": lambda s, d: np.moveaxis(np.empty((s[-1], *s[:-1]), d), 0, -1),
    "image": _image,
    "fortran": lambda s, d: np.empty(s, d, order="F"),
    "rows_reversed": lambda s, d: np.empty(s, d)[::-1],
    "classes_reversed": lambda s, d: np.empty(s, d)[..., ::-1],
    "offset": lambda s, d: np.empty((*s[:-1], s[-1] + 1), d)[..., 1:],
}
ROWS = {"rows": (33,), "3-D": (5, 7), "4-D": (2, 3, 7), "none": ()}


class Case(NamedTuple):
    """One cell of the table, ready to run."""

    problem: Problem
    dtype: str
    vector: Array
    dloss: Array
    out: Layout


def make_case(
    variant: Variant,
    kind: Kind,
    rows: tuple[int, ...],
    num_classes: int,
    dtype: str,
    scale: str,
    layout: Layout = np.empty,
    out: Layout = np.empty,
    reduction: str = "sum",
) -> Case:
    rng = np.random.default_rng([num_classes, *rows, len(scale)])
    logits = layout((*rows, num_classes), DTYPES[dtype])
    logits[...] = make_logits(scale, logits.shape, dtype, rng)
    logits.flags.writeable = False
    targets, options = variant.make(kind, rows, num_classes, rng)
    vector = layout(logits.shape, DTYPES[dtype])
    vector[...] = rng.normal(size=logits.shape)
    vector.flags.writeable = False
    denominator = variant.denominator if reduction == "mean" else None
    problem = Problem.from_arguments(logits, targets, reduction, denominator, True, options, reference)
    return Case(problem, dtype, vector, np.asarray(rng.uniform(0.5, 1.5, rows)), out)


def make_logits(scale: str, shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> Array:
    """Normal logits of a scale; or small integers, with −inf, or with rows of NaN and inf."""
    if scale == "ties":
        return rng.integers(-2, 3, shape).astype(DTYPES[dtype])
    factor = 3.0 if scale in ("masked", "poisoned") else float(scale)
    logits = np.asarray(rng.normal(size=shape) * factor)
    if dtype == "float16":
        logits = logits.clip(-65504, 65504)
    if scale == "masked":
        logits[..., 1:][rng.random(logits[..., 1:].shape) < 0.3] = -np.inf
    if scale == "poisoned":
        rows = logits.reshape(-1, shape[-1])
        for row, value in enumerate((np.nan, np.inf, -np.inf)):
            rows[row::7, :: 1 if value == -np.inf else 3] = value
    return logits.astype(DTYPES[dtype])


class Results(NamedTuple):
    """What one backend makes of a case."""

    stats: RowStats
    grad: Array
    fused_stats: RowStats
    fused_grad: Array
    hvp: Array


def run(kernels: Kernels, case: Case, cotangents: Cotangents, curvatures: Curvatures) -> Results:
    p = case.problem
    arrays = (p.logits, p.target.labels, p.target.dense, p.link)
    want = ("lse",)
    want += ("log_prob",) if p.target.labels is not None else ()
    want += ("dense_log_prob", "mass") if p.target.dense is not None else ()

    def out() -> Array | None:
        if kernels is reference or isinstance(kernels, Plain):
            return None  # not rounded to the dtype of the logits: that is the tolerance's business
        buffer = case.out(p.logits.shape, p.logits.dtype)
        buffer[...] = 7.0
        return buffer

    stats = kernels.row_stats(*arrays, (*want, "entropy", "argmax"))
    grad = kernels.row_grad(*arrays, stats, cotangents, out())
    fused_stats, fused_grad = kernels.row_stats_and_grad(*arrays, cotangents, want, out())
    hvp = kernels.row_hvp(*arrays, cotangents, curvatures, case.vector, out())
    return Results(stats, grad, fused_stats, fused_grad, hvp)


def check_case(backend: Backend, case: Case) -> None:
    """All four calls of a backend, with the coefficients that the float64 statistics give."""
    p = case.problem
    rule = TOLERANCES[case.dtype]
    with np.errstate(all="ignore"):  # −inf labels and the plain formulas: only results matter here
        exact = p.stats()
        # f'' of γ < 1 has a pole at p = 1: no more than what is finite in the kernels' precision.
        limit = float(np.finfo(rule.compute).max) ** 0.5
        curvatures = head.curvatures(exact, p.target, p.spec, case.dloss, np)
        coefficients = (
            head.cotangents(exact, p.target, p.spec, case.dloss, np),
            Curvatures(*(np.clip(c, -limit, limit) for c in curvatures)),
        )
        expected = run(reference, case, *coefficients)
        plain = run(Plain(rule.compute), case, *coefficients)
        unit = magnitudes(p.logits, p.target.labels, p.target.dense, p.link, *coefficients, case.vector)
    for name, kernels in backend.each():
        actual = run(kernels, case, *coefficients)
        compare(name, case, actual, expected, plain, unit)


def compare(
    name: str, case: Case, actual: Results, expected: Results, plain: Results, unit: Magnitudes
) -> None:
    for stats in (actual.stats, actual.fused_stats):
        for field, magnitude in unit.stats.items():
            a, e, b = (getattr(s, field) for s in (stats, expected.stats, plain.stats))
            if field != "entropy" or stats is actual.stats:
                assert (a is None) == (e is None), field
            if a is not None:
                assert np.asarray(a).dtype in (np.float32, np.float64), f"{field}: {np.asarray(a).dtype}"
                assert_close(a, e, b, magnitude, f"{name}: {field}", case.dtype, unit.largest)
    defined = ~np.isnan(expected.stats.lse)
    a, e = (np.asarray(r.stats.argmax)[defined] for r in (actual, expected))
    assert a.dtype == np.int64
    np.testing.assert_array_equal(a, e, f"{name}: argmax")
    for field, magnitude in (("grad", unit.grad), ("fused_grad", unit.grad), ("hvp", unit.hvp)):
        a, e, b = (getattr(r, field) for r in (actual, expected, plain))
        assert a.dtype == case.problem.logits.dtype
        assert_close(a, e, b, magnitude, f"{name}: {field}", case.dtype, unit.largest)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("variant", "kind"), CASES, ids=CASE_IDS)
def test_variants(backend: Backend, variant: Variant, kind: Kind, dtype: str) -> None:
    for num_classes, scale in (
        (1, "1"),
        (5, "1"),
        (10, "30"),
        (10, "masked"),
        (10, "poisoned"),
        (127, "1"),
        (300, "30"),
    ):
        check_case(backend, make_case(variant, kind, (19,), num_classes, dtype, scale))


@pytest.mark.parametrize("shape", [s for s in SHAPES if s != (257, 2049)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("variant", "kind"), FEW_CASES, ids=FEW)
def test_shapes_and_scales(
    backend: Backend, variant: Variant, kind: Kind, dtype: str, shape: tuple[int, int]
) -> None:
    for scale in SCALES:
        check_case(backend, make_case(variant, kind, shape[:1], shape[1], dtype, scale))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("variant", "kind"), FEW_CASES, ids=FEW)
def test_layouts(backend: Backend, variant: Variant, kind: Kind, dtype: str, layout: str) -> None:
    """Each layout of the inputs into a contiguous gradient, and into one of the same layout."""
    make = LAYOUTS[layout]
    for rows, num_classes in itertools.product(((33,), (5, 7), (2, 3, 7)), (3, 40, 515)):
        for out in (np.empty, make):
            check_case(backend, make_case(variant, kind, rows, num_classes, dtype, "1", make, out))


@pytest.mark.parametrize("out", LAYOUTS)
@pytest.mark.parametrize(("variant", "kind"), FEW_CASES, ids=FEW)
def test_layouts_of_out(backend: Backend, variant: Variant, kind: Kind, out: str) -> None:
    for num_classes in (3, 40, 515):
        case = make_case(variant, kind, (4, 9), num_classes, "float32", "1", np.empty, LAYOUTS[out])
        check_case(backend, case)


@pytest.mark.parametrize(("variant", "kind"), FEW_CASES, ids=FEW)
def test_one_row_without_leading_axes(backend: Backend, variant: Variant, kind: Kind) -> None:
    for dtype, num_classes in itertools.product(DTYPES, (2, 10, 300)):
        check_case(backend, make_case(variant, kind, (), num_classes, dtype, "1"))


@pytest.mark.parametrize("rows", [0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 1025])
def test_row_counts_around_blocks(backend: Backend, rows: int) -> None:
    for dtype, num_classes in itertools.product(DTYPES, (2, 3, 7, 10, 17)):
        variant, kind = FEW_CASES[1]
        check_case(backend, make_case(variant, kind, (rows,), num_classes, dtype, "1"))
        columns = LAYOUTS["class_first"]
        check_case(backend, make_case(variant, kind, (rows,), num_classes, dtype, "1", columns, columns))


@pytest.mark.parametrize("num_classes", [*range(1, 36), *range(60, 68), *range(124, 132), 255, 256, 1023])
def test_class_counts_around_vectors(backend: Backend, num_classes: int) -> None:
    for dtype in DTYPES:
        variant, kind = FEW_CASES[1]
        check_case(backend, make_case(variant, kind, (9,), num_classes, dtype, "0.02"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_in_place_of_the_logits(backend: Backend, layout: str) -> None:
    for dtype, num_classes, (variant, kind) in itertools.product(DTYPES, (3, 40, 515), FEW_CASES):
        case = make_case(variant, kind, (4, 9), num_classes, dtype, "1", LAYOUTS[layout])
        for _, kernels in backend.each():
            for call in gradient_calls(kernels, case):
                expected = call(case.problem.logits, np.empty_like(case.problem.logits))
                buffer = LAYOUTS[layout](expected.shape, expected.dtype)
                buffer[...] = case.problem.logits
                assert call(buffer, buffer) is buffer
                np.testing.assert_array_equal(buffer, expected)


def gradient_calls(kernels: Kernels, case: Case) -> list[Callable[[Array, Array], Any]]:
    """The three calls that write to ``out``, as functions of (logits, out)."""
    p = case.problem
    arrays = (p.target.labels, p.target.dense, p.link)
    cotangents = head.cotangents(p.stats(), p.target, p.spec, 1.0, np)
    curvatures = head.curvatures(p.stats(), p.target, p.spec, 1.0, np)
    want = ("lse",) if p.target.labels is None else ("lse", "log_prob")
    want += () if p.target.dense is None else ("mass",)
    stats = kernels.row_stats(p.logits, *arrays, want)
    return [
        lambda z, out: kernels.row_grad(z, *arrays, stats, cotangents, out),
        lambda z, out: kernels.row_stats_and_grad(z, *arrays, cotangents, want, out)[1],
        lambda z, out: kernels.row_hvp(z, *arrays, cotangents, curvatures, case.vector, out),
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("variant", "kind"), CASES, ids=CASE_IDS)
def test_whole_loss(backend: Backend, variant: Variant, kind: Kind, dtype: str) -> None:
    """Statistics, head and kernels together: loss, gradient, Hessian product, each reduction."""
    for reduction, (num_classes, scale) in itertools.product(
        ("mean", "sum", "none"), ((3, "1"), (10, "30"), (127, "0.02"))
    ):
        check_loss(backend, make_case(variant, kind, (4, 7), num_classes, dtype, scale, reduction=reduction))


def check_loss(backend: Backend, case: Case) -> None:
    exact = case.problem
    spec, target = exact.spec, exact.target

    def solve(kernels: Kernels) -> tuple[Array, Array, Array, Array]:
        p = Problem(exact.logits, target, spec, exact.reduction, exact.divisor, kernels)
        rounded = kernels is not reference and not isinstance(kernels, Plain)
        out = np.empty((3, *exact.logits.shape), exact.logits.dtype if rounded else np.float64)
        stats = p.stats_for_grad()
        loss, grad = p.loss_and_grad(out[0])
        assert p.loss(p.stats()) == pytest.approx(loss, rel=1e-6, nan_ok=True)
        return loss, grad, p.grad(stats, 1.0, out[1]), p.hvp(case.vector, out[2])

    expected = solve(reference)
    with np.errstate(all="ignore"):
        plain = solve(Plain(TOLERANCES[case.dtype].compute))
        # |f'| ≤ 1 + γ and |f''| as it is: what the head multiplies the kernels' errors by.
        stats = reference.row_stats(exact.logits, target.labels, target.dense, exact.link, ("lse",))
        slopes = Cotangents(2 * spec.z_loss * np.abs(stats.lse), 1 + spec.focal_gamma, target.beta)
        outer = exact.scale * (1.0 if target.weight is None else target.weight)
        bend = head.curvatures(exact.stats(), target, spec, exact.scale, np)
        bound = Cotangents(*(outer * c for c in (slopes[0], slopes[1] * target.alpha, slopes[2])))
        unit = magnitudes(exact.logits, target.labels, target.dense, exact.link, bound, bend, case.vector)
    losses = np.abs(bound.log_prob) * unit.stats["log_prob"]
    losses = losses + np.abs(bound.dense_log_prob) * unit.stats["dense_log_prob"]
    losses = losses + spec.z_loss * outer * unit.stats["lse"] ** 2
    losses = losses if exact.reduction == "none" else losses.sum()
    names = ("loss", "gradient", "gradient of two passes", "Hessian product")
    units = (losses, unit.grad, unit.grad, unit.hvp)
    for name, kernels in backend.each():
        actual = solve(kernels)
        for what, magnitude, *results in zip(names, units, actual, expected, plain, strict=True):
            assert_close(*results, magnitude, f"{name}: {what}", case.dtype, unit.largest)
        assert np.asarray(actual[0]).dtype == (np.float64 if case.dtype == "float64" else np.float32)


@pytest.mark.parametrize(("variant", "kind"), CASES, ids=CASE_IDS)
def test_front_end_is_the_problem(variant: Variant, kind: Kind) -> None:
    """The public functions give, to the bit, what their backend gives."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 5))
    targets, options = variant.make(kind, (6,), 5, rng)
    p = Problem.from_arguments(
        logits, targets, "mean", variant.denominator, True, dict(options), registry.get("cpu")
    )
    options["denominator"] = variant.denominator
    loss, grad = xent.cross_entropy_with_grad(logits, targets, **options)
    expected_loss, expected_grad = p.loss_and_grad(np.empty_like(logits))
    assert loss == expected_loss
    np.testing.assert_array_equal(grad, expected_grad)
    assert xent.cross_entropy(logits, targets, **options) == p.loss(p.stats())
    product = xent.cross_entropy_hvp(logits, targets, logits, **options)
    np.testing.assert_array_equal(product, p.hvp(logits, np.empty_like(logits)))


@pytest.mark.parametrize("size", [0, 1, 7, 8, 255, 257, 1000, 32768, 32769, 100_003])
def test_sum_of_row_losses(size: int) -> None:
    column = np.random.default_rng(size).normal(size=size)
    bound = 16 * np.finfo(float).eps * np.abs(column).sum()
    assert abs(_native.total(column) - math.fsum(column)) <= bound


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("variant", "kind"), CASES, ids=CASE_IDS)
def test_full_product(backend: Backend, variant: Variant, kind: Kind, dtype: str) -> None:
    for (rows, num_classes), scale, layout in itertools.product(SHAPES, SCALES, LAYOUTS):
        if num_classes * rows > 20_000 and layout not in ("contiguous", "class_first"):
            continue  # strides are strides, however many rows: an hour saved
        leading = (rows, 1) if layout == "image" else (rows,)
        make = LAYOUTS[layout]
        check_case(backend, make_case(variant, kind, leading, num_classes, dtype, scale, make, make))
