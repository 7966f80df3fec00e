"""Arrays of rows that are made of others: several files as one, an array in memory, converted rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xent.files.arrays import row_reader
from xent.files.arrays.row_stream import RowReader
from xent.files.errors import DataError

Array = np.ndarray[Any, Any]


class JoinedRows(RowReader):
    """The rows of several arrays of equal row shape and dtype, one array after the other."""

    def __init__(self, name: str, names: Sequence[str]) -> None:
        self.name, self.names = name, names
        self.lengths: list[tuple[int, ...]] = []  # the shape of each array without the last axis
        for each in names:
            with row_reader.open_rows(each) as reader:
                if not self.lengths:
                    first, self.row, self.dtype, self.itemsize = (
                        reader,
                        reader.row,
                        reader.dtype,
                        reader.itemsize,
                    )
                    self.classes, tail = reader.classes, reader.shape[1:]
                elif (reader.shape[1:], reader.dtype, reader.classes) != (tail, self.dtype, self.classes):
                    raise DataError(
                        f"{each}: is {reader.dtype} of shape {reader.shape}; the first file, {names[0]}, is "
                        f"{first.dtype} of shape {first.shape}: they may differ in length alone"
                    )
                self.lengths.append(reader.shape)
        self.shape = (sum(shape[0] for shape in self.lengths), *tail)
        self.following = 0  # index of the next file
        self.reader: RowReader | None = None
        self.left = 0  # rows of ``reader`` that were not taken

    def take(self, count: int, reuse: Array | None = None) -> Array:
        parts: list[Array] = []
        have = 0
        while have < count or not parts:
            while not self.left:
                self._open_next()
            n = min(self.left, count - have)
            assert self.reader is not None
            parts.append(self.reader.take(n, reuse if n == count else None))
            self.left -= n
            have += n
        return (
            parts[0] if len(parts) == 1 else np.concatenate(parts or [np.empty((0, *self.row), self.dtype)])
        )

    def _open_next(self) -> None:
        self.close()
        self.reader = row_reader.open_rows(self.names[self.following])
        self.reader.row = self.row
        shape = self.lengths[self.following]
        self.left = math.prod(shape) // max(1, math.prod(self.row))
        self.following += 1

    def close(self) -> None:
        if self.reader is not None:
            self.reader.close()


class ArrayRows(RowReader):
    """The rows of an array in memory."""

    def __init__(self, name: str, rows: Array) -> None:
        self.name, self.rows, self.shape = name, rows, rows.shape
        self.dtype, self.itemsize = rows.dtype.name, rows.itemsize
        self.row = rows.shape[1:]
        self.first = 0

    def take(self, count: int, reuse: Array | None = None) -> Array:
        start, self.first = self.first, self.first + count
        rows = self.rows[start : self.first]
        return rows.view(np.uint8) if rows.dtype == bool else rows

    def close(self) -> None:
        pass


class ConvertedRows(RowReader):
    """The numbers of ``reader``, one by one, passed through ``convert(numbers, index of the first)``.

    ``row`` is the shape that a number becomes.
    """

    def __init__(
        self,
        reader: RowReader,
        convert: Callable[[Array, int], Array],
        shape: tuple[int, ...],
        row: tuple[int, ...],
        dtype: str,
    ) -> None:
        reader.row = ()
        self.reader, self.convert, self.shape, self.dtype = reader, convert, shape, dtype
        self.name, self.itemsize = reader.name, reader.itemsize
        self.row = row
        self.first = 0

    def take(self, count: int, reuse: Array | None = None) -> Array:
        start, self.first = self.first, self.first + count
        return self.convert(self.reader.take(count), start)

    def close(self) -> None:
        self.reader.close()
