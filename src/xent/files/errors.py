"""DataError: what is wrong with a file, in one line. Errors of polars and of the system become one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class DataError(ValueError):
    """What is wrong with the data and where, in one line."""


@contextmanager
def polars_faults(path: str | Path, what: str = "is damaged") -> Iterator[None]:
    """Any error of polars becomes a DataError: "PATH: WHAT: " and the first line of its message.

    A panic of polars derives from BaseException alone. Nothing else is caught.
    """
    import polars

    try:
        yield
    except (polars.exceptions.PolarsError, polars.exceptions.PanicException) as error:
        raise DataError(f"{path}: {what}: {first_line(error)}") from None


@contextmanager
def named_faults(path: str | Path) -> Iterator[None]:
    """Turn an OSError without a file name (a bad offset or size) into a DataError about ``path``."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise DataError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from None


def first_line(error: BaseException) -> str:
    """The first line of the error's message."""
    return str(error).partition("\n")[0]
