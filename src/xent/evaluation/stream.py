"""Evaluate stored logits or probabilities against stored targets, reading both files once."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Condition, Lock
from typing import Any, NamedTuple

import numpy as np

from xent import information
from xent.evaluation import scoring
from xent.evaluation.scoring import Bin, Scores, Settings
from xent.files.formats.row_reader import RowReader
from xent.kernels.cpu import set_threads

Array = np.ndarray[Any, Any]

CHUNK = 1 << 19  # numbers that a thread scores at a time; half as many take a tenth longer, in calls
REPORT = 1 << 24  # bytes between two reports of progress
AHEAD = 16  # scored chunks that may wait for an earlier one
FLOATS = ("float64", "float32", "float16", "bfloat16")
INTEGERS = tuple(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64))
NONE = (-1, (0, 0))  # no chunk: 0 rows

LOGITS = Settings()


class ClassScore(NamedTuple):
    """Scores of one class."""

    label: int
    support: int  # rows of this class
    recall: float | None
    precision: float | None  # None if it is never predicted
    loss: float | None  # mean over its rows, nats
    share: float | None  # share of the loss of all rows


class Evaluation(NamedTuple):
    """The result of an evaluation. Losses are in nats. Means are over ``rows``: not ignored, with a loss."""

    num_classes: int
    rows: int
    ignored: int
    undefined: int  # rows with a NaN or +inf, left out
    first_undefined: int | None  # the first of these, counted from 1
    infinite: int  # rows whose target has probability 0, which makes loss, KL and shares infinite
    unnormalised: int  # rows of probabilities that do not sum to 1; they were divided by their sum
    unnormalised_targets: int  # rows of targets that do not sum to 1; they were not changed
    like_probabilities: bool  # whether all sampled rows of logits lie in [0, 1] and sum to 1
    loss: float
    entropy: float  # H(q) of the targets, 0 for labels
    divergence: float  # KL(q‖p)
    frequencies: float  # entropy of the mean target, the loss of always predicting it
    accuracy: float
    top_k: int
    top_k_accuracy: float
    calibration_error: float
    calibration_gap: float  # mean confidence − accuracy
    bins: list[Bin]
    classes: list[ClassScore]

    @property
    def perplexity(self) -> float:
        """exp(loss), infinite above 709 nats."""
        with np.errstate(over="ignore"):
            return float(information.perplexity(self.loss))

    @property
    def bits(self) -> float:
        """Loss in bits."""
        return float(information.bits(self.loss))


class Tally:
    """All sums of an evaluation."""

    def __init__(self, num_classes: int, top_k: int) -> None:
        self.sums = scoring.ColumnSums(num_classes)
        self.top_k = top_k
        self.entropy = 0.0
        self.target: Array | None = None
        self.unnormalised = self.unnormalised_targets = 0
        self.sampled = self.like_probabilities = 0

    @property
    def may_be_probabilities(self) -> bool:
        """Whether all sampled rows so far were like probabilities."""
        return self.sampled == self.like_probabilities

    def add(self, part: Scores) -> None:
        """Add the scores of some rows."""
        self.sums.add(part.columns, self.top_k, part.start)
        self.unnormalised += part.unnormalised
        self.unnormalised_targets += part.unnormalised_targets
        self.sampled += part.sampled
        self.like_probabilities += part.like_probabilities
        if part.entropy is not None:
            self.entropy += part.entropy
            self.target = part.target if self.target is None else self.target + part.target

    def evaluation(self) -> Evaluation:
        """The result: means of the sums."""
        sums = self.sums
        support, right, among_top, losses = sums.by_class.T
        _, bin_right, confidence, infinite = sums.by_bin.T
        rows, total = int(support.sum()), float(losses.sum())

        def mean(sum_: Any) -> float:
            return float(sum_) / rows if rows else math.nan

        shares = support if self.target is None else self.target
        bins = [Bin(int(n), c / n, r / n) for n, r, c, _ in sums.by_bin.tolist() if n]
        return Evaluation(
            num_classes=len(support),
            rows=rows,
            ignored=sums.ignored,
            undefined=sums.undefined,
            first_undefined=None if sums.first_undefined is None else sums.first_undefined + 1,
            infinite=int(infinite.sum()),
            unnormalised=self.unnormalised,
            unnormalised_targets=self.unnormalised_targets,
            like_probabilities=self.sampled > 0 and self.may_be_probabilities,
            loss=mean(total),
            entropy=mean(self.entropy),
            divergence=mean(total - self.entropy),
            frequencies=float(information.entropy(shares / shares.sum())) if rows else math.nan,
            accuracy=mean(right.sum()),
            top_k=self.top_k,
            top_k_accuracy=mean(among_top.sum()),
            calibration_error=scoring.calibration_error(bins),
            calibration_gap=mean((confidence - bin_right).sum()),
            bins=bins,
            classes=_classes(sums, total),
        )


def _classes(sums: scoring.ColumnSums, total: float) -> list[ClassScore]:
    finite = 0 < total < math.inf
    return [
        ClassScore(
            label=k,
            support=int(support),
            recall=right / support if support else None,
            precision=right / predicted if predicted else None,
            loss=loss / support if support else None,
            share=loss / total if finite else None,
        )
        for k, ((support, right, _, loss), predicted) in enumerate(
            zip(sums.by_class.tolist(), sums.predicted.tolist(), strict=True)
        )
    ]


class OrderedResults:
    """Passes results of threads to ``consume`` in the order of their numbers, with a bounded buffer."""

    def __init__(self, consume: Callable[[Any], None]) -> None:
        self.consume = consume
        self.changed = Condition()
        self.early: dict[int, Any] = {}
        self.following = 0
        self.ended = False

    def put(self, index: int, result: Any) -> bool:
        """Add result ``index``; wait while it is `AHEAD` of the next one. Returns False if work has ended.

        A result that is an exception is raised when its turn comes, and ends the work.
        """
        with self.changed:
            self.changed.wait_for(lambda: self.ended or index < self.following + AHEAD)
            try:
                self.early[index] = result
                while self.following in self.early and not self.ended:
                    result = self.early.pop(self.following)
                    if isinstance(result, Exception):
                        raise result
                    self.consume(result)
                    self.following += 1
            except BaseException:
                self.ended = True
                raise
            finally:
                self.changed.notify_all()
            return not self.ended

    def end(self) -> None:
        """End the work of all threads."""
        with self.changed:
            self.ended = True
            self.changed.notify_all()


def evaluate(
    outputs: RowReader,
    targets: RowReader,
    settings: Settings = LOGITS,
    threads: int | None = None,
    on_bytes: Callable[[int], None] | None = None,
    chunk: int = CHUNK,
) -> Evaluation:
    """Score ``outputs (..., K)``, logits or probabilities, against labels (...) or distributions (..., K).

    Reads ``chunk`` numbers at a time, which one of ``threads`` threads scores (default: one for each
    processor). ``on_bytes`` is called with the number of bytes of ``outputs`` that were read. The result has
    the same bits for any number of threads. With distributions, the class of a row is its likeliest one, in
    all numbers except loss, entropy and divergence. A class exactly as probable as that of the row does not
    count as above it in the top k. Raises ValueError that names what does not fit, with its row.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from xent.files.formats.row_reader import open_rows
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/z.npy", np.log([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]]))
    ...     np.save(f"{folder}/y.npy", [0, 1])
    ...     with open_rows(f"{folder}/z.npy") as logits, open_rows(f"{folder}/y.npy") as labels:
    ...         result = evaluate(logits, labels)
    >>> round(result.bits, 6), result.accuracy
    (1.5, 0.5)
    """
    soft = _check_shapes(outputs, targets, settings)
    num_classes = outputs.shape[-1]
    num_rows = math.prod(outputs.shape[:-1])
    step = max(1, chunk // (2 * num_classes if soft else num_classes))
    names = (outputs.name, targets.name)
    threads = threads or threads_to_use()
    tally = Tally(num_classes, min(settings.top_k, num_classes))
    reading, chunks, reported = Lock(), enumerate(_chunks(num_rows, step)), 0

    def work() -> None:
        z = y = None  # arrays of this thread, which it reads into again
        while True:
            result: Scores | Exception
            try:
                with reading:  # the thread that scores the rows reads them into its cache
                    index, (start, n) = next(chunks, NONE)
                    if not n:
                        return
                    z, y = outputs.take(n, z), targets.take(n, y)
                result = scoring.score(z, y, start, settings, names, tally.may_be_probabilities)
            except Exception as error:
                result = error
            if not results.put(index, result):
                return

    def consume(scores: Scores) -> None:
        nonlocal reported
        tally.add(scores)
        rows = scores.start + len(scores.columns.label)
        new = rows * num_classes * outputs.itemsize - reported
        if on_bytes is not None and (new >= REPORT or rows == num_rows):
            on_bytes(new)
            reported += new

    results = OrderedResults(consume)
    # Each thread has rows of its own: the kernels that it calls use no other.
    with ThreadPoolExecutor(threads, initializer=set_threads, initargs=(1,)) as executor:
        try:
            for future in [executor.submit(work) for _ in range(threads)]:
                future.result()
        finally:
            results.end()
    return tally.evaluation()


def _check_shapes(outputs: RowReader, targets: RowReader, settings: Settings) -> bool:
    """Whether the targets are distributions; ValueError if shapes or dtypes do not go together."""
    if settings.top_k < 1:
        raise ValueError(f"`--top-k` must be >= 1; got {settings.top_k}")
    if len(outputs.shape) < 2 or not outputs.shape[-1]:
        raise ValueError(f"{outputs.name}: expected shape (..., classes); got {outputs.shape}")
    if outputs.dtype not in (FLOATS if settings.probabilities else (*FLOATS, *INTEGERS)):
        raise ValueError(
            f"{outputs.name}: expected floating-point numbers, one of {', '.join(FLOATS)}; got "
            f"{outputs.dtype}"
        )
    rows = outputs.shape[:-1]
    if not math.prod(rows):  # without rows the file may claim any number of classes: allocate nothing
        raise ValueError(f"{outputs.name}: no row to score: it has shape {outputs.shape}")
    if targets.dtype == "bool" and outputs.shape[-1] != 2:
        raise ValueError(
            f"{targets.name}: booleans are labels of 2 classes; got bool, but {outputs.shape[-1]:,} classes"
        )
    if targets.dtype in (*INTEGERS, "bool"):
        if targets.shape not in (rows, (*rows, 1)):
            expected = f"labels of shape {rows}, one a row"
            raise ValueError(f"{targets.name}: expected {expected}; got {targets.shape}")
        if targets.row != (1,):  # labels (B, T) of logits (B, T, K) are read as single numbers
            targets.row = ()
        return False
    if targets.dtype not in FLOATS:
        raise ValueError(f"{targets.name}: expected integer labels or probabilities; got {targets.dtype}")
    if targets.shape != outputs.shape:
        raise ValueError(
            f"{targets.name}: numbers with a fraction are probabilities of shape {outputs.shape}, labels are "
            f"integers of shape {rows}; got {targets.dtype} of shape {targets.shape}"
        )
    return True


def _chunks(num_rows: int, step: int) -> Iterator[tuple[int, int]]:
    """(start, number of rows) of each chunk."""
    return ((start, min(step, num_rows - start)) for start in range(0, num_rows, step))


def threads_to_use() -> int:
    """Number of processors that this process may use, or OMP_NUM_THREADS if that is less."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, int(limit)) if limit.isdecimal() and int(limit) else available
