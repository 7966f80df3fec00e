"""Which thread pools work during a fit: two that spin against each other are slower than one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import PurePath
from typing import Any

import threadpoolctl

SMALL = 1 << 22  # elements of X: its products are over before a second thread has woken up
SHORT = 1 << 22  # multiplications of a pass, half a millisecond: between two of them the others would spin


@contextmanager
def few_threads(elements: int, scores: int) -> Iterator[None]:
    """One thread for SciPy's BLAS, which would spin against the one of our products; for both, if X is small.

    NumPy's and SciPy's wheels bring an OpenBLAS each. For the kernels too, if a pass over the ``elements`` of
    X is short: load_digits takes 10 ms on one thread, and 16 where a second spins beside what is not a pass.
    """
    short = elements * scores < SHORT
    libraries = [blas for blas in _pools("blas") if elements < SMALL or _is_scipys(blas)]
    libraries += _pools("openmp") if short else []
    before = [library.get_num_threads() for library in libraries]
    try:
        for library in libraries:
            library.set_num_threads(1)
        yield
    finally:
        for library, threads in zip(libraries, before, strict=True):
            library.set_num_threads(threads)


@cache  # finding the libraries costs milliseconds, setting their threads nothing
def _pools(kind: str) -> list[Any]:
    controllers = threadpoolctl.ThreadpoolController().lib_controllers
    return [library for library in controllers if library.user_api == kind]


def _is_scipys(library: Any) -> bool:
    return any(part.startswith("scipy") for part in PurePath(library.filepath).parent.parts[-2:])
