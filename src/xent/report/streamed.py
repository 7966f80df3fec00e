"""A run of `xent fit` on files that need not fit in memory."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from xent.api.cross_entropy import cross_entropy
from xent.files.dataset import Dataset
from xent.files.errors import DataError
from xent.files.parts.held_out import HeldOut
from xent.files.phrases import counted
from xent.regression.estimator import SoftmaxRegression
from xent.regression.file_rows.cached_rows import CachedRows, cached
from xent.regression.file_rows.rows import Rows
from xent.regression.fitting import Step, fit_objective
from xent.regression.objective import Objective
from xent.regression.sums.partitions import PartitionError
from xent.report import training
from xent.report.training import NO_RESTART, Restart, Run, Settings

if TYPE_CHECKING:
    from xent.regression.dask_rows.files import FilesOnDask

Array = np.ndarray[Any, Any]

HELD_OUT = 8  # of the memory, one part is for rows held out, one for the sample of the others


def run(
    rows: Rows,
    settings: Settings,
    on_step: Callable[[Step], None] | None = None,
    restart: Restart = NO_RESTART,
) -> Run:
    """Train on files as `training.run` does on rows in memory.

    Parameters
    ----------
    rows : Rows
        Of `xent.rows_from` with ``prepare``. An eighth of its ``memory`` bounds the rows held out, another
        the sample of the others that the checks of the data read.
    settings : Settings
    on_step : callable, default None
        Called at each step.
    restart : Restart

    Raises
    ------
    ValueError
        DataError for what is wrong with the files; for a setting out of place, before they are read.
    OSError
        If a file cannot be read, or if there is no room for the cache.
    """
    require_for_parts(settings)
    estimator = training.estimator_for(settings, restart)
    held_out = HeldOut(settings.test_size, settings.seed, rows.memory // HELD_OUT)
    rows = copy(rows)
    rows.memory -= 2 * held_out.memory
    with cached(rows, held_out) as found:
        try:
            result = training.results(FromFiles(found, held_out, settings), estimator, settings, on_step)
        except PartitionError as error:  # too little memory, most likely: not the fault of one partition
            raise error.__cause__ or error from None
        return result._replace(reads=found.reads)


def require_for_parts(settings: Settings) -> None:
    """ValueError for what needs the rows in memory: folds, and a solver that takes rows in its own order."""
    if settings.auto_alpha:
        raise ValueError(
            "`--alpha` must be a number for rows that are read in parts, as cross-validation would read them "
            "anew for each alpha and fold; got auto: choose it on a file of some of the rows"
        )
    if settings.solver == "sgd":
        raise ValueError(
            '`solver` must be "auto", "lbfgs" or "newton-cg" for rows that are read in parts, as "sgd" takes '
            'them in any order; got "sgd"'
        )


class FromFiles:
    """The rows of files, in a cache or with dask's workers: see `training.TrainingRows`."""

    def __init__(self, found: CachedRows | FilesOnDask, held_out: HeldOut, settings: Settings) -> None:
        rows, kept = found.rows, held_out.kept()
        name = str(rows.files)
        notes = found.source.notes
        if held_out.unlabelled:
            notes = (*notes, f"{counted(held_out.unlabelled, 'row')} without a label left out")
        if held_out.share < settings.test_size:
            asked = f"{held_out.share:.2g} of the rows are held out, not {settings.test_size:g}"
            notes = (*notes, f"{asked}: as many as fit in an eighth of --memory")
        self.data = Dataset(
            name,
            kept.features,
            found.classes[found.order[kept.codes]],
            list(found.source.feature_names),
            rows.options["target"] or "target",
            kept.numbers,
            kept.word,
            held_out.unlabelled,
            notes,
            rows.options["dialect"],
            kept.files,
        )
        self.train, self.test = np.flatnonzero(~kept.is_held_out), np.flatnonzero(kept.is_held_out)
        self.is_sample = held_out.sampled < 1
        self.classes, self.class_rows = found.classes, found.class_rows.astype(np.int64)
        if settings.test_size and len(self.test) < 2:
            share = f"{counted(len(self.test), 'row')} of {int(self.class_rows.sum()):,} held out"
            raise DataError(
                f"{name}: {share}, too few to evaluate on: raise --test-size, or --memory, which bounds "
                "them by an eighth"
            )
        assert found.learnt is not None
        self.learnt = found.learnt
        self._found, self._settings = found, settings

    def fit(self, estimator: SoftmaxRegression) -> Objective:
        """See `training.TrainingRows`."""
        objective = self._found.objective(estimator)
        fit_objective(estimator, objective, self.classes, self._found.attributes)
        return objective

    def training_loss(self, step: Step) -> float:
        """See `training.TrainingRows`: the objective less its penalty, or that of the sample."""
        if self._settings.is_plain:
            return step.objective - 0.5 * self._settings.alpha * float(np.square(step.coef).sum())
        x, y = self._sample
        return float(cross_entropy(training.class_scores(x, step.coef, step.intercept), y))

    @cached_property
    def _sample(self) -> tuple[Any, Array]:
        """The prepared features and the labels of the sample."""
        x = self.learnt.transform(self.data.features[self.train])
        return x, np.searchsorted(self.classes, self.data.labels[self.train])
