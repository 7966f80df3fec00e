"""The C++ row kernels in JAX's programs for the CPU: XLA calls them itself, without Python and its lock.

The functions have the arguments of `contract.Kernels`, as arrays or tracers, and no derivatives. They lower
on the CPU only, and only if `is_available()`. Statistics are float32, or float64 beside float64 logits; the
largest class is int32. Under ``vmap`` every argument is repeated along the new axis.
"""

from __future__ import annotations

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xent.core.contract import Cotangents, RowStats
from xent.core.link import Link

Array = Any

_lock = threading.Lock()
_available: bool | None = None  # None: not tried


def is_available() -> bool:
    """Whether programs for the CPU can call the kernels; the first use registers them, or warns."""
    global _available
    with _lock:
        if _available is None:
            try:
                with ThreadPoolExecutor(1) as other:  # this thread may be in the middle of a trace
                    _available = other.submit(_register).result()
            except Exception as error:  # of the import, of the registration or of XLA
                _available = False
                reason = f"{type(error).__name__}: {error}"
                message = f"JAX {jax.__version__} uses XLA's operations instead of the C++ kernels: {reason}"
                warnings.warn(message, RuntimeWarning, stacklevel=2)
        return _available


def row_stats(
    logits: Array, labels: Array | None, dense: Array | None, link: Link, want: tuple[str, ...]
) -> RowStats:
    """Row statistics in one read of the logits."""
    logits = jnp.asarray(logits)
    if not want or not logits.size:
        return _without_classes(logits, labels, want)
    return _named(want, _call("xent_row_stats", logits, {"labels": labels, "dense": dense}, link, want))


def row_grad(
    logits: Array,
    labels: Array | None,
    dense: Array | None,
    link: Link,
    stats: RowStats,
    cotangents: Cotangents,
    out: Array | None = None,
) -> Array:
    """Equation (2), in the dtype of the logits.

    From known statistics if they are float64. In float32 ``lse`` lacks the digits for exp(u − lse) of large
    logits: the kernel sums again, in the same read.
    """
    logits = jnp.asarray(logits)
    if logits.dtype != jnp.float64:
        return row_stats_and_grad(logits, labels, dense, link, cotangents, (), out)[1]
    if not logits.size:
        return jnp.zeros_like(logits)
    statistics = {"lse": stats.lse, "log_prob": stats.log_prob, "mass": stats.mass}
    operands = {"labels": labels, "dense": dense, **statistics}
    return _call("xent_row_grad", logits, operands, link, (), cotangents, out is not None)[0]


def row_stats_and_grad(
    logits: Array,
    labels: Array | None,
    dense: Array | None,
    link: Link,
    cotangents: Cotangents,
    want: tuple[str, ...],
    out: Array | None = None,
) -> tuple[RowStats, Array]:
    """Statistics (without entropy and argmax) and gradient in one read, for cotangents known before.

    ``out`` is None, or the logits: XLA then writes the gradient over them where nothing else reads them.
    """
    logits = jnp.asarray(logits)
    if not logits.size:
        return _without_classes(logits, labels, want), jnp.zeros_like(logits)
    operands = {"labels": labels, "dense": dense}
    name = "xent_row_stats_and_grad"
    grad, *stats = _call(name, logits, operands, link, want, cotangents, out is not None)
    return _named(want, stats), grad


def _call(
    target: str,
    logits: Array,
    operands: dict[str, Array | None],
    link: Link,
    want: tuple[str, ...],
    cotangents: Cotangents | None = None,
    in_place: bool = False,
) -> list[Array]:
    """The handler's results: the gradient if there are cotangents, then the statistics of ``want``.

    Operands follow the logits in the order of their names in an attribute, as do the results; those that are
    absent have no name there. A cotangent that is a number of Python is an attribute, else an operand.
    """
    compute = _compute_dtype(logits)
    numbers = {"dl": np.float64(0), "dx": np.float64(0), "ds": np.float64(0)}
    for name, cotangent in zip(numbers, cotangents or (), strict=False):
        if isinstance(cotangent, (int, float, np.number)):
            numbers[name] = np.float64(cotangent)
        else:
            operands = {**operands, name: cotangent}
    given = {
        name: jnp.asarray(x) if name == "labels" else jnp.asarray(x, compute)
        for name, x in operands.items()
        if x is not None
    }
    results = _results(logits, list(given.values()), want, cotangents is not None)
    aliases = {0: 0} if in_place else None
    call = jax.ffi.ffi_call(target, results, vmap_method="broadcast_all", input_output_aliases=aliases)
    with _sharded_by_rows(logits, given.get("dense")):
        return list(
            call(
                logits,
                *given.values(),
                operands=" ".join(given),
                results=" ".join(want),
                inv_temperature=np.float64(1 / link.temperature),
                softcap=np.float64(link.softcap or 0),
                **numbers,
            )
        )


def _compute_dtype(logits: Array) -> Any:
    return jnp.float64 if logits.dtype == jnp.float64 else jnp.float32


def _results(logits: Array, others: list[Array], want: tuple[str, ...], with_gradient: bool) -> list[Any]:
    """Shapes and dtypes, sharded as sums of the operands are: in some meshes JAX asks for that."""

    def examples(z: Array, *others: Array) -> list[Array]:
        for x in others:
            z = z + jnp.sum(x).astype(z.dtype)
        row = jnp.sum(z, -1, dtype=_compute_dtype(z))
        stats = [row.astype(jnp.int32) if name == "argmax" else row for name in want]
        return [z, *stats] if with_gradient else stats

    return list(jax.eval_shape(examples, logits, *others))


def _sharded_by_rows(logits: Array, dense: Array | None) -> AbstractContextManager[Any]:
    """Tells XLA that rows are independent: it divides all operands among devices, not a vector of classes."""
    if dense is not None and dense.ndim < logits.ndim:
        return nullcontext()
    try:
        from jax.experimental.xla_metadata import set_xla_metadata
    except ImportError:  # in none of the versions that were tried; the logits are gathered then
        return nullcontext()
    return set_xla_metadata(num_batch_dims=str(logits.ndim - 1))


def _named(want: tuple[str, ...], columns: list[Array]) -> RowStats:
    return RowStats(**dict(zip(want, columns, strict=True)))


def _without_classes(logits: Array, labels: Array | None, want: tuple[str, ...]) -> RowStats:
    """Statistics of no rows, or of rows without classes, where the sum of exponentials is 0."""
    zeros = jnp.zeros(logits.shape[:-1], _compute_dtype(logits))
    stats = {name: zeros.astype(jnp.int32) if name == "argmax" else zeros for name in want}
    if "lse" in stats:
        stats["lse"] = (
            zeros - jnp.inf if labels is None else jnp.where(jnp.asarray(labels) < 0, 0, zeros - jnp.inf)
        )
    return RowStats(**stats)


def _register() -> bool:
    """Registers the kernels and calls one. False, and no error, if JAX has no CPU to lower them for."""
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return False
    from xent.kernels import _native

    for name, handler in _native.ffi_handlers().items():
        jax.ffi.register_ffi_target(name, handler, platform="cpu", api_version=1)
        jax.ffi.register_ffi_target_as_batch_partitionable(name)
    with jax.default_device(device):
        lse = row_stats(np.zeros((1, 2), np.float32), None, None, Link(), ("lse",)).lse
    if abs(float(lse[0]) - np.log(2)) > 1e-6:
        raise ArithmeticError(f"the log-sum-exp of (0, 0) comes back as {lse}")
    return True
