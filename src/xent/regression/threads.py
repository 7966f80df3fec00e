"""Limit the thread pools during a fit: two pools that wait actively for work slow each other down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import PurePath
from typing import Any

import threadpoolctl

SMALL = 1 << 22  # elements of X below which products end before a second thread has woken up
SHORT = 1 << 22  # multiplications of a pass, half a millisecond, below which kernels use one thread


@contextmanager
def few_threads(elements: int, scores: int, partitions: int = 1) -> Iterator[None]:
    """Give SciPy's BLAS one thread; NumPy's too if X is small, and the kernels if a pass over X is short.

    ``elements`` are those of all ``partitions``. Of several each is a pass. BLAS then has one thread in any
    case: its bits may depend on that number, where the kernels' do not.

    NumPy's and SciPy's wheels have an OpenBLAS each, and their threads wait actively. A fit of load_digits
    takes 10 ms with one thread for the kernels, and 16 ms with a second that waits between passes.
    """
    short = elements // partitions * scores < SHORT
    small = elements < SMALL or partitions > 1
    libraries = [blas for blas in _pools("blas") if small or _is_scipys(blas)]
    libraries += _pools("openmp") if short else []
    before = [library.get_num_threads() for library in libraries]
    try:
        for library in libraries:
            library.set_num_threads(1)
        yield
    finally:
        for library, threads in zip(libraries, before, strict=True):
            library.set_num_threads(threads)


def one_kernel_thread() -> None:
    """Give the kernels one thread where this thread calls them."""
    for library in _pools("openmp"):
        library.set_num_threads(1)


@cache  # finding the libraries costs milliseconds, setting their threads nothing
def _pools(kind: str) -> list[Any]:
    controllers = threadpoolctl.ThreadpoolController().lib_controllers
    return [library for library in controllers if library.user_api == kind]


def _is_scipys(library: Any) -> bool:
    return any(part.startswith("scipy") for part in PurePath(library.filepath).parent.parts[-2:])
