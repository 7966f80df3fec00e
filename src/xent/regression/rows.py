"""Fit to the rows of files that need not fit in memory: `rows_from` names them, `fit_rows` reads them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from xent.core.spec import LossSpec
from xent.files import dataset, sources, tables
from xent.files.errors import DataError
from xent.files.formats.csv_table import Dialect
from xent.files.learning import Learner, SparseLearner
from xent.files.preprocess import Preprocessor, as_numbers
from xent.files.row_cache import RowCache
from xent.files.sources import Piece, Source
from xent.regression.class_targets import ClassTargets, as_target, class_factors
from xent.regression.fitting import fit_partitions
from xent.regression.parameters import check_parameters
from xent.regression.partitions import Local, Partition, Totals

Array = np.ndarray[Any, Any]
Progress = Callable[[str, int, int], None]

MEMORY = 1 << 30  # bytes
LEAST_MEMORY = 1 << 24
BLOCKS = 32  # of which one is a block as it is computed with; reading the files takes several
SAMPLES = 4  # of which one is the sample that a fit starts from; gathering it takes two
MOST_CLASSES = 1 << 16


class Reads(NamedTuple):
    """What a fit has read and written, in bytes."""

    file_bytes: int  # of all files
    file_passes: int  # how often they were read: with ``prepare``, or of svmlight, twice
    cache_bytes: int  # of the prepared rows
    cache_passes: float  # how often they were read


class Rows:
    """The rows of files, for `SoftmaxRegression.fit`: see `rows_from`.

    Attributes
    ----------
    preprocessor : Preprocessor or None
        After a fit with ``prepare``: what the columns need, `Preprocessor.transform`, before `predict`.
    reads : Reads or None
        After a fit: how much was read how often.
    notes : tuple of str
        After a fit: columns that were left out, in sentences.
    """

    def __init__(
        self,
        files: Any,
        options: dict[str, Any],
        prepare: bool,
        memory: int,
        workers: int,
        progress: Progress,
    ) -> None:
        self.files, self.options, self.prepare, self.memory = files, options, prepare, memory
        self.workers, self.progress = workers, progress
        self.preprocessor: Preprocessor | None = None
        self.reads: Reads | None = None
        self.notes: tuple[str, ...] = ()


def rows_from(
    files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    target: str | None = None,
    *,
    drop: Sequence[str] = (),
    categorical: Sequence[str] = (),
    dialect: Dialect | None = None,
    drop_unlabelled: bool = False,
    prepare: bool = False,
    memory: int = MEMORY,
    workers: int = 1,
    progress: Progress | None = None,
) -> Rows:
    """Describe the rows of files that need not fit in memory, for ``SoftmaxRegression().fit(rows)``.

    Nothing is read before the fit. Then a first pass checks the rows and writes them as float32 to a cache
    in the system's temporary folder, which is deleted at the end of the fit, also after an error or a
    signal. Each evaluation of the objective is a pass over that cache. TMPDIR chooses the folder: not one in
    memory.

    Parameters
    ----------
    files : path, pattern such as ``"DIR/*.parquet"``, or an iterable of them
        Parquet or CSV files with the same columns of the same types, or svmlight files. Of a directory its
        files, but those whose names begin with a point or an underscore; their order is that of the names.
        Of a Parquet file a block reads each row group whole that it lies in: larger ones are read often.
    target : str, default None
        The column of the labels, integers or text. None for svmlight.
    drop : sequence of str
        Columns to leave out.
    categorical : sequence of str
        Columns of numbers that are categories; those of text are (decided by the first rows).
    dialect : xent.files.formats.csv_table.Dialect, default None
        Separator, decimal mark and words for missing values of CSV; None detects them for each file.
    drop_unlabelled : bool, default False
        Leave out rows without a label, which are an error otherwise.
    prepare : bool, default False
        Scale columns, fill missing values and code categories as `xent fit` does, which takes one more pass
        over the files; `Rows.preprocessor` keeps how. Otherwise the features are the numbers as they are.
    memory : int >= 16 MiB, default 1 GiB
        Bytes to hold of the rows and of what is computed of them, beside the libraries (0.25 GB) and the
        parameters. A block has 1/32 of it, and the results depend on the blocks by rounding. Where threads
        hold blocks of their own, each takes one more.
    workers : int >= 1, default 1
        Threads that evaluate blocks, each by one thread; 1 uses all cores for one block. The results have
        the same bits for any number.
    progress : callable, default None
        Called with (what is read, bytes so far, bytes of all).

    Returns
    -------
    Rows

    Raises
    ------
    TypeError, ValueError
        For an argument out of place. In the fit, naming file, row and column: for files that are none, are
        damaged, or have other columns; for values that are missing or infinite; for unlabelled rows.
    OSError
        In the fit, if a file cannot be read, or if the temporary folder is full.

    Examples
    --------
    >>> import pathlib, tempfile, polars, xent
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for part, rows in enumerate(["0,no\\n1,no", "3,yes\\n4,yes"]):
    ...         _ = pathlib.Path(folder, f"{part}.csv").write_text(f"x,y\\n{rows}\\n")
    ...     model = xent.SoftmaxRegression().fit(xent.rows_from(folder, target="y"))
    >>> model.predict(polars.DataFrame({"x": [0.5, 3.5]}))
    array(['no', 'yes'], dtype='<U3')
    """
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ValueError(f"`workers` must be an integer >= 1; got {workers!r}")
    if isinstance(memory, bool) or not isinstance(memory, int) or memory < LEAST_MEMORY:
        raise ValueError(f"`memory` must be an integer >= {LEAST_MEMORY:,} (bytes); got {memory!r}")
    if not isinstance(files, str | os.PathLike):
        files = _listed("files", files, (str, os.PathLike))
    if not (target is None or isinstance(target, str)):
        raise TypeError(f"`target` must be the name of a column or None; got {target!r:.50}")
    drop, categorical = _listed("drop", drop, str), _listed("categorical", categorical, str)
    for name, flag in (("drop_unlabelled", drop_unlabelled), ("prepare", prepare)):
        if not isinstance(flag, bool):
            raise TypeError(f"`{name}` must be True or False; got {flag!r:.50}")
    if not (dialect is None or isinstance(dialect, Dialect)):
        raise TypeError(f"`dialect` must be a Dialect or None; got {dialect!r:.50}")
    if not (progress is None or callable(progress)):
        raise TypeError(f"`progress` must be a function or None; got {progress!r:.50}")
    options = {
        "target": target,
        "drop": drop,
        "categorical": categorical,
        "dialect": (dialect or Dialect()).checked(),
        "drop_unlabelled": drop_unlabelled,
    }
    return Rows(files, options, prepare, memory, workers, progress or (lambda what, done, total: None))


def _listed(name: str, values: Any, kind: Any) -> tuple[Any, ...]:
    """The values as a tuple; TypeError unless they are an iterable of ``kind``, and not one name."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise TypeError(f"`{name}` must be an iterable of names; got {values!r:.50}")
    each = tuple(values)
    if not all(isinstance(value, kind) for value in each):
        raise TypeError(f"`{name}` must be names; got {each!r:.50}")
    return each


def block_entries(memory: int) -> int:
    """Elements of a block, of float32."""
    return memory // BLOCKS // 4


def fit_rows(estimator: Any, rows: Rows) -> None:
    """Fit a SoftmaxRegression to ``rows``, as its `fit` does; an error leaves the estimator unchanged."""
    spec, block = check_parameters(estimator), block_entries(rows.memory)
    source = sources.open_files(rows.files, **rows.options, cells=block)
    rows.notes, passes = source.notes, 1
    learnt = None
    if rows.prepare or source.is_sparse:
        learnt, passes = _learn(source, rows), 2
    names = list(source.feature_names if learnt is None else learnt.feature_names)
    is_sparse = source.is_sparse or (learnt is not None and learnt.has_mostly_levels)
    labels = _Labels()
    with RowCache(len(names), is_sparse, block) as cache:
        for piece in _counted(source, rows, "writing the rows" if passes == 2 else "reading the files"):
            cache.append(_features(piece, source, learnt if rows.prepare else None), labels.codes(piece))
        cache.finish()
        classes, order = labels.classes()
        mass = np.bincount(order, labels.counts(), len(classes))
        dataset.check_classes(f"{rows.files}: {rows.options['target'] or 'y'}", classes, mass)
        factors = class_factors(estimator.class_weight, classes, mass)
        blocks = _Blocks(cache, classes, order, factors, spec, rows)
        dtype, sample = np.dtype(np.float32), rows.memory // SAMPLES // 4
        totals = Totals(tuple(cache.rows), len(names), cache.stored, dtype, is_sparse, sample)
        attributes: dict[str, Any] = {"n_features_in_": len(names)}
        if not source.is_sparse and not rows.prepare:
            attributes["feature_names_in_"] = np.array(names, object)
        fit_partitions(estimator, Local(blocks, totals, rows.workers), classes, attributes)
        written = max(1, cache.written)
        rows.reads = Reads(source.size, passes, cache.written, cache.read / written)
        rows.preprocessor = learnt if rows.prepare else None


class _Blocks(Sequence[Any]):
    """The blocks of the cache as partitions, mapped when asked for."""

    def __init__(
        self, cache: RowCache, classes: Array, order: Array, factors: Array | None, spec: LossSpec, rows: Rows
    ) -> None:
        self.cache, self.classes, self.order, self.factors, self.spec = cache, classes, order, factors, spec
        self.rows = rows

    def __len__(self) -> int:
        return len(self.cache.rows)

    def __getitem__(self, index: Any) -> Any:
        features, codes = self.cache.features(index), self.cache.codes(index)
        targets = ClassTargets(self.classes, self.order[codes], None, None)
        number, done = divmod(self.cache.read - 1, self.cache.written)
        self.rows.progress(f"pass {number + 1}", done + 1, self.cache.written)
        return Partition(features, as_target(targets, self.factors, self.spec))


class _Labels:
    """The distinct labels in the order in which they came, and their counts."""

    def __init__(self) -> None:
        self._index: dict[str, int] = {}
        self._counts: Counter[int] = Counter()

    def codes(self, piece: Piece) -> Array:
        """The index of each label of the piece, (N,) int32."""
        distinct, inverse, counts = np.unique(piece.labels, return_inverse=True, return_counts=True)
        texts = [str(label).lower() if distinct.dtype == bool else str(label) for label in distinct.tolist()]
        codes = np.array([self._index.setdefault(text, len(self._index)) for text in texts], np.int32)
        self._counts.update(dict(zip(codes.tolist(), counts.tolist(), strict=True)))
        if len(self._index) > MOST_CLASSES:
            raise DataError(f"{piece.path}: more than {MOST_CLASSES:,} distinct labels; expected classes")
        return codes[inverse] if len(distinct) else np.zeros(0, np.int32)

    def counts(self) -> Array:
        """Rows of each distinct label."""
        return np.array([self._counts[code] for code in range(len(self._index))], np.float64)

    def classes(self) -> tuple[Array, Array]:
        """(classes, sorted: booleans or integers if all labels are, else text; the class of each code)."""
        import polars

        if not self._index:
            raise DataError("no row has a label")
        found = tables.classes_of(polars.Series(list(self._index), dtype=polars.String))
        classes, order = np.unique(found, return_inverse=True)
        return classes, order.astype(np.int64, copy=False)


def _learn(source: Source, rows: Rows) -> Preprocessor:
    """Learn the preprocessing in one pass over the files; of svmlight the columns too."""
    pieces = _counted(source, rows, "learning from the files")
    if isinstance(source, sources.Svmlight):
        sparse = SparseLearner()
        for piece in pieces:
            sparse.add(piece.features)
        return sparse.preprocessor(source.feature_names, source.first or 0)
    learner = Learner(source.feature_names, source.categories)
    for piece in pieces:
        learner.add(piece.features)
    return learner.preprocessor()


def _counted(source: Source, rows: Rows, what: str) -> Iterable[Piece]:
    """The pieces of the files, each said to `Rows.progress` when it is done."""
    done = 0
    for piece in source.pieces(block_entries(rows.memory)):
        yield piece
        done += piece.size
        rows.progress(what, done, source.size)


def _features(piece: Piece, source: Source, learnt: Preprocessor | None) -> Any:
    """The features of a piece as float32, finite."""
    if learnt is not None:
        try:
            x = learnt.transform(piece.features)
        except ValueError as error:
            raise DataError(f"{piece.path}: {error}") from None
    elif source.is_sparse:
        x = piece.features
    else:
        x = _plain_numbers(piece, source)
    with np.errstate(over="ignore"):
        narrow = x.astype(np.float32)
    entries = narrow.data if source.is_sparse or hasattr(narrow, "indptr") else narrow
    if not np.isfinite(entries).all():
        raise DataError(f"{piece.path}: {_overflow(narrow, piece, source, learnt)}")
    return narrow


def _plain_numbers(piece: Piece, source: Source) -> Array:
    """The columns as they are; DataError for categories and missing values."""
    if source.categories:
        raise DataError(
            f"{piece.path}: column {source.categories[0]!r} holds categories: `prepare=True` codes them"
        )
    x = as_numbers(piece.features, source.feature_names)
    missing = np.isnan(x)
    if missing.any():
        row, column = np.unravel_index(int(missing.argmax()), x.shape)
        name = source.feature_names[column]
        raise DataError(
            f"{piece.path}: no value in column {name!r}, {piece.place(int(row))}: `prepare=True` fills it in"
        )
    return x


def _overflow(x: Any, piece: Piece, source: Source, learnt: Preprocessor | None) -> str:
    """Where a number is too large for float32."""
    x = x.toarray() if hasattr(x, "indptr") else x
    row, column = np.unravel_index(int((~np.isfinite(x)).argmax()), x.shape)
    names = source.feature_names if learnt is None else learnt.feature_names
    return f"the number in column {names[column]!r}, {piece.place(int(row))}, overflows float32"
