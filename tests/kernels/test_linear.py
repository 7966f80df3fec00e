"""The linear model's kernel against matrix products and the reference's row functions in float64."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.tables.kernel_cases import FEW_KERNEL_CASES, KernelCase, each_of_few_kernel_cases
from tests.tables.tolerance import Plain, assert_close, magnitudes
from xent.core.contract import Cotangents, Curvatures, Kernels, RowStats
from xent.core.link import Link
from xent.kernels import cpu, reference
from xent.kernels.cpu_linear import linear_hvp, linear_stats, linear_stats_and_grad

Array = np.ndarray[Any, Any]

SHAPES = [(n, d, k) for n in (0, 1, 7, 513) for d in (1, 3, 30, 784) for k in (2, 10, 17, 64)]
FEW_SHAPES = [(7, 3, 2), (513, 30, 10), (130, 784, 17)]
# Of features and weight; the arithmetic is in the wider.
WIDTHS = [("float32", "float32"), ("float32", "float64"), ("float64", "float64"), ("float64", "float32")]


class Results(NamedTuple):
    stats: RowStats
    fused: RowStats
    dweight: Array
    dbias: Array
    product: Array
    product_bias: Array


class Model(NamedTuple):
    """A linear model with what a kernel case asks for."""

    features: Array
    weight: Array
    bias: Array
    labels: Array | None
    dense: Array | None
    link: Link
    cotangents: Cotangents
    curvatures: Curvatures
    vector: Array
    vector_bias: Array
    zero_class: bool

    @property
    def want(self) -> tuple[str, ...]:
        dense = () if self.dense is None else ("dense_log_prob", "mass")
        return ("lse", *(() if self.labels is None else ("log_prob",)), *dense)

    def logits(self, dtype: Any, weight: Array, bias: Array) -> Array:
        z = self.features.astype(dtype) @ weight.T.astype(dtype) + bias.astype(dtype)
        return np.pad(z, ((0, 0), (1, 0))) if self.zero_class else z

    def by_products(self, kernels: Kernels, dtype: Any) -> Results:
        """Everything from whole matrix products in one precision."""
        z, r = self.logits(dtype, self.weight, self.bias), self.logits(dtype, self.vector, self.vector_bias)
        rows = (self.labels, self.dense, self.link)
        stats = kernels.row_stats(z, *rows, (*self.want, "entropy", "argmax"))
        fused, g = kernels.row_stats_and_grad(z, *rows, self.cotangents, self.want)
        h = kernels.row_hvp(z, *rows, self.cotangents, self.curvatures, r)
        return Results(stats, fused, *self.chain(g), *self.chain(h))

    def chain(self, dlogits: Array) -> tuple[Array, Array]:
        g = dlogits[:, 1:] if self.zero_class else dlogits
        return g.T @ self.features.astype(g.dtype), g.sum(0)

    def by_kernel(self) -> Results:
        model = (self.features, self.weight, self.bias, self.labels, self.dense, self.link)
        zero = {"zero_class": self.zero_class}
        direction = (self.vector, self.vector_bias)
        stats = linear_stats(*model, (*self.want, "entropy", "argmax"), **zero)
        fused, *gradient = linear_stats_and_grad(*model, self.cotangents, self.want, **zero)
        product = linear_hvp(*model, self.cotangents, self.curvatures, *direction, **zero)
        return Results(stats, fused, *gradient, *product)


def make_model(
    shape: tuple[int, int, int],
    widths: tuple[str, str] = WIDTHS[0],
    case: KernelCase = FEW_KERNEL_CASES[0],
    zero_class: bool = False,
) -> Model:
    num_rows, num_features, num_classes = shape
    rng = np.random.default_rng(shape)

    def normal(*size: int, dtype: str = widths[1], scale: float = 1.0) -> Array:
        array = (rng.normal(size=size) * scale).astype(dtype)
        array.flags.writeable = False
        return array

    num_scores = num_classes - zero_class
    features = normal(num_rows, num_features, dtype=widths[0])
    weight = normal(num_scores, num_features, scale=2 / np.sqrt(max(1, num_features)))
    bias, vector_bias = normal(num_scores), normal(num_scores)
    arguments = case.make((num_rows,), num_classes, rng)
    vector = normal(num_scores, num_features)
    return Model(features, weight, bias, *arguments, vector, vector_bias, zero_class)


def each_isa() -> Iterator[str]:
    best = cpu.isas()[0]
    try:
        for isa in cpu.isas():
            cpu.set_isa(isa)
            yield isa
    finally:
        cpu.set_isa(best)


def check(model: Model) -> None:
    """Every result, to three times the error of the plain formula with plain products."""
    dtype = str(np.result_type(model.features, model.weight))
    expected, plain = (model.by_products(k, t) for k, t in ((reference, np.float64), (Plain(dtype), dtype)))
    weight, bias, x = np.abs(model.weight), np.abs(model.bias), np.abs(model.features)
    z, r = (model.logits(np.float64, w, b) for w, b in (model[1:3], (model.vector, model.vector_bias)))
    r_size = model._replace(features=x).logits(np.float64, np.abs(model.vector), np.abs(model.vector_bias))
    z_size = model._replace(features=x).logits(np.float64, weight, bias).max(-1)
    slopes = (model.cotangents, model.curvatures)
    unit = magnitudes(z, model.labels, model.dense, model.link, *slopes, np.maximum(np.abs(r), r_size))
    spread = (1 + z_size / model.link.temperature)[:, None]  # how a rounding of the logits is felt
    chain = model._replace(features=x).chain
    units = (*chain(unit.grad * spread), *chain(unit.hvp * spread**2))
    for isa in each_isa():
        actual = model.by_kernel()
        for which in (0, 1):
            for name, value in actual[which]._asdict().items():
                if value is None:
                    continue
                if name == "argmax":
                    agree = np.take_along_axis(z, value[:, None], -1)[:, 0] >= z.max(-1) - 1e-4
                    assert np.all(agree | (model.labels is not None and model.labels < 0))
                    continue
                magnitude = unit.stats[name] * spread[:, 0]
                others = (getattr(expected[which], name), getattr(plain[which], name))
                assert_close(value, *others, magnitude, f"{isa}: {name}", dtype, 0.0)
        for name, value, *others, magnitude in zip(
            Results._fields[2:], actual[2:], expected[2:], plain[2:], units, strict=True
        ):
            assert value.dtype == np.float64
            assert_close(value.astype(dtype), *others, magnitude, f"{isa}: {name}", dtype, 0.0)


@pytest.mark.parametrize("widths", WIDTHS, ids="-".join)
def test_shapes(widths: tuple[str, str]) -> None:
    for shape in SHAPES:
        check(make_model(shape, widths))


@pytest.mark.parametrize("widths", WIDTHS[:3], ids="-".join)
@each_of_few_kernel_cases
@pytest.mark.parametrize("zero_class", [False, True], ids=["", "zero_class"])
def test_variants(case: KernelCase, widths: tuple[str, str], zero_class: bool) -> None:
    for shape in FEW_SHAPES:
        check(make_model(shape, widths, case, zero_class))


@pytest.mark.parametrize("num_features", [2, 4, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 80, 129])
def test_feature_counts_around_vectors(num_features: int) -> None:
    for widths, num_classes in itertools.product(WIDTHS[:3], (2, 3, 4, 5, 6, 7, 13)):
        check(make_model((9, num_features, num_classes), widths, FEW_KERNEL_CASES[1]))


@pytest.mark.parametrize("num_rows", [3, 4, 5, 63, 64, 65, 1023, 1024, 1025, 5000])
def test_row_counts_around_blocks(num_rows: int) -> None:
    for widths, num_features in itertools.product(WIDTHS[:3], (5, 32)):
        check(make_model((num_rows, num_features, 3), widths, FEW_KERNEL_CASES[2]))


def test_edges() -> None:
    """No features, one class, no bias: what the matrix products give."""
    check(make_model((5, 0, 3)))
    check(make_model((5, 4, 1)))
    check(make_model((5, 40_000, 3)))
    m = make_model((70, 20, 3))
    with_zeros = linear_stats_and_grad(
        m.features, m.weight, np.zeros(3), m.labels, None, m.link, m.cotangents, m.want
    )
    without = linear_stats_and_grad(m.features, m.weight, None, m.labels, None, m.link, m.cotangents, m.want)
    assert_same_bits(with_zeros, without)
    product = linear_hvp(*m[:8], m.vector, None)
    assert_same_bits(product, linear_hvp(*m[:8], m.vector, np.zeros(3)))


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "rows_strided": lambda x: np.repeat(x, 2, 0)[::2],
    "columns_strided": lambda x: np.repeat(x, 3, 1)[:, ::3],
    "fortran": np.asfortranarray,
    "reversed": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    "offset": lambda x: np.pad(x, ((0, 0), (1, 0)))[:, 1:],
    "one_row": lambda x: np.broadcast_to(x[:1], x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("widths", WIDTHS[:3], ids="-".join)
def test_layouts_change_no_bit(widths: tuple[str, str], layout: str) -> None:
    make = LAYOUTS[layout]
    for shape in ((70, 32, 3), (70, 30, 10)):
        m = make_model(shape, widths)
        m = m._replace(features=np.ascontiguousarray(make(m.features)))
        strided = m._replace(
            features=make(m.features), weight=np.asfortranarray(m.weight), bias=m.bias[::-1].copy()[::-1]
        )
        for _ in each_isa():
            assert_same_bits(m.by_kernel(), strided.by_kernel())


@pytest.mark.parametrize("widths", WIDTHS[:3], ids="-".join)
def test_rows_that_are_not_read(widths: tuple[str, str]) -> None:
    """An ignored row, or one of weight 0, may hold anything; the gradient is that of the other rows."""
    m = make_model((300, 30, 10), widths)
    rng = np.random.default_rng(0)
    ignored, weightless = rng.random((2, 300)) < 0.3
    weightless[64:200] = True
    kept = ~(ignored | weightless)
    features, labels = m.features.copy(), m.labels.copy()
    features[~kept] = np.nan
    labels[ignored] = -100
    weights = np.where(weightless, 0.0, -1.0)
    actual = linear_stats_and_grad(
        features, m.weight, m.bias, labels, None, m.link, Cotangents(log_prob=weights), ("log_prob",)
    )
    rest = m._replace(
        features=m.features[kept], labels=labels[kept], cotangents=Cotangents(log_prob=-1.0)
    ).by_products(reference, np.float64)
    tolerance = 1e-4 if np.result_type(m.features, m.weight) == np.float32 else 1e-12
    np.testing.assert_allclose(actual[1], rest.dweight, atol=tolerance)
    np.testing.assert_allclose(actual[2], rest.dbias, atol=tolerance)
    assert not actual[0].log_prob[ignored].any()


def test_what_is_broken_stays_visible() -> None:
    """A label that is no class, or NaN in a row that counts: NaN in the gradient and in that row alone."""
    for broken in ("label", "feature"):
        m = make_model((70, 20, 3))
        features, labels = m.features.copy(), m.labels.copy()
        if broken == "label":
            labels[5] = 3
        else:
            features[5, 7] = np.nan
        stats, dweight, dbias = linear_stats_and_grad(
            features, m.weight, m.bias, labels, None, m.link, m.cotangents, ("log_prob",)
        )
        assert np.isnan(dweight).all()
        assert np.isnan(dbias).all()
        assert np.flatnonzero(np.isnan(stats.log_prob)).tolist() == [5]


def test_statistics_have_the_same_bits_with_and_without_gradient() -> None:
    for case in FEW_KERNEL_CASES:
        m = make_model((700, 50, 7), case=case)
        for _ in each_isa():
            results = m.by_kernel()
            assert_same_bits(results.stats[:4], results.fused[:4])


def test_same_bits_for_any_number_of_threads() -> None:
    threadpoolctl = pytest.importorskip("threadpoolctl")
    for shape, widths in itertools.product(((150_001, 5, 3), (3000, 300, 3)), WIDTHS[:3]):
        m = make_model(shape, widths, FEW_KERNEL_CASES[2])
        for _ in each_isa():
            results = []
            for threads in (1, 2, 3):
                with threadpoolctl.threadpool_limits(threads):
                    results.append(m.by_kernel())
            assert_same_bits(results[0], results[1])
            assert_same_bits(results[0], results[2])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork() -> None:
    """After a call on two threads the child of a fork computes the same, and does not hang."""
    code = """
import os, signal, numpy as np
from xent.kernels.cpu_linear import linear_stats_and_grad
from xent.core.link import Link
from xent.core.contract import Cotangents
rng = np.random.default_rng(0)
features, weight = rng.normal(size=(20_000, 50)), rng.normal(size=(3, 50))
def solve():
    arguments = (features, weight, None, np.zeros(20_000, int), None, Link(), Cotangents(log_prob=-1.0), ())
    return linear_stats_and_grad(*arguments)[1]
before = solve()
if os.fork() == 0:
    signal.alarm(60)  # a hang ends the child by a signal
    os._exit(0 if np.array_equal(solve(), before) else 1)
print(os.wait()[1], np.array_equal(solve(), before))
"""
    command = [sys.executable, "-c", code]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert result.stdout.strip() == "0 True", result.stderr  # Python 3.12 warns of a fork beside threads


def assert_same_bits(a: Any, b: Any) -> None:
    if a is None or isinstance(a, np.ndarray):
        np.testing.assert_array_equal(a, b)
        return
    for one, other in zip(a, b, strict=True):
        assert_same_bits(one, other)
