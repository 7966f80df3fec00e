"""What is wrong with a file, in one line, whoever found it: this package, polars or the system."""

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
    """An OSError that names no file is one of ``path``: the system refused a place or a size in it."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise DataError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from None


def first_line(error: BaseException) -> str:
    """Of its message."""
    return str(error).partition("\n")[0]
