"""What a person gives as y, sample_weight and class_weight becomes classes and a Target."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_y, check_array, check_consistent_length

from xent import target
from xent.checks import check_probabilities
from xent.spec import LossSpec
from xent.target import Target

Array = np.ndarray[Any, Any]

LOOKUP = 1 << 16  # widest range of integer labels that is counted in a table, not sorted


class Supervision(NamedTuple):
    """``classes (K,)``, and of each row its class, ``labels (N,)`` int64, or its ``probabilities (N, K)``."""

    classes: Array
    labels: Array | None
    probabilities: Array | None

    @property
    def targets(self) -> Array:
        """The array that `xent.cross_entropy` takes as its targets."""
        return self.probabilities if self.labels is None else self.labels  # type: ignore[return-value]


def supervise(X: Any, y: Any, classes: Array | None = None) -> Supervision:
    """Read ``y``: (N,) labels, or (N, K) floats, rows of probabilities of the classes 0 to K−1.

    ``classes``, sorted, are those that ``y`` may hold; None for those that it does hold.
    """
    shape = np.asarray(y).shape
    if len(shape) == 2 and shape[1] > 1:
        return _probabilities(X, y, classes)
    y = _check_y(y)
    check_consistent_length(X, y)
    check_classification_targets(y)
    if classes is None:
        known, labels = _unique(y)
        if len(known) < 2:
            raise ValueError(f"`y` must hold at least 2 classes; got one class, {known[0]!r}")
        return Supervision(known, labels, None)
    found, inverse = _unique(y)
    index = {label: k for k, label in enumerate(classes.tolist())}
    unknown = [label for label in found.tolist() if label not in index]
    if unknown:
        raise ValueError(f"`y` holds {unknown[0]!r}, which is none of the classes {_listed(classes)}")
    labels = np.array([index[label] for label in found.tolist()], np.int64)[inverse]
    return Supervision(classes, labels, None)


def _probabilities(X: Any, y: Any, classes: Array | None) -> Supervision:
    q = check_array(y, dtype=None, input_name="y")
    if q.dtype.kind != "f":
        raise ValueError(
            "`y` of two axes must be floats, rows of probabilities (one-hot rows too); labels have one "
            f"axis; got shape {q.shape} of {q.dtype}"
        )
    check_consistent_length(X, q)
    check_probabilities(q, "y")
    q = np.ascontiguousarray(q, np.float64)
    if classes is None:
        return Supervision(np.arange(q.shape[1]), None, q)
    if len(classes) != q.shape[1]:
        raise ValueError(f"`y` must have a column for each of {len(classes)} classes; got {q.shape[1]}")
    return Supervision(classes, None, q)


def measure(known: Supervision, sample_weight: Array | None, class_weight: Any, spec: LossSpec) -> Target:
    """The target measure of docs/maths.md; ``sample_weight (N,)`` float64, ``class_weight`` as in `fit`."""
    factors = _class_weight(class_weight, known, sample_weight)
    if known.labels is None:
        result = target.from_probabilities(known.probabilities, factors, sample_weight, spec, np)
    else:
        result = target.from_labels(known.labels, None, len(known.classes), factors, sample_weight, spec, np)
    if not result.total > 0:
        raise ValueError("`sample_weight` times `class_weight` must not be 0 in every row")
    return result


def _class_weight(class_weight: Any, known: Supervision, sample_weight: Array | None) -> Array | None:
    """(K,) factors, None for 1."""
    if class_weight is None:
        return None
    if isinstance(class_weight, str) and class_weight == "balanced":
        return _balanced(known, sample_weight)
    if not isinstance(class_weight, dict):
        raise ValueError(f'`class_weight` must be a dict, "balanced" or None; got {class_weight!r}')
    index = {label: k for k, label in enumerate(known.classes.tolist())}
    factors = np.ones(len(index))
    for label, factor in class_weight.items():
        if label not in index:
            raise ValueError(
                f"`class_weight` names {label!r}, which is no label of `y`: {_listed(known.classes)}"
            )
        if not 0 <= factor < np.inf:
            raise ValueError(f"`class_weight` must be finite and >= 0; got {factor!r} for {label!r}")
        factors[index[label]] = factor
    return factors


def _balanced(known: Supervision, sample_weight: Array | None) -> Array:
    """Σω / (K·Σω_k), 0 for a class of no weight."""
    num_classes = len(known.classes)
    if known.probabilities is None:
        share = np.bincount(known.labels, sample_weight, num_classes).astype(np.float64)  # type: ignore[arg-type]
    elif sample_weight is None:
        share = known.probabilities.sum(0)
    else:
        share = sample_weight @ known.probabilities
    factors = np.zeros(num_classes)
    np.divide(share.sum() / num_classes, share, out=factors, where=share > 0)
    return factors


def _unique(y: Array) -> tuple[Array, Array]:
    """``np.unique(y, return_inverse=True)``; without its sort for a million integers of a small range."""
    if y.dtype.kind in "iu" and y.size:
        least, most = int(y.min()), int(y.max())
        if most - least < LOOKUP:
            shifted = (y - y.dtype.type(least)).astype(np.int64)
            present = np.bincount(shifted) > 0
            return np.flatnonzero(present).astype(y.dtype) + y.dtype.type(least), (present.cumsum() - 1)[
                shifted
            ]
    classes, inverse = np.unique(y, return_inverse=True)
    return classes, inverse.astype(np.int64, copy=False)


def _listed(classes: Array) -> str:
    names = ", ".join(map(repr, classes[:20].tolist()))
    return f"[{names}, …]" if len(classes) > 20 else f"[{names}]"
