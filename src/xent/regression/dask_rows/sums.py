"""Sums over partitions on dask: a task for each partition, and a tree of tasks that adds up the values."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
from dask.delayed import Delayed, delayed

from xent.regression.dask_rows.scheduler import Call, compute, new_key, persist, shared
from xent.regression.sums.partitions import (
    FAN_IN,
    Combine,
    Function,
    Partition,
    Totals,
    add,
    aligned,
    combine,
    evaluate,
)
from xent.regression.sums.threads import single_thread


class DaskRows:
    """`Partitions` whose functions dask evaluates, with one thread each for the kernels and BLAS.

    Parameters
    ----------
    partitions : sequence of delayed Partition
    totals : Totals
    indices : sequence of int
        Their numbers in the user's collection, for errors.
    """

    def __init__(self, partitions: Sequence[Delayed], totals: Totals, indices: Sequence[int]) -> None:
        self.partitions = partitions
        self.totals = totals
        self.indices = indices

    def sum_over(
        self, function: Function, *parameters: Any, each: Sequence[Any] | None = None, by: Combine = add
    ) -> Any:
        """See `Partitions`."""
        value = tree(self._values(function, parameters, each), by)
        return _writable(compute(value, self.partitions))

    def map(self, function: Function, *parameters: Any) -> Sequence[Any]:
        """See `Partitions`."""
        return persist(self._values(function, parameters, None), self.partitions)

    def _values(
        self, function: Function, parameters: tuple[Any, ...], each: Sequence[Any] | None
    ) -> list[Delayed]:
        size = sum(parameter.nbytes for parameter in parameters if isinstance(parameter, np.ndarray))
        call = shared(Call(function, *parameters), size)
        rest = [()] * len(self.partitions) if each is None else [(value,) for value in each]
        task = delayed(value_of)
        return [
            task(partition, index, call, *last, dask_key_name=new_key(function.__name__, index))
            for partition, index, last in zip(self.partitions, self.indices, rest, strict=True)
        ]


def value_of(partition: Partition, index: int, call: Call, *last: Any) -> Any:
    """The function's value of a partition; PartitionError names the partition."""
    with single_thread():
        return evaluate(call.function, lambda: partition, index, *aligned((*call.arguments, *last)))


def tree(values: Sequence[Delayed], by: Combine) -> Delayed:
    """The values combined in the order of `partitions.tree`."""
    task = delayed(folded)
    while len(values) > 1:
        groups = [values[i : i + FAN_IN] for i in range(0, len(values), FAN_IN)]
        values = [
            task(by, *group, dask_key_name=new_key("add")) if len(group) > 1 else group[0] for group in groups
        ]
    return values[0]


def folded(by: Combine, *values: Any) -> Any:
    """The values combined from left to right."""
    with np.errstate(all="ignore"):
        return reduce(lambda a, b: combine(a, b, by), values)


def _writable(value: Any) -> Any:
    """The same; arrays that came over a network may be read-only and not aligned, and are copied then."""
    if type(value) is tuple:
        return tuple(map(_writable, value))
    return np.require(value, requirements=("A", "W")) if isinstance(value, np.ndarray) else value
