"""The Triton kernels in the conformance table: interpreted on the CPU, compiled where there is a GPU.

The interpreter takes 10 to 50 milliseconds for a tile: the quick tests have few rows, and short tiles where
the point is a row that is longer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.engine.whole_loss import check_loss
from tests.engine.whole_loss import make_case as make_loss
from tests.kernels.conformance import check_case, gradient_calls, make_case
from tests.tables.kernel_cases import (
    FEW_KERNEL_CASES,
    KernelCase,
    each_of_few_kernel_cases,
    every_kernel_case,
)
from tests.tables.layouts import LAYOUTS, SCALES
from tests.tables.tolerance import DTYPES
from tests.tables.variants import Kind, Variant, each_of_few
from xent.core.contract import Cotangents, Curvatures, RowStats
from xent.core.link import Link

torch = pytest.importorskip("torch")
pytest.importorskip("triton")


from xent.kernels import triton as kernels  # noqa: E402

Array = np.ndarray[Any, Any]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# A tensor has no negative strides.
STRIDES = {name: make for name, make in LAYOUTS.items() if "reversed" not in name}


pytestmark = pytest.mark.usefixtures("interpreter")


class OnArrays:
    """The kernels on arrays: what the tests of a backend call."""

    def row_stats(self, z: Array, y: Any, v: Any, link: Link, want: tuple[str, ...]) -> RowStats:
        stats = kernels.row_stats(*_tensors(z, y, v), link, want)
        return RowStats(*(None if s is None else s.cpu().numpy() for s in stats))

    def row_grad(
        self, z: Array, y: Any, v: Any, link: Link, stats: RowStats, cotangents: Any, out: Array
    ) -> Array:
        known = RowStats(*_tensors(*stats))
        return _into(
            out, lambda o: kernels.row_grad(*_tensors(z, y, v), link, known, _columns(cotangents), o), z
        )

    def row_stats_and_grad(
        self, z: Array, y: Any, v: Any, link: Link, cotangents: Any, want: tuple[str, ...], out: Array
    ) -> tuple[RowStats, Array]:
        stats: list[RowStats] = []

        def call(o: Any) -> Any:
            known, grad = kernels.row_stats_and_grad(*_tensors(z, y, v), link, _columns(cotangents), want, o)
            stats.append(RowStats(*(None if s is None else s.cpu().numpy() for s in known)))
            return grad

        grad = _into(out, call, z)
        return stats[0], grad

    def row_hvp(
        self, z: Array, y: Any, v: Any, link: Link, cotangents: Any, curvatures: Any, r: Array, out: Array
    ) -> Array:
        c = _columns(cotangents), _columns(curvatures)
        return _into(out, lambda o: kernels.row_hvp(*_tensors(z, y, v), link, *c, *_tensors(r), o), z)


def tensor(x: Any) -> Any:
    """The same memory, or on a GPU the same strides."""
    if x is None:
        return None
    x = np.asarray(x)
    t = (
        torch.from_numpy(x.view(np.uint16)).view(torch.bfloat16)
        if x.dtype.kind == "V"
        else torch.from_numpy(x)
    )
    return (
        t
        if DEVICE == "cpu"
        else torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=DEVICE).copy_(t)
    )


def _tensors(*arrays: Any) -> list[Any]:
    return [tensor(x) for x in arrays]


def _columns(coefficients: Any) -> Any:
    return type(coefficients)(*(c if isinstance(c, float) else tensor(c) for c in coefficients))


def _into(out: Array, call: Callable[[Any], Any], logits: Array) -> Array:
    """What ``call`` writes, in ``out``; the logits as they were."""
    before = None if out is logits else logits.copy()
    target = tensor(out)
    assert call(target) is target
    if DEVICE != "cpu":
        out[...] = (
            target.cpu().view(torch.uint16).numpy().view(out.dtype)
            if out.dtype.kind == "V"
            else target.cpu().numpy()
        )
    if before is not None:
        assert logits.tobytes() == before.tobytes()
    return out


class Triton:
    """`conftest.Backend`'s part: the kernels with their name."""

    def each(self) -> Iterator[tuple[str, Any]]:
        yield "triton", OnArrays()


BACKEND: Any = Triton()


def sweep(case: KernelCase, dtype: str, rows: tuple[int, ...], points: Any) -> None:
    for k, scale in points:
        check_case(BACKEND, make_case(case, rows, k, dtype, scale))


@every_kernel_case
def test_cases(case: KernelCase) -> None:
    sweep(case, "bfloat16", (7,), [(5, "1")])
    sweep(case, "float32", (7,), [(10, "poisoned")])


@pytest.mark.parametrize("dtype", DTYPES)
@each_of_few_kernel_cases
def test_shapes_and_scales(case: KernelCase, dtype: str) -> None:
    points = [(1, "1"), (2, "30"), (10, "ties"), (127, "1e4"), (127, "masked"), (2049, "0.02")]
    sweep(case, dtype, (3,), points)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@each_of_few_kernel_cases
def test_rows_longer_than_a_tile(case: KernelCase, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In both types that are computed in; the other dtypes differ in how they are loaded and stored."""
    monkeypatch.setattr(kernels, "plan", lambda *arguments: kernels.Plan(1, 16, False, 1))
    sweep(case, dtype, (4,), [(40, "30"), (40, "ties"), (32, "masked"), (17, "poisoned")])


@pytest.mark.parametrize("layout", STRIDES)
@each_of_few_kernel_cases
def test_layouts(case: KernelCase, layout: str) -> None:
    make = STRIDES[layout]
    for rows, k, dtype, out in (((5,), 40, "float32", np.empty), ((2, 3, 5), 3, "bfloat16", make)):
        check_case(BACKEND, make_case(case, rows, k, dtype, "1", make, out))


@each_of_few_kernel_cases
def test_rows_around_tiles(case: KernelCase) -> None:
    columns = LAYOUTS["class_first"]
    for rows in ((), (0,), (1,), (33,), (129,)):
        make = columns if len(rows) else np.empty
        check_case(BACKEND, make_case(case, rows, 17, "float32", "1", make, make))
    check_case(BACKEND, make_case(case, (65,), 17, "float32", "1"))


@pytest.mark.parametrize("layout", STRIDES)
def test_gradient_in_place_of_the_logits(layout: str) -> None:
    for k, kernel_case in zip((3, 40, 3, 40), FEW_KERNEL_CASES, strict=True):
        case = make_case(kernel_case, (2, 3), k, "float32", "1", STRIDES[layout])
        for call in gradient_calls(OnArrays(), case):  # type: ignore[arg-type]
            expected = call(case.logits, np.empty_like(case.logits))
            buffer = STRIDES[layout](expected.shape, expected.dtype)
            buffer[...] = case.logits
            assert call(buffer, buffer) is buffer
            np.testing.assert_array_equal(buffer, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@each_of_few
def test_whole_loss(variant: Variant, kind: Kind, dtype: str) -> None:
    """Target, head and kernels together; every variant is met through tensors, in torch/test_triton.py."""
    for reduction, k in (("mean", 3), ("none", 33)):
        check_loss(BACKEND, make_loss(variant, kind, (2, 3), k, dtype, "1", reduction))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@every_kernel_case
def test_full_product(case: KernelCase, dtype: str) -> None:
    sweep(case, dtype, (5,), itertools.product((1, 2, 10, 127, 2049), SCALES))
    for layout in STRIDES.values():
        check_case(BACKEND, make_case(case, (2, 3), 40, dtype, "1", layout, layout))
    if case in FEW_KERNEL_CASES:
        sweep(case, dtype, (2,), itertools.product((128256,), SCALES))


def test_tail() -> None:
    """Near certainty: log1p of the rest, and a gradient with all its digits, also of probabilities."""
    z = tensor(np.array([[20.0, 0.0], [0.0, 15.0]], np.float32))
    y, q = tensor(np.array([0, 1])), tensor(np.eye(2, dtype=np.float32))
    loss = np.log1p(np.exp([-20.0, -15.0]))
    other = -np.expm1(-loss)  # the probability of the other class
    exact = np.array([[-other[0], other[0]], [other[1], -other[1]]])
    for labels, dense, cotangents in (
        (y, None, Cotangents(log_prob=-1.0)),
        (None, q, Cotangents(dense_log_prob=-1.0)),
    ):
        name = "log_prob" if dense is None else "dense_log_prob"
        want = ("lse", name) if dense is None else ("lse", name, "mass")
        stats, grad = kernels.row_stats_and_grad(z, labels, dense, Link(), cotangents, want)
        again = kernels.row_grad(z, labels, dense, Link(), stats, cotangents)
        np.testing.assert_allclose(getattr(stats, name).cpu().numpy(), -loss, rtol=3e-6)
        for g in (grad, again):
            np.testing.assert_allclose(g.cpu().numpy(), exact, rtol=3e-6)


def test_label_that_is_no_class_is_nan_in_its_row() -> None:
    z, y = torch.zeros(3, 5, device=DEVICE), tensor(np.array([1, 5, -3]))
    for long in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            if long:
                patch.setattr(kernels, "plan", lambda *arguments: kernels.Plan(1, 4, False, 1))
            cotangents = Cotangents(log_prob=-1.0)
            stats, grad = kernels.row_stats_and_grad(z, y, None, Link(), cotangents, ("lse", "log_prob"))
            product = kernels.row_hvp(z, y, None, Link(), cotangents, Curvatures(), z)
        for x in (stats.log_prob, grad, kernels.row_grad(z, y, None, Link(), stats, cotangents), product):
            assert x.isnan().reshape(3, -1).all(1).tolist() == [False, True, False]
            assert not x.isnan()[0].any()
            assert not x[2].any()
        assert not stats.lse.isnan().any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_more_than_2_to_the_31_elements(dtype: Any) -> None:
    """Rows, and classes, that many elements apart: of memory that is mapped but for the few never touched."""
    far = 2**31 + 16
    whole = torch.empty(2 * far + 64, dtype=dtype, device=DEVICE)
    generator = torch.Generator().manual_seed(0)
    for size, stride in (
        ((3, 4), (far, 1)),
        ((4, 3), (1, far)),
        ((2, 2, 3), (far, 8, 1)),
        ((4, 4), (1, 2**30)),
    ):
        z = whole.as_strided(size, stride)
        z.copy_(torch.randn(size, generator=generator))
        y = torch.randint(0, size[-1], size[:-1], generator=generator).to(DEVICE)
        near, cotangents = z.contiguous(), Cotangents(log_prob=-1.0)
        stats, expected = kernels.row_stats_and_grad(near, y, None, Link(), cotangents, ("lse", "log_prob"))
        product = kernels.row_hvp(near, y, None, Link(), cotangents, Curvatures(), near)
        out = whole.as_strided(size, stride, 32)
        for grad in (
            kernels.row_stats_and_grad(z, y, None, Link(), cotangents, (), out)[1],
            kernels.row_grad(z, y, None, Link(), stats, cotangents, out.fill_(7)),
        ):
            torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-6)
        assert torch.equal(kernels.row_hvp(z, y, None, Link(), cotangents, Curvatures(), z, out), product)
