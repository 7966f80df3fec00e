"""Tensors to the kernels of their device: as they are to a GPU's, and to the CPU's as NumPy views.

Nothing is copied.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from xent.core.contract import Cotangents, Curvatures, RowStats
from xent.core.link import Link
from xent.kernels import registry
from xent.torch import memory

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
    """The memory of a CPU tensor as an array; bfloat16, which NumPy does not know, as its bits."""
    if x.requires_grad:
        x = x.detach()
    if x.is_neg():
        x = x.resolve_neg()
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


def empty_like(array: Any) -> tuple[Any, Tensor]:
    """A new array of the layout of ``array``, and its tensor."""
    if 0 in array.strides:  # expanded: NumPy's order of the axes is not PyTorch's, which fake tensors have
        tensor = torch.empty_like(torch.from_numpy(array))
        new = tensor.numpy()
    else:
        new = memory.empty_like(array)
        tensor = torch.from_numpy(new)
    return new, tensor.view(torch.bfloat16) if new.dtype == np.uint16 else tensor


def empty(shape: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """New memory of a device."""
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    bits = {2: np.uint16, 4: np.float32, 8: np.float64}[dtype.itemsize]
    tensor = torch.from_numpy(memory.empty(shape, bits))
    return tensor if tensor.dtype == dtype else tensor.view(dtype)


def row_stats(
    logits: Tensor, labels: Tensor | None, dense: Tensor | None, link: Link, want: tuple[str, ...]
) -> RowStats:
    """As `contract.Kernels`, of tensors."""
    if (kernels := _of_tensors(logits)) is not None:
        return kernels.row_stats(logits, labels, dense, link, want)
    stats = _of_arrays().row_stats(view(logits), _view(labels), _dense(dense, logits), link, want)
    return RowStats(*(None if s is None else torch.from_numpy(s) for s in stats))


def row_grad(
    logits: Tensor,
    labels: Tensor | None,
    dense: Tensor | None,
    link: Link,
    stats: RowStats,
    cotangents: Cotangents,
    out: Tensor | None = None,
) -> Tensor:
    """As `contract.Kernels`, of tensors."""
    if (kernels := _of_tensors(logits)) is not None:
        return kernels.row_grad(logits, labels, dense, link, stats, cotangents, out)
    z = view(logits)
    dz, dlogits = empty_like(z) if out is None else (view(out), out)
    known = RowStats(*(_view(s) for s in stats))
    columns = Cotangents(*(_view(c) for c in cotangents))
    _of_arrays().row_grad(z, _view(labels), _dense(dense, logits), link, known, columns, dz)
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
    """As `contract.Kernels`, of tensors."""
    if (kernels := _of_tensors(logits)) is not None:
        return kernels.row_stats_and_grad(logits, labels, dense, link, cotangents, want, out)
    z = view(logits)
    dz, dlogits = empty_like(z) if out is None else (view(out), out)
    columns = Cotangents(*(_view(c) for c in cotangents))
    stats, _ = _of_arrays().row_stats_and_grad(
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
    """As `contract.Kernels`, of tensors, for a function that is linear in the statistics."""
    if (kernels := _of_tensors(logits)) is not None:
        vector = vector.to(logits.dtype)
        return kernels.row_hvp(logits, labels, dense, link, cotangents, Curvatures(), vector)
    z = view(logits)
    out, product = empty_like(z)
    _of_arrays().row_hvp(
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
    """Whether kernels read the tensors as arrays: dense, and in this machine's memory."""
    for x in tensors:
        if x is not None and not (x.is_cpu and x.layout == torch.strided):
            return False
    return KERNELS["cpu"] == "cpu"


def takes_tensors(logits: Tensor) -> bool:
    """Whether the kernels of the device of ``logits`` take tensors."""
    return KERNELS.get(logits.device.type) == "triton"


def rescale(gradient: Tensor, factor: Tensor) -> Tensor:
    """``gradient``, new and in no one's hands yet, times a number on its device, 1 in most cases."""
    return _of_tensors(gradient).rescale(gradient, factor)


def _of_tensors(logits: Tensor) -> Any:
    """The kernels of the device of ``logits``, which take tensors; None for the CPU's, which take arrays."""
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


def _of_arrays() -> Any:
    return registry.get("cpu")


def _view(x: Any) -> Any:
    return np.ascontiguousarray(view(x)) if isinstance(x, torch.Tensor) else x


def _dense(dense: Tensor | None, logits: Tensor) -> Any:
    return None if dense is None else view(dense.to(loss_dtype(logits)))
