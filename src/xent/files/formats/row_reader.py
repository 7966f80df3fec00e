"""Read an array in an npy, npz, safetensors or Parquet file a few rows at a time."""

from __future__ import annotations

import json
import lzma
import math
import tokenize
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from xent.files.errors import DataError, named_faults, polars_faults
from xent.files.formats import foreign, parquet

Array = np.ndarray[Any, Any]

KINDS = "npy, npz, safetensors or Parquet"
HEADER_LIMIT = 100 << 20  # bytes of a safetensors header, the format's own limit
BATCH = 1 << 22  # elements to read at a time of a Parquet file
# Raised by zipfile for an archive that is cut, changed, encrypted or compressed by an unknown method.
DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError)
# Raised by NumPy for a header that is no Python literal, or whose array does not fit into memory.
NO_HEADER = (ValueError, TypeError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError)
SAFETENSORS = {
    f"{kind}{8 * size}": f"<{letter}{size}"
    for kind, letter, sizes in (("F", "f", (2, 4, 8)), ("I", "i", (1, 2, 4, 8)), ("U", "u", (1, 2, 4, 8)))
    for size in sizes
} | {"BF16": "<u2"}


class FortranOrderError(ValueError):
    """The array is stored column by column, so its rows cannot be read one by one."""


class RowReader(ABC):
    """A context manager that reads an array of shape (..., D) or (N,) from a file, a few rows at each call.

    A row has the shape ``row``: the last axis, (D,), or () for a single number. For npy, npz and
    safetensors it may be set to () to read single numbers.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str  # name, such as "float32"
    row: tuple[int, ...]
    itemsize: int

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


def open_rows(name: str) -> RowReader:
    """Open the array named "FILE" or "FILE:KEY".

    KEY is the array in an npz or safetensors file, or the column in a Parquet file; it may be left out if
    there is only one. A Parquet file without KEY is an array with the columns of the table. Raises ValueError
    if there is no such array, OSError if the file cannot be read.
    """
    foreign.require_no_address(name)
    path, key = _split(name)
    foreign.require_file(str(path), KINDS)
    with named_faults(path):
        return _open(path, key)


def _open(path: Path, key: str | None) -> RowReader:
    with path.open("rb") as file:
        head = file.read(1 << 12)
    if head.startswith(b"\x93NUMPY"):
        if key is not None:
            raise ValueError(
                f"{path}: is an npy file, one array without a name; got {key!r} behind the colon"
            )
        return _npy(path)
    if head.startswith(b"PAR1"):
        return _Parquet(path, key)
    if path.suffix == ".safetensors" or foreign.is_safetensors(head):
        return _safetensors(path, key)
    other = foreign.identify(path, KINDS)
    if other:
        raise other
    if head.startswith(b"PK"):
        return _npz(path, key)
    if not head:
        raise ValueError(f"{path}: is empty; expected {KINDS}")
    what = "is text, such as CSV" if foreign.is_text(head) else "is no file that can be read here"
    raise ValueError(f"{path}: {what}; expected {KINDS}")


def _split(name: str) -> tuple[Path, str | None]:
    path, colon, key = name.rpartition(":")
    if colon and not Path(name).exists():
        return Path(path), key
    return Path(name), None


class _Stream(RowReader):
    """Rows that are stored one after the other in ``file``, from its current position."""

    def __init__(self, name: str, file: IO[bytes], shape: tuple[int, ...], dtype: str) -> None:
        self.name = name
        self.file = file
        self.shape = shape
        self.is_bfloat16 = dtype == "bfloat16"
        self.dtype = "bfloat16" if self.is_bfloat16 else np.dtype(dtype).newbyteorder("=").name
        self.stored = np.dtype({"bfloat16": "<u2", "bool": "u1"}.get(self.dtype, dtype))
        self.row = shape[-1:] if len(shape) > 1 else ()
        self.itemsize = self.stored.itemsize

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


def _npy(path: Path) -> _Stream:
    file = path.open("rb", buffering=0)
    try:
        shape, dtype = _npy_header(str(path), file)
        _require_size(path, file.tell() + math.prod(shape) * dtype.itemsize, exactly=True)
    except BaseException:
        file.close()
        raise
    return _Stream(str(path), file, shape, dtype.str)


def _npz(path: Path, key: str | None) -> _Stream:
    with archive_faults(path), zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        key = _only(path, "array", names, key)
        file = archive.open(f"{key}.npy")
        size = archive.getinfo(f"{key}.npy").file_size
    name = f"{path}:{key}"
    with archive_faults(name):
        shape, dtype = _npy_header(name, file)
        if file.tell() + math.prod(shape) * dtype.itemsize != size:
            raise ValueError(f"{name}: is damaged: its data are not of the size that its header says")
    return _Stream(name, file, shape, dtype.str)


def _npy_header(name: str, file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        reader = readers.get(np.lib.format.read_magic(file))
        if reader is None:
            raise ValueError("of a later version, for records")
        shape, fortran, dtype = reader(file)
    except NO_HEADER as error:
        raise ValueError(f"{name}: its npy header cannot be read: {error}") from None
    if dtype.hasobject:
        raise ValueError(f"{name}: holds Python objects, which are never loaded; save it with a plain dtype")
    if fortran and len(shape) > 1:
        raise FortranOrderError(
            f"{name}: is in Fortran order, its columns one behind the other, and is read by rows here: save "
            "numpy.ascontiguousarray of it"
        )
    return shape, dtype


def _safetensors(path: Path, key: str | None) -> _Stream:
    file = path.open("rb", buffering=0)
    try:
        start, entries = _safetensors_header(path, file)
        key = _only(path, "tensor", list(entries), key)
        entry, name = entries[key], f"{path}:{key}"
        dtype = entry["dtype"]
        if dtype not in SAFETENSORS:
            raise ValueError(f"{name}: is of dtype {dtype}; expected one of {', '.join(SAFETENSORS)}")
        shape = tuple(entry["shape"])
        first, last = entry["data_offsets"]
        if not all(isinstance(n, int) and n >= 0 for n in (*shape, first, last)):
            raise ValueError(f"{path}: is no safetensors file: the entry of {key!r} is not as it should be")
        if last - first != math.prod(shape) * np.dtype(SAFETENSORS[dtype]).itemsize:
            raise ValueError(f"{path}: is no safetensors file: {key!r} has another size than its shape")
        _require_size(path, start + last)
        file.seek(start + first)
    except (KeyError, TypeError, AttributeError) as error:
        file.close()
        raise ValueError(f"{path}: is no safetensors file: {error!r}") from None
    except BaseException:
        file.close()
        raise
    return _Stream(name, file, shape, "bfloat16" if dtype == "BF16" else SAFETENSORS[dtype])


def _safetensors_header(path: Path, file: IO[bytes]) -> tuple[int, dict[str, Any]]:
    """(offset of the data in the file, {name: entry of the tensor})."""
    size = int.from_bytes(file.read(8), "little")
    _require_size(path, 8 + min(size, HEADER_LIMIT + 1))
    if size > HEADER_LIMIT:
        raise ValueError(f"{path}: is no safetensors file: a header of {size:,} bytes")
    try:
        entries = json.loads(file.read(size))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is no safetensors file: {error}") from None
    return 8 + size, {name: entry for name, entry in entries.items() if name != "__metadata__"}


class _Parquet(RowReader):
    """Rows of one column of numbers or lists, or of all columns side by side."""

    def __init__(self, path: Path, key: str | None) -> None:
        import polars

        schema = parquet.schema(path)
        index = parquet.index_columns(path)
        names = [name for name in schema if name not in index]
        if key is None:
            if len(names) > 1 and names[0] == "label" and all(n.startswith("p_") for n in names[1:]):
                names = names[1:]  # the probabilities in an output of `xent predict`
            bad = [name for name in names if not schema[name].is_numeric()]
            if len(names) > 1 and bad:
                raise ValueError(f"{path}: column {bad[0]!r} is no numbers; name one column as {path}:COLUMN")
        else:
            names = [_only(path, "column", list(schema), key)]
        if not names:
            raise ValueError(f"{path}: has no columns")
        self.name = f"{path}:{key}" if key else str(path)
        self.kind = schema[names[0]]
        self.has_lists = isinstance(self.kind, polars.List | polars.Array)
        if not (self.has_lists or self.kind.is_numeric() or self.kind == polars.Boolean):
            raise ValueError(
                f"{self.name}: column {names[0]!r} holds {self.kind}; expected numbers or lists of them"
            )
        length = parquet.rows(path)
        with polars_faults(path, parquet.NOT_PARQUET):
            frame = parquet.scan(path).select(names)
            sample = _matrix(self.name, frame.head(1).collect(), None)
        self.row = sample.shape[1:] if self.has_lists or len(names) > 1 else ()
        self.shape = (length, *self.row)
        self.dtype = "bool" if self.kind == polars.Boolean else sample.dtype.name
        self.itemsize = sample.itemsize
        rows = max(1, BATCH // max(1, math.prod(self.row)))
        self.batches: Iterator[Any] = parquet.pieces(path, frame, rows)
        self.rest: Array = sample[:0].reshape(0, *self.row)

    def take(self, count: int, reuse: Array | None = None) -> Array:
        parts, have = [self.rest] if len(self.rest) else [], len(self.rest)
        while have < count:
            batch = next(self.batches, None)
            if batch is None:
                raise ValueError(f"{self.name}: ends before its array does")
            with polars_faults(self.name):
                parts.append(_matrix(self.name, batch, math.prod(self.row)).reshape(-1, *self.row))
            have += len(parts[-1])
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts or [self.rest])
        self.rest = rows[count:]
        return rows[:count]

    def close(self) -> None:
        self.batches = iter(())


def _matrix(name: str, frame: Any, width: int | None) -> Array:
    """The values of a batch, (n, D); ``width`` is D, or None to take it from the first row."""
    import polars

    column = frame.to_series(0)
    if sum(frame.null_count().row(0)) or (column.dtype == polars.List and column.list.len().null_count()):
        raise ValueError(f"{name}: has missing values")
    if isinstance(column.dtype, polars.List):
        lengths = column.list.len().unique().to_list()
        width = (lengths or [0])[0] if width is None else width
        if lengths not in ([], [width]):
            raise ValueError(
                f"{name}: its lists differ in length: {', '.join(map(str, sorted(lengths)[:5]))}"
            )
        column = column.list.to_array(width)
    if isinstance(column.dtype, polars.Array) and column.explode(empty_as_null=False).null_count():
        raise ValueError(f"{name}: has missing values")
    rows = column.to_numpy() if isinstance(column.dtype, polars.Array) else frame.to_numpy(order="c")
    if rows.dtype.kind not in "biuf":
        raise ValueError(f"{name}: holds {column.dtype}; expected numbers or lists of them")
    return np.asarray(rows.view(np.uint8) if rows.dtype == bool else rows)


def _only(path: Path, what: str, names: list[str], key: str | None) -> str:
    """``key``, which must be in ``names``; if it is None, the only name."""
    if key is None and len(names) == 1:
        return names[0]
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    if key is None:
        raise ValueError(f"{path}: name one {what} as {path}:NAME; it has {shown or 'none'}")
    if key not in names:
        raise ValueError(f"{path}: has no {what} {key!r}; it has {shown or 'none'}")
    return key


def _require_size(path: Path, size: int, exactly: bool = False) -> None:
    actual = path.stat().st_size
    if actual < size:
        raise ValueError(f"{path}: is cut short: {actual:,} bytes of {size:,}")
    if exactly and actual > size:
        raise ValueError(
            f"{path}: holds {actual:,} bytes, its header says {size:,}: it is damaged, or of two arrays"
        )
