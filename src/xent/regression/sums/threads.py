"""Limit the thread pools during a fit: two pools that wait actively for work slow each other down."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import PurePath
from typing import Any

import threadpoolctl

from xent.kernels.cpu import set_threads

SMALL = 1 << 22  # elements of X below which products end before a second thread has woken up
SHORT = 1 << 22  # multiplications of a pass, half a millisecond, below which kernels use one thread
# A function of OpenBLAS, as it is named in builds of it and in the wheels of NumPy and SciPy.
OPENBLAS = [f"{head}openblas_set_num_threads{tail}" for head in ("", "scipy_") for tail in ("", "64_", "_64")]


@contextmanager
def few_threads(elements: int, scores: int, partitions: int = 1, by_kernels: bool = False) -> Iterator[None]:
    """Give SciPy's BLAS one thread; NumPy's too if X is small, and the kernels if a pass over X is short.

    ``elements`` are those of all ``partitions``. Of several each is a pass. BLAS then has one thread in any
    case: its bits may depend on that number, where the kernels' do not. ``by_kernels`` says that the kernels
    multiply X, as a sparse one or one with few classes: BLAS has only small products left, at (100000, 20)
    0.4 ms with one thread and 2 with two, and one thread.

    NumPy's and SciPy's wheels have an OpenBLAS each, and their threads wait actively. A fit of load_digits
    takes 10 ms with one thread for the kernels, and 16 ms with a second that waits between passes. Kernels
    after a product of two BLAS threads lose up to 4 ms: the choice of alpha for 200,000 × 30 rows took 318 ms
    instead of 142.
    """
    short = elements // partitions * scores < SHORT
    small = elements < SMALL or partitions > 1 or by_kernels
    libraries = [blas for blas in _blas() if small or _is_scipys(blas)]
    before = [library.get_num_threads() for library in libraries]
    try:
        for library in libraries:
            _set_threads(library, 1)
        with _one_kernel_thread() if short else nullcontext():
            yield
    finally:
        for library, threads in zip(libraries, before, strict=True):
            _set_threads(library, threads)


@contextmanager
def single_thread() -> Iterator[None]:
    """Give the kernels one thread where this thread calls them, and BLAS one in this process.

    Blocks of several threads may overlap: BLAS gets its threads back when the last one ends.
    """
    _BLAS.enter()
    try:
        with _one_kernel_thread():
            yield
    finally:
        _BLAS.leave()


@contextmanager
def _one_kernel_thread() -> Iterator[None]:
    before = set_threads(1)
    try:
        yield
    finally:
        set_threads(before)


class _OneBlasThread:
    """How many blocks want BLAS to have one thread, and what it had before the first."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.blocks = 0
        self.before: list[tuple[Any, int]] = []

    def enter(self) -> None:
        with self.lock:
            if not self.blocks:
                numbers = [(library, library.get_num_threads()) for library in _blas()]
                self.before = [(library, threads) for library, threads in numbers if threads > 1]
                for library, _ in self.before:
                    _set_threads(library, 1)
            self.blocks += 1

    def leave(self) -> None:
        with self.lock:
            self.blocks -= 1
            if not self.blocks:
                for library, threads in self.before:
                    _set_threads(library, threads)


_BLAS = _OneBlasThread()


def _set_threads(library: Any, threads: int) -> None:
    """``library.set_num_threads(threads)``, in any thread.

    threadpoolctl 3.8 lets one thread of a process set those of OpenBLAS, and ignores the others silently.
    """
    own_pool = library.internal_api == "openblas" and library.threading_layer != "openmp"
    for name in OPENBLAS if own_pool else ():
        if hasattr(library.dynlib, name):
            getattr(library.dynlib, name)(threads)
            return
    library.set_num_threads(threads)


@cache  # finding the libraries costs milliseconds, setting their threads nothing
def _blas() -> list[Any]:
    controllers = threadpoolctl.ThreadpoolController().lib_controllers
    return [library for library in controllers if library.user_api == "blas"]


def _is_scipys(library: Any) -> bool:
    return any(part.startswith("scipy") for part in PurePath(library.filepath).parent.parts[-2:])
