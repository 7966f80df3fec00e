"""Fit an estimator to partitions of the rows: its parameters before the first step, and its attributes after.

`fit_partitions` is for rows in several places; the estimator's own `fit` is the case of one partition.
"""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from copy import copy
from typing import Any, NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from xent.core.spec import LossSpec
from xent.regression import features
from xent.regression.class_targets import require_total
from xent.regression.objective import Objective
from xent.regression.parameters import check_parameters
from xent.regression.saved import checkpoints
from xent.regression.solvers import OtherObjectiveError, Result, minimise
from xent.regression.solvers.state import Snapshot
from xent.regression.sums.partition_sums import total
from xent.regression.sums.partitions import Partitions

Array = np.ndarray[Any, Any]


class Step(NamedTuple):
    """One step of the training, as a ``callback`` receives it."""

    iteration: int
    objective: float  # mean loss + penalty, nats
    coef: Array  # as `coef_`, float64
    intercept: Array
    optimality_gap: float | None  # bound on the relative distance from the optimum, if there is one


def last_step(estimator: Any) -> Step:
    """The last step of a fitted estimator."""
    gap, parameters = estimator.optimality_gap_, (estimator.coef_, estimator.intercept_)
    return Step(estimator.n_iter_, estimator.loss_curve_[-1], *parameters, gap)


def fit_partitions(
    estimator: Any, partitions: Partitions, classes: Array, attributes: dict[str, Any] | None = None
) -> None:
    """Fit a SoftmaxRegression to checked rows, as its `fit` does.

    Parameters
    ----------
    estimator : SoftmaxRegression
        Its parameters are checked, its attributes set at the end.
    partitions : Partitions
        With the targets of `class_targets.as_target`.
    classes : (K,) array, sorted
        The labels 0 to K−1 of the targets.
    attributes : dict, default None
        ``n_features_in_`` and ``feature_names_in_``; None sets the number alone.
    """
    objective = objective_of(estimator, partitions, len(classes), check_parameters(estimator))
    if attributes is None:
        attributes = {"n_features_in_": objective.num_features}
    fit_objective(estimator, objective, classes, attributes)


def objective_of(estimator: Any, partitions: Partitions, num_classes: int, spec: LossSpec) -> Objective:
    """What the estimator minimises; ValueError if the weights of all rows have no positive, finite sum."""
    divisor = require_total(float(partitions.sum_over(total)))
    alpha, fit_intercept = float(estimator.alpha), estimator.fit_intercept
    return Objective(partitions, spec, divisor, alpha, fit_intercept, num_classes)


def fit_objective(
    estimator: Any, objective: Objective, classes: Array, attributes: dict[str, Any], stacklevel: int = 3
) -> None:
    """Minimise, and set the attributes of the estimator; ConvergenceWarning if the steps do not suffice.

    Reads and writes checkpoints as the estimator's parameters say. Raises OSError for one that cannot be read
    or written, ValueError for one that is of another fit.
    """
    uses_checkpoints = estimator.checkpoint is not None or estimator.resume is not None
    data = checkpoints.described(objective, classes) if uses_checkpoints else {}
    resume, curve = None, list[float]()
    if estimator.resume is not None:
        before = checkpoints.read(estimator, data)
        resume, curve = before.snapshot, before.model.loss_curve_[1:]

    def write(snapshot: Snapshot) -> None:
        model = copy(estimator)
        gap = snapshot.counts.gap if objective.is_convex else None
        parameters, steps = snapshot.state.point.parameters, snapshot.counts.steps
        result = Result(parameters, steps, gap, snapshot.solver, "", snapshot.start_value)
        _set_result(model, objective, result, curve, classes, attributes)
        checkpoints.save(model, snapshot, data, estimator.checkpoint)

    def on_step(snapshot: Snapshot) -> None:
        parameters, value, _ = snapshot.state.point
        curve.append(value)
        if saver is not None:
            saver.stepped(snapshot)
        gap = snapshot.counts.gap if objective.is_convex else None
        step = Step(len(curve), value, *objective.unpack(parameters), gap)
        if estimator.verbose:
            print(_progress(step))
        if estimator.callback is not None:
            estimator.callback(step)

    with ExitStack() as stack:
        saver = None
        if estimator.checkpoint is not None:
            saver = stack.enter_context(checkpoints.Saver(write, estimator.checkpoint_interval))
        try:
            result = minimise(
                objective,
                start(estimator, objective, classes, warm=estimator.warm_start),
                solver=estimator.solver,
                max_iter=estimator.max_iter,
                tol=estimator.tol,
                random_state=estimator.random_state,
                on_step=on_step,
                resume=resume,
            )
        except OtherObjectiveError as error:
            raise ValueError(f"{estimator.resume}: is a checkpoint of another fit: {error}") from None
    _set_result(estimator, objective, result, curve, classes, attributes)
    estimator.__dict__.pop("_stream", None)
    if result.message:
        warnings.warn(f"SoftmaxRegression {result.message}", ConvergenceWarning, stacklevel=stacklevel)


def _set_result(
    estimator: Any,
    objective: Objective,
    result: Result,
    curve: list[float],
    classes: Array,
    attributes: dict[str, Any],
) -> None:
    """Set the attributes of a fitted estimator; ``curve`` are the objectives after each step."""
    set_parameters(estimator, objective, result.params, attributes)
    estimator.classes_ = classes
    estimator.loss_curve_ = [result.start_value, *curve]
    estimator.n_iter_ = result.n_iter
    estimator.optimality_gap_ = result.optimality_gap
    estimator.solver_ = result.solver


def start(estimator: Any, objective: Objective, classes: Array, warm: bool) -> Array:
    """Zeros; if ``warm``, the last parameters for classes that the estimator has already."""
    coef = np.zeros((objective.num_scores, objective.num_features))
    intercept = np.zeros(objective.num_scores)
    if warm and hasattr(estimator, "coef_") and estimator.coef_.shape[1] == objective.num_features:
        old = {label: k for k, label in enumerate(estimator.classes_.tolist())}
        common = [(k, old[label]) for k, label in enumerate(classes.tolist()) if label in old]
        last = _class_rows(estimator.coef_), _class_rows(estimator.intercept_[:, None])
        rows = np.concatenate(last, axis=1)
        new = np.zeros((len(classes), rows.shape[1]))
        new[[k for k, _ in common]] = rows[[k for _, k in common]]
        new = new if objective.num_scores > 1 else new[1:] - new[:1]
        coef, intercept = new[:, :-1], new[:, -1]
    return objective.pack(coef, intercept)


def set_parameters(
    estimator: Any, objective: Objective, parameters: Array, attributes: dict[str, Any]
) -> None:
    """Set ``coef_`` and ``intercept_`` in the dtype of the features, and ``temperature_`` to 1."""
    dtype = objective.totals.dtype
    coef, intercept = objective.unpack(parameters)
    if len(intercept) > 1:  # a constant added to all rows changes no probability: take mean 0
        coef, intercept = coef - coef.mean(0), intercept - intercept.mean()
    coef, intercept = features.as_weights(coef, dtype), features.as_weights(intercept, dtype)
    estimator.coef_, estimator.intercept_, estimator.temperature_ = coef, intercept, 1.0
    features.set_attributes(estimator, attributes)


def _class_rows(coef: Array) -> Array:
    """One row for each class; a single row w becomes (−w/2, w/2), the two rows of least norm."""
    return coef if len(coef) > 1 else np.concatenate([-coef / 2, coef / 2])


def _progress(step: Step) -> str:
    gap = (
        "" if step.optimality_gap is None else f", at most {step.optimality_gap:.1e} of it above the minimum"
    )
    return f"step {step.iteration}: objective {step.objective:.6f}{gap}"
