"""Run delayed values on dask's scheduler; say which partition failed, or that the scheduler was lost."""

from __future__ import annotations

from collections.abc import Sequence
from traceback import walk_tb
from typing import Any
from uuid import uuid4

import dask
from dask.delayed import Delayed, delayed

from xent.regression.sums.partitions import PartitionError

INLINE = 1 << 20  # bytes of arguments that go with each task; larger ones are one task's value


class Call:
    """A function of a partition with its last arguments, which dask does not look into."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function = function
        self.arguments = arguments

    def __call__(self, *first: Any) -> Any:
        return self.function(*first, *self.arguments)


def shared(value: Any, size: int) -> Any:
    """``value`` of ``size`` bytes as an argument of many tasks. Never scattered: then it could be lost."""
    return value if size <= INLINE else delayed(_unchanged)(value, dask_key_name=new_key("parameters"))


def _unchanged(value: Any) -> Any:
    return value


def new_key(name: str, index: int | None = None) -> str:
    """A name for a task, used once. Dask's pages show what is before the first hyphen."""
    key = f"{name}-{uuid4().hex}"
    return key if index is None else f"{key}-{index}"


def compute(value: Delayed, partitions: Sequence[Delayed]) -> Any:
    """The value; PartitionError names the first of the partitions that cannot be computed."""
    try:
        return dask.compute(value, traverse=False)[0]
    except PartitionError:
        raise
    except Exception as error:
        raise _explained(error, partitions) from error


def persist(values: Sequence[Delayed], partitions: Sequence[Delayed]) -> list[Delayed]:
    """The values computed or, on a cluster, being computed, where they are; errors as for `compute`."""
    try:
        return list(dask.persist(*values, traverse=False))
    except PartitionError:
        raise
    except Exception as error:
        raise _explained(error, partitions) from error


def _explained(error: Exception, partitions: Sequence[Delayed]) -> Exception:
    if _is_of_the_cluster(error):
        return ConnectionError(f"dask's scheduler or workers were lost: {_one_line(error)}")
    for index, partition in enumerate(partitions):
        try:
            dask.compute(delayed(_is_there)(partition), traverse=False)
        except Exception as failure:
            return PartitionError(f"partition {index}: {_one_line(failure)}")
    return error


def _is_there(partition: Any) -> bool:
    return partition is not None


def _is_of_the_cluster(error: Exception) -> bool:
    """Whether a scheduler raised it, by a class of its own or not, and no task.

    Without its client's connection dask runs tasks here, and `dask.local` misses what the cluster held.
    """
    frames = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)]
    modules = [*(cls.__module__ for cls in type(error).__mro__), *frames[-1:]]
    return any(module == "dask.local" or module.startswith("distributed.") for module in modules)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
