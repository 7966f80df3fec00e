"""Predictions and scores of dask collections, lazy: nothing is computed before it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import numpy as np
from dask.delayed import delayed
from sklearn.utils.validation import check_is_fitted

from xent.regression.dask_rows import blocks
from xent.regression.dask_rows.scheduler import Call, new_key, shared
from xent.regression.dask_rows.sums import tree
from xent.regression.sums.partitions import add, evaluate
from xent.regression.sums.threads import single_thread

Array = np.ndarray[Any, Any]


def rows_of(method: Callable[..., Any], estimator: Any, X: Any) -> Any:
    """``method(estimator, X)`` by partition: a dask array, of a list of delayed blocks such a list.

    The chunks of rows are those of X, of unknown size for a dataframe. The estimator may be changed or fitted
    again afterwards: the results are of what it was.
    """
    check_is_fitted(estimator)
    parts = blocks.blocks(X, "X")
    model = snapshot(estimator)
    sample = None if isinstance(X, list | tuple) else method(model, example(X))
    if sample is not None and not hasattr(X, "columns"):
        vars(model).pop("feature_names_in_", None)  # scikit-learn has warned of it once
    call = shared(Call(rows_of_partition, method.__name__, model, sample), model.coef_.nbytes)
    task = delayed(on_partition)
    values = [
        task(call, index, part, dask_key_name=new_key(method.__name__, index))
        for index, part in enumerate(parts)
    ]
    if sample is None:
        return values
    import dask.array

    rows = blocks.chunk_rows(X) or (np.nan,) * len(values)
    chunks = [
        dask.array.from_delayed(value, (number, *sample.shape[1:]), sample.dtype)
        for value, number in zip(values, rows, strict=True)
    ]
    return dask.array.concatenate(chunks, allow_unknown_chunksizes=True)


def score(estimator: Any, X: Any, y: Any, sample_weight: Any) -> Any:
    """The score of all rows, a dask array without axes, of float64; see the estimator's `score`."""
    import dask.array

    check_is_fitted(estimator)
    model = snapshot(estimator)
    call = shared(Call(score_of_partition, model), model.coef_.nbytes)
    task = delayed(on_partition)
    sums = [
        task(call, index, *parts, dask_key_name=new_key("score", index))
        for index, parts in enumerate(blocks.split(X, y, sample_weight))
    ]
    return dask.array.from_delayed(delayed(ratio)(tree(sums, add)), (), np.float64)


def snapshot(estimator: Any) -> Any:
    """A copy that later changes of the estimator do not reach, without its callback."""
    model = copy(estimator)
    model.callback = None
    return model


def example(X: Any) -> Any:
    """One row of zeros of the kind of X."""
    if not hasattr(X, "columns"):
        return np.zeros((1, *X.shape[1:]), X.dtype)
    import pandas

    narrow = all(dtype == np.float32 for dtype in X.dtypes)
    return pandas.DataFrame(np.zeros((1, len(X.columns)), "f4" if narrow else "f8"), columns=X.columns)


def on_partition(call: Call, index: int, *parts: Any) -> Any:
    """``call`` of the blocks of a partition; PartitionError names the partition."""
    with single_thread():
        return evaluate(call, lambda: parts[0], index, *parts[1:])


def rows_of_partition(x: list[Any], name: str, model: Any, sample: Any) -> Array:
    """The model's values for the rows, in the dtype of those of the sample."""
    X = blocks.joined(x)
    rows = X.shape[0]
    if not rows:  # scikit-learn takes at least one
        X, rows = np.zeros((1, model.n_features_in_)), 0
        vars(model := copy(model)).pop("feature_names_in_", None)
    values: Array = getattr(model, name)(X)[:rows]
    return values if sample is None else values.astype(sample.dtype, copy=False)


def score_of_partition(
    x: list[Any], y: list[Any], weight: list[Any] | None, model: Any
) -> tuple[float, float]:
    """(Σ ω score, Σ ω) of the rows."""
    X, y_block = blocks.joined(x), np.asarray(blocks.joined(y))
    weight_block = None if weight is None else np.asarray(blocks.joined(weight))
    mass = float(X.shape[0] if weight_block is None else weight_block.sum())
    if not mass:
        return 0.0, 0.0
    return model.score(X, y_block, weight_block) * mass, mass


def ratio(sums: tuple[float, float]) -> float:
    """The mean; NaN of no rows."""
    return sums[0] / sums[1] if sums[1] else np.nan
