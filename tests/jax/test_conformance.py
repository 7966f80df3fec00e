"""The formulas as a backend, in the conformance table; and every loss, in every dtype, against NumPy's.

The Hessian product is the derivative of the derivative of `Formulas.row_stats`, which no kernel states.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import numpy as np
import pytest

from tests.kernels.conformance import Case, Results, compare, make_case, run
from tests.tables.kernel_cases import (
    FEW_KERNEL_CASES,
    KernelCase,
    each_of_few_kernel_cases,
    every_kernel_case,
)
from tests.tables.layouts import SCALES, SHAPES
from tests.tables.tolerance import DTYPES, TOLERANCES, Plain, magnitudes
from xent.core.contract import Cotangents, Curvatures, RowStats
from xent.core.link import Link
from xent.kernels import reference

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

from xent.jax.kernels import Formulas  # noqa: E402

Array = Any
BOTH = next(case for case in FEW_KERNEL_CASES if case.name == "both-vector-columns")


def compiled(case: Case) -> Results:
    """What `Formulas` make of a case, in one program."""
    a = case.arguments
    found = _results(case.logits, a.labels, a.dense, a.link, a.cotangents, a.curvatures, case.vector, a.want)
    return jax.tree_util.tree_map(np.asarray, found)


@partial(jax.jit, static_argnames=("link", "want"))
def _results(
    z: Array,
    y: Array,
    v: Array,
    link: Link,
    cotangents: Cotangents,
    curvatures: Curvatures,
    vector: Array,
    want: tuple[str, ...],
) -> Results:
    bends = [dict(zip(RowStats._fields, curvatures, strict=False)).get(name, 0.0) for name in want[:2]]

    def grad(logits: Array) -> Array:
        return Formulas.row_grad(logits, y, v, link, RowStats(), cotangents)

    def bent(logits: Array) -> list[Array]:
        stats = Formulas.row_stats(logits, y, v, link, want[:2])
        return [getattr(stats, name) for name in want[:2]]

    stats = Formulas.row_stats(z, y, v, link, (*want, "entropy", "argmax"))
    stats = stats._replace(argmax=stats.argmax.astype(int))
    fused_stats, fused_grad = Formulas.row_stats_and_grad(z, y, v, link, cotangents, want)

    # Equation (3): the derivative of (2) for constant cotangents, and that of the cotangents.
    wide = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    vector = vector.astype(wide.dtype)
    product = jax.jvp(grad, (wide,), (vector,))[1]
    columns, slopes = jax.jvp(bent, (wide,), (vector,))
    pulled = [(bend * slope).astype(x.dtype) for bend, slope, x in zip(bends, slopes, columns, strict=True)]
    product = product + jax.vjp(bent, wide)[1](pulled)[0]
    coefficients = (jnp.broadcast_to(c, z.shape[:-1]) for c in (*cotangents, *curvatures))
    is_silent = jnp.all(jnp.stack([c == 0 for c in coefficients]), 0)
    hvp = jnp.where(is_silent[..., None], 0, product).astype(z.dtype)
    return Results(stats, grad(z), fused_stats, fused_grad, hvp)


def check(kernel_case: KernelCase, rows: tuple[int, ...], num_classes: int, dtype: str, scale: str) -> None:
    case = make_case(kernel_case, rows, num_classes, dtype, scale)
    a = case.arguments
    with np.errstate(all="ignore"):
        expected, plain = run(reference, case), run(Plain(TOLERANCES[dtype].compute), case)
        unit = magnitudes(case.logits, *a, case.vector)
    compare("jax", case, compiled(case), expected, plain, unit)


# Of few shapes, for each is compiled anew.


@every_kernel_case
def test_cases(case: KernelCase, x64: None) -> None:
    for scale in ("1", "30", "masked", "poisoned"):
        check(case, (19,), 10, "float32", scale)


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != "float32"])
@each_of_few_kernel_cases
def test_dtypes(case: KernelCase, dtype: str, x64: None) -> None:
    for scale in SCALES:
        check(case, (2, 3), 7, dtype, scale)


@pytest.mark.parametrize("shape", [(3, 1), (2049,), (0, 5)], ids=str)
def test_shapes(shape: tuple[int, ...], x64: None) -> None:
    for scale in SCALES:
        check(BOTH, shape[:-1], shape[-1], "float32", scale)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@every_kernel_case
def test_full_product(case: KernelCase, dtype: str, x64: None) -> None:
    for (rows, num_classes), scale in itertools.product(SHAPES, SCALES):
        check(case, (rows,), num_classes, dtype, scale)
