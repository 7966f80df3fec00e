"""Checkpoints: a model file of a fit that has not ended, with all that another process needs to go on.

The file is what `SoftmaxRegression.save` would write of the model after the last step. Beside it are the
state of the solver, tensors whose names begin with `PREFIX`, and the entry ``"checkpoint"``: the counts of
the solver, and what describes the data.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self, get_args, get_origin, get_type_hints

import numpy as np

from xent.files import storage
from xent.files.storage import Contents, entry, shortened
from xent.regression.objective import Objective
from xent.regression.saved.serialization import plain_parameters
from xent.regression.solvers import STATES
from xent.regression.solvers.state import Counts, Snapshot

Array = np.ndarray[Any, Any]

PREFIX = "checkpoint."  # begins the names of the solver's tensors
NUMBERS = (bool, int, float)  # in a state
# Parameters on which the steps depend. `minimise` compares the solver that ran; `max_iter` may be another.
DECISIVE = (
    "alpha",
    "fit_intercept",
    "tol",
    "class_weight",
    "label_smoothing",
    "smoothing_over",
    "focal_gamma",
    "random_state",
)


class Checkpoint(NamedTuple):
    """A checkpoint that was read: the unfinished model, where its solver was, and of what data it is."""

    model: Any  # SoftmaxRegression
    snapshot: Snapshot
    data: dict[str, Any]


def save(model: Any, snapshot: Snapshot, data: dict[str, Any], path: str | Path) -> None:
    """Write a checkpoint at ``path``, atomically; OSError if the file cannot be written.

    Parameters
    ----------
    model : SoftmaxRegression
        With the attributes that it would have if the fit ended here.
    snapshot : Snapshot
    data : dict
        Of `described`.
    path : path
    """
    contents = model.contents()
    state = {PREFIX + name: array for name, array in _arrays(snapshot.state)}
    more = {"counts": snapshot.counts._asdict(), "data": data}
    storage.save(Contents(contents.tensors | state, contents.metadata | {"checkpoint": more}), path)


def load(path: str | Path, cls: Any) -> Checkpoint:
    """The checkpoint at ``path``, of a model of class ``cls``.

    Raises OSError if it cannot be read, ValueError if it is no checkpoint.
    """
    contents = storage.load(path)
    with storage.reading(path):
        if "checkpoint" not in contents.metadata:
            raise ValueError("is no checkpoint: it holds a model alone, from which no fit can go on")
        model = cls.from_contents(contents)
        more = entry(contents.metadata, "checkpoint", dict)
        counts, data = _counts(entry(more, "counts", dict)), entry(more, "data", dict)
        if len(model.loss_curve_) != counts.steps + 1 or model.n_iter_ != counts.steps:
            raise ValueError(f"it has {len(model.loss_curve_)} objectives of {counts.steps} steps")
        if model.solver_ not in STATES:
            raise ValueError(f"its solver is the unknown {shortened(model.solver_)}")
        tensors = {
            name.removeprefix(PREFIX): array
            for name, array in contents.tensors.items()
            if name.startswith(PREFIX)
        }
        size = model.coef_.size + (model.intercept_.size if model.fit_intercept else 0)
        state = _state(STATES[model.solver_], tensors, size)
        state.draws.restore(np.random.RandomState(0))
        return Checkpoint(model, Snapshot(model.solver_, model.loss_curve_[0], counts, state), data)


def described(objective: Objective, classes: Array) -> dict[str, Any]:
    """What a checkpoint says of the data, as JSON; ValueError for labels that cannot be stored."""
    totals = objective.totals
    return {
        "rows of each partition": list(totals.rows),
        "features": totals.num_features,
        "stored features": totals.entries,
        "dtype": totals.dtype.name,
        "sparse": totals.is_sparse,
        "classes": storage.encode_labels(classes),
        "weight of all rows": float(objective.divisor),
    }


def check(estimator: Any) -> None:
    """Check, before any data are read, that a checkpoint can be written, and that ``resume`` is of this fit.

    Raises OSError for a file that cannot be read or written, ValueError for one that is no checkpoint, or is
    of an estimator with other parameters.
    """
    if estimator.checkpoint is not None:
        storage.require_writable(estimator.checkpoint)
    if estimator.resume is not None:
        read(estimator)


def read(estimator: Any, data: dict[str, Any] | None = None) -> Checkpoint:
    """The checkpoint at ``estimator.resume``; ValueError names what differs from this fit."""
    path = estimator.resume
    checkpoint = load(path, type(estimator))
    before, now = plain_parameters(checkpoint.model), plain_parameters(estimator)
    pairs = [(f"`{name}`", before[name], now[name]) for name in DECISIVE]
    if data is not None:
        pairs += [(name, checkpoint.data.get(name), value) for name, value in data.items()]
    for name, old, new in pairs:
        if old != new:
            raise ValueError(
                f"{path}: is a checkpoint of another fit: its {name} is {shortened(old)}, that of this fit "
                f"{shortened(new)}"
            )
    return checkpoint


class Saver:
    """Calls ``write`` with the snapshots of some steps: the first, then one each ``interval`` seconds.

    As a context it also writes the last step when the block ends, by an error or an interrupt too. Steps that
    overflowed are not written.
    """

    def __init__(self, write: Callable[[Snapshot], None], interval: float) -> None:
        self.write = write
        self.interval = interval
        self.due = -math.inf
        self.pending: Snapshot | None = None

    def stepped(self, snapshot: Snapshot) -> None:
        """Take the snapshot of a step."""
        self.pending = snapshot
        if time.monotonic() >= self.due:
            self._write()
            self.due = time.monotonic() + self.interval

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._write()

    def _write(self) -> None:
        """Write what is pending; only once, if it fails."""
        snapshot, self.pending = self.pending, None
        if snapshot is not None and np.isfinite((snapshot.state.point.value, *snapshot.counts)).all():
            self.write(snapshot)


def _counts(values: dict[str, Any]) -> Counts:
    gap, within_reach, lower = (entry(values, name, float) for name in ("gap", "within_reach", "lower"))
    steps, separated = entry(values, "steps", int), entry(values, "separated", bool)
    if steps < 1:
        raise ValueError(f"its steps must be at least 1; got {steps}")
    return Counts(steps, gap, within_reach, lower, separated)


def _arrays(state: Any, prefix: str = "") -> Iterator[tuple[str, Array]]:
    """The fields of a state by name, of a NamedTuple in it as "outer.inner"; float64 arrays, numbers (1,)."""
    for name, value in state._asdict().items():
        if hasattr(value, "_fields"):
            yield from _arrays(value, f"{prefix}{name}.")
        else:
            yield prefix + name, np.array(value, np.float64, ndmin=1)


def _state(cls: Any, tensors: dict[str, Array], size: int, prefix: str = "") -> Any:
    """The inverse of `_arrays`: a NamedTuple ``cls`` with arrays (size,); ValueError for other tensors."""
    values: dict[str, Any] = {}
    lengths = set()
    for name, kind in get_type_hints(cls).items():
        if hasattr(kind, "_fields"):
            values[name] = _state(kind, tensors, size, f"{prefix}{name}.")
            continue
        several = get_origin(kind) is tuple
        each = get_args(kind)[0] if several else kind
        array = tensors.get(prefix + name, np.empty(0, np.float32))
        one = () if each in NUMBERS else (size,)
        shape = (*array.shape[:1], *one) if several else one or (1,)
        if array.dtype != np.float64 or array.shape not in (shape, (0,) * several):  # no arrays are (0,)
            raise ValueError(f"its tensor {PREFIX + prefix + name!r} must be float64 of shape {shape}")
        if several:
            values[name] = tuple(map(each if each in NUMBERS else np.copy, array))
            lengths.add(len(array))
        else:
            values[name] = each(array.item()) if each in NUMBERS else array
    if len(lengths) > 1:
        raise ValueError(f"its tensors {PREFIX + prefix!r} have different lengths")
    return cls(**values)
