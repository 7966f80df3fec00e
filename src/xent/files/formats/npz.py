"""Read features and labels of an npz file, dense or CSR; rows of it, or of an npy file, in batches."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from xent.files.arrays.row_reader import NO_HEADER, open_rows
from xent.files.arrays.row_stream import FortranOrderError, archive_faults
from xent.files.errors import DataError
from xent.files.formats.svmlight import numbered
from xent.files.phrases import counted, listed

Array = np.ndarray[Any, Any]

CSR = ("data", "indices", "indptr", "shape")
EXPECTED = "expected arrays X and y, or data, indices, indptr, shape and y of a CSR matrix"
ROWS = "expected X of shape (rows, columns), or of pictures (rows, height, width, ...)"
# Common names of X and y in lower case, the most likely first.
LIKE_X = (
    "x",
    "x_train",
    "train_x",
    "xtrain",
    "features",
    "train_features",
    "inputs",
    "images",
    "train_images",
)
LIKE_Y = (
    "y",
    "y_train",
    "train_y",
    "ytrain",
    "labels",
    "train_labels",
    "target",
    "targets",
    "label",
    "classes",
)


class Stored(NamedTuple):
    """What an npz file holds. Rows for testing come after those for training."""

    features: Any  # (N, D) floats, dense or CSR
    labels: Array  # of any shape and dtype
    names: list[str]  # of the columns
    held_out: int  # number of rows at the end that are for testing
    notes: tuple[str, ...]


class Names(NamedTuple):
    """Names of arrays: features and labels, and those of the rows for testing, if there are any."""

    x: str
    y: str | None
    x_test: str | None = None
    y_test: str | None = None


def read(data: str) -> Stored:
    """Features and labels. Raises DataError."""
    names = find(data)
    if names is None:
        y = arrays(data, ["y"])["y"]
        matrix = _csr(data)
        return Stored(matrix, y, numbered(data, matrix.shape[1], 0), 0, ())
    if names.y is None:
        raise _absent(data, "y")
    stored = arrays(data, [name for name in names if name is not None])
    x, y = stored[names.x], stored[names.y]
    columns, features = _columns(data, x.shape), checked(data, x)
    _require_as_many(data, names.x, x, names.y, y)
    if names.x_test is None or names.y_test is None:
        return Stored(features, y, columns, 0, ())
    x_test, y_test = stored[names.x_test], stored[names.y_test]
    _require_as_many(data, names.x_test, x_test, names.y_test, y_test)
    for name, test, train in ((names.x_test, x_test, x), (names.y_test, y_test, y)):
        if test.shape[1:] != train.shape[1:]:
            difference = f"{test.shape[1:]}, in the training rows {train.shape[1:]}"
            raise DataError(f"{data}: the shape of a row of {name} is {difference}")
    held_out = f"the {counted(len(y_test), 'row')} of {names.x_test} are held out"
    return Stored(
        np.concatenate([features, checked(data, x_test, len(x))]),
        np.concatenate([y, y_test]),
        columns,
        len(y_test),
        (f"{held_out}; their numbers follow those of {names.x}",),
    )


def find(data: str) -> Names | None:
    """The arrays of features and labels, by their names; None for a CSR matrix. Raises DataError."""
    members = _members(data)
    if "X" in members:
        return Names("X", "y" if "y" in members else None)
    if {*CSR} & {*members}:
        return None
    lower = {name.lower(): name for name in members}
    x, y = (next((lower[each] for each in like if each in lower), None) for like in (LIKE_X, LIKE_Y))
    if x is None:
        raise _absent(data, "X")
    tests = [
        lower.get(name.lower().replace("train", "test")) if name and "train" in name.lower() else None
        for name in (x, y)
    ]
    return Names(x, y, *tests) if all(tests) else Names(x, y)


def pieces(data: str, size: int) -> Iterator[Any]:
    """The rows of `read` in batches of about ``size`` values; CSR and Fortran order in one batch."""
    names = find(data)
    if names is None:
        yield _csr(data)
        return
    first = 0
    for name in (names.x, names.x_test):
        if name is not None:
            for rows in array_pieces(f"{data}:{name}", size, first):
                yield rows
                first += len(rows)


def array_pieces(name: str, size: int, first: int = 0) -> Iterator[Any]:
    """The rows of one array, "FILE.npy" or "FILE.npz:NAME", as (n, D) in batches of about ``size`` values.

    ``first`` is the number of rows before it, for messages.
    """
    data, _, key = name.rpartition(":") if not os.path.exists(name) else (name, "", "")
    try:
        opened = open_rows(name)
    except FortranOrderError:  # the first row is complete only when all are read
        yield checked(data, arrays(data, [key])[key] if key else np.load(data), first)
        return
    with opened as stored:
        if len(stored.shape) < 2:
            raise DataError(f"{data}: {ROWS}; got {stored.shape}")
        lines = math.prod(stored.shape[1:-1])  # that are read for a row, which may be a picture
        step = max(1, size // max(1, math.prod(stored.shape[1:])))
        for start in range(0, stored.shape[0], step):
            count = min(step, stored.shape[0] - start)
            rows = stored.take(count * lines).reshape(count, *stored.shape[1:])
            yield checked(data, rows, first + start)


def _csr(data: str) -> Any:
    """The CSR matrix."""
    import scipy.sparse

    parts = arrays(data, CSR)
    try:
        rows, width = parts["shape"].tolist()  # a 1-D CSR array is refused
        stored = parts["data"], parts["indices"], parts["indptr"]
        matrix = scipy.sparse.csr_array(stored, shape=(rows, width))
        matrix.check_format(full_check=True)
        matrix.sum_duplicates()
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{data}: its arrays are no CSR matrix: {error}") from None
    return checked(data, matrix)


def _columns(data: str, shape: tuple[int, ...]) -> list[str]:
    """Names for the columns of features of that shape: x0, ..., or pixel_ROW_COLUMN, and _CHANNEL if many."""
    pixels = shape[1:-1] if len(shape) == 4 and shape[-1] == 1 else shape[1:]
    if len(pixels) not in (2, 3):
        return numbered(data, math.prod(pixels), 0)
    numbered(data, math.prod(pixels), 0)  # raises the error if they are too many
    return ["_".join(map(str, ("pixel", *place))) for place in product(*map(range, pixels))]


def _require_as_many(data: str, x_name: str, x: Array, y_name: str, y: Array) -> None:
    if not y.ndim or len(y) != len(x):
        raise DataError(f"{data}: {x_name} has {len(x)} rows, {y_name} {len(y) if y.ndim else 'no rows'}")


def arrays(data: str, names: Sequence[str]) -> dict[str, Array]:
    """Whole arrays by their names. Raises DataError."""
    members = _members(data)
    absent = [name for name in names if name not in members]
    if absent:
        raise _absent(data, absent[0])
    result = {}
    try:
        with archive_faults(data), zipfile.ZipFile(data) as archive:
            for name in names:
                with archive.open(f"{name}.npy") as file:
                    result[name] = np.lib.format.read_array(file, allow_pickle=False)
                    if file.read(1):  # reads to the end, so that the archive's checksum is compared
                        raise DataError(f"{data}: holds more of {name} than its header says")
    except DataError:
        raise
    except NO_HEADER as error:
        raise DataError(f"{data}: cannot be read: {error}") from None
    return result


def checked(data: str, x: Any, first: int = 0) -> Any:
    """``x`` as (N, D) finite floats, NaN where missing if dense; ``first`` is the index of its first row.

    Numbers that float32 holds exactly, such as bytes, are float32; a row of several axes is flattened.
    """
    import scipy.sparse

    sparse = scipy.sparse.issparse(x)
    if not sparse and x.ndim < 2:
        raise DataError(f"{data}: {ROWS}; got {x.shape}")
    if x.dtype.kind not in "biuf":
        raise DataError(f"{data}: expected numbers in X; got {x.dtype}")
    if x.dtype not in (np.float32, np.float64):
        x = x.astype(np.float32 if np.can_cast(x.dtype, np.float32) else np.float64)
    if not sparse:
        x = np.ascontiguousarray(x).reshape(len(x), math.prod(x.shape[1:]))
    values = x.data if sparse else x
    bad = ~np.isfinite(values) if sparse else np.isinf(values)
    if bad.any():
        if sparse:
            row = int(np.searchsorted(x.indptr, bad.argmax(), "right")) - 1
            column, value = int(x.indices[bad.argmax()]), values[bad.argmax()]
        else:
            row, column = (int(k) for k in np.unravel_index(int(bad.argmax()), bad.shape))
            value = values[row, column]
        raise DataError(
            f"{data}: expected a finite number in column x{column}, row {row + first + 1}; got {value}"
        )
    return x


def _members(data: str) -> list[str]:
    with archive_faults(data), zipfile.ZipFile(data) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def _absent(data: str, name: str) -> DataError:
    return DataError(f"{data}: has no array {name!r} but {listed(_members(data))}; {EXPECTED}")
