"""Read many files, or one that is larger than the memory, as one data set: a piece of their rows at a time.

The columns are decided by the headers of all files and by the first rows alone, before any training.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xent.files import dataset, labels, skipped, tables
from xent.files.cells import Reading
from xent.files.data_files import KINDS, DataFiles, Opened
from xent.files.dataset import NO_DIALECT
from xent.files.errors import DataError, named_faults, polars_faults
from xent.files.formats import csv_table, foreign, parquet, row_numbers, svmlight
from xent.files.formats.csv_table import Dialect
from xent.files.formats.row_numbers import RowNumbers
from xent.files.phrases import counted, listed
from xent.files.preprocess import is_boolean

Array = np.ndarray[Any, Any]
Names = str | os.PathLike[str]

LINE = 16  # bytes of an svmlight file that one stored entry takes, about


class Piece(NamedTuple):
    """Some of the rows of one file that have a label.

    ``features`` is a polars DataFrame of columns of floats and of text, null where missing, or CSR.
    """

    features: Any
    labels: Array  # (N,) integers, booleans or text
    path: Path
    numbers: RowNumbers
    kept: Array  # (N,) which rows of ``numbers`` these are
    size: int  # bytes of the file that these rows take, about
    unlabelled: int = 0  # rows left out because they have no label

    def take(self, rows: Array) -> Piece:
        """Some of the rows, given by their indices."""
        return self._replace(features=self.features[rows], labels=self.labels[rows], kept=self.kept[rows])

    def place(self, row: int) -> str:
        """ "line 17" of row ``row`` of ``features``."""
        return self.numbers.name(int(self.kept[row]))


class Stamp(NamedTuple):
    """What shows that a file was changed between two passes or during one."""

    size: int  # bytes
    modified: int  # nanoseconds


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return Stamp(status.st_size, status.st_mtime_ns)


@contextmanager
def _unchanged(path: Path, stamp: Stamp) -> Iterator[None]:
    """Raise DataError if the file has another stamp at the end of the block, or when reading it fails."""

    def check() -> None:
        if _stamp(path) != stamp:
            raise DataError(f"{path}: was changed while it was read, which takes several passes: run again")

    try:
        yield
    except (OSError, ValueError):  # such as a value that was written half
        check()
        raise
    check()


def is_several(name: str) -> bool:
    """Whether ``name`` is a directory, or a pattern such as ``DIR/*.parquet`` and no file itself."""
    return os.path.isdir(name) or (glob.has_magic(name) and not os.path.exists(name))


def expand(files: Names | Iterable[Names]) -> list[Path]:
    """The files of a directory, of a pattern such as ``DIR/*.parquet``, or of a list of them, sorted each.

    In a directory those are left out whose names begin with a point or an underscore. Raises DataError if
    there is none.
    """
    if not isinstance(files, str | os.PathLike):
        return [path for each in files for path in expand(each)]
    name = os.fspath(files)
    path = Path(name)
    if os.path.isdir(name):  # not "", which is the current folder as a Path
        found = sorted(each for each in path.iterdir() if each.name[0] not in "._" and not each.is_dir())
        if not found:
            raise DataError(f"{name}: a directory without files")
        return found
    if not is_several(name):
        return [path]
    found = sorted(Path(each) for each in glob.glob(name, recursive=True) if not Path(each).is_dir())
    if not found:
        raise DataError(f"{name}: no file has such a name")
    return found


class Tables:
    """CSV or Parquet files with the same columns.

    Attributes
    ----------
    feature_names : names of the columns of features, in the order of the first file
    categories : the names of those that are categories: text that holds no numbers in the first rows
    size : bytes of all files
    notes : what was left out, in sentences
    """

    is_sparse = False

    def __init__(
        self,
        files: DataFiles,
        opened: Sequence[Opened],
        target: str | None,
        drop: Sequence[str],
        categorical: Sequence[str],
        dialect: Dialect,
        drop_unlabelled: bool,
        cells: int,
    ) -> None:
        paths = [file.path for file in opened]
        self.files, self.paths, self.kind = files, paths, opened[0].kind
        self.dialect, self.drop_unlabelled = dialect, drop_unlabelled
        self.stamps = [_stamp(path) for path in paths]
        self.size = sum(stamp.size for stamp in self.stamps)
        self.notes = tuple(dict.fromkeys(note for file in opened for note in file.notes))
        schemas = [self._schema(path) for path in paths]
        names = list(schemas[0])
        if target is None:
            raise DataError(f"{paths[0]}: `target` must name the label column; it has {listed(names)}")
        self.target = target
        dataset.require_columns(
            paths[0], names, {"target": [target], "drop": drop, "categorical": categorical}
        )
        for path, schema in zip(paths[1:], schemas[1:], strict=True):
            _require_same(path, schema, paths[0], schemas[0], drop)
        self._choose(names, drop, categorical, cells)

    def _schema(self, path: Path) -> dict[str, str]:
        if self.kind == "csv":
            return dict.fromkeys(csv_table.detect_layout(path, self.dialect).names, "text")
        names, _ = csv_table.plain_names(path, list(schema := parquet.schema(path)))
        return {name: str(dtype) for name, dtype in zip(names, schema.values(), strict=True)}

    def _choose(self, names: list[str], drop: Sequence[str], categorical: Sequence[str], cells: int) -> None:
        """Decide by the first rows which columns are features, and which of them categories.

        A column without a value in the first rows is decided by those that follow, up to ``cells`` cells.
        """
        import polars

        heads = (head for path in self.paths for head in self._tables(path, cells) if head[0].height)
        head, reading, path = next(heads, (None, None, self.paths[0]))
        if head is None or reading is None:
            raise DataError(f"{path}: no rows" + (" in any of the files" if len(self.paths) > 1 else ""))
        if self.kind == "csv":
            nameless, index = csv_table.detect_layout(path, self.dialect).nameless, []
        else:
            nameless = csv_table.plain_names(path, list(parquet.schema(path)))[1]
            index = [name.strip() for name in parquet.index_columns(path)]
        left_out = skipped.left_out(head, nameless, index, reading)
        for name in (self.target, *drop, *categorical):
            left_out.pop(name, None)
        self.notes = tuple(dict.fromkeys((*self.notes, *left_out.values())))
        self.feature_names = [name for name in names if name not in (self.target, *drop, *left_out)]
        if not self.feature_names:
            raise DataError(f"{path}: no feature column beside the target {self.target!r}")
        known: dict[str, polars.Series] = {}
        undecided, seen = self.feature_names, 0
        for rows, how, file in chain([(head, reading, path)], heads):
            known |= {
                each.name: each for each in tables.columns(file, rows, undecided, how, also=categorical)
            }
            undecided = [name for name in undecided if known[name].null_count() == rows.height]
            seen += rows.height * rows.width
            if not undecided or seen >= cells:
                break
        self.categories = tuple(name for name, each in known.items() if each.dtype == polars.String)
        self._guessed = [name for name in self.categories if name not in categorical]
        numbers = [each for each in known.values() if each.dtype != polars.String]
        self.booleans = tuple(
            each.name
            for each in numbers
            if is_boolean(each.cast(polars.Float64).fill_null(np.nan).to_numpy())
        )

    def of_file(self, index: int) -> Tables:
        """One of the files alone, where each is read elsewhere: its values do not decide on columns."""
        one = copy(self)
        one.paths, one.stamps, one._guessed = [self.paths[index]], [self.stamps[index]], []
        return one

    def pieces(self, cells: int) -> Iterator[Piece]:
        """All rows, in pieces of about ``cells`` cells; DataError names the file and the row."""
        counts = {name: np.zeros(2, int) for name in self._guessed}
        with self.files.named():
            for path, stamp in zip(self.paths, self.stamps, strict=True):
                with _unchanged(path, stamp), named_faults(path):
                    for table, reading, _ in self._tables(path, cells):
                        for name in self._guessed:
                            counts[name] += tables.numbers_among(table[name], reading)
                        yield self._piece(path, table, reading)
        for name, (numbers, values) in counts.items():
            if 2 * numbers >= values:
                raise DataError(
                    f"{self.paths[0]}: column {name!r} is text in the first rows, but {numbers:,} of all "
                    f"{values:,} values are numbers; if it holds categories, say --categorical {name}"
                )
        self._guessed = []  # the next pass is over the same values

    def _piece(self, path: Path, table: Any, reading: Reading) -> Piece:
        rows = skipped.filled_rows(table) if self.kind == "csv" else np.arange(table.height)
        classes, kept = tables.labels(path, table[self.target], rows, reading, self.drop_unlabelled)
        names = self.feature_names
        features = tables.columns(path, table, names, reading, self.categories, self.booleans)
        share = table.height / max(1, reading.numbers.num_rows)
        if len(kept) < table.height:
            features = features[kept]
        size, unlabelled = int(share * path.stat().st_size), len(rows) - len(kept)
        given = self.files.given(path)
        return Piece(features, classes, given, reading.numbers, kept, size, unlabelled)

    def _tables(self, path: Path, cells: int) -> Iterator[tuple[Any, Reading, Path]]:
        """(rows of a file, how to read them and their numbers, the file)."""
        first = 0
        if self.kind == "csv":
            layout = csv_table.detect_layout(path, self.dialect)
            for table, numbers in csv_table.batches(path, layout, cells):
                yield table, dataset.csv_reading(layout, self.dialect, numbers.after(first)), path
                first += table.height
            return
        numbers = row_numbers.one_based(parquet.rows(path))
        for table in _slices(path, cells):
            named = dataset.plainly_named(path, table)[0]
            yield named, dataset.parquet_reading(self.dialect, numbers.after(first)), path
            first += table.height


class Svmlight:
    """svmlight files, whose columns are counted from 0 or from 1 alike in all.

    `feature_names` has one name until a pass over `pieces` has found the last column and the first.
    """

    is_sparse = True
    categories: tuple[str, ...] = ()

    def __init__(self, files: DataFiles, opened: Sequence[Opened], drop_unlabelled: bool) -> None:
        self.files, self.paths = files, [file.path for file in opened]
        self.drop_unlabelled = drop_unlabelled
        self.stamps = [_stamp(path) for path in self.paths]
        self.size = sum(stamp.size for stamp in self.stamps)
        self.notes = tuple(dict.fromkeys(note for file in opened for note in file.notes))
        self.first: int | None = None
        self.feature_names: list[str] = []

    def pieces(self, cells: int) -> Iterator[Piece]:
        """All rows, in pieces of about ``cells`` entries; in the first pass columns are counted from 0."""
        with self.files.named():
            yield from self._pieces(cells)

    def _pieces(self, cells: int) -> Iterator[Piece]:
        least, width = 1, 0
        for path, stamp in zip(self.paths, self.stamps, strict=True):
            with _unchanged(path, stamp):
                numbers = row_numbers.svmlight_lines(path)
                count, size = 0, stamp.size
                for start in range(0, size, LINE * cells):
                    known = None if self.first is None else len(self.feature_names)
                    place = start, LINE * cells, numbers, count
                    x, y = svmlight.part(str(path), known, self.first or 0, *place)
                    if not x.shape[0]:
                        continue
                    least = min(least, int(x.indices.min(initial=1)))
                    width = max(width, x.shape[1])
                    after = numbers.after(count)
                    classes, kept = labels.plain_labels(str(path), y, after, self.drop_unlabelled)
                    x = x if len(kept) == len(y) else x[kept]
                    read, unlabelled = min(LINE * cells, size - start), len(y) - len(kept)
                    yield Piece(x, classes, self.files.given(path), after, kept, read, unlabelled)
                    count += len(y)
                svmlight.require_count(str(path), count, numbers)
        if self.first is None:
            self.first = least
            self.feature_names = svmlight.numbered(str(self.paths[0]), width - least, least)


Source = Tables | Svmlight


def open_files(
    files: Names | Iterable[Names],
    target: str | None = None,
    drop: Sequence[str] = (),
    categorical: Sequence[str] = (),
    dialect: Dialect = NO_DIALECT,
    drop_unlabelled: bool = False,
    cells: int = dataset.BATCH,
) -> Source:
    """The files as one data set; the headers of all are read, and the first ``cells`` cells.

    ``target``, ``drop``, ``categorical`` and ``dialect`` are as in `dataset.load`. Raises DataError that
    names a file of another kind, of other columns or of other types, with the difference.
    """
    paths = expand(files)
    if not paths:
        raise DataError("`files` must name at least one file; got none")
    empty = [path for path in paths if path.is_file() and not path.stat().st_size]
    if empty:
        raise DataError(f"{empty[0]}: is empty")
    for path in paths if len(paths) > 1 else ():
        foreign.require_file(str(path), KINDS)  # a pipe in a directory may wait for a writer for ever
    data_files = DataFiles()
    names = [str(path) if path.parent.name or str(path) == "-" else f"./{path}" for path in paths]
    try:
        opened = [data_files.open(name) for name in names]
        kinds = [file.kind for file in opened]
        for path, kind in zip(paths, kinds, strict=True):
            if kind not in ("csv", "parquet", "svmlight"):
                raise DataError(f"{path}: is {kind}; expected CSV, Parquet or svmlight to be read in pieces")
            if kind != kinds[0]:
                raise DataError(f"{path}: is {kind}, the first file, {paths[0]}, {kinds[0]}")
        dataset.require_table_options(opened[0], dialect)
        if kinds[0] == "svmlight":
            named = {"target": target, "drop": drop, "categorical": categorical}
            for option, value in named.items():
                if value:
                    raise DataError(f"`{option}` is for CSV and Parquet; {paths[0]} has no named columns")
            return Svmlight(data_files, opened, drop_unlabelled)
        with data_files.named():
            return Tables(data_files, opened, target, drop, categorical, dialect, drop_unlabelled, cells)
    except BaseException:
        data_files.close()
        raise


def _slices(path: Path, cells: int) -> Iterator[Any]:
    """A Parquet file in slices: of each only the row groups are read that it lies in.

    polars' iterator over batches keeps more in memory than they hold.
    """
    rows = parquet.rows(path)
    frame = parquet.scan(path)
    with polars_faults(path, parquet.NOT_PARQUET):
        size = max(1, cells // max(1, len(frame.collect_schema())))
    for start in range(0, rows, size):
        with polars_faults(path, parquet.NOT_PARQUET):
            table = frame.slice(start, size).collect()
        parquet.require_rows(path, start + table.height, min(rows, start + size))
        yield table


def _require_same(
    path: Path, schema: dict[str, str], first_path: Path, first: dict[str, str], drop: Sequence[str]
) -> None:
    """Raise DataError that says how the columns of a file differ from those of the first."""
    other = f"the first file, {first_path}"
    wanted, got = ({name: each[name] for name in each if name not in drop} for each in (first, schema))
    absent, more = [name for name in wanted if name not in got], [name for name in got if name not in wanted]
    differences = [f"has no {_columns(absent)}"] if absent else []
    differences += [f"has {_columns(more)} more"] if more else []
    differences += [
        f"has {got[name]} in column {name!r} where it has {wanted[name]}"
        for name in wanted
        if name in got and got[name] != wanted[name]
    ][:1]
    if differences:
        raise DataError(f"{path}: its columns are not those of {other}: it {' and '.join(differences)}")


def _columns(names: list[str]) -> str:
    return (
        f"column {names[0]!r}" if len(names) == 1 else f"{counted(len(names), 'column')} {listed(names, 6)}"
    )
