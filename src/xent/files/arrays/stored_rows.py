"""Open the files of `xent eval`: outputs in one file, in several or on standard input; labels; columns."""

from __future__ import annotations

import glob
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xent.files import skipped, tables
from xent.files.arrays import row_reader, safetensors_rows
from xent.files.arrays.derived_rows import ArrayRows, ConvertedRows, JoinedRows
from xent.files.arrays.row_stream import RowReader, natural, only
from xent.files.cells import Reading
from xent.files.data_files import DataFiles
from xent.files.dataset import NO_DIALECT
from xent.files.errors import DataError
from xent.files.formats import csv_table, foreign, parquet, row_numbers
from xent.files.phrases import listed

Array = np.ndarray[Any, Any]

INTEGERS = tuple(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64))
NO_CLASS = -(2**62)  # no index, and none that --ignore-index is likely to be


def open_outputs(name: str, files: DataFiles) -> RowReader:
    """Open "FILE", "FILE:KEY", "-" for standard input, or several files as one array.

    Several files are those of a directory or of a pattern, or what the index of sharded safetensors files
    names, in natural order: part-2 before part-10. ``files`` unpacks and converts those of other formats.
    Raises ValueError, OSError.
    """
    name = _local(name, files)
    if name == "-":
        return row_reader.standard_input()
    path, key = row_reader.split(name)
    tensors = safetensors_rows.find_tensors(path, key)
    if tensors is not None:
        names = [f"{file}:{tensor}" for file, tensor in tensors]
    elif path.is_dir() or (glob.has_magic(str(path)) and not path.exists()):
        from xent.files.parts.sources import expand

        paths = sorted((str(each) for each in expand(path)), key=natural)
        names = [_local(f"{each}:{key}" if key else each, files) for each in paths]
    else:
        names = [name]
    return row_reader.open_rows(names[0]) if len(names) == 1 else JoinedRows(name, names)


def open_labels(name: str, outputs: RowReader, ignore_index: int, files: DataFiles) -> RowReader:
    """Open the targets of ``outputs``, as `open_outputs` does; a column of a table is matched by class names.

    Labels are matched with ``outputs.classes`` if these are known, and they are text, or all classes are
    integers; other integers are the indices of classes.
    """
    name = _local(name, files)
    path, key = row_reader.split(name)
    if _is_table(path) and _holds_labels(path, key):
        return ArrayRows(name, _labels(name, path, key, outputs, ignore_index))
    reader = open_outputs(name, files)
    classes = outputs.classes
    if classes is None:
        return reader
    if reader.classes not in (None, classes):
        raise DataError(
            f"{name}: its classes are {listed(reader.classes or [], 6)}, those of {outputs.name} "
            f"{listed(classes, 6)}"
        )
    numbers = _integers(classes)
    if numbers is None or np.array_equal(numbers, np.arange(len(numbers))) or reader.dtype not in INTEGERS:
        return reader

    def indices(labels: Array, first: int) -> Array:
        known = labels == ignore_index
        index = np.searchsorted(numbers, labels, sorter=order)
        found = order[np.minimum(index, len(order) - 1)]
        bad = ~known & (numbers[found] != labels)
        if bad.any():
            row = int(bad.argmax())
            raise _no_class(name, str(labels[row]), f"row {first + row + 1}", outputs)
        return np.where(known, ignore_index, found)

    order = np.argsort(numbers)
    return ConvertedRows(reader, indices, reader.shape, (), "int64")


def row_values(name: str, shape: tuple[int, ...], files: DataFiles) -> Array:
    """The numbers or the text in a file, one for each row of outputs with rows of ``shape``: (N,), in memory.

    A file with one for each part of the first axes, such as one for each sequence, is repeated along the
    others. Raises ValueError for any other length.
    """
    name = _local(name, files)
    path, key = row_reader.split(name)
    if _is_table(path):
        column, rows, numbers = _column(path, key)
        present = column.is_not_null().to_numpy()[rows]
        if not present.all():
            raise DataError(f"{name}: has no value in {numbers.name(int(rows[present.argmin()]))}")
        values = column[rows].to_numpy()
    else:
        with open_outputs(name, files) as reader:
            _require_shape(name, reader.shape, shape)
            reader.row = ()
            values = reader.take(math.prod(reader.shape)).reshape(reader.shape)
    _require_shape(name, values.shape, shape)
    return np.repeat(values.ravel(), math.prod(shape) // max(1, values.size))


def _local(name: str, files: DataFiles) -> str:
    """``name`` with the file that ``files`` unpacked in place of its own; "-" for npy on standard input."""
    foreign.require_no_address(name)
    path, key = row_reader.split(name)
    if name == "-":
        if row_reader.is_npy_input():
            return name
    elif not (path.is_file() or path.is_fifo()):
        return name
    unpacked, _, notes = files.unpack(str(path))
    files.notes += notes
    return f"{unpacked}:{key}" if key else str(unpacked)


def _require_shape(name: str, shape: tuple[int, ...], rows: tuple[int, ...]) -> None:
    if shape not in (rows, (*rows, 1)) and shape != rows[: len(shape)]:
        raise ValueError(f"{name}: expected one value for each row, shape {rows}; got {shape}")


def two_classes(reader: RowReader, probabilities: bool) -> RowReader:
    """One score for each row as two classes: logits (0, z), or probabilities (1 − p, p)."""
    shape = reader.shape[:-1] if reader.row == (1,) else reader.shape

    def convert(scores: Array, _: int) -> Array:
        other = 1 - scores.astype(np.float64) if probabilities else np.zeros(len(scores), scores.dtype)
        return np.stack([other, scores.astype(other.dtype)], 1)

    return ConvertedRows(reader, convert, (*shape, 2), (2,), "float64" if probabilities else reader.dtype)


def _is_table(path: Path) -> bool:
    """Whether the file is Parquet or CSV."""
    if not path.is_file() or path.suffix == ".safetensors":
        return False
    with path.open("rb") as file:
        head = file.read(foreign.HEAD)
    if head.startswith(b"PAR1"):
        return True
    return bool(head) and foreign.is_text(head) and foreign.identify(path, row_reader.KINDS) is None


def _column(path: Path, key: str | None) -> tuple[Any, Array, row_numbers.RowNumbers]:
    """(a column as polars reads it, its rows without blank lines, the numbers of all rows).

    KEY may be left out if there is one column.
    """
    if parquet.is_parquet(path):
        table = parquet.read(path)
        rows, numbers = np.arange(table.height), row_numbers.one_based(table.height)
    else:
        table, numbers = csv_table.read(path, csv_table.detect_layout(path, NO_DIALECT))
        rows = skipped.filled_rows(table)
    return table[only(path, "column", table.columns, key)], rows, numbers


def _holds_labels(path: Path, key: str | None) -> bool:
    """Whether the table is one column, or KEY names one, and it is text, integers or booleans."""
    if parquet.is_parquet(path):
        schema = parquet.schema(path)
        if key is None and len(schema) > 1:
            return False  # all columns side by side are probabilities
        kind = schema[only(path, "column", list(schema), key)]
        return not (kind.is_float() or kind.is_nested())
    return key is not None or len(csv_table.detect_layout(path, NO_DIALECT).names) == 1


def _labels(name: str, path: Path, key: str | None, outputs: RowReader, ignore_index: int) -> Array:
    """The labels of a column of a table (N,): indices of classes, or booleans."""
    column, rows, numbers = _column(path, key)
    labels, rows = tables.labels(path, column, rows, Reading(numbers))
    classes = outputs.classes
    if classes is None:
        if labels.dtype.kind == "U":
            raise DataError(
                f"{name}: its labels are text, such as {str(labels[0])!r}, but {outputs.name} does not name "
                "its classes, as the columns p_CLASS of `xent predict` do"
            )
        return labels
    if labels.dtype.kind in "iu" and _integers(classes) is None:
        return labels
    distinct, inverse = np.unique(labels, return_inverse=True)
    index = {spelled: k for k, spelled in enumerate(classes)} | {str(ignore_index): ignore_index}
    found = np.array(
        [
            index.get(str(each).lower() if isinstance(each, bool) else str(each), NO_CLASS)
            for each in distinct.tolist()
        ]
    )[inverse]
    if (found == NO_CLASS).any():
        row = int((found == NO_CLASS).argmax())
        raise _no_class(name, str(labels[row]), numbers.name(int(rows[row])), outputs)
    return found


def _no_class(name: str, label: str, place: str, outputs: RowReader) -> DataError:
    return DataError(
        f"{name}: {label!r} in {place} is none of the classes of {outputs.name}: "
        f"{listed(outputs.classes or [], 6)}"
    )


def _integers(classes: Sequence[str]) -> Array | None:
    """The names as integers; None if some are none."""
    try:
        return np.array([int(each) for each in classes], np.int64)
    except (ValueError, OverflowError):
        return None
