"""Parquet files that dask's workers read: a partition for each file, prepared where it is read."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import numpy as np
import scipy.sparse
from dask.delayed import Delayed, delayed

from xent.core.spec import LossSpec
from xent.files import labels as label_checks
from xent.files.errors import DataError
from xent.files.formats import parquet
from xent.files.parts import sources
from xent.files.parts.held_out import HeldOut, Kept
from xent.files.parts.learning import Learner
from xent.files.parts.sources import Tables
from xent.files.preprocess import Preprocessor
from xent.regression.class_targets import ClassTargets, as_target, class_factors
from xent.regression.dask_rows.scheduler import compute, new_key, persist
from xent.regression.dask_rows.sums import DaskRows
from xent.regression.file_rows.cached_rows import Labels, count_codes, prepared_features
from xent.regression.file_rows.rows import Rows
from xent.regression.fitting import objective_of
from xent.regression.objective import Objective
from xent.regression.parameters import check_parameters
from xent.regression.sums.partitions import Partition, Totals
from xent.regression.sums.threads import single_thread

Array = np.ndarray[Any, Any]
T = TypeVar("T")

CELLS = 1 << 31  # of a piece: a file is read as one, as far as polars counts


class Share(NamedTuple):
    """Which rows are held out, and which of the others are in the sample: see `HeldOut`."""

    seed: int
    held_out: float
    sampled: float = 0.0

    def of_file(self, index: int) -> HeldOut:
        """The choice of the rows of one file, by draws of its own."""
        chosen = HeldOut(self.held_out, self.seed, 0, index)
        chosen.sampled = self.sampled
        return chosen


class Prepared(NamedTuple):
    """The rows of a file to train on, and those that the client gets."""

    features: Any
    codes: Array  # (N,) of the labels
    kept: list[Kept]  # of a file with rows, one


class FilesOnDask:
    """The rows of Parquet files with dask's workers; the attributes are those of `CachedRows`."""

    def __init__(
        self, rows: Rows, source: Tables, learnt: Preprocessor, labels: Labels, files: list[Delayed]
    ) -> None:
        self.rows, self.source, self.learnt = rows, source, learnt
        self.classes, self.order = labels.classes()
        self.class_rows, self.mass = labels.of_classes(labels.rows), labels.of_classes(labels.trained)
        self.attributes: dict[str, Any] = {"n_features_in_": len(learnt.feature_names)}
        self._files = files

    def objective(self, estimator: Any) -> Objective:
        """What the estimator minimises; its partitions are persisted in the place of the prepared rows."""
        spec = check_parameters(estimator)
        factors = class_factors(estimator.class_weight, self.classes, self.mass)
        partitions = _tasks(as_partition, self._files, (self.classes, self.order, factors, spec))
        partitions = persist(partitions, partitions)
        self._files = []
        totals = Totals.merge(compute(delayed(list)(list(map(delayed(Totals.of), partitions))), partitions))
        on_dask = DaskRows(partitions, totals, range(len(partitions)))
        return objective_of(estimator, on_dask, len(self.classes), spec)


def read_files(rows: Rows, held_out: HeldOut) -> FilesOnDask:
    """Read files in two passes by dask's workers: learn the preprocessing, then prepare the rows.

    Parameters
    ----------
    rows : Rows
        Of `xent.rows_from`, of files that the workers can see, and of which one fits in a worker's memory.
    held_out : HeldOut
        Gets the rows held out, and the sample. They are the only rows that the client sees.

    Raises
    ------
    ValueError, OSError
        That name the file, as for `SoftmaxRegression.fit` of ``rows``.
    """
    source, count = _good([compute(delayed(opened)(rows.files, rows.options), [])])[0]
    held_out.bound(count, len(source.feature_names))
    share = Share(held_out.seed, held_out.share)
    numbers = list(range(len(source.paths)))
    learners = _gathered([delayed(learn)(source, index, share) for index in numbers])
    labels, learner = Labels(), Learner(source.feature_names, source.categories)
    for more, its_labels, unlabelled in learners:
        learner.merge(more)
        labels.merge(its_labels)
        held_out.unlabelled += unlabelled
    try:
        learnt = learner.preprocessor()
    except ValueError as error:
        raise DataError(f"{rows.files}: {error}") from None
    classes = labels.classes()[0]
    where = f"{rows.files}: {rows.options['target']}"
    label_checks.check_classes(where, classes, labels.of_classes(labels.rows))
    held_out.bound(count, len(source.feature_names), len(learnt.feature_names), len(classes))
    share = Share(held_out.seed, held_out.share, held_out.sampled)
    files = _tasks(prepare, numbers, (source, share, learnt, labels))
    files = persist(files, files)
    for kept, trained in _gathered([delayed(gather)(file, len(labels.rows)) for file in files]):
        held_out.add(kept)
        labels.trained.update(dict(enumerate(trained.tolist())))
    return FilesOnDask(rows, source, learnt, labels, files)


def opened(files: Any, options: dict[str, Any]) -> tuple[Tables, int] | Exception:
    """On a worker: the files as one data set, and the number of their rows."""
    try:
        source = sources.open_files(files, **options)
        if not isinstance(source, Tables) or source.kind != "parquet" or source.files.has_copies:
            raise DataError(f"{source.paths[0]}: is no Parquet file, which is what dask's workers read")
        return source, sum(map(parquet.rows, source.paths))
    except (ValueError, OSError) as error:
        return error


def learn(source: Tables, index: int, share: Share) -> tuple[Learner, Labels, int] | Exception:
    """On a worker: (what the rows of a file to train on teach, its labels, rows without a label)."""
    learner, labels = Learner(source.feature_names, source.categories), Labels()
    held_out = share.of_file(index)
    try:
        with single_thread():
            for piece in _pieces(source, index):
                codes = labels.codes(piece)
                count_codes(labels.rows, codes)
                learner.add(held_out.to_learn(piece, codes))
    except (ValueError, OSError) as error:
        return error
    return learner, labels, held_out.unlabelled


def prepare(index: int, source: Tables, share: Share, learnt: Preprocessor, labels: Labels) -> Any:
    """On a worker: the rows of a file as `Prepared`; the error if they are not what they must be."""
    held_out = share.of_file(index)
    parts: list[Any] = []
    codes = [np.zeros(0, np.int32)]
    try:
        with single_thread():
            for piece in _pieces(source, index):
                its_codes = labels.codes(piece)
                trained = held_out.to_train(piece, its_codes)
                parts.append(prepared_features(piece.take(trained), source, learnt))
                codes.append(its_codes[trained])
    except (ValueError, OSError) as error:
        return error
    is_sparse = learnt.has_mostly_levels
    if not parts:
        none = np.zeros((0, len(learnt.feature_names)), np.float32)
        parts = [scipy.sparse.csr_array(none) if is_sparse else none]
    if len(parts) > 1:
        parts = [scipy.sparse.vstack(parts, "csr") if is_sparse else np.concatenate(parts)]
    return Prepared(parts[0], np.concatenate(codes), held_out.files)


def gather(file: Any, count: int) -> tuple[list[Kept], Array] | Exception:
    """On a worker: (the rows for the client, how many of each of ``count`` labels are trained on)."""
    return (file.kept, np.bincount(file.codes, minlength=count)) if isinstance(file, Prepared) else file


def as_partition(
    file: Prepared, classes: Array, order: Array, factors: Array | None, spec: LossSpec
) -> Partition:
    """On a worker: the prepared rows with their targets."""
    targets = ClassTargets(classes, order[file.codes], None, None)
    return Partition(file.features, as_target(targets, factors, spec))


def _pieces(source: Tables, index: int) -> Any:
    """The rows of one of the files."""
    return source.of_file(index).pieces(CELLS)


def _tasks(function: Any, firsts: list[Any], rest: tuple[Any, ...]) -> list[Delayed]:
    """A task for each of ``firsts``."""
    task = delayed(function)
    return [
        task(first, *rest, dask_key_name=new_key(function.__name__, index))
        for index, first in enumerate(firsts)
    ]


def _gathered(values: list[Delayed]) -> list[Any]:
    """The values; raises the first that is an error."""
    return _good(compute(delayed(list)(values), values))


def _good(values: list[T | Exception]) -> list[T]:
    """The values; raises the first that is an error."""
    for value in values:
        if isinstance(value, Exception):
            raise value
    return values  # type: ignore[return-value]
