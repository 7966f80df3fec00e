"""Read an array in an npy, npz, safetensors, Parquet or CSV file a few rows at a time."""

from __future__ import annotations

import math
import sys
import tokenize
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from xent.files.arrays import safetensors_rows, table_rows
from xent.files.arrays.row_stream import (
    FortranOrderError,
    RowReader,
    StoredRows,
    archive_faults,
    only,
    require_size,
)
from xent.files.errors import named_faults
from xent.files.formats import foreign

KINDS = "npy, npz, safetensors, Parquet, CSV, JSON Lines, Arrow or Excel"
# Raised by NumPy for a header that is no Python literal, or whose array does not fit into memory.
NO_HEADER = (ValueError, TypeError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError)


def open_rows(name: str) -> RowReader:
    """Open the array named "FILE" or "FILE:KEY".

    KEY is the array in an npz or safetensors file, or the column in a Parquet or CSV file; it may be left out
    if there is only one. A table without KEY is an array with its columns, or if some are named p_CLASS, with
    those. Raises ValueError if there is no such array, OSError if the file cannot be read.
    """
    foreign.require_no_address(name)
    path, key = split(name)
    foreign.require_file(str(path), KINDS)
    with named_faults(path):
        return _open(path, key)


def _open(path: Path, key: str | None) -> RowReader:
    with path.open("rb") as file:
        head = file.read(1 << 12)
    if head.startswith(foreign.NPY):
        if key is not None:
            raise ValueError(
                f"{path}: is an npy file, one array without a name; got {key!r} behind the colon"
            )
        return _npy(path)
    if head.startswith(b"PAR1"):
        return table_rows.ParquetRows(path, key)
    if path.suffix == ".safetensors" or foreign.is_safetensors(head):
        return safetensors_rows.open_tensor(path, key)
    other = foreign.identify(path, KINDS)
    if other:
        raise other
    if head.startswith(b"PK"):
        return _npz(path, key)
    if not head:
        raise ValueError(f"{path}: is empty; expected {KINDS}")
    if foreign.is_text(head):
        return table_rows.CsvRows(path, key)
    raise ValueError(f"{path}: is no file that can be read here; expected {KINDS}")


def is_npy_input() -> bool:
    """Whether standard input begins as an npy file does; ValueError if it is a terminal."""
    file: Any = None if sys.stdin is None else sys.stdin.buffer
    if file is None or file.isatty():
        raise ValueError("-: standard input is closed or a terminal; a file is expected from a pipe")
    return bool(file.peek(len(foreign.NPY)).startswith(foreign.NPY))


def standard_input() -> StoredRows:
    """The array of an npy file on standard input, read as it comes."""
    name = "standard input"
    shape, dtype = _npy_header(name, sys.stdin.buffer)
    return StoredRows(name, sys.stdin.buffer, shape, dtype.str, to_the_end=True)


def split(name: str) -> tuple[Path, str | None]:
    """(FILE, KEY) of "FILE" or "FILE:KEY"."""
    path, colon, key = name.rpartition(":")
    if colon and not Path(name).exists():
        return Path(path), key
    return Path(name), None


def _npy(path: Path) -> StoredRows:
    file = path.open("rb", buffering=0)
    try:
        shape, dtype = _npy_header(str(path), file)
        require_size(path, file.tell() + math.prod(shape) * dtype.itemsize, exactly=True)
    except BaseException:
        file.close()
        raise
    return StoredRows(str(path), file, shape, dtype.str)


def _npz(path: Path, key: str | None) -> StoredRows:
    with archive_faults(path), zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        key = only(path, "array", names, key)
        file = archive.open(f"{key}.npy")
        size = archive.getinfo(f"{key}.npy").file_size
    name = f"{path}:{key}"
    try:
        with archive_faults(name):
            shape, dtype = _npy_header(name, file)
            if file.tell() + math.prod(shape) * dtype.itemsize != size:
                raise ValueError(f"{name}: is damaged: its data are not of the size that its header says")
    except BaseException:
        file.close()
        raise
    return StoredRows(name, file, shape, dtype.str)


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
