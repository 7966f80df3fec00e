"""Threads change no bit; an interrupt or a fork in the middle breaks nothing."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import sysconfig
import textwrap
from typing import Any

import numpy as np
import pytest

import xent
from tests.conftest import Backend
from tests.tables.tolerance import DTYPES
from tests.tables.variants import FEW_CASES, Kind, Variant, each_of_few
from xent.kernels import _native

Array = np.ndarray[Any, Any]
# Narrow, wide, few wide rows, classes first: each large enough to be shared out.
SHAPES = [(50_001, 10), (3_001, 257), (7, 40_000), (1, 300_000)]


def digest(variant: Variant, kind: Kind, dtype: str, shape: tuple[int, int]) -> bytes:
    """Every bit of loss, gradient, Hessian product and statistics."""
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=shape) * 3).astype(DTYPES[dtype])
    targets, options = variant.make(kind, shape[:1], shape[1], rng)
    losses, grad = xent.cross_entropy_with_grad(logits, targets, reduction="none", **options)
    mean = xent.cross_entropy(logits, targets, **options)
    product = xent.cross_entropy_hvp(logits, targets, logits, **options)
    stats = xent.row_statistics(logits)
    columns = xent.cross_entropy_with_grad(np.asfortranarray(logits), targets, **options)[1]
    arrays = (losses, grad, mean, product, stats.lse, stats.entropy, stats.argmax, columns)
    return b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@each_of_few
def test_same_bits_for_any_number_of_threads(
    variant: Variant, kind: Kind, dtype: str, shape: tuple[int, int]
) -> None:
    threadpoolctl = pytest.importorskip("threadpoolctl")
    results = []
    for threads in (1, 2, 3):
        with threadpoolctl.threadpool_limits(threads):
            results.append(digest(variant, kind, dtype, shape))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("size", [65_536, 65_537, 99_999, 1_000_003])
def test_sums_and_checks_of_long_columns(size: int) -> None:
    threadpoolctl = pytest.importorskip("threadpoolctl")
    rng = np.random.default_rng(size)
    columns, labels = np.exp(9 * rng.normal(size=(9, size))), rng.integers(0, 7, size)
    for threads in (1, 2, 3):
        with threadpoolctl.threadpool_limits(threads):
            assert [_native.total(c) for c in columns] == [c.sum() for c in columns]  # NumPy's order
            assert _native.all_in_range(labels, 7)
            for place, label in itertools.product((0, size // 2, size - 1), (-1, 7, 1 << 62, -(1 << 63))):
                wrong = labels.copy()
                wrong[place] = label
                assert not _native.all_in_range(wrong, 7)


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter with two minutes to answer."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environment,
    )


BITS = """
    import hashlib, numpy as np, xent
    rng = np.random.default_rng(0)
    hash = hashlib.sha256()
    for shape in ((50_001, 10), (301, 2049), (2, 100_000)):
        logits = rng.normal(size=shape).astype(np.float32)
        labels = rng.integers(0, shape[1], shape[0])
        for options in ({}, {"label_smoothing": 0.1}, {"focal_gamma": 2.0, "z_loss": 0.01}):
            loss, grad = xent.cross_entropy_with_grad(logits, labels, **options)
            product = xent.cross_entropy_hvp(logits, labels, logits, **options)
            for array in (loss, grad, product):
                hash.update(array.tobytes())
    print(hash.hexdigest())
"""


def test_same_bits_for_any_omp_num_threads() -> None:
    results = [run(BITS, OMP_NUM_THREADS=threads) for threads in ("1", "2", "3", "7")]
    assert [r.stderr for r in results] == [""] * 4
    assert len({r.stdout for r in results}) == 1


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
@pytest.mark.parametrize("threads", ["1", "2"])
def test_interrupt(threads: str) -> None:
    """Ctrl-C during a call raises KeyboardInterrupt, and the next call is right."""
    result = run(
        """
        import signal, numpy as np, xent
        signal.signal(signal.SIGALRM, signal.default_int_handler)  # as Ctrl-C does
        logits = np.random.default_rng(0).normal(size=(400_000, 20)).astype(np.float32)
        labels = np.zeros(400_000, int)
        out = np.empty_like(logits)
        expected, _ = xent.cross_entropy_with_grad(logits, labels, out=out)
        grad = out.copy()
        interrupted = 0
        for delay in (0.001, 0.003, 0.01, 0.05):
            out[...] = 0
            signal.setitimer(signal.ITIMER_REAL, delay)
            try:
                while True:  # each call is shorter than the longest delay
                    xent.cross_entropy_with_grad(logits, labels, out=out)
            except KeyboardInterrupt:
                interrupted += 1
            loss, _ = xent.cross_entropy_with_grad(logits, labels, out=out)
            assert loss == expected
            assert np.array_equal(out, grad)
        print(interrupted)
        """,
        OMP_NUM_THREADS=threads,
    )
    assert (result.stdout.strip(), result.stderr) == ("4", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork() -> None:
    """After a call on several threads the child of a fork computes the same, and does not hang."""
    result = run(
        """
        import os, signal, numpy as np, xent
        logits = np.random.default_rng(0).normal(size=(50_001, 10)).astype(np.float32)
        labels = np.zeros(50_001, int)
        loss, grad = xent.cross_entropy_with_grad(logits, labels)
        child = os.fork()
        if child == 0:
            signal.alarm(60)  # a hang ends the child by a signal
            again, same = xent.cross_entropy_with_grad(logits, labels)
            os._exit(0 if again == loss and np.array_equal(same, grad) else 1)
        _, status = os.waitpid(child, 0)
        again, same = xent.cross_entropy_with_grad(logits, labels)
        print(status, again == loss and np.array_equal(same, grad))
        """,
        OMP_NUM_THREADS="2",
    )
    assert result.stdout.strip() == "0 True"


def test_calls_from_several_python_threads() -> None:
    """The GIL is released: calls run side by side and do not disturb each other."""
    result = run(
        """
        import concurrent.futures, numpy as np, xent
        rng = np.random.default_rng(0)
        batches = [rng.normal(size=(2_000, k)).astype(np.float32) for k in (3, 10, 100, 700) * 4]
        labels = np.zeros(2_000, int)
        def solve(logits):
            loss, grad = xent.cross_entropy_with_grad(logits, labels)
            binary = xent.binary_cross_entropy_with_grad(logits, logits > 0)[1]
            _, grads = xent.linear_cross_entropy_with_grad(logits, logits[:2], labels)
            return b"".join(array.tobytes() for array in (loss, grad, binary, *grads[:2]))
        expected = [solve(logits) for logits in batches]
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            print(list(pool.map(solve, batches)) == expected)
        """,
        OMP_NUM_THREADS="2",
    )
    assert (result.stdout.strip(), result.stderr) == ("True", "")


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="needs a free-threaded Python")
def test_the_extension_leaves_the_gil_off() -> None:
    result = run("import sys, xent.kernels.cpu; print(sys._is_gil_enabled())")
    assert (result.stdout.strip(), result.stderr) == ("False", "")


def test_every_instruction_set_keeps_its_bits(backend: Backend) -> None:
    threadpoolctl = pytest.importorskip("threadpoolctl")
    for _ in backend.each():
        results = []
        for threads in (1, 2):
            with threadpoolctl.threadpool_limits(threads):
                results.append(digest(*FEW_CASES[2], "float32", (4_001, 37)))
        assert results[0] == results[1]
