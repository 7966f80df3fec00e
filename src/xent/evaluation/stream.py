"""What stored logits or probabilities are worth against stored targets, in one read of both files."""

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

Array = np.ndarray[Any, Any]

CHUNK = 1 << 19  # numbers that a thread works on at a time: half of it costs a tenth more, in calls
TELL = 1 << 24  # bytes after which it is said how far the reading is
AHEAD = 16  # pieces that may wait for an earlier one
FLOATS = ("float64", "float32", "float16", "bfloat16")
INTEGERS = tuple(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64))
NONE = (-1, (0, 0))  # no piece: 0 rows

LOGITS = Settings()


class ClassScore(NamedTuple):
    """Of one class."""

    label: int
    support: int  # rows of this class
    recall: float | None
    precision: float | None  # None if it is never predicted
    loss: float | None  # mean over its rows, nats
    share: float | None  # of the loss of all rows


class Evaluation(NamedTuple):
    """All of one run. Nats; means over the ``rows`` that were neither ignored nor without a loss."""

    num_classes: int
    rows: int
    ignored: int
    undefined: int  # rows with a NaN or +inf, left out
    first_undefined: int | None  # its row, counted from 1
    infinite: int  # rows whose target has probability 0: then loss, KL and the shares are infinite
    unnormalised: int  # rows of probabilities that do not sum to 1: divided by their sum
    unnormalised_targets: int  # rows of targets that do not: taken as they are
    like_probabilities: bool  # logits, but every row looked at is in [0, 1] and sums to 1
    loss: float
    entropy: float  # H(q) of the targets, 0 for labels
    divergence: float  # KL(q‖p)
    frequencies: float  # entropy of the targets' mean: the loss of guessing by it
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
    """Sums over rows."""

    def __init__(self, num_classes: int, top_k: int) -> None:
        self.sums = scoring.Sums(num_classes)
        self.top_k = top_k
        self.entropy = 0.0
        self.target: Array | None = None
        self.unnormalised = self.unnormalised_targets = 0
        self.sampled = self.like_probabilities = 0

    @property
    def may_be_probabilities(self) -> bool:
        """Whether all rows looked at were like probabilities, so that it is worth to look at more."""
        return self.sampled == self.like_probabilities

    def add(self, part: Scores) -> None:
        """Fold ``part`` in."""
        self.sums.add(part.columns, self.top_k, part.start)
        self.unnormalised += part.unnormalised
        self.unnormalised_targets += part.unnormalised_targets
        self.sampled += part.sampled
        self.like_probabilities += part.like_probabilities
        if part.entropy is not None:
            self.entropy += part.entropy
            self.target = part.target if self.target is None else self.target + part.target

    def evaluation(self) -> Evaluation:
        """The means."""
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


def _classes(sums: scoring.Sums, total: float) -> list[ClassScore]:
    finite = 0 < total < math.inf
    return [
        ClassScore(
            label=k,
            support=int(support),
            recall=right / support if support else None,
            precision=right / guessed if guessed else None,
            loss=loss / support if support else None,
            share=loss / total if finite else None,
        )
        for k, ((support, right, _, loss), guessed) in enumerate(
            zip(sums.by_class.tolist(), sums.guessed.tolist(), strict=True)
        )
    ]


class InOrder:
    """What threads found in numbered pieces, handed to ``take`` by their numbers; nobody is far ahead."""

    def __init__(self, take: Callable[[Any], None]) -> None:
        self.take = take
        self.changed = Condition()
        self.early: dict[int, Any] = {}
        self.following = 0
        self.ended = False

    def put(self, place: int, found: Any) -> bool:
        """Whether to go on. An exception that was found is raised in its turn, and ends all."""
        with self.changed:
            self.changed.wait_for(lambda: self.ended or place < self.following + AHEAD)
            try:
                self.early[place] = found
                while self.following in self.early and not self.ended:
                    found = self.early.pop(self.following)
                    if isinstance(found, Exception):
                        raise found
                    self.take(found)
                    self.following += 1
            except BaseException:
                self.ended = True
                raise
            finally:
                self.changed.notify_all()
            return not self.ended

    def end(self) -> None:
        """Let everybody stop."""
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

    Reads ``chunk`` numbers at a time, worked on by one of ``threads`` threads (default: the
    processors); ``on_bytes`` is told how many of ``outputs`` were read. The same bits for any number of
    threads. With distributions the class of a row, for all but loss, entropy and divergence, is its
    likeliest one. Classes as probable as the row's own do not push it out of the top k. Raises
    ValueError naming what does not fit, with its row.

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
    soft = _fit_shapes(outputs, targets, settings)
    num_classes = outputs.shape[-1]
    total = math.prod(outputs.shape[:-1])
    step = max(1, chunk // (2 * num_classes if soft else num_classes))
    names = (outputs.name, targets.name)
    threads = threads or threads_to_use()
    tally = Tally(num_classes, min(settings.top_k, num_classes))
    reading, pieces, told = Lock(), enumerate(_pieces(total, step)), 0

    def work() -> None:
        z = y = None  # memory of the thread
        while True:
            found: Scores | Exception
            try:
                with reading:  # whoever works on the rows reads them, and has them in its cache
                    place, (start, n) = next(pieces, NONE)
                    if not n:
                        return
                    z, y = outputs.take(n, z), targets.take(n, y)
                found = scoring.score(z, y, start, settings, names, tally.may_be_probabilities)
            except Exception as error:
                found = error
            if not in_order.put(place, found):
                return

    def take(found: Scores) -> None:
        nonlocal told
        tally.add(found)
        rows = found.start + len(found.columns.label)
        new = rows * num_classes * outputs.itemsize - told
        if on_bytes is not None and (new >= TELL or rows == total):
            on_bytes(new)
            told += new

    in_order = InOrder(take)
    with ThreadPoolExecutor(threads, initializer=_one_thread_each if soft else None) as executor:
        try:
            for done in [executor.submit(work) for _ in range(threads)]:
                done.result()
        finally:
            in_order.end()
    return tally.evaluation()


def _fit_shapes(outputs: RowReader, targets: RowReader, settings: Settings) -> bool:
    """Whether the targets are distributions; ValueError for arrays that do not go together."""
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
    if not math.prod(rows):  # before there is memory for classes that may be any number then
        raise ValueError(f"{outputs.name}: no row to score: it has shape {outputs.shape}")
    if targets.dtype == "bool" and outputs.shape[-1] != 2:
        raise ValueError(
            f"{targets.name}: booleans are labels of 2 classes; got bool, but {outputs.shape[-1]:,} classes"
        )
    if targets.dtype in (*INTEGERS, "bool"):
        if targets.shape not in (rows, (*rows, 1)):
            expected = f"labels of shape {rows}, one a row"
            raise ValueError(f"{targets.name}: expected {expected}; got {targets.shape}")
        if targets.row != (1,):  # labels (B, T) of logits (B, T, K) lie one behind the other
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


def _pieces(total: int, step: int) -> Iterator[tuple[int, int]]:
    return ((start, min(step, total - start)) for start in range(0, total, step))


def threads_to_use() -> int:
    """The processors that this process may use, or fewer if OMP_NUM_THREADS says so."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(there, int(asked)) if asked.isdecimal() and int(asked) else there


def _one_thread_each() -> None:
    """The kernels called by this thread are not to share their rows with others: these have their own."""
    import threadpoolctl

    threadpoolctl.threadpool_limits(1, user_api="openmp")
