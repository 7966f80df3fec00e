"""The interface of an array that is read a few rows at a time, and such an array of bytes in a file."""

from __future__ import annotations

import lzma
import math
import re
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from xent.files.errors import DataError

Array = np.ndarray[Any, Any]

# Raised by zipfile for an archive that is cut, changed, encrypted or compressed by an unknown method.
DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError)


class FortranOrderError(ValueError):
    """The array is stored column by column, so its rows cannot be read one by one."""


class RowReader(ABC):
    """A context manager that reads an array of shape (..., D) or (N,) from a file, a few rows at each call.

    ``classes`` are the names of the columns, where the array is the probabilities that `xent predict` wrote.

    A row has the shape ``row``: the last axis, (D,), or () for a single number. For npy, npz and
    safetensors it may be set to () to read single numbers.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str  # name, such as "float32"
    row: tuple[int, ...]
    itemsize: int
    classes: list[str] | None = None

    @abstractmethod
    def take(self, count: int, reuse: Array | None = None) -> Array:
        """The next ``count`` rows, (count, *row); they may overwrite ``reuse``, an array of earlier rows.

        Raises ValueError if the file is damaged or ends too early.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class StoredRows(RowReader):
    """Rows that are stored one after the other in ``file``, from its current position.

    With ``to_the_end`` nothing may follow them.
    """

    def __init__(
        self, name: str, file: IO[bytes], shape: tuple[int, ...], dtype: str, to_the_end: bool = False
    ) -> None:
        self.name = name
        self.file = file
        self.shape = shape
        self.is_bfloat16 = dtype == "bfloat16"
        self.dtype = "bfloat16" if self.is_bfloat16 else np.dtype(dtype).newbyteorder("=").name
        self.stored = np.dtype({"bfloat16": "<u2", "bool": "u1"}.get(self.dtype, dtype))
        self.row = shape[-1:] if len(shape) > 1 else ()
        self.itemsize = self.stored.itemsize
        self.left = math.prod(shape) * self.itemsize if to_the_end else -1  # bytes

    def take(self, count: int, reuse: Array | None = None) -> Array:
        rows = self._memory(count, reuse)
        view = memoryview(rows.data).cast("B") if rows.size else memoryview(b"")
        filled = 0
        with archive_faults(self.name):
            while filled < len(view):
                read = self.file.readinto(view[filled:])  # type: ignore[attr-defined]
                if not read:
                    raise ValueError(f"{self.name}: ends before its array does")
                filled += read
        self.left -= len(view)
        if not self.left and self.file.read(1):
            raise ValueError(f"{self.name}: holds more than its header says")
        if self.is_bfloat16:
            return _bfloat16(rows)
        return rows if rows.dtype.isnative else rows.astype(rows.dtype.newbyteorder("="))

    def close(self) -> None:
        self.file.close()

    def _memory(self, count: int, reuse: Array | None) -> Array:
        """Memory for ``count`` rows, that of ``reuse`` if it fits: allocation takes longer than reading."""
        if reuse is None or len(reuse) < count or reuse.itemsize != self.itemsize:
            return np.empty((count, *self.row), self.stored)
        return reuse[:count].view(self.stored)


def _bfloat16(words: Array) -> Array:
    """Convert the bits of bfloat16: to ml_dtypes' type where it is installed, otherwise to float32."""
    try:
        import ml_dtypes
    except ModuleNotFoundError:
        return (words.astype(np.uint32) << 16).view(np.float32)
    return words.view(ml_dtypes.bfloat16)


@contextmanager
def archive_faults(name: str | Path) -> Iterator[None]:
    """Turn the errors of a damaged archive, also those for impossible offsets in it, into a DataError."""
    try:
        yield
    except DAMAGED as error:
        raise DataError(f"{name}: is damaged or no npz file: {error}") from None
    except OSError as error:
        if error.filename is not None:
            raise
        raise DataError(f"{name}: is damaged: {error.strerror or error}") from None


def only(path: Path, what: str, names: list[str], key: str | None) -> str:
    """``key``, which must be in ``names``; if it is None, the only name."""
    if key is None and len(names) == 1:
        return names[0]
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    if key is None:
        raise ValueError(f"{path}: name one {what} as {path}:NAME; it has {shown or 'none'}")
    if key not in names:
        raise ValueError(f"{path}: has no {what} {key!r}; it has {shown or 'none'}")
    return key


def require_size(path: Path, size: int, exactly: bool = False) -> None:
    actual = path.stat().st_size
    if actual < size:
        raise ValueError(f"{path}: is cut short: {actual:,} bytes of {size:,}")
    if exactly and actual > size:
        raise ValueError(
            f"{path}: holds {actual:,} bytes, its header says {size:,}: it is damaged, or of two arrays"
        )


def natural(name: str) -> list[tuple[str, int]]:
    """A key that sorts names by the numbers in them: part-2 before part-10.

    >>> from xent.files.arrays.row_stream import natural
    >>> sorted(["part-10", "part-2"], key=natural)
    ['part-2', 'part-10']
    """
    return [(words, int(digits or 0)) for words, digits in re.findall(r"(\D*)(\d*)", name)]
