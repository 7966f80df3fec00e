"""One cell of the conformance table: the four calls of a backend against the float64 reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tests.conftest import Backend
from tests.tables.kernel_cases import Arguments, KernelCase
from tests.tables.layouts import Layout, make_logits
from tests.tables.tolerance import DTYPES, TOLERANCES, Magnitudes, Plain, assert_close, magnitudes
from xent.core.contract import Kernels, RowStats
from xent.kernels import reference

Array = np.ndarray[Any, Any]


class Case(NamedTuple):
    """One cell of the table, ready to run."""

    logits: Array
    arguments: Arguments
    vector: Array
    dtype: str
    out: Layout


def make_case(
    kernel_case: KernelCase,
    rows: tuple[int, ...],
    num_classes: int,
    dtype: str,
    scale: str,
    layout: Layout = np.empty,
    out: Layout = np.empty,
) -> Case:
    rng = np.random.default_rng([num_classes, *rows, len(scale)])
    logits = make_logits(scale, (*rows, num_classes), dtype, rng, layout)
    arguments = kernel_case.make(rows, num_classes, rng)
    vector = layout(logits.shape, DTYPES[dtype])
    vector[...] = rng.normal(size=logits.shape)
    vector.flags.writeable = False
    return Case(logits, arguments, vector, dtype, out)


class Results(NamedTuple):
    """What one backend makes of a case."""

    stats: RowStats
    grad: Array
    fused_stats: RowStats
    fused_grad: Array
    hvp: Array


def run(kernels: Kernels, case: Case) -> Results:
    a = case.arguments
    arrays = (case.logits, a.labels, a.dense, a.link)

    def out() -> Array | None:
        if kernels is reference or isinstance(kernels, Plain):
            return None  # not rounded to the dtype of the logits: that is the tolerance's business
        buffer = case.out(case.logits.shape, case.logits.dtype)
        buffer[...] = 7.0
        return buffer

    stats = kernels.row_stats(*arrays, (*a.want, "entropy", "argmax"))
    grad = kernels.row_grad(*arrays, stats, a.cotangents, out())
    fused_stats, fused_grad = kernels.row_stats_and_grad(*arrays, a.cotangents, a.want, out())
    hvp = kernels.row_hvp(*arrays, a.cotangents, a.curvatures, case.vector, out())
    return Results(stats, grad, fused_stats, fused_grad, hvp)


def check_case(backend: Backend, case: Case) -> None:
    """All four calls of a backend, to the tolerances of the table."""
    a = case.arguments
    with np.errstate(all="ignore"):  # −inf labels and the plain formulas: only results matter here
        expected = run(reference, case)
        plain = run(Plain(TOLERANCES[case.dtype].compute), case)
        unit = magnitudes(case.logits, *a, case.vector)
    for name, kernels in backend.each():
        compare(name, case, run(kernels, case), expected, plain, unit)


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
        assert a.dtype == case.logits.dtype
        assert_close(a, e, b, magnitude, f"{name}: {field}", case.dtype, unit.largest)


def gradient_calls(kernels: Kernels, case: Case) -> list[Callable[[Array, Array], Any]]:
    """The three calls that write to ``out``, as functions of (logits, out)."""
    labels, dense, link, cotangents, curvatures = case.arguments
    arrays, want = (labels, dense, link), case.arguments.want
    stats = kernels.row_stats(case.logits, *arrays, want)
    return [
        lambda z, out: kernels.row_grad(z, *arrays, stats, cotangents, out),
        lambda z, out: kernels.row_stats_and_grad(z, *arrays, cotangents, want, out)[1],
        lambda z, out: kernels.row_hvp(z, *arrays, cotangents, curvatures, case.vector, out),
    ]
