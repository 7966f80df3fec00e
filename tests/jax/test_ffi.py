"""The C++ kernels as XLA calls them: the conformance table, transformations, threads, devices, absence."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

from tests.kernels.conformance import Case, compare, make_case, run  # noqa: E402
from tests.tables.kernel_cases import KERNEL_CASES, KernelCase, each_of_few_kernel_cases, every_kernel_case  # noqa: E402
from tests.tables.layouts import SCALES  # noqa: E402
from tests.tables.tolerance import DTYPES, TOLERANCES, Plain, magnitudes  # noqa: E402
from xent.core.contract import Cotangents, RowStats  # noqa: E402
from xent.core.link import Link  # noqa: E402
from xent.jax import ffi  # noqa: E402
from xent.kernels import reference  # noqa: E402

Array = Any
EVERYTHING = next(case for case in KERNEL_CASES if case.name == "both-matrix")


def x64(dtype: str) -> AbstractContextManager[Any]:
    """Where arrays of float64 exist, if that is the dtype."""
    if dtype != "float64":
        return nullcontext()
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64  # before JAX 0.8

    return enable_x64()


class Called:
    """The functions as `contract.Kernels` of NumPy arrays; the Hessian product is the reference's."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype

    def row_stats(self, logits: Array, labels: Array, dense: Array, link: Link, want: Any) -> RowStats:
        """All of them, and the argmax in the integers of the others."""
        with x64(self.dtype):
            return self._arrays(ffi.row_stats(logits, labels, dense, link, want))

    def row_grad(
        self, logits: Array, labels: Array, dense: Array, link: Link, stats: Any, cotangents: Any, out: Array
    ) -> Array:
        """A new array."""
        with x64(self.dtype):
            return np.asarray(ffi.row_grad(logits, labels, dense, link, stats, cotangents))

    def row_stats_and_grad(
        self, logits: Array, labels: Array, dense: Array, link: Link, cotangents: Any, want: Any, out: Array
    ) -> tuple[RowStats, Array]:
        """New arrays."""
        with x64(self.dtype):
            stats, grad = ffi.row_stats_and_grad(logits, labels, dense, link, cotangents, want)
            return self._arrays(stats), np.asarray(grad)

    def row_hvp(self, logits: Array, *arguments: Any) -> Array:
        """The reference's, rounded."""
        return reference.row_hvp(logits, *arguments[:-1]).astype(logits.dtype)

    def _arrays(self, stats: RowStats) -> RowStats:
        columns = {name: np.asarray(x) for name, x in stats._asdict().items() if x is not None}
        for name, x in columns.items():
            real = np.float64 if self.dtype == "float64" else np.float32
            assert x.dtype == (np.int32 if name == "argmax" else real)
        if "argmax" in columns:
            columns["argmax"] = columns["argmax"].astype(np.int64)
        return RowStats(**columns)


def check(case: Case) -> None:
    """Against the reference, to the tolerances of the table."""
    with np.errstate(all="ignore"):
        expected = run(reference, case)
        plain = run(Plain(TOLERANCES[case.dtype].compute), case)
        unit = magnitudes(case.logits, *case.arguments, case.vector)
        compare("ffi", case, run(Called(case.dtype), case), expected, plain, unit)


@pytest.fixture(autouse=True)
def _available() -> None:
    assert ffi.is_available()


@every_kernel_case
def test_kernel_cases(case: KernelCase) -> None:
    check(make_case(case, (3, 5), 10, "float64", "30"))


CLASSES_AND_SCALES = [
    (1, "1", "float32"),
    (2, "poisoned", "bfloat16"),
    (10, "masked", "float32"),
    (10, "0.02", "float16"),
    (127, "1e4", "float32"),
    (127, "ties", "float64"),
    (2049, "30", "float32"),
]
assert {dtype for *_, dtype in CLASSES_AND_SCALES} == set(DTYPES)
assert {scale for _, scale, _ in CLASSES_AND_SCALES} == set(SCALES)


@pytest.mark.parametrize(("num_classes", "scale", "dtype"), CLASSES_AND_SCALES)
@each_of_few_kernel_cases
def test_classes_and_scales(case: KernelCase, num_classes: int, scale: str, dtype: str) -> None:
    check(make_case(case, (67,), num_classes, dtype, scale))


@pytest.mark.parametrize("rows", [(1100,), (0,), (3, 0, 2), ()], ids=str)
def test_rows(rows: tuple[int, ...]) -> None:
    """More rows than are converted at once, none, and one without an axis."""
    check(make_case(EVERYTHING, rows, 3, "float32", "1"))


def test_rows_without_classes() -> None:
    labels = np.array([0, -1])
    stats, grad = ffi.row_stats_and_grad(
        np.zeros((2, 0), np.float32), labels, None, Link(), Cotangents(), ("lse", "log_prob")
    )
    np.testing.assert_array_equal(stats.lse, [-np.inf, 0])
    np.testing.assert_array_equal(stats.log_prob, [0, 0])
    assert grad.shape == (2, 0)


def test_large_logits_keep_the_digits_of_the_gradient() -> None:
    """Statistics in float32 hold 4096 + log Σ to 5e-4: probabilities from them would be wrong by as much."""
    rng = np.random.default_rng(0)
    z, y = rng.integers(-20, 20, (9, 40)).astype(np.float32) / 4, rng.integers(0, 40, 9)
    grads = []
    for logits in (z, z + 4096):
        stats = ffi.row_stats(logits, y, None, Link(), ("lse", "log_prob"))
        grads.append(ffi.row_grad(logits, y, None, Link(), stats, Cotangents(0.5, -1.0, 0.0)))
    np.testing.assert_allclose(*grads, 1e-6, 1e-30)


def both(z: Array, y: Array, v: Array, column: Array, number: Array) -> tuple[Array, ...]:
    """Statistics and gradient of (..., K) logits, (...) labels, dense, a cotangent a row and one for all."""
    cotangents = Cotangents(column, number, -0.5)
    stats, grad = ffi.row_stats_and_grad(
        z, y, v, Link(0.7), cotangents, ("lse", "log_prob", "dense_log_prob")
    )
    extremes = ffi.row_stats(z, y, v, Link(0.7), ("argmax", "entropy", "mass"))
    return (*stats[:3], grad, extremes.argmax, extremes.entropy, extremes.mass)


def batch(size: int, dense_rows: tuple[int, ...] = ()) -> tuple[Array, ...]:
    """Arguments of `both`, with an axis of ``size`` first."""
    rng = np.random.default_rng(0)
    z, v = rng.normal(size=(size, 6, 5)), rng.random((size, *dense_rows, 5))
    arrays = (z, rng.integers(-1, 5, (size, 6)), v, rng.normal(size=(size, 6)), rng.normal(size=size))
    return tuple(jnp.asarray(x, jnp.int32 if x.dtype == int else jnp.float32) for x in arrays)


@pytest.mark.parametrize("axes", [(0, 0, 0, 0, 0), *({i} for i in range(5))], ids=str)
@pytest.mark.parametrize("dense_rows", [(), (6,)], ids=["vector", "matrix"])
def test_vmap(axes: Any, dense_rows: tuple[int, ...]) -> None:
    """All arguments batched, and each alone."""
    if isinstance(axes, set):
        axes = tuple(0 if i in axes else None for i in range(5))
    arguments = [x if axis == 0 else x[0] for x, axis in zip(batch(3, dense_rows), axes, strict=True)]
    actual = jax.jit(jax.vmap(both, axes))(*arguments)
    for i in range(3):
        expected = both(*(x[i] if axis == 0 else x for x, axis in zip(arguments, axes, strict=True)))
        for a, e in zip(actual, expected, strict=True):
            np.testing.assert_allclose(a[i], e, 2e-6, 1e-6)


def test_vmap_of_vmap() -> None:
    """Over dense vectors outside, and over logits, labels and a number inside."""
    z, y, v, column, number = batch(3)
    inner = jax.vmap(both, (0, 0, None, None, 0))
    actual = jax.vmap(inner, (None, None, 0, 0, None))(z, y, v, column, number)
    for i in range(3):
        for j in range(3):
            expected = both(z[j], y[j], v[i], column[i], number[j])
            for a, e in zip(actual, expected, strict=True):
                np.testing.assert_allclose(a[i, j], e, 2e-6, 1e-6)


def test_scan() -> None:
    """Sums over the steps of a loop."""
    arguments = batch(4)

    def step(total: Array, x: tuple[Array, ...]) -> tuple[Array, Array]:
        _, log_prob, _, grad, *_ = both(*x)
        return total + grad, log_prob

    total, log_probs = jax.jit(lambda xs: jax.lax.scan(step, jnp.zeros((6, 5)), xs))(arguments)
    each = [both(*(x[i] for x in arguments)) for i in range(4)]
    np.testing.assert_allclose(total, sum(e[3] for e in each), 1e-6, 1e-6)
    np.testing.assert_allclose(log_probs, [e[1] for e in each], 1e-6)


@pytest.mark.parametrize("change", [{"y": np.zeros(5, int)}, {"y": np.zeros(6)}, {"v": np.zeros(4)}], ids=str)
def test_other_shapes_and_dtypes_are_errors_of_xla(change: dict[str, Array]) -> None:
    arguments = dict(zip(("z", "y", "v", "column", "number"), (x[0] for x in batch(1)), strict=True))
    expected = r"operand has other axes|labels must be int32|dense has another number of classes"
    with pytest.raises(Exception, match=expected):
        jax.block_until_ready(both(**(arguments | {k: jnp.asarray(x) for k, x in change.items()})))


def test_first_use_in_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call that shows that it works is none of the traced function's."""
    monkeypatch.setattr(ffi, "_available", None)
    for name in ("register_ffi_target", "register_ffi_target_as_batch_partitionable"):
        monkeypatch.setattr(jax.ffi, name, lambda *arguments, **options: None)  # it is registered
    traced = jax.make_jaxpr(lambda x: x if ffi.is_available() else -x)(1.0)
    assert not traced.eqns


def test_failure_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise NotImplementedError("no such thing")

    monkeypatch.setattr(ffi, "_available", None)
    monkeypatch.setattr(jax.ffi, "register_ffi_target", fail)
    with pytest.warns(RuntimeWarning, match="instead of the C.. kernels: NotImplementedError: no such thing"):
        assert not ffi.is_available()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not ffi.is_available()


def test_without_a_cpu_there_is_nothing_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: Any) -> None:
        raise RuntimeError("Unknown backend cpu")

    monkeypatch.setattr(ffi, "_available", None)
    monkeypatch.setattr(jax, "local_devices", fail)
    assert not ffi.is_available()


def run_alone(program: str, **environment: str) -> None:
    """In a process of its own, which must end."""
    subprocess.run(
        [sys.executable, "-W", "error", "-c", program], env=os.environ | environment, check=True, timeout=120
    )


THREADS = """
from concurrent.futures import ThreadPoolExecutor
import jax, numpy as np
from xent.core.contract import Cotangents
from xent.core.link import Link
from xent.jax import ffi

assert ffi.is_available()

@jax.jit
def both(z, y):
    stats, grad = ffi.row_stats_and_grad(z, y, None, Link(), Cotangents(0.0, -1.0, 0.0), ("log_prob",))
    return stats.log_prob, grad

def digest(arguments):
    return [np.asarray(x).tobytes() for x in both(*arguments)]

rng = np.random.default_rng(0)
arguments = [
    (rng.normal(size=shape).astype(np.float32), rng.integers(0, shape[1], shape[0]).astype(np.int32))
    for shape in [(20_000, 10), (301, 1000)] * 2
]
alone = [digest(a) for a in arguments]
with ThreadPoolExecutor(4) as pool:
    assert list(pool.map(digest, arguments * 30)) == alone * 30
"""


def test_calls_from_several_threads_by_several_threads() -> None:
    run_alone(THREADS, OMP_NUM_THREADS="3")


DEVICES = """
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from xent.core.contract import Cotangents
from xent.core.link import Link
from xent.jax import ffi

try:
    from jax import shard_map
except ImportError:
    from jax.experimental.shard_map import shard_map

assert ffi.is_available()

def both(z, y, number, v=None):
    stats, grad = ffi.row_stats_and_grad(z, y, v, Link(), Cotangents(0.0, number, 0.5), ("log_prob",))
    return stats.log_prob, grad

rng = np.random.default_rng(0)
z, y = rng.normal(size=(6, 5)).astype(np.float32), np.arange(6, dtype=np.int32) % 5
v, number = rng.random(5).astype(np.float32), np.float32(-2)
number = jax.numpy.asarray(number)
mesh = Mesh(np.array(jax.devices()), ("rows",))
assert mesh.size == 2
rows = NamedSharding(mesh, P("rows"))
sharded = (jax.device_put(z, rows), jax.device_put(y, rows), number)

def equal(actual, *arguments):
    for a, e in zip(actual, both(*map(jax.numpy.asarray, arguments))):
        np.testing.assert_array_equal(a, e)

compiled = jax.jit(both, out_shardings=rows).lower(*sharded).compile()
equal(compiled(*sharded), z, y, number)
assert "all-gather" not in compiled.as_text()
equal(jax.jit(both)(*sharded, v), z, y, number, v)

inside = shard_map(both, mesh=mesh, in_specs=(P("rows"), P("rows"), P(), P()), out_specs=P("rows"))
equal(jax.jit(inside)(z, y, number, v), z, y, number, v)

def replicated_logits(y):
    return both(z[:3], y, number, v)

inside = shard_map(replicated_logits, mesh=mesh, in_specs=P("rows"), out_specs=P("rows"))
equal(jax.jit(inside)(y), np.concatenate([z[:3], z[:3]]), y, number, v)
try:
    jax.jit(shard_map(replicated_logits, mesh=mesh, in_specs=P("rows"), out_specs=P()))(y)
except ValueError as error:
    assert "out_specs" in str(error)
else:
    raise AssertionError("results that differ between devices pass for equal ones")

if hasattr(jax, "set_mesh"):  # explicit shardings
    explicit = jax.make_mesh((2,), ("rows",), axis_types=(jax.sharding.AxisType.Explicit,))
    rows = NamedSharding(explicit, P("rows"))
    with jax.set_mesh(explicit):
        log_prob, grad = jax.jit(both)(jax.device_put(z, rows), jax.device_put(y, rows), number)
    if hasattr(jax, "enable_x64"):  # before JAX 0.8 the results are on all devices
        assert log_prob.sharding.spec == P("rows") and grad.sharding.spec[0] == "rows"
    equal((log_prob, grad), z, y, number)
"""


def test_two_devices() -> None:
    """Under a plain jit no rows move, unless dense is a vector; in shard_map; in explicit shardings."""
    run_alone(DEVICES, XLA_FLAGS="--xla_force_host_platform_device_count=2")
