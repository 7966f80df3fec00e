"""The Triton kernels on PyTorch tensors of a GPU: layouts to strides, and how a row is cut into tiles.

No host waits for the device: nothing here reads a tensor's values, and no buffer but the results is needed.
Without a GPU the same code runs on CPU tensors in Triton's interpreter (``TRITON_INTERPRET=1``).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from xent.core.contract import Cotangents, Curvatures, RowStats
from xent.core.link import Link
from xent.kernels.triton import device

Tensor = torch.Tensor

# Elements of 4 bytes that a program keeps in registers: 32 threads × 32 warps × 32 registers. A row of more
# classes is read again. Each further array that is kept, and each that is twice as wide, halves it.
HELD = 32768
CHUNK = 8192  # elements of such a longer row that are in flight at a time
PROGRAMS = 2048  # of a kernel that has no rows: enough for every multiprocessor


class Plan(NamedTuple):
    """How the rows are cut: constants of a compilation."""

    rows: int  # of a tile
    block: int  # classes of a tile, a power of 2
    held: bool  # whether a tile is as long as a row
    warps: int


def plan(num_classes: int, across: bool, weight: int, keeps: bool) -> Plan:
    """Tiles for the reducing kernel.

    ``across`` says that it is neighbouring rows, not classes, that are neighbours in memory; ``weight`` how
    many registers an element of the tile takes, by the arrays that are read with it, the width of the
    arithmetic and the link; ``keeps`` that the row is wanted again, for a gradient.
    """
    weight = min(weight, 4)  # 8 elements a thread: 16 bytes even of two each
    block = triton.next_power_of_2(num_classes)
    if across:
        block = block if block <= 32 else 16
        rows = max(32, 512 // block)
        weight *= 2  # for the numbers of the rows themselves, many in one thread
    elif block > (HELD if keeps else CHUNK) // weight:
        block, rows = CHUNK // weight, 1
    else:
        rows = max(1, 1024 // weight // block)
    return Plan(rows, block, block >= num_classes, max(rows * block * weight // 1024, 1))


def row_stats(
    logits: Tensor, labels: Tensor | None, dense: Tensor | None, link: Link, want: tuple[str, ...]
) -> RowStats:
    """See `contract.Kernels`."""
    stats = _empty(logits, labels, want)
    _reduce(logits, labels, dense, link, stats)
    return stats


def row_stats_and_grad(
    logits: Tensor,
    labels: Tensor | None,
    dense: Tensor | None,
    link: Link,
    cotangents: Cotangents,
    want: tuple[str, ...],
    out: Tensor | None = None,
) -> tuple[RowStats, Tensor]:
    """See `contract.Kernels`."""
    stats = _empty(logits, labels, want)
    out = torch.empty_like(logits) if out is None else out
    _reduce(logits, labels, dense, link, stats, (*cotangents, 0.0, 0.0), None, out)
    return stats, out


def row_hvp(
    logits: Tensor,
    labels: Tensor | None,
    dense: Tensor | None,
    link: Link,
    cotangents: Cotangents,
    curvatures: Curvatures,
    vector: Tensor,
    out: Tensor | None = None,
) -> Tensor:
    """See `contract.Kernels`."""
    out = torch.empty_like(logits) if out is None else out
    _reduce(logits, labels, dense, link, RowStats(), (*cotangents, *curvatures), vector, out)
    return out


def row_grad(
    logits: Tensor,
    labels: Tensor | None,
    dense: Tensor | None,
    link: Link,
    stats: RowStats,
    cotangents: Cotangents,
    out: Tensor | None = None,
) -> Tensor:
    """See `contract.Kernels`."""
    out = torch.empty_like(logits) if out is None else out
    if not logits.numel():
        return out
    with _Tiles(logits, dense, None, out) as tiles:
        weight = min(tiles.weight, 4)
        block = min(triton.next_power_of_2(tiles.num_classes), 32 if tiles.across else 2048 // weight)
        rows = max(1, 1024 // block)
        chunks = triton.cdiv(tiles.num_classes, block)
        known = tuple(_rows_of(s, logits) for s in (stats.lse, stats.log_prob, stats.mass))
        device.grad[(tiles.count(rows) * chunks,)](
            tiles.strided(0),
            _labels(labels),
            tiles.strided(1),
            tiles.strided(3),
            known,
            *_coefficients(cotangents, logits),
            1.0 / link.temperature,
            link.softcap or 0.0,
            *tiles.counts(rows),
            chunks,
            UNIT=tiles.unit,
            ROW_UNIT=tiles.row_unit,
            ROWS=rows,
            BLOCK=block,
            HAS_CAP=link.softcap is not None,
            **_precision(logits),
            num_warps=max(1, rows * block * weight // 512),
        )
    return out


def rescale(array: Tensor, factor: Tensor) -> Tensor:
    """``array``, dense in memory, times a number (0-d) on its device, in place; if that is 1, at no cost."""
    block, count = 2048, array.numel()
    if count:
        with torch.cuda.device_of(array):  # type: ignore[no-untyped-call]
            device.rescale[(min(triton.cdiv(count, block), PROGRAMS),)](
                array.as_strided((count,), (1,)), factor.detach(), count, block, _precision(array)["F"]
            )
    return array


def _reduce(
    logits: Tensor,
    labels: Tensor | None,
    dense: Tensor | None,
    link: Link,
    stats: RowStats,
    coefficients: tuple[Any, ...] = (0.0,) * 5,
    vector: Tensor | None = None,
    out: Tensor | None = None,
) -> None:
    """The kernel `rows`: statistics, and ``out`` if it is there."""
    has_stats = any(s is not None for s in stats)
    if not logits.numel() or (out is None and not has_stats):
        return
    with _Tiles(logits, dense, vector, out) as tiles:
        p = plan(tiles.num_classes, tiles.across, tiles.weight * (2 if link.softcap else 1), out is not None)
        device.rows[(tiles.count(p.rows),)](
            tiles.strided(0),
            _labels(labels),
            tiles.strided(1),
            tiles.strided(2),
            tiles.strided(3),
            tuple(stats),
            *_coefficients(coefficients, logits),
            1.0 / link.temperature,
            link.softcap or 0.0,
            *tiles.counts(p.rows),
            UNIT=tiles.unit,
            ROW_UNIT=tiles.row_unit,
            ROWS=p.rows,
            BLOCK=p.block,
            HELD=p.held,
            HAS_CAP=link.softcap is not None,
            HAS_STATS=has_stats,
            **_precision(logits),
            num_warps=p.warps,
            **_registers(p, logits, vector),
        )


class _Tiles:
    """(outer, inner, K) views of the arrays of one launch, on their device."""

    def __init__(
        self, logits: Tensor, dense: Tensor | None, vector: Tensor | None, out: Tensor | None
    ) -> None:
        shared = dense is not None and dense.ndim == 1
        whole = [logits, None if shared else dense, vector, out]
        merged, self.copied = _collapsed([x.detach().resolve_neg() for x in whole if x is not None])
        views = iter(merged)
        self.views = [None if x is None else next(views) for x in whole]
        shape = merged[0].shape
        if shared:
            assert dense is not None
            self.views[1] = dense.detach().resolve_neg().as_strided(shape, (0, 0, *dense.stride()))
        self.out = out
        self.device = torch.cuda.device_of(logits)  # type: ignore[no-untyped-call]
        self.outer, self.inner, self.num_classes = shape
        _, row, column = merged[0].stride()
        self.across = row == 1 and column != 1 and self.inner > 1
        self.weight = 1 if dense is None else 2
        self.weight *= (4 if vector is not None else 1) * (2 if logits.dtype == torch.float64 else 1)
        aligned = 16 // logits.element_size()
        strides = [s for x in self.views if x is not None for s in x.stride()[:2]]
        self.unit = math.gcd(aligned, self.num_classes, *strides)
        self.row_unit = math.gcd(aligned, self.inner) if self.across else 1

    def __enter__(self) -> _Tiles:
        self.device.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *problem: Any) -> None:
        self.device.__exit__(*problem)
        if self.out is not None and self.copied:
            written = self.views[3]
            assert written is not None
            self.out.copy_(written.view(self.out.shape))

    def count(self, rows: int) -> int:
        """How many tiles of that many rows there are."""
        return self.outer * -(-self.inner // rows)

    def counts(self, rows: int) -> tuple[int, int, int]:
        """inner, tiles, classes as the kernels take them."""
        return self.inner // self.row_unit, -(-self.inner // rows), self.num_classes // self.unit

    def strided(self, place: int) -> tuple[Any, ...] | None:
        """An array and its strides, those of rows in units."""
        x = self.views[place]
        if x is None:
            return None
        outer, row, column = x.stride()
        outer = outer if self.outer > 1 else 0  # it would name the number of rows
        return x, outer // self.unit, row // self.unit, column


def _collapsed(arrays: list[Tensor]) -> tuple[list[Tensor], bool]:
    """The leading axes merged into two, (outer, inner, K); and whether that took copies."""
    shape = arrays[0].shape
    for split in range(max(len(shape) - 1, 1)):
        merged = (math.prod(shape[:split]), math.prod(shape[split:-1]), shape[-1])
        try:
            return [x.view(merged) for x in arrays], False
        except RuntimeError:
            continue
    return [x.reshape(1, -1, shape[-1]).contiguous() for x in arrays], True


def _empty(logits: Tensor, labels: Tensor | None, want: tuple[str, ...]) -> RowStats:
    """Room for the statistics; what they are of no classes where there is nothing to compute them from."""
    new = torch.empty if logits.numel() else torch.zeros
    stats = {
        name: new(
            logits.shape[:-1],
            dtype=torch.int64 if name == "argmax" else torch.float64,
            device=logits.device,
        )
        for name in want
    }
    if "lse" in stats and not logits.numel():
        stats["lse"].fill_(-math.inf)
        if labels is not None:
            stats["lse"].masked_fill_(labels < 0, 0.0)
    return RowStats(**stats)


def _labels(labels: Tensor | None) -> Tensor | None:
    return None if labels is None else labels.to(torch.int64).reshape(-1).contiguous()


def _rows_of(column: Tensor | None, logits: Tensor) -> Tensor | None:
    """(...) as one contiguous float64 column."""
    if column is None:
        return None
    return column.detach().resolve_neg().to(torch.float64).expand(logits.shape[:-1]).reshape(-1).contiguous()


def _coefficients(values: tuple[Any, ...], logits: Tensor) -> list[Any]:
    """Each as (column, number), one of which counts."""
    pairs: list[Any] = []
    for c in values:
        is_column = isinstance(c, Tensor)
        pairs += (_rows_of(c, logits), 0.0) if is_column else (None, float(c))
    return pairs


def _registers(p: Plan, logits: Tensor, vector: Tensor | None) -> dict[str, int]:
    """Left to itself, ptxas spills in a Hessian product what does not fit into 64 registers."""
    narrow = vector is not None and p.rows <= 32 and p.warps <= 8 and logits.itemsize < 8
    return {"maxnreg": 128} if narrow and torch.version.hip is None else {}


def _precision(logits: Tensor) -> dict[str, Any]:
    """The dtype of the arithmetic, and the terms of Taylor's sum for ``expm1`` in it."""
    if logits.dtype == torch.float64:
        return {"F": tl.float64, "TERMS": 17}
    return {"F": tl.float32, "TERMS": 9}
