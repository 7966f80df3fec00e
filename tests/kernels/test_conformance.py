"""The conformance table (rule 4): backend × kernel case × dtype × shape × logit scale × layout.

Every backend must agree with the float64 reference to the tolerances of tolerance.py, which also run
the plain formula beside it. The quick tests sweep each axis with the others at a few values; the slow
one takes the product.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tests.conftest import Backend
from tests.kernels.conformance import check_case, gradient_calls, make_case
from tests.tables.kernel_cases import (
    FEW_KERNEL_CASES,
    KERNEL_CASES,
    KernelCase,
    each_of_few_kernel_cases,
    every_kernel_case,
)
from tests.tables.layouts import LAYOUTS, SCALES, SHAPES
from tests.tables.tolerance import DTYPES
from xent.core.contract import Cotangents
from xent.core.link import Link
from xent.kernels import _native

BOTH = next(case for case in FEW_KERNEL_CASES if case.name == "both-vector-columns")
NONE = next(case for case in KERNEL_CASES if case.name == "none")


@pytest.mark.parametrize("dtype", DTYPES)
@every_kernel_case
def test_cases(backend: Backend, case: KernelCase, dtype: str) -> None:
    for num_classes, scale in (
        (1, "1"),
        (5, "1"),
        (10, "30"),
        (10, "masked"),
        (10, "poisoned"),
        (127, "1"),
        (300, "30"),
    ):
        check_case(backend, make_case(case, (19,), num_classes, dtype, scale))


@pytest.mark.parametrize("shape", [s for s in SHAPES if s != (257, 2049)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@each_of_few_kernel_cases
def test_shapes_and_scales(backend: Backend, case: KernelCase, dtype: str, shape: tuple[int, int]) -> None:
    for scale in SCALES:
        check_case(backend, make_case(case, shape[:1], shape[1], dtype, scale))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_small_cotangent_of_an_unlikely_label_keeps_its_digits(backend: Backend, dtype: str) -> None:
    """dl p + dx (1 − p) at the label, where dl is large and p smaller than a rounding of 1."""
    for rows, num_classes in ((100, 10), (19, 300)):
        case = make_case(NONE, (rows,), num_classes, dtype, "1")
        logits = np.array(case.logits - np.linspace(0, 30, num_classes), DTYPES[dtype])
        labels = np.arange(rows) % num_classes
        arguments = case.arguments._replace(
            labels=labels, link=Link(), cotangents=Cotangents(1.0, np.full(rows, 1e-9), 0.0)
        )
        check_case(backend, case._replace(logits=logits, arguments=arguments))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@each_of_few_kernel_cases
def test_layouts(backend: Backend, case: KernelCase, dtype: str, layout: str) -> None:
    """Each layout of the inputs into a contiguous gradient, and into one of the same layout."""
    make = LAYOUTS[layout]
    for rows, num_classes in itertools.product(((33,), (5, 7), (2, 3, 7)), (3, 40, 515)):
        for out in (np.empty, make):
            check_case(backend, make_case(case, rows, num_classes, dtype, "1", make, out))


@pytest.mark.parametrize("out", LAYOUTS)
@each_of_few_kernel_cases
def test_layouts_of_out(backend: Backend, case: KernelCase, out: str) -> None:
    for num_classes in (3, 40, 515):
        check_case(backend, make_case(case, (4, 9), num_classes, "float32", "1", np.empty, LAYOUTS[out]))


@each_of_few_kernel_cases
def test_one_row_without_leading_axes(backend: Backend, case: KernelCase) -> None:
    for dtype, num_classes in itertools.product(DTYPES, (2, 10, 300)):
        check_case(backend, make_case(case, (), num_classes, dtype, "1"))


@pytest.mark.parametrize("rows", [0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 1025])
def test_row_counts_around_blocks(backend: Backend, rows: int) -> None:
    for dtype, num_classes in itertools.product(DTYPES, (2, 3, 7, 10, 17)):
        check_case(backend, make_case(BOTH, (rows,), num_classes, dtype, "1"))
        columns = LAYOUTS["class_first"]
        check_case(backend, make_case(BOTH, (rows,), num_classes, dtype, "1", columns, columns))


@pytest.mark.parametrize("num_classes", [*range(1, 36), *range(60, 68), *range(124, 132), 255, 256, 1023])
def test_class_counts_around_vectors(backend: Backend, num_classes: int) -> None:
    for dtype in DTYPES:
        check_case(backend, make_case(BOTH, (9,), num_classes, dtype, "0.02"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_in_place_of_the_logits(backend: Backend, layout: str) -> None:
    for dtype, num_classes, kernel_case in itertools.product(DTYPES, (3, 40, 515), FEW_KERNEL_CASES):
        case = make_case(kernel_case, (4, 9), num_classes, dtype, "1", LAYOUTS[layout])
        for _, kernels in backend.each():
            for call in gradient_calls(kernels, case):
                expected = call(case.logits, np.empty_like(case.logits))
                buffer = LAYOUTS[layout](expected.shape, expected.dtype)
                buffer[...] = case.logits
                assert call(buffer, buffer) is buffer
                np.testing.assert_array_equal(buffer, expected)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 255, 257, 1000, 32768, 32769, 100_003])
def test_sum_of_row_losses(size: int) -> None:
    column = np.random.default_rng(size).normal(size=size)
    bound = 16 * np.finfo(float).eps * np.abs(column).sum()
    assert abs(_native.total(column) - math.fsum(column)) <= bound


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@every_kernel_case
def test_full_product(backend: Backend, case: KernelCase, dtype: str) -> None:
    for (rows, num_classes), scale, layout in itertools.product(SHAPES, SCALES, LAYOUTS):
        if num_classes * rows > 20_000 and layout not in ("contiguous", "class_first"):
            continue  # strides are strides, however many rows: an hour saved
        leading = (rows, 1) if layout == "image" else (rows,)
        make = LAYOUTS[layout]
        check_case(backend, make_case(case, leading, num_classes, dtype, scale, make, make))
