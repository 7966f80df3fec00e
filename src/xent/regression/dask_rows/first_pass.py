"""Fit SoftmaxRegression to dask collections: check each partition, find the classes, then minimise."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from dask.delayed import delayed

from xent.core.spec import LossSpec
from xent.regression import features
from xent.regression.class_targets import (
    as_target,
    class_factors,
    read_targets,
    require_labels,
    require_two_classes,
)
from xent.regression.dask_rows import blocks
from xent.regression.dask_rows.scheduler import compute, new_key, persist
from xent.regression.dask_rows.sums import DaskRows
from xent.regression.fitting import fit_partitions
from xent.regression.parameters import check_parameters
from xent.regression.sums.partitions import Partition, Totals
from xent.regression.sums.threads import single_thread

Array = np.ndarray[Any, Any]


class Block(NamedTuple):
    """The checked rows of a partition."""

    features: Any  # (N, D) array or CSR matrix
    y: Array  # as it was given
    weight: Any
    attributes: dict[str, Any]  # number and names of the features


class Description(NamedTuple):
    """What the client must know of a partition."""

    totals: Totals
    attributes: dict[str, Any]
    classes: Array  # the labels in it, or 0 to K−1 of probabilities
    mass: Array  # the weight of each
    has_labels: bool


def fit(estimator: Any, X: Any, y: Any, sample_weight: Any) -> None:
    """Fit the estimator as its `fit` does.

    The checked rows are persisted: on a cluster they stay in the memory of its workers until the fit ends.
    """
    spec = check_parameters(estimator)
    if y is None:
        raise ValueError("`y` must be labels or probabilities for the rows of `X`; got None")
    blank = type(estimator)(**estimator.get_params(deep=False) | {"callback": None})
    task = delayed(read)
    read_blocks = [
        task(blank, *parts, dask_key_name=new_key("read", index))
        for index, parts in enumerate(blocks.split(X, y, sample_weight))
    ]
    read_blocks = persist(read_blocks, read_blocks)
    descriptions = located(compute(delayed(list)(list(map(delayed(describe), read_blocks))), read_blocks))
    if not descriptions:
        raise ValueError(f"`X` must have at least 1 row; got none in {len(read_blocks)} partitions")
    classes, mass = all_classes(descriptions)
    require_two_classes(classes, mass)
    factors = class_factors(estimator.class_weight, classes, mass)
    task = delayed(as_partition)
    partitions = [
        task(read_blocks[index], classes, factors, spec, dask_key_name=new_key("partition", index))
        for index in descriptions
    ]
    partitions = persist(partitions, partitions)
    del read_blocks
    totals = Totals.merge(description.totals for description in descriptions.values())
    attributes = next(iter(descriptions.values())).attributes
    fit_partitions(estimator, DaskRows(partitions, totals, list(descriptions)), classes, attributes)


def read(estimator: Any, x: list[Any], y: list[Any], weight: list[Any] | None) -> Block | Exception | None:
    """The rows of a partition; None if there are none; the error if they are not what they must be."""
    try:
        X, y_block = blocks.joined(x), np.asarray(blocks.joined(y))
        weight_block = None if weight is None else np.asarray(blocks.joined(weight))
        require_rows(X.shape[0], "y", y_block)
        require_rows(X.shape[0], "sample_weight", weight_block)
        if not X.shape[0]:
            return None
        with single_thread():
            X, attributes = features.check(estimator, X, order="C", reset=True)
        return Block(X, y_block, weight_block, attributes)
    except (TypeError, ValueError) as error:
        return error


def require_rows(rows: int, name: str, values: Any) -> None:
    """Raise ValueError unless there is a value for each row."""
    if values is not None and values.shape[:1] != (rows,):
        raise ValueError(f"`{name}` must have the {rows} rows of `X`; got shape {values.shape}")


def describe(block: Block | Exception | None) -> Description | Exception | None:
    """The description of a block that `read` returned; the error if the targets are not what they must be."""
    if not isinstance(block, Block):
        return block
    has_labels = block.y.ndim < 2 or block.y.shape[1] == 1
    try:
        if has_labels:
            require_labels(block.y)
        classes = np.unique(block.y) if has_labels else np.arange(block.y.shape[1])
        targets = read_targets(block.features, block.y, block.weight, classes)
    except (TypeError, ValueError) as error:
        return error
    totals = Totals.of(Partition(block.features, as_target(targets, None, LossSpec())))
    return Description(totals, block.attributes, classes, targets.mass, has_labels)


def as_partition(block: Block, classes: Array, factors: Array | None, spec: LossSpec) -> Partition:
    """The rows with their targets among the classes of all partitions."""
    targets = read_targets(block.features, block.y, block.weight, classes)
    return Partition(block.features, as_target(targets, factors, spec))


def located(descriptions: list[Description | Exception | None]) -> dict[int, Description]:
    """The descriptions of partitions with rows, by their number; raises the first error with its number."""
    for index, description in enumerate(descriptions):
        if isinstance(description, Exception):
            kind = TypeError if isinstance(description, TypeError) else ValueError
            raise kind(f"partition {index}: {description}") from description
    return {index: each for index, each in enumerate(descriptions) if isinstance(each, Description)}


def all_classes(descriptions: dict[int, Description]) -> tuple[Array, Array]:
    """(classes (K,), the weight of each in all partitions); ValueError where they are of two kinds."""
    first, *_ = descriptions
    for index, description in descriptions.items():
        if _kind(description) != _kind(descriptions[first]):
            raise ValueError(
                f"`y` must be the same in all partitions; got {_kind(description)} in partition {index} and "
                f"{_kind(descriptions[first])} in partition {first}"
            )
    labels = np.concatenate([description.classes for description in descriptions.values()])
    classes, index_of = np.unique(labels, return_inverse=True)
    mass = np.concatenate([description.mass for description in descriptions.values()])
    return classes, np.bincount(index_of, mass, len(classes))


def _kind(description: Description) -> str:
    classes = description.classes
    if not description.has_labels:
        return f"probabilities of {len(classes)} classes"
    if classes.dtype.kind == "O":
        return f"labels of type {type(classes[0]).__name__}"
    return "numbers as labels" if classes.dtype.kind in "biuf" else f"labels of {classes.dtype.type.__name__}"
