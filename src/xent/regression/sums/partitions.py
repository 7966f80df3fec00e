"""Partitions: the rows of a fit in parts, and sums over them in an order that the parts alone decide.

A function of one partition is top-level, pure and picklable, and its arguments are plain arrays. So any
engine can evaluate it: a loop, threads, processes, a cluster; and evaluate it again after a worker was lost.
Its values are added up by `tree`, in float64. The result has the same bits whoever computed the parts, and
when.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, reduce
from typing import Any, NamedTuple, Protocol

import numpy as np

from xent.core.target import Target
from xent.kernels.cpu import set_threads

Array = np.ndarray[Any, Any]
Function = Callable[..., Any]
Combine = Callable[[Any, Any], Any]

FAN_IN = 8  # values that one node of the tree adds up


class Partition:
    """Some of the rows of a fit, never written.

    Parameters
    ----------
    features : (N, D) C-contiguous array, or CSR matrix or array, of float32 or float64
    target : Target
        Labels (N,) in [0, K) or rows of probabilities (N, K), with the row weights.
    """

    def __init__(self, features: Any, target: Target) -> None:
        self.features = aligned(features)
        self.target = aligned(target)

    def __reduce__(self) -> tuple[Any, ...]:
        return Partition, (self.features, self.target)  # without the copies below

    def __sizeof__(self) -> int:
        """Bytes of the arrays: dask moves large values to where small ones are never."""
        x, target = self.features, self.target
        arrays = (x.data, x.indices, x.indptr) if self.is_sparse else (x,)
        return sum(int(array.nbytes) for array in (*arrays, *target) if isinstance(array, np.ndarray))

    @property
    def num_rows(self) -> int:
        """N."""
        return int(self.features.shape[0])

    @property
    def is_sparse(self) -> bool:
        """Whether the features are a CSR matrix."""
        return hasattr(self.features, "indptr")

    def features_for(self, dtype: np.dtype[Any]) -> Any:
        """The features; a float32 copy, which is kept, if they are wider than ``dtype``."""
        return self._narrow if dtype.itemsize < self.features.dtype.itemsize else self.features

    def transposed_for(self, dtype: np.dtype[Any]) -> Any:
        """The transpose of `features_for` of a CSR matrix, also CSR; kept."""
        return self._narrow_transposed if dtype.itemsize < self.features.dtype.itemsize else self._transposed

    @cached_property
    def _narrow(self) -> Any:
        if not self.is_sparse:
            return self.features.astype(np.float32)
        return with_entries(self.features, self.features.data.astype(np.float32))

    @cached_property
    def _transposed(self) -> Any:
        return self.features.T.tocsr()

    @cached_property
    def _narrow_transposed(self) -> Any:
        return with_entries(self._transposed, self._transposed.data.astype(np.float32))


def aligned(x: Any) -> Any:
    """``x``, with copies of arrays whose memory the kernels refuse: that of pickles and views of bytes.

    Takes an array, a CSR matrix, a tuple of them, or what is none of these.
    """
    if isinstance(x, np.ndarray):
        return x if x.flags.aligned else x.copy()
    if isinstance(x, tuple):
        parts = tuple(map(aligned, x))
        return x._make(parts) if hasattr(x, "_make") else parts
    if hasattr(x, "indptr") and not all(part.flags.aligned for part in (x.data, x.indices, x.indptr)):
        return type(x)(aligned((x.data, x.indices, x.indptr)), shape=x.shape)
    return x


class Totals(NamedTuple):
    """What a solver must know of the rows before the first pass."""

    rows: tuple[int, ...]  # of each partition
    num_features: int
    entries: int  # elements of dense features, stored entries of CSR ones
    dtype: np.dtype[Any]  # of the features
    is_sparse: bool
    sampled: int = 1 << 26  # elements of the features at most in a sample in memory: 256 MiB of float32

    @classmethod
    def of(cls, partition: Partition) -> Totals:
        """The totals of one partition."""
        x = partition.features
        return cls(
            (partition.num_rows,), int(x.shape[1]), int(x.size), np.dtype(x.dtype), partition.is_sparse
        )

    @classmethod
    def merge(cls, parts: Iterable[Totals]) -> Totals:
        """The totals of partitions; ValueError names the first that has other features."""
        parts = list(parts)
        if not parts:
            raise ValueError("`partitions` must be at least one; got none")
        first = parts[0]
        for index, part in enumerate(parts[1:], 1):
            if part._replace(rows=(), entries=0) != first._replace(rows=(), entries=0):
                raise ValueError(
                    f"`partitions` must have the same features; got {_described(part)} in partition {index} "
                    f"and {_described(first)} in partition 0"
                )
        rows = tuple(number for part in parts for number in part.rows)
        return first._replace(rows=rows, entries=sum(part.entries for part in parts))


def _described(totals: Totals) -> str:
    kind = "sparse" if totals.is_sparse else "dense"
    return f"{totals.num_features} {kind} features of {totals.dtype}"


def add(a: Any, b: Any) -> Any:
    """``a + b`` in float64."""
    return np.add(a, b, dtype=np.float64)


class Partitions(Protocol):
    """The rows of a fit, and how a function of each partition is evaluated."""

    @property
    def totals(self) -> Totals:
        """Number of rows of each partition, number and kind of the features."""
        ...

    def sum_over(
        self,
        function: Function,
        *parameters: Any,
        each: Sequence[Any] | None = None,
        by: Combine = add,
    ) -> Any:
        """The sum of ``function(partition, *parameters)`` over the partitions, in the order of `tree`.

        ``each`` holds one more argument, the last, for each partition. The function returns what `combine`
        takes, with arrays of its own. ``by`` is another associative function in the place of `add`, such as
        ``np.maximum``. The value of a single partition is returned unchanged. The arrays of the result are
        the caller's, to overwrite.
        """
        ...

    def map(self, function: Function, *parameters: Any) -> Sequence[Any]:
        """``function(partition, *parameters)`` for each partition, in a form that ``each`` takes.

        The values stay where they were computed.
        """
        ...


def combine(a: Any, b: Any, by: Combine) -> Any:
    """``by(a, b)`` of two arrays or numbers; of two tuples, entry by entry."""
    return tuple(map(by, a, b)) if isinstance(a, tuple) else by(a, b)


def tree(values: Iterable[Any], by: Combine = add) -> Any:
    """The values combined from left to right in groups of `FAN_IN`, then the groups alike, up to one.

    Takes the values one after the other, and holds one for each level of the tree.
    """
    levels: list[list[Any]] = []  # of each level the group so far: [] or [its sum, how many values]
    for value in values:
        for level in range(len(levels) + 1):
            if level == len(levels):
                levels.append([])
            group, size = levels[level] or (None, 0)
            value = combine(group, value, by) if size else value
            if size + 1 < FAN_IN:
                levels[level] = [value, size + 1]
                break
            levels[level] = []  # the group is full: its sum is a value of the next level
    return reduce(lambda low, high: combine(high, low, by), [group[0] for group in levels if group])


class PartitionError(RuntimeError):
    """An error in the evaluation of a partition, which the message names."""


def evaluate(function: Function, partition: Callable[[], Partition], index: int, *arguments: Any) -> Any:
    """``function(partition(), *arguments)``; PartitionError names the partition, counted from 0.

    NumPy's warnings are off, as the solvers check what they are given.
    """
    try:
        with np.errstate(all="ignore"):
            return function(partition(), *arguments)
    except Exception as error:
        raise PartitionError(f"partition {index}: {type(error).__name__}: {error}") from error


class Local:
    """Partitions in this process: a fit in memory is the case of one.

    Parameters
    ----------
    partitions : sequence of Partition
        May load a partition only when it is indexed, from any of the threads.
    totals : Totals, default None to look at each partition
    workers : int >= 1, default 1
        Threads that evaluate partitions, each with one thread for the kernels; 1 evaluates them in this
        thread. The results have the same bits for any number.
    """

    def __init__(
        self, partitions: Sequence[Partition], totals: Totals | None = None, workers: int = 1
    ) -> None:
        self.partitions = partitions
        self.totals = Totals.merge(map(Totals.of, partitions)) if totals is None else totals
        self.workers = workers

    def sum_over(
        self, function: Function, *parameters: Any, each: Sequence[Any] | None = None, by: Combine = add
    ) -> Any:
        """See `Partitions`."""
        if len(self.partitions) == 1:
            return function(self.partitions[0], *parameters, *(() if each is None else each))
        return tree(self._values(function, parameters, each), by)

    def map(self, function: Function, *parameters: Any) -> Sequence[Any]:
        """See `Partitions`."""
        if len(self.partitions) == 1:
            return [function(self.partitions[0], *parameters)]
        return list(self._values(function, parameters, None))

    def _values(
        self, function: Function, parameters: tuple[Any, ...], each: Sequence[Any] | None
    ) -> Iterator[Any]:
        """The value of each partition, in their order."""
        count = len(self.partitions)

        def arguments(index: int) -> tuple[Any, ...]:
            return parameters if each is None else (*parameters, each[index])

        def value(index: int) -> Any:
            return evaluate(function, lambda: self.partitions[index], index, *arguments(index))

        if self.workers == 1:
            yield from map(value, range(count))
        else:
            yield from in_order(value, count, self.workers)


def in_order(value: Callable[[int], Any], count: int, workers: int) -> Iterator[Any]:
    """``value(0), …, value(count − 1)``, evaluated by threads; at most twice ``workers`` are held."""
    pending: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(min(workers, count), initializer=set_threads, initargs=(1,)) as pool:
        try:
            for index in range(count):
                if len(pending) == 2 * workers:
                    yield pending.popleft().result()
                pending.append(pool.submit(value, index))
            while pending:
                yield pending.popleft().result()
        finally:  # after an error in one of them
            for future in pending:
                future.cancel()


def with_entries(x: Any, entries: Array) -> Any:
    """A CSR matrix that shares the pattern of x."""
    return type(x)((entries, x.indices, x.indptr), shape=x.shape)
