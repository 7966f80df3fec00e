"""Fit to the rows of files that need not fit in memory: `rows_from` names them, `fit_rows` reads them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from xent.files.formats.csv_table import Dialect
from xent.files.preprocess import Preprocessor
from xent.regression.file_rows.cached_rows import Reads, cached
from xent.regression.fitting import fit_objective
from xent.regression.parameters import check_parameters

Progress = Callable[[str, int, int], None]

MEMORY = 1 << 30  # bytes
LEAST_MEMORY = 1 << 24


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
        Parquet or CSV files with the same columns of the same types, or svmlight files; also compressed, or
        JSON Lines, Arrow or Excel files, which are first converted to temporary files in the same folder. Of
        a directory its files, but those whose names begin with a point or an underscore; their order is that
        of the names.
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
    return Rows(files, options, prepare, memory, workers, progress or _silent)


def _silent(what: str, done: int, total: int) -> None:
    """Show no progress; a function of the module, so that `Rows` can be pickled."""


def _listed(name: str, values: Any, kind: Any) -> tuple[Any, ...]:
    """The values as a tuple; TypeError unless they are an iterable of ``kind``, and not one name."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise TypeError(f"`{name}` must be an iterable of names; got {values!r:.50}")
    each = tuple(values)
    if not all(isinstance(value, kind) for value in each):
        raise TypeError(f"`{name}` must be names; got {each!r:.50}")
    return each


def require_memory(**arguments: Any) -> None:
    """TypeError that names an argument which is `Rows`, where only rows in memory are taken."""
    for name, value in arguments.items():
        if isinstance(value, Rows):
            raise TypeError(
                f"`{name}` must be in memory here; got xent.rows_from, which only `fit` takes, as `X`: read "
                "the columns of features as an array or a dataframe, some rows at a time if there are many"
            )


def fit_rows(estimator: Any, rows: Rows, y: Any, sample_weight: Any) -> None:
    """Fit a SoftmaxRegression to ``rows``, as its `fit` does; an error leaves the estimator unchanged.

    ``y`` and ``sample_weight`` must be None, as the files have the labels.
    """
    for name, value in (("y", y), ("sample_weight", sample_weight)):
        if value is not None:
            raise ValueError(f"`{name}` must be None for rows of files; got {type(value).__name__}")
    check_parameters(estimator)
    with cached(rows) as found:
        fit_objective(estimator, found.objective(estimator), found.classes, found.attributes, stacklevel=4)
        rows.reads = found.reads
        rows.preprocessor = found.learnt if rows.prepare else None
