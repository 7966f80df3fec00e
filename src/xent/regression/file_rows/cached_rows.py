"""Read the rows of files into a cache on disk, whose blocks are the partitions of a fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from xent.core.spec import LossSpec
from xent.files import labels as label_checks
from xent.files import tables
from xent.files.errors import DataError
from xent.files.parts import sources
from xent.files.parts.held_out import HeldOut
from xent.files.parts.learning import Learner, SparseLearner
from xent.files.parts.row_cache import RowCache
from xent.files.parts.sources import Piece, Source
from xent.files.preprocess import Preprocessor, as_numbers
from xent.regression.class_targets import ClassTargets, as_target, class_factors
from xent.regression.fitting import objective_of
from xent.regression.objective import Objective
from xent.regression.parameters import check_parameters
from xent.regression.sums.partitions import Local, Partition, Totals

if TYPE_CHECKING:
    from xent.regression.file_rows.rows import Rows

Array = np.ndarray[Any, Any]

BLOCKS = 32  # of which one is a block as it is computed with; reading the files takes several
SAMPLES = 4  # of which one is the sample that a fit starts from; gathering it takes two
MOST_CLASSES = 1 << 16


class Reads(NamedTuple):
    """What a fit has read and written, in bytes."""

    file_bytes: int  # of all files
    file_passes: int  # how often they were read: with ``prepare``, or of svmlight, twice
    cache_bytes: int  # of the prepared rows
    cache_passes: float  # how often they were read


def block_entries(memory: int) -> int:
    """Elements of a block, of float32."""
    return memory // BLOCKS // 4


class CachedRows:
    """The rows of files in the cache, while it is open.

    Attributes
    ----------
    classes : (K,) array, sorted
    order : array, the index in ``classes`` of each code of a label
    class_rows, mass : (K,) float64, rows of each class, and those that are not held out
    learnt : Preprocessor or None
    attributes : dict
        ``n_features_in_`` and, of columns as they are, ``feature_names_in_``.
    """

    def __init__(
        self,
        rows: Rows,
        source: Source,
        learnt: Preprocessor | None,
        cache: RowCache,
        labels: Labels,
        passes: int,
    ) -> None:
        self.rows, self.source, self.learnt = rows, source, learnt
        self.classes, self.order = labels.classes()
        self.class_rows, self.mass = labels.of_classes(labels.rows), labels.of_classes(labels.trained)
        self._cache, self._passes = cache, passes
        self.attributes: dict[str, Any] = {"n_features_in_": cache.width}
        if learnt is None:
            self.attributes["feature_names_in_"] = np.array(source.feature_names, object)

    def objective(self, estimator: Any) -> Objective:
        """What the estimator minimises: the blocks of the cache are its partitions."""
        spec, cache = check_parameters(estimator), self._cache
        factors = class_factors(estimator.class_weight, self.classes, self.mass)
        blocks = _Blocks(cache, self.classes, self.order, factors, spec, self.rows)
        dtype, sample = np.dtype(np.float32), self.rows.memory // SAMPLES // 4
        totals = Totals(tuple(cache.rows), cache.width, cache.stored, dtype, cache.is_sparse, sample)
        return objective_of(estimator, Local(blocks, totals, self.rows.workers), len(self.classes), spec)

    @property
    def reads(self) -> Reads:
        """What was read and written so far."""
        written = self._cache.written
        return Reads(self.source.size, self._passes, written, self._cache.read / max(1, written))


@contextmanager
def cached(rows: Rows, held_out: HeldOut | None = None) -> Iterator[CachedRows]:
    """Read the files, and write their rows to a cache that is deleted at the end.

    ``held_out`` keeps rows out of the cache and of what is learnt; then ``rows.prepare`` must be True.
    """
    block = block_entries(rows.memory)
    source = sources.open_files(rows.files, **rows.options, cells=block)
    rows.notes, passes = source.notes, 1
    labels, learnt = Labels(), None
    if rows.prepare or source.is_sparse:
        learnt, passes = _learn(source, rows, labels, held_out), 2
    width = len(source.feature_names if learnt is None else learnt.feature_names)
    is_sparse = source.is_sparse or (learnt is not None and learnt.has_mostly_levels)
    with RowCache(width, is_sparse, block) as cache:
        for piece in _counted(source, rows, "writing the rows" if passes == 2 else "reading the files"):
            codes = labels.codes(piece)
            count_codes(labels.rows, codes)
            if held_out is not None:
                trained = held_out.to_train(piece, codes)
                piece, codes = piece.take(trained), codes[trained]
            count_codes(labels.trained, codes)
            cache.append(prepared_features(piece, source, learnt if rows.prepare else None), codes)
        cache.finish()
        found = CachedRows(rows, source, learnt, cache, labels, passes)
        where = f"{rows.files}: {rows.options['target'] or 'y'}"
        label_checks.check_classes(where, found.classes, found.class_rows)
        yield found


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


class Labels:
    """The distinct labels in the order in which they came.

    ``rows`` and ``trained`` count the rows of each, and those that are not held out.
    """

    def __init__(self) -> None:
        self._index: dict[str, int] = {}
        self.rows: Counter[int] = Counter()
        self.trained: Counter[int] = Counter()

    def codes(self, piece: Piece) -> Array:
        """The index of each label of the piece, (N,) int32."""
        distinct, inverse = np.unique(piece.labels, return_inverse=True)
        texts = [str(label).lower() if distinct.dtype == bool else str(label) for label in distinct.tolist()]
        codes = np.array([self._index.setdefault(text, len(self._index)) for text in texts], np.int32)
        if len(self._index) > MOST_CLASSES:
            raise DataError(f"{piece.path}: more than {MOST_CLASSES:,} distinct labels; expected classes")
        return codes[inverse] if len(distinct) else np.zeros(0, np.int32)

    def merge(self, other: Labels) -> None:
        """Take the labels that ``other`` has found, and its counts."""
        codes = {code: self._index.setdefault(text, len(self._index)) for text, code in other._index.items()}
        for mine, its in ((self.rows, other.rows), (self.trained, other.trained)):
            mine.update({codes[code]: number for code, number in its.items()})
        if len(self._index) > MOST_CLASSES:
            raise DataError(f"more than {MOST_CLASSES:,} distinct labels; expected classes")

    def of_classes(self, counts: Counter[int]) -> Array:
        """The counts of labels as those of classes, (K,) float64."""
        classes, order = self.classes()
        return np.bincount(order, [counts[code] for code in range(len(order))], len(classes))

    def classes(self) -> tuple[Array, Array]:
        """(classes, sorted: booleans or integers if all labels are, else text; the class of each code)."""
        import polars

        found = tables.classes_of(polars.Series(list(self._index), dtype=polars.String))
        classes, order = np.unique(found, return_inverse=True)
        return classes, order.astype(np.int64, copy=False)


def count_codes(counts: Counter[int], codes: Array) -> None:
    """Count more rows by the codes of their labels."""
    counts.update(dict(enumerate(np.bincount(codes).tolist())))


def _learn(source: Source, rows: Rows, labels: Labels, held_out: HeldOut | None) -> Preprocessor:
    """Learn the preprocessing in one pass over the files; of svmlight the columns too."""
    learner: Learner | SparseLearner = SparseLearner()
    if not source.is_sparse:
        learner = Learner(source.feature_names, source.categories)
    with _named(rows):
        for piece in _counted(source, rows, "learning from the files"):
            if held_out is None:
                learner.add(piece.features)
                continue
            parts: list[Any] | None = [held_out.to_learn(piece, labels.codes(piece))]
            while parts is not None:
                for part in parts:
                    learner.add(part)
                parts = held_out.release(learner.width)
        if held_out is not None:
            held_out.end_learning(learner.width)
        if isinstance(learner, Learner):
            return learner.preprocessor()
        first = source.first if isinstance(source, sources.Svmlight) else None
        return learner.preprocessor(source.feature_names, first or 0)


@contextmanager
def _named(rows: Rows) -> Iterator[None]:
    """Say of which files a column cannot be learnt from."""
    try:
        yield
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{rows.files}: {error}") from None


def _counted(source: Source, rows: Rows, what: str) -> Iterable[Piece]:
    """The pieces of the files, each said to `Rows.progress` when it is done."""
    done = 0
    for piece in source.pieces(block_entries(rows.memory)):
        yield piece
        done += piece.size
        rows.progress(what, done, source.size)


def prepared_features(piece: Piece, source: Source, learnt: Preprocessor | None) -> Any:
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
