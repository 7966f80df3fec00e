"""Calls of the kernels of a tensor's device: Triton takes tensors, the CPU kernels NumPy views of them.

No logits are copied.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from xent.core.contract import Cotangents, Curvatures, RowStats
from xent.core.link import Link
from xent.engine import memory
from xent.kernels import registry

Tensor = torch.Tensor

# The kernels of a device, by its type.
KERNELS = {"cpu": "cpu", "cuda": "triton"}

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def loss_dtype(logits: Tensor) -> torch.dtype:
    """float64 for float64 logits, float32 for all others."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def widened(x: Tensor) -> Tensor:
    """``x`` in the dtype of its loss."""
    return x.to(loss_dtype(x))


def view(x: Tensor) -> Any:
    """A CPU tensor as a NumPy view; bfloat16, which NumPy lacks, as uint16 bits."""
    if x.requires_grad:
        x = x.detach()
    if x.is_neg():
        x = x.resolve_neg()
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


def empty_like(array: Any) -> tuple[Any, Tensor]:
    """A new array with the layout of ``array``, and the tensor of the same memory."""
    if 0 in array.strides:  # expanded: NumPy would order the axes otherwise than PyTorch and fake tensors
        tensor = torch.empty_like(torch.from_numpy(array))
        new = tensor.numpy()
    else:
        new = memory.empty_like(array)
        tensor = torch.from_numpy(new)
    return new, tensor.view(torch.bfloat16) if new.dtype == np.uint16 else tensor


def empty(shape: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor."""
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    bits = {2: np.uint16, 4: np.float32, 8: np.float64}[dtype.itemsize]
    tensor = torch.from_numpy(memory.empty(shape, bits))
    return tensor if tensor.dtype == dtype else tensor.view(dtype)


def row_stats(
    logits: Tensor, labels: Tensor | None, dense: Tensor | None, link: Link, want: tuple[str, ...]
) -> RowStats:
    """Row statistics in one read of the logits."""
    if (kernels := _tensor_kernels(logits)) is not None:
        return kernels.row_stats(logits, labels, dense, link, want)
    stats = _array_kernels().row_stats(view(logits), _view(labels), _dense(dense, logits), link, want)
    return RowStats(*(None if s is None else torch.from_numpy(s) for s in stats))


def lse_or_empty(logits: Tensor, lse: Tensor) -> Tensor:
    """``lse`` with −inf instead of NaN in a row of −inf, which may have finite logits elsewhere."""
    if not logits.shape[-1] or (logits.is_cpu and not lse.isnan().any()):
        return lse
    return torch.where(lse.isnan() & (logits.amax(-1) == -torch.inf), -torch.inf, lse)


def row_grad(
    logits: Tensor,
    labels: Tensor | None,
    dense: Tensor | None,
    link: Link,
    stats: RowStats,
    cotangents: Cotangents,
    out: Tensor | None = None,
) -> Tensor:
    """Equation (2), from known statistics."""
    if (kernels := _tensor_kernels(logits)) is not None:
        return kernels.row_grad(logits, labels, dense, link, stats, cotangents, out)
    z = view(logits)
    dz, dlogits = empty_like(z) if out is None else (view(out), out)
    arrays = RowStats(*(_view(s) for s in stats))
    columns = Cotangents(*(_view(c) for c in cotangents))
    _array_kernels().row_grad(z, _view(labels), _dense(dense, logits), link, arrays, columns, dz)
    return dlogits


def row_stats_and_grad(
    logits: Tensor,
    labels: Tensor | None,
    dense: Tensor | None,
    link: Link,
    cotangents: Cotangents,
    want: tuple[str, ...],
    out: Tensor | None = None,
) -> tuple[RowStats, Tensor]:
    """Statistics and gradient in one read, for cotangents that are known before."""
    if (kernels := _tensor_kernels(logits)) is not None:
        return kernels.row_stats_and_grad(logits, labels, dense, link, cotangents, want, out)
    z = view(logits)
    dz, dlogits = empty_like(z) if out is None else (view(out), out)
    columns = Cotangents(*(_view(c) for c in cotangents))
    stats, _ = _array_kernels().row_stats_and_grad(
        z, _view(labels), _dense(dense, logits), link, columns, want, dz
    )
    return RowStats(*(None if s is None else torch.from_numpy(s) for s in stats)), dlogits


def row_hvp(
    logits: Tensor,
    labels: Tensor | None,
    dense: Tensor | None,
    link: Link,
    cotangents: Cotangents,
    vector: Tensor,
) -> Tensor:
    """Equation (3) for a function that is linear in the statistics."""
    if (kernels := _tensor_kernels(logits)) is not None:
        vector = vector.to(logits.dtype)
        return kernels.row_hvp(logits, labels, dense, link, cotangents, Curvatures(), vector)
    z = view(logits)
    out, product = empty_like(z)
    _array_kernels().row_hvp(
        z,
        _view(labels),
        _dense(dense, logits),
        link,
        Cotangents(*(_view(c) for c in cotangents)),
        Curvatures(),
        view(vector.to(logits.dtype)),
        out,
    )
    return product


def are_arrays(*tensors: Tensor | None) -> bool:
    """Whether all tensors are dense and on the CPU, so that kernels read them as arrays."""
    for x in tensors:
        if x is not None and not (x.is_cpu and x.layout == torch.strided):
            return False
    return KERNELS["cpu"] == "cpu"


def takes_tensors(logits: Tensor) -> bool:
    """Whether the kernels of the device of ``logits`` take tensors."""
    return KERNELS.get(logits.device.type) == "triton"


def rescale(gradient: Tensor, factor: Tensor) -> Tensor:
    """Multiply a gradient that nobody else holds by a 0-d tensor, in place; a factor of 1 costs nothing."""
    return _tensor_kernels(gradient).rescale(gradient, factor)


def _tensor_kernels(logits: Tensor) -> Any:
    """The kernels of a GPU, which take tensors; None for the CPU, whose kernels take arrays."""
    name = KERNELS.get(logits.device.type)
    if name == "cpu":
        return None
    if name is None:
        raise NotImplementedError(
            f"`input` must be on a device of type {' or '.join(KERNELS)}; there are no kernels for "
            f"{logits.device.type}"
        )
    try:
        return registry.get(name)
    except ModuleNotFoundError as error:
        raise NotImplementedError(
            f"`input` on {logits.device} needs the package `{error.name}`, of which its kernels are made"
        ) from None


def _array_kernels() -> Any:
    return registry.get("cpu")


def _view(x: Any) -> Any:
    return np.ascontiguousarray(view(x)) if isinstance(x, torch.Tensor) else x


def _dense(dense: Tensor | None, logits: Tensor) -> Any:
    return None if dense is None else view(dense.to(loss_dtype(logits)))
