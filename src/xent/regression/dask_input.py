"""Tell dask collections from arrays, without dask, and hand them on to `xent.regression.dask_rows`."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

Method = TypeVar("Method", bound=Callable[..., Any])


def is_dask(*arguments: Any) -> bool:
    """Whether one of them is a dask collection, or a list that begins with one."""
    firsts = (x[0] if isinstance(x, list | tuple) and x else x for x in arguments)
    return any(type(x).__module__.partition(".")[0] == "dask" for x in firsts)


def lazy_on_dask(method: Method) -> Method:
    """A ``method(self, X)`` that returns one value a row: of a dask X lazily, as a dask collection."""

    @wraps(method)
    def of_rows(self: Any, X: Any) -> Any:
        if is_dask(X):
            from xent.regression.dask_rows.predictions import rows_of

            return rows_of(method, self, X)
        return method(self, X)

    return cast(Method, of_rows)
