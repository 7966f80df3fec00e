"""Read X and y of an npz file, dense or CSR, whole or in batches."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from xent.files.errors import DataError
from xent.files.formats.row_reader import NO_HEADER, open_rows
from xent.files.formats.row_stream import FortranOrderError, archive_faults
from xent.files.phrases import listed

Array = np.ndarray[Any, Any]

CSR = ("data", "indices", "indptr", "shape")
EXPECTED = "expected arrays X and y, or data, indices, indptr, shape and y of a CSR matrix"
# Common names of X and y, the most likely first.
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


def features(data: str) -> Any:
    """X, or the CSR matrix. Raises DataError."""
    import scipy.sparse

    names = _members(data)
    if "X" in names or not {*CSR} & {*names}:
        return checked(data, arrays(data, ["X"])["X"])
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


def pieces(data: str, size: int) -> Iterator[Any]:
    """The rows of `features` in batches of about ``size`` values; CSR and Fortran order in one batch."""
    if "X" not in _members(data):
        yield features(data)
        return
    try:
        opened = open_rows(f"{data}:X")
    except FortranOrderError:  # the first row is complete only when all are read
        yield features(data)
        return
    with opened as stored:
        if len(stored.shape) != 2:
            raise DataError(f"{data}: expected X of shape (rows, columns); got {stored.shape}")
        step = max(1, size // max(1, stored.shape[1]))
        for start in range(0, stored.shape[0], step):
            yield checked(data, stored.take(min(step, stored.shape[0] - start)), start)


def arrays(data: str, names: Sequence[str]) -> dict[str, Array]:
    """Whole arrays by their names. Raises DataError."""
    members = _members(data)
    absent = [name for name in names if name not in members]
    if absent:
        advice = _rename_advice(members)
        raise DataError(f"{data}: has no array {absent[0]!r} but {listed(members)}; {EXPECTED}{advice}")
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
    """``x`` as (N, D) finite floats, NaN where missing if dense; ``first`` is the index of its first row."""
    import scipy.sparse

    sparse = scipy.sparse.issparse(x)
    if not sparse and x.ndim != 2:
        raise DataError(f"{data}: expected X of shape (rows, columns); got {x.shape}")
    if x.dtype.kind not in "biuf":
        raise DataError(f"{data}: expected numbers in X; got {x.dtype}")
    if x.dtype not in (np.float32, np.float64):
        x = x.astype(np.float64)
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


def _rename_advice(names: Sequence[str]) -> str:
    """Advice for the error, if two arrays have common names of X and y."""
    lower = {name.lower(): name for name in names}
    candidates = [next((lower[each] for each in like if each in lower), None) for like in (LIKE_X, LIKE_Y)]
    if None in candidates:
        return ""
    x, y = candidates
    return f". If {x} and {y} are meant: numpy.savez('new.npz', X=f[{x!r}], y=f[{y!r}])"
