"""The Triton kernels on PyTorch tensors of a GPU: layouts to strides, and how a row is cut into tiles.

The host never waits for the device: no code here reads a tensor's values. Only the results are allocated.
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
# classes is read twice. The number halves for each other array kept, and for elements of twice the width.
HELD = 32768
CHUNK = 8192  # elements of a longer row that are loaded at a time
PROGRAMS = 2048  # of a kernel without rows: enough for every multiprocessor


class Plan(NamedTuple):
    """The tile shape: constants of a compilation."""

    rows: int  # of a tile
    block: int  # classes of a tile, a power of 2
    held: bool  # whether a tile spans a whole row
    warps: int


def plan(num_classes: int, across: bool, weight: int, keeps: bool) -> Plan:
    """Tile shape for the reducing kernel.

    ``across``: rows, not classes, are contiguous in memory. ``weight``: the registers for an element of the
    tile, which depend on the arrays read with it, the width of the arithmetic and the link. ``keeps``: the
    row is needed again, for a gradient.
    """
    weight = min(weight, 4)  # 8 elements a thread: 16 bytes even if an element has 2
    block = triton.next_power_of_2(num_classes)
    if across:
        block = block if block <= 32 else 16
        rows = max(32, 512 // block)
        weight *= 2  # for the values of the rows themselves, many in one thread
    elif block > (HELD if keeps else CHUNK) // weight:
        block, rows = CHUNK // weight, 1
    else:
        rows = max(1, 1024 // weight // block)
    return Plan(rows, block, block >= num_classes, max(rows * block * weight // 1024, 1))


def row_stats(
    logits: Tensor, labels: Tensor | None, dense: Tensor | None, link: Link, want: tuple[str, ...]
) -> RowStats:
    """Row statistics in one read of the logits."""
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
    """Statistics and gradient in one read, for cotangents that are known before."""
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
    """Equation (3): the Hessian of the loss in the logits, times ``vector``."""
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
    """Equation (2), from known statistics."""
    out = torch.empty_like(logits) if out is None else out
    if not logits.numel():
        return out
    with _Tiles(logits, dense, None, out) as tiles:
        weight = min(tiles.weight, 4)
        block = min(triton.next_power_of_2(tiles.num_classes), 32 if tiles.across else 2048 // weight)
        rows = max(1, 1024 // block)
        chunks = triton.cdiv(tiles.num_classes, block)
        columns = tuple(_as_column(s, logits) for s in (stats.lse, stats.log_prob, stats.mass))
        device.grad[(tiles.count(rows) * chunks,)](
            tiles.strided(0),
            _labels(labels),
            tiles.strided(1),
            tiles.strided(3),
            columns,
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
    """Multiply ``array``, dense in memory, in place by a 0-d tensor; a factor of 1 costs nothing."""
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
    """Launch the kernel `rows`: it writes the statistics, and ``out`` if it is given."""
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
        arrays = [logits, None if shared else dense, vector, out]
        merged, self.copied = _collapsed([x.detach().resolve_neg() for x in arrays if x is not None])
        views = iter(merged)
        self.views = [None if x is None else next(views) for x in arrays]
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
        """The number of tiles of ``rows`` rows."""
        return self.outer * -(-self.inner // rows)

    def counts(self, rows: int) -> tuple[int, int, int]:
        """(inner, tiles, classes), in the units of the kernels."""
        return self.inner // self.row_unit, -(-self.inner // rows), self.num_classes // self.unit

    def strided(self, position: int) -> tuple[Any, ...] | None:
        """(array, strides of outer, row, class), strides of rows in units; None if there is no array."""
        x = self.views[position]
        if x is None:
            return None
        outer, row, column = x.stride()
        outer = outer if self.outer > 1 else 0  # else the stride would depend on the number of rows
        return x, outer // self.unit, row // self.unit, column


def _collapsed(arrays: list[Tensor]) -> tuple[list[Tensor], bool]:
    """(the arrays as (outer, inner, K), with the leading axes merged into two; whether they are copies)."""
    shape = arrays[0].shape
    for split in range(max(len(shape) - 1, 1)):
        merged = (math.prod(shape[:split]), math.prod(shape[split:-1]), shape[-1])
        try:
            return [x.view(merged) for x in arrays], False
        except RuntimeError:
            continue
    return [x.reshape(1, -1, shape[-1]).contiguous() for x in arrays], True


def _empty(logits: Tensor, labels: Tensor | None, want: tuple[str, ...]) -> RowStats:
    """Uninitialised statistics; if ``logits`` is empty, those of rows without classes."""
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


def _as_column(column: Tensor | None, logits: Tensor) -> Tensor | None:
    """A statistic or coefficient (...) as a contiguous float64 column."""
    if column is None:
        return None
    return column.detach().resolve_neg().to(torch.float64).expand(logits.shape[:-1]).reshape(-1).contiguous()


def _coefficients(values: tuple[Any, ...], logits: Tensor) -> list[Any]:
    """(column, 0) for a tensor and (None, number) for a number, flattened."""
    pairs: list[Any] = []
    for c in values:
        is_column = isinstance(c, Tensor)
        pairs += (_as_column(c, logits), 0.0) if is_column else (None, float(c))
    return pairs


def _registers(p: Plan, logits: Tensor, vector: Tensor | None) -> dict[str, int]:
    """The limit of registers: in a Hessian product ptxas would spill beyond 64 by default."""
    narrow = vector is not None and p.rows <= 32 and p.warps <= 8 and logits.itemsize < 8
    return {"maxnreg": 128} if narrow and torch.version.hip is None else {}


def _precision(logits: Tensor) -> dict[str, Any]:
    """The dtype of the arithmetic, and the number of Taylor terms of ``expm1``."""
    if logits.dtype == torch.float64:
        return {"F": tl.float64, "TERMS": 17}
    return {"F": tl.float32, "TERMS": 9}
