"""A run of `xent fit --dask` on Parquet files that dask's workers read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import distributed

from xent.files.parts.held_out import HeldOut
from xent.regression.dask_rows.files import read_files
from xent.regression.file_rows.rows import Rows
from xent.regression.fitting import Step
from xent.regression.sums.partitions import PartitionError
from xent.report import training
from xent.report.streamed import HELD_OUT, FromFiles, require_for_parts
from xent.report.training import NO_RESTART, Restart, Run, Settings

SECONDS = 10  # to wait for the scheduler, and for a worker


def run(
    rows: Rows,
    address: str,
    settings: Settings,
    on_step: Callable[[Step], None] | None = None,
    restart: Restart = NO_RESTART,
) -> Run:
    """Train as `streamed.run` does, on files that the workers of the scheduler at ``address`` read.

    The client gets the rows held out and a sample of the others, each at most an eighth of ``rows.memory``.
    Rows are held out by draws of each file: the i-th row of file f by the i-th draw of the seed and f.

    Raises
    ------
    ValueError
        For what is wrong with the files, for a setting out of place, for a task that failed.
    ConnectionError
        If the scheduler, or a worker, cannot be reached, or the scheduler is lost.
    OSError
        If a worker cannot read a file.
    """
    require_for_parts(settings)
    estimator = training.estimator_for(settings, restart)
    held_out = HeldOut(settings.test_size, settings.seed, rows.memory // HELD_OUT)
    with _connected(address):
        try:
            found = read_files(rows, held_out)
            return training.results(FromFiles(found, held_out, settings), estimator, settings, on_step)
        except PartitionError as error:
            raise ValueError(f"{address}: {error}") from error
        except ModuleNotFoundError as error:
            raise ValueError(f"{address}: dask's workers have no {error.name}: install xent there") from error


@contextmanager
def _connected(address: str) -> Iterator[None]:
    """Make the scheduler at ``address`` dask's. Its own messages are silent: an error is one line."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    client = None
    try:
        try:
            client = distributed.Client(address, timeout=SECONDS)
            client.wait_for_workers(1, timeout=SECONDS)
        except (OSError, ValueError) as error:
            what = "workers" if client is not None else "scheduler"
            message = " ".join(str(error).split()) or type(error).__name__
            raise ConnectionError(f"{address}: dask's {what} cannot be reached: {message}") from error
        yield
    finally:
        if client is not None:
            client.close(timeout=1)
        logging.disable(level)
