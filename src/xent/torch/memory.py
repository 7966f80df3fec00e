"""Memory for large results: what one gradient gave back, the next one takes, without the system in between.

Pages that are new cost more than the arithmetic on them: 512 MB take 35 ms, twice a copy of as much, and more
on a busy machine. So what is freed is kept, and offered to the system (MADV_FREE), which takes it when it is
short of memory.
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
LARGE = 4 << 20  # bytes; below, NumPy and the C library keep what is freed
BLOCKS = 2  # that are kept, at most

_kept: list[mmap.mmap] = []


def empty_like(array: Array) -> Array:
    """`numpy.empty_like`: the axes in memory are in the order of those of ``array``."""
    if array.nbytes < LARGE:
        return np.empty_like(array)
    order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    return empty([array.shape[axis] for axis in order], array.dtype).transpose(np.argsort(order))


def empty(shape: Any, dtype: Any) -> Array:
    """`numpy.empty`."""
    count = math.prod(shape)
    size = count * np.dtype(dtype).itemsize
    if size < LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.empty(shape, dtype)
    block = _take(size) or _new(size)
    owner = np.frombuffer(block, dtype, count)
    weakref.finalize(owner, _keep, block).atexit = False
    return owner.reshape(shape)


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
    """A kept block that is large enough and not more than twice that."""
    for block in sorted(_kept, key=len):
        if size <= len(block) <= max(2 * size, HUGE_PAGE):
            try:
                _kept.remove(block)
            except ValueError:  # another thread was faster
                continue
            return block
    return None


def _keep(block: mmap.mmap) -> None:
    with suppress(OSError):  # a kernel that would not take it back is given it at once
        block.madvise(mmap.MADV_FREE)
        _kept.append(block)
        del _kept[:-BLOCKS]
