"""Evaluate the stored outputs of one model or two against stored targets, in one read of the files."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from xent.evaluation import scoring, shapes
from xent.evaluation.calibration.refinement import RowSample
from xent.evaluation.comparison import Comparison, PairedSums
from xent.evaluation.largest_rows import LargestRows, Row
from xent.evaluation.ordered_results import OrderedResults
from xent.evaluation.scoring import Scores, Settings
from xent.evaluation.tally import Evaluation, Tally
from xent.files.arrays.row_stream import RowReader
from xent.kernels.cpu import set_threads

Array = np.ndarray[Any, Any]

CHUNK = 1 << 21  # bytes of outputs that a thread scores at a time; half as many take a tenth longer, in calls
REPORT = 1 << 24  # bytes between two reports of progress
NONE = (-1, (0, 0))  # no chunk: 0 rows

LOGITS = Settings()


class RowColumns(NamedTuple):
    """What else is known of the rows.

    ``groups`` has the index of the group of each row (N,), in [0, ``num_groups``). ``units`` are the numbers
    of bytes, words or other units of the text, by name: of the whole text, or of each row (N,).
    """

    groups: Array | None = None
    num_groups: int = 0
    units: Mapping[str, float | Array] = {}


class CostlyRow(NamedTuple):
    """A row of high loss."""

    row: int  # counted from 1
    label: int
    predicted: int
    loss: float
    outputs: Array  # (K,)
    target: Array | None  # (K,), None for a label


class Results(NamedTuple):
    """The evaluation of each model, the comparison of two, and the costliest rows of the first."""

    evaluations: list[Evaluation]
    comparison: Comparison | None
    costliest: list[CostlyRow]
    probabilities: bool  # whether the outputs of the first are probabilities


NO_COLUMNS = RowColumns()


def evaluate(
    outputs: RowReader,
    targets: RowReader,
    settings: Settings = LOGITS,
    threads: int | None = None,
    on_bytes: Callable[[int], None] | None = None,
    chunk: int | None = None,
    columns: RowColumns = NO_COLUMNS,
) -> Evaluation:
    """Score ``outputs (..., K)``, logits or probabilities, against labels (...) or distributions (..., K).

    Reads ``chunk`` numbers at a time, by default 2 MiB of them, which one of ``threads`` threads scores
    (default: one for each processor). ``on_bytes`` is called with the number of bytes of ``outputs`` that
    were read. The result has the same bits for any number of threads. With distributions, the class of a
    row is its likeliest one, in all numbers except loss, entropy, divergence and Brier score. A class
    exactly as probable as that of the row does not count as above it in the top k. Raises ValueError that
    names what does not fit, with its row.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from xent.evaluation.stream import evaluate
    >>> from xent.files.arrays.row_reader import open_rows
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/z.npy", np.log([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]]))
    ...     np.save(f"{folder}/y.npy", [0, 1])
    ...     with open_rows(f"{folder}/z.npy") as logits, open_rows(f"{folder}/y.npy") as labels:
    ...         result = evaluate(logits, labels)
    >>> round(result.bits, 6), round(result.bits_se, 6), result.accuracy
    (1.5, 0.5, 0.5)
    """
    return evaluate_models([outputs], targets, [settings], threads, on_bytes, chunk, columns).evaluations[0]


def evaluate_models(
    models: Sequence[RowReader],
    targets: RowReader,
    settings: Sequence[Settings],
    threads: int | None = None,
    on_bytes: Callable[[int], None] | None = None,
    chunk: int | None = None,
    columns: RowColumns = NO_COLUMNS,
    costliest: int = 0,
) -> Results:
    """As `evaluate`, of one model or two, with the ``settings`` of each; two are compared row by row.

    ``costliest`` is the number of rows of the highest loss to keep, of the first model.
    """
    shapes.check_same(models)
    for outputs, own in zip(models, settings, strict=True):
        soft = shapes.check(outputs, targets, own)
    num_classes, num_rows = models[0].shape[-1], math.prod(models[0].shape[:-1])
    stream = _Stream(models, targets, settings, columns, costliest)
    chunk = chunk or CHUNK // max(outputs.itemsize for outputs in models)
    step = max(1, chunk // (2 * num_classes if soft else num_classes))
    threads = threads or threads_to_use()
    reading, chunks, reported = Lock(), enumerate(_chunks(num_rows, step)), 0
    row_bytes = num_classes * sum(outputs.itemsize for outputs in models)

    def work() -> None:
        buffers: list[Array | None] = [None] * (len(models) + 1)  # which this thread reads into again
        while True:
            result: _Chunk | Exception
            try:
                with reading:  # the thread that scores the rows reads them into its cache
                    index, (start, n) = next(chunks, NONE)
                    if not n:
                        return
                    for m, reader in enumerate((*models, targets)):
                        buffers[m] = reader.take(n, buffers[m])
                result = stream.score(buffers, start)
            except Exception as error:
                result = error
            if not results.put(index, result):
                return

    def consume(scored: _Chunk) -> None:
        nonlocal reported
        stream.add(scored)
        rows = scored.scores[0].start + len(scored.scores[0].columns.label)
        new = rows * row_bytes - reported
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
    return stream.results()


class _Chunk(NamedTuple):
    """The scores of some rows by each model, and copies of the costliest of these rows."""

    scores: list[Scores]
    costly: list[Row]


class _Stream:
    """The sums of all models; `score` is called by any thread, `add` in the order of the rows."""

    def __init__(
        self,
        models: Sequence[RowReader],
        targets: RowReader,
        settings: Sequence[Settings],
        columns: RowColumns,
        costliest: int,
    ) -> None:
        num_classes, num_rows = models[0].shape[-1], math.prod(models[0].shape[:-1])
        self.names = [(each.name, targets.name) for each in models]
        self.settings = settings
        self.columns = columns
        self.counts = [each for each in columns.units.values() if isinstance(each, np.ndarray)]
        units = {n: None if isinstance(u, np.ndarray) else u for n, u in columns.units.items()}
        groups = None if columns.groups is None else columns.num_groups
        self.tallies = [
            Tally(
                num_classes,
                min(own.top_k, num_classes),
                RowSample(num_rows, num_classes, own.probabilities, columns.groups),
                groups,
                units,
            )
            for own in settings
        ]
        self.paired = PairedSums(groups) if len(models) > 1 else None
        self.costly = LargestRows(costliest)

    def score(self, arrays: Sequence[Any], start: int) -> _Chunk:
        """Score the rows of ``arrays``, the outputs of each model and the targets, from row ``start`` on."""
        *models, y = arrays
        scores = []
        for z, tally, own, names in zip(models, self.tallies, self.settings, self.names, strict=True):
            part = scoring.score(z, y, start, own, names, tally.may_be_probabilities)
            scores.append(part)
            tally.sample.take(z, y, part.columns, start)
        return _Chunk(scores, self._costly(models[0], y, scores[0]))

    def add(self, chunk: _Chunk) -> None:
        """Add a chunk."""
        first = chunk.scores[0]
        rows = slice(first.start, first.start + len(first.columns.label))
        groups = None if self.columns.groups is None else self.columns.groups[rows]
        counts = [each[rows] for each in self.counts]
        for tally, part in zip(self.tallies, chunk.scores, strict=True):
            tally.add(part, groups, counts)
        if self.paired is not None:
            self.paired.add(first.columns, chunk.scores[1].columns, first.start, groups)
        self.costly.add(chunk.costly)

    def results(self) -> Results:
        """The result of all rows."""
        comparison = None if self.paired is None else self.paired.comparison()
        return Results(
            [tally.evaluation() for tally in self.tallies],
            comparison,
            [row.content for row in self.costly.rows],
            self.settings[0].probabilities,
        )

    def _costly(self, z: Array, y: Array, part: Scores) -> list[Row]:
        if not self.costly.most:
            return []
        c, soft = part.columns, y.dtype.kind not in "iu"
        return [
            Row(
                float(c.loss[n]),
                part.start + int(n),
                CostlyRow(
                    part.start + int(n) + 1,
                    int(c.label[n]),
                    int(c.predicted[n]),
                    float(c.loss[n]),
                    z[n].astype(np.float64),
                    y[n].astype(np.float64) if soft else None,
                ),
            )
            for n in self.costly.candidates(np.where(c.counts, c.loss, -np.inf))
        ]


def _chunks(num_rows: int, step: int) -> Iterator[tuple[int, int]]:
    """(start, number of rows) of each chunk."""
    return ((start, min(step, num_rows - start)) for start in range(0, num_rows, step))


def threads_to_use() -> int:
    """Number of processors that this process may use, or OMP_NUM_THREADS if that is less."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, int(limit)) if limit.isdecimal() and int(limit) else available
