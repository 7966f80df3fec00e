"""What stored logits or probabilities are worth against stored targets, in one read of both files."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock, local
from typing import Any, NamedTuple, TypeVar

import numpy as np

from xent import information, scoring
from xent.arrayfiles import Rows
from xent.scoring import Scores, Settings

Array = np.ndarray[Any, Any]

BINS = 15
# What a thread works on at a time. Measured: a fourth of it costs a third more, in calls; twice the rows cost
# memory that the allocator returns each time.
CHUNK = 1 << 21  # numbers
MOST_ROWS = 1 << 16
FOLD = 1 << 16  # rows that are folded into the classes at a time, if there are as many classes

LOGITS = Settings()
T = TypeVar("T")


class Bin(NamedTuple):
    """The rows whose highest probability lies in one fifteenth of [0, 1]."""

    rows: int
    confidence: float  # mean of the highest probability
    accuracy: float


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
    first_undefined: int | None
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
        """exp(loss)."""
        return float(information.perplexity(self.loss))

    @property
    def bits(self) -> float:
        """Loss in bits."""
        return float(information.bits(self.loss))


class Tally:
    """Sums over rows."""

    def __init__(self, num_classes: int) -> None:
        self.support, self.predicted, self.right = np.zeros((3, num_classes), np.int64)
        self.loss = np.zeros(num_classes)
        self.target: Array | None = None
        self.bin_rows, self.bin_right = np.zeros((2, BINS), np.int64)
        self.bin_confidence = np.zeros(BINS)
        self.entropy = 0.0
        self.among_top = self.ignored = self.undefined = self.infinite = 0
        self.unnormalised = self.unnormalised_targets = 0
        self.first_undefined: int | None = None
        self.sampled = self.like_probabilities = 0

    def add(self, parts: list[Scores]) -> None:
        """Fold ``parts`` in."""
        columns = [
            column[0] if len(column) == 1 else np.concatenate(column)
            for column in zip(*(part[:5] for part in parts), strict=True)
        ]
        label, predicted, loss, confidence, among_top = columns
        size = len(self.support)
        support = np.bincount(label, minlength=size)
        wrong = np.flatnonzero(label != predicted)
        missed = np.bincount(label[wrong], minlength=size)
        self.support += support
        self.right += support - missed
        self.predicted += support - missed + np.bincount(predicted[wrong], minlength=size)
        self.loss += np.bincount(label, loss, size)
        bins = np.minimum((confidence * BINS).astype(np.intp), BINS - 1)
        rows = np.bincount(bins, minlength=BINS)
        self.bin_rows += rows
        self.bin_right += rows - np.bincount(bins[wrong], minlength=BINS)
        self.bin_confidence += np.bincount(bins, confidence, BINS)
        self.among_top += int(np.count_nonzero(among_top))
        self.infinite += int(np.count_nonzero(np.isinf(loss)))
        for part in parts:
            self._add_counts(part)

    def _add_counts(self, part: Scores) -> None:
        self.ignored += part.ignored
        self.undefined += part.undefined
        if self.first_undefined is None:
            self.first_undefined = part.first_undefined
        self.unnormalised += part.unnormalised
        self.unnormalised_targets += part.unnormalised_targets
        self.sampled += part.sampled
        self.like_probabilities += part.like_probabilities
        if part.entropy is not None:
            self.entropy += float(part.entropy.sum())
            self.target = part.target if self.target is None else self.target + part.target

    def evaluation(self, top_k: int) -> Evaluation:
        """The means."""
        rows, right = int(self.support.sum()), int(self.right.sum())

        def mean(sum_: float) -> float:
            return sum_ / rows if rows else math.nan

        total = float(self.loss.sum())
        shares = self.support if self.target is None else self.target
        guess = float(information.entropy(shares / shares.sum())) if rows else math.nan
        gaps = self.bin_confidence - self.bin_right
        return Evaluation(
            num_classes=len(self.support),
            rows=rows,
            ignored=self.ignored,
            undefined=self.undefined,
            first_undefined=self.first_undefined,
            infinite=self.infinite,
            unnormalised=self.unnormalised,
            unnormalised_targets=self.unnormalised_targets,
            like_probabilities=0 < self.sampled == self.like_probabilities,
            loss=mean(total),
            entropy=mean(self.entropy),
            divergence=mean(total - self.entropy),
            frequencies=guess,
            accuracy=mean(right),
            top_k=top_k,
            top_k_accuracy=mean(self.among_top),
            calibration_error=mean(float(np.abs(gaps).sum())),
            calibration_gap=mean(float(gaps.sum())),
            bins=[
                Bin(int(n), float(c / n), float(r / n))
                for n, c, r in zip(self.bin_rows, self.bin_confidence, self.bin_right, strict=True)
                if n
            ],
            classes=[self._class(k, total) for k in range(len(self.support))],
        )

    def _class(self, k: int, total: float) -> ClassScore:
        support, predicted, right = int(self.support[k]), int(self.predicted[k]), int(self.right[k])
        loss = float(self.loss[k])
        return ClassScore(
            label=k,
            support=support,
            recall=right / support if support else None,
            precision=right / predicted if predicted else None,
            loss=loss / support if support else None,
            share=loss / total if 0 < total < math.inf else None,
        )


def evaluate(
    outputs: Rows,
    targets: Rows,
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
    >>> from xent.arrayfiles import open_rows
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
    step = min(MOST_ROWS, max(1, chunk // (2 * num_classes if soft else num_classes)))
    threads = threads or threads_to_use()
    names = (outputs.name, targets.name)
    tally, waiting = Tally(num_classes), list[Scores]()
    reading, pieces = Lock(), enumerate(_pieces(total, step))
    own = local()  # memory of the thread

    def work() -> tuple[int, int, Scores]:
        with reading:  # whoever works on the rows reads them, and has them in its cache
            place, (start, n) = next(pieces)
            own.outputs = z = outputs.take(n, getattr(own, "outputs", None))
            own.targets = y = targets.take(n, getattr(own, "targets", None))
        return place, n, scoring.score(z, y, start, settings, names)

    for n, scores in _in_order(_together(work, -(-total // step), threads)):
        waiting.append(scores)
        # Folding costs as much as the classes: not at every chunk, where a chunk has fewer rows.
        if sum(len(each.label) for each in waiting) >= max(1, min(num_classes, FOLD)):
            tally.add(waiting)
            waiting = []
        if on_bytes is not None:
            on_bytes(n * num_classes * outputs.itemsize)
    if waiting:
        tally.add(waiting)
    return tally.evaluation(min(settings.top_k, num_classes))


def _fit_shapes(outputs: Rows, targets: Rows, settings: Settings) -> bool:
    """Whether the targets are distributions; ValueError for arrays that do not go together."""
    if settings.top_k < 1:
        raise ValueError(f"`--top-k` must be >= 1; got {settings.top_k}")
    if len(outputs.shape) < 2 or not outputs.shape[-1]:
        raise ValueError(f"{outputs.name}: expected shape (..., classes); got {outputs.shape}")
    if "float" not in outputs.dtype and (settings.probabilities or "int" not in outputs.dtype):
        raise ValueError(f"{outputs.name}: expected floating-point numbers; got {outputs.dtype}")
    rows = outputs.shape[:-1]
    if "int" in targets.dtype:
        if targets.shape not in (rows, (*rows, 1)):
            expected = f"labels of shape {rows}, one a row"
            raise ValueError(f"{targets.name}: expected {expected}; got {targets.shape}")
        if targets.row != (1,):  # labels (B, T) of logits (B, T, K) lie one behind the other
            targets.row = ()
        return False
    if "float" not in targets.dtype:
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


def _together(work: Callable[[], T], times: int, threads: int) -> Iterator[T]:
    """What ``work()`` returns, ``times`` of it, by so many threads, and never many ahead."""
    with ThreadPoolExecutor(threads, initializer=_one_thread_each) as executor:
        running: deque[Future[T]] = deque()
        try:
            for _ in range(times):
                running.append(executor.submit(work))
                if len(running) == 2 * threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            executor.shutdown(cancel_futures=True)


def _in_order(found: Iterator[tuple[int, int, Scores]]) -> Iterator[tuple[int, Scores]]:
    """Of (place, rows, scores) by place: the sums are the same bits whoever was first."""
    early: dict[int, tuple[int, Scores]] = {}
    following = 0
    for place, rows, scores in found:
        early[place] = rows, scores
        while following in early:
            yield early.pop(following)
            following += 1


def _one_thread_each() -> None:
    """The kernels called by this thread are not to share their rows with others: these have their own."""
    import threadpoolctl

    threadpoolctl.threadpool_limits(1, user_api="openmp")
