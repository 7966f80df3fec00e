"""Convert y, sample_weight and class_weight to the classes and a Target, for all rows or a partition."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, _check_y, check_array, check_consistent_length

from xent.core import target
from xent.core.spec import LossSpec
from xent.core.target import Target
from xent.engine.checks import check_probabilities

Array = np.ndarray[Any, Any]

UNNORMALISED = 1e-3  # |1 − Σ q| above which a row is no distribution
LEAST_TOTAL = 1e-300  # least sum of the weights, as the mean divides by it
LOOKUP = 1 << 16  # integer labels of a range up to this are counted in a table, not sorted


class ClassTargets(NamedTuple):
    """``classes (K,)``, and for each row either its class, ``labels (N,)``, or ``probabilities (N, K)``."""

    classes: Array
    labels: Array | None  # int64 indices into ``classes``
    probabilities: Array | None
    weight: Array | None  # (N,) float64; None for 1

    @property
    def targets(self) -> Array:
        """The array that `xent.cross_entropy` takes as its targets."""
        return self.probabilities if self.labels is None else self.labels  # type: ignore[return-value]

    @property
    def mass(self) -> Array:
        """Weight of each class, (K,)."""
        if self.labels is not None:
            return np.bincount(self.labels, self.weight, len(self.classes)).astype(np.float64)
        q: Array = self.probabilities  # type: ignore[assignment]
        return np.asarray(q.sum(0) if self.weight is None else self.weight @ q)


def read_targets(X: Any, y: Any, sample_weight: Any = None, classes: Array | None = None) -> ClassTargets:
    """Check ``y``: (N,) labels, or (N, K) floats, rows of probabilities of the classes 0 to K−1.

    Warns of rows that do not sum to 1, and leaves them unchanged.
    ``classes``, sorted, are those that ``y`` may hold; None for those in ``y``.
    """
    shape = np.asarray(y).shape
    if len(shape) == 2 and shape[1] > 1:
        all_classes, labels, probabilities = _probabilities(y, classes)
    else:
        all_classes, labels = _labels(y, classes)
        probabilities = None
    check_consistent_length(X, y)
    if sample_weight is not None:
        sample_weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
    targets = ClassTargets(all_classes, labels, probabilities, sample_weight)
    if classes is None:
        require_two_classes(all_classes, targets.mass)
    return targets


def require_two_classes(classes: Array, mass: Array) -> None:
    """Raise ValueError unless two classes have a ``mass (K,)`` > 0, their weight in all rows."""
    if np.count_nonzero(mass) < 2:
        only = classes.tolist()[mass.argmax()]
        raise ValueError(f"`y` must hold at least 2 classes of a weight > 0; got one class, {only!r}")


def _labels(y: Any, classes: Array | None) -> tuple[Array, Array]:
    """(classes, labels (N,) as indices into them)."""
    require_labels(y)
    y = _check_y(y)
    check_classification_targets(y)
    present, inverse = _unique(y)
    if classes is None:
        return present, inverse
    index = {label: k for k, label in enumerate(classes.tolist())}
    unknown = [label for label in present.tolist() if label not in index]
    if unknown:
        raise ValueError(f"`y` holds {unknown[0]!r}, which is none of the classes {listed(classes)}")
    return classes, np.array([index[label] for label in present.tolist()], np.int64)[inverse]


def require_labels(y: Any, name: str = "y") -> None:
    """Raise ValueError at the first label that is missing (None, NaN, pandas' NA) or of another kind."""
    values = np.asarray(y).ravel()
    if isinstance(y, np.ma.MaskedArray) and y.mask.any():
        values = values.astype(object)
        values[np.ma.getmaskarray(y).ravel()] = None
    missing = np.isnan(values) if values.dtype.kind == "f" else np.zeros(1, bool)
    if values.dtype.kind == "O":
        missing = np.fromiter(map(_is_missing, values), bool, len(values))
    if missing.any():
        row = int(missing.argmax())
        raise ValueError(f"`{name}` must hold a label in each row; got {values[row]!r} in row {row}")
    for row, value in enumerate(values if values.dtype.kind == "O" else ()):
        if _kind(value) is not _kind(values[0]):
            rows = f"{values[0]!r} in row 0 and {value!r} in row {row}"
            raise ValueError(f"`{name}` must hold labels of one kind; got {rows}")


def _is_missing(value: Any) -> bool:
    try:
        return value is None or bool(value != value)
    except TypeError:  # NA != NA is NA in pandas, which has no truth value
        return True


def _kind(label: Any) -> type:
    """str, bytes or object; labels of different kinds cannot be sorted together."""
    return str if isinstance(label, str) else bytes if isinstance(label, bytes) else object


def _probabilities(y: Any, classes: Array | None) -> tuple[Array, None, Array]:
    q = check_array(y, dtype=None, input_name="y")
    if q.dtype.kind != "f":
        raise ValueError(
            "`y` of two axes must be floats, rows of probabilities (one-hot rows too); labels have one "
            f"axis; got shape {q.shape} of {q.dtype}"
        )
    check_probabilities(q, "y")
    mass = q.sum(1, dtype=np.float64)
    wrong = np.abs(mass - 1) > UNNORMALISED
    if wrong.any():
        n = int(wrong.argmax())
        rows = "1 row" if wrong.sum() == 1 else f"{int(wrong.sum()):,} rows"
        warnings.warn(
            f"{rows} of `y` with a sum other than 1, the first is row {n} with {mass[n]:.6g}: taken as they "
            "are, so that a row counts as often as its sum says; divide each by its sum if that is not meant",
            UserWarning,
            stacklevel=5,
        )
    if classes is not None and len(classes) != q.shape[1]:
        raise ValueError(f"`y` must have a column for each of {len(classes)} classes; got {q.shape[1]}")
    all_classes = np.arange(q.shape[1]) if classes is None else classes
    return all_classes, None, np.ascontiguousarray(q, np.float64)


def class_factors(class_weight: Any, classes: Array, mass: Array) -> Array | None:
    """(K,) factors, None for 1; ``class_weight`` is None, "balanced" or a dict of numbers.

    ``mass (K,)`` is the weight of each class in all rows, for "balanced".
    """
    if class_weight is None:
        return None
    factors = np.ones(len(classes))
    if isinstance(class_weight, str):  # balanced: Σω / (K·Σω_k)
        np.divide(mass.mean(), mass, out=factors, where=mass > 0)
        return factors
    index = {label: k for k, label in enumerate(classes.tolist())}
    for label, factor in class_weight.items():
        if label not in index:
            raise ValueError(f"`class_weight` names {label!r}, which is no label of `y`: {listed(classes)}")
        factors[index[label]] = factor
    return factors


def as_target(targets: ClassTargets, factors: Array | None, spec: LossSpec) -> Target:
    """The Target of these rows, which may be some of the rows of a fit; ``factors`` as `class_factors`."""
    with np.errstate(over="ignore"):
        if targets.labels is None:
            return target.from_probabilities(targets.probabilities, factors, targets.weight, spec, np)
        labels, num_classes = targets.labels, len(targets.classes)
        return target.signed_from_labels(labels, None, num_classes, factors, targets.weight, spec, np)


def require_total(total: float) -> float:
    """``total``, what the mean divides by; ValueError if it is 0, tiny or infinite."""
    if not total > 0:
        raise ValueError("`sample_weight` times `class_weight` must not be 0 in every row")
    if not LEAST_TOTAL <= total <= 1 / LEAST_TOTAL:
        raise ValueError(
            f"`sample_weight` times `class_weight` must sum to {LEAST_TOTAL:g} to {1 / LEAST_TOTAL:g}; got "
            f"{total:g}"
        )
    return total


def _unique(y: Array) -> tuple[Array, Array]:
    """``np.unique(y, return_inverse=True)``, without sorting where y holds integers of a small range."""
    if y.dtype.kind in "iu" and y.size:
        least = y.min()
        if int(y.max()) - int(least) < LOOKUP:
            # Large uint64 numbers wrap around in int64; their difference is right all the same.
            offset = y.astype(np.int64) - least.astype(np.int64)
            present = np.bincount(offset) > 0
            classes = (np.flatnonzero(present) + least.astype(np.int64)).astype(least.dtype)
            return classes, (present.cumsum() - 1)[offset]
    classes, inverse = np.unique(y, return_inverse=True)
    return classes, inverse.astype(np.int64, copy=False)


def listed(classes: Array) -> str:
    """The first twenty classes as text."""
    names = ", ".join(map(repr, classes[:20].tolist()))
    return f"[{names}, …]" if len(classes) > 20 else f"[{names}]"
