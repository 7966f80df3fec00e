"""Allocation of large results: freed blocks are kept and used again, without a call of the system.

New pages cost more than the arithmetic on them: 512 MB take 35 ms, twice as long as a copy, and longer on a
busy machine. A kept block is marked with MADV_FREE, so that the system may reclaim it when it is short of
memory.
"""

from __future__ import annotations

import math
import mmap
import weakref
from contextlib import suppress
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

HUGE_PAGE = 2 << 20
LARGE = 4 << 20  # bytes; the C library itself reuses smaller blocks
BLOCKS = 2  # kept at most

_kept: list[mmap.mmap] = []  # the latest first


def empty_like(array: Array) -> Array:
    """As `numpy.empty_like`: the axes have the same order in memory as those of ``array``."""
    if array.nbytes < LARGE:
        return np.empty_like(array, subok=False)
    order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    return empty([array.shape[axis] for axis in order], array.dtype).transpose(np.argsort(order))


def empty(shape: Any, dtype: Any) -> Array:
    """As `numpy.empty`, from kept blocks if it is large."""
    count = math.prod(shape)
    size = count * np.dtype(dtype).itemsize
    if size < LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.empty(shape, dtype)
    block = _take(size) or _new(size)
    owner = np.frombuffer(block, dtype, count)
    weakref.finalize(owner, _keep, block).atexit = False
    return owner.reshape(shape)


def release_memory() -> int:
    """Give the kept blocks back to the system; returns their bytes.

    Gradients of 4 MiB or more that `xent` makes, for arrays and for tensors on the CPU, are in blocks that
    are kept when the gradient is gone, two at most, for the next one. The system takes them back itself when
    it is short of memory.

    >>> import xent
    >>> _ = xent.release_memory()
    >>> xent.release_memory()
    0
    """
    size = 0
    while _kept:
        with suppress(IndexError):  # another thread took it
            size += len(_kept.pop())
    return size


def _new(size: int) -> mmap.mmap:
    pages = -(-size // HUGE_PAGE)
    try:
        block = mmap.mmap(-1, pages * HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError):
        raise MemoryError(f"Unable to allocate {size:,} bytes") from None
    with suppress(OSError):  # a kernel without huge pages
        block.madvise(mmap.MADV_HUGEPAGE)
    return block


def _take(size: int) -> mmap.mmap | None:
    """Remove and return a kept block of ``size`` to twice ``size``; None if there is none."""
    for block in sorted(_kept, key=len):
        if size <= len(block) <= max(2 * size, HUGE_PAGE):
            try:
                _kept.remove(block)
            except ValueError:  # another thread took it
                continue
            return block
    return None


def _keep(block: mmap.mmap) -> None:
    with suppress(OSError):  # a kernel without MADV_FREE: the block is freed
        block.madvise(mmap.MADV_FREE)
        _kept.insert(0, block)
        del _kept[BLOCKS:]
