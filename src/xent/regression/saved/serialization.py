"""Convert a fitted SoftmaxRegression to tensors and JSON, and back with types, shapes and ranges checked."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from xent.files.storage import Contents, decode_labels, encode_labels, entry, shortened
from xent.regression.parameters import check_parameters

E = TypeVar("E")

KIND = "SoftmaxRegression"
# Parameters of the process that fits, which say nothing of the model.
UNSAVED = ("callback", "checkpoint", "checkpoint_interval", "resume")


def encode(estimator: Any) -> Contents:
    """The tensors ``coef`` and ``intercept``, and the metadata entry ``"estimator"``."""
    names = getattr(estimator, "feature_names_in_", None)
    state = {
        "kind": KIND,
        "parameters": plain_parameters(estimator),
        "classes": encode_labels(estimator.classes_),
        "feature_names": None if names is None else names.tolist(),
        "temperature": float(estimator.temperature_),
        "n_iter": int(estimator.n_iter_),
        "loss_curve": [float(value) for value in estimator.loss_curve_],
        "optimality_gap": _plain(estimator.optimality_gap_),
        "solver": estimator.solver_,
    }
    tensors = {"coef": estimator.coef_, "intercept": estimator.intercept_}
    return Contents(tensors, {"estimator": state})


def plain_parameters(estimator: Any) -> dict[str, Any]:
    """The parameters, but those of `UNSAVED`, as JSON; a RandomState, which cannot be, as None."""
    parameters = {
        name: _plain(value) for name, value in estimator.get_params().items() if name not in UNSAVED
    }
    if isinstance(estimator.class_weight, dict):  # keys of JSON are text, and labels need not be
        weights = estimator.class_weight.items()
        parameters["class_weight"] = [[_plain(label), _plain(weight)] for label, weight in weights]
    if not isinstance(parameters["random_state"], int):
        parameters["random_state"] = None
    return parameters


def decode(cls: type[E], contents: Contents) -> E:
    """The inverse of `encode`: an estimator of class ``cls``; ValueError for other contents."""
    state = entry(contents.metadata, "estimator", dict)
    if entry(state, "kind", str) != KIND:
        raise ValueError(f"holds a {shortened(state['kind'])}, no {KIND}")
    estimator = _unfitted(cls, entry(state, "parameters", dict))
    classes = decode_labels(entry(state, "classes", dict))
    coef, intercept = _parameters(contents, len(classes))
    names = entry(state, "feature_names", list, type(None))
    if names is not None:
        if len(names) != coef.shape[1] or not all(isinstance(name, str) for name in names):
            raise ValueError(f"its feature names must be {coef.shape[1]} strings; got {shortened(names)}")
        estimator.feature_names_in_ = np.array(names, dtype=object)
    estimator.classes_ = classes
    estimator.coef_, estimator.intercept_ = coef, intercept
    estimator.n_features_in_ = coef.shape[1]
    estimator.temperature_ = entry(state, "temperature", float)
    if not estimator.temperature_ > 0:
        raise ValueError(f"its temperature must be > 0; got {estimator.temperature_}")
    estimator.n_iter_ = entry(state, "n_iter", int)
    curve = entry(state, "loss_curve", list)
    estimator.loss_curve_ = [entry({"loss_curve": value}, "loss_curve", float) for value in curve]
    estimator.optimality_gap_ = entry(state, "optimality_gap", float, type(None))
    estimator.solver_ = entry(state, "solver", str)
    return estimator  # type: ignore[no-any-return]


def _unfitted(cls: Any, parameters: dict[str, Any]) -> Any:
    parameters = dict(parameters)
    unknown = sorted(parameters.keys() - set(cls().get_params()) | set(UNSAVED) & parameters.keys())
    if unknown:
        raise ValueError(f"its estimator has the unknown parameter {shortened(unknown[0])}")
    weights = parameters.get("class_weight")
    if isinstance(weights, list):
        if not all(isinstance(pair, list) and len(pair) == 2 for pair in weights):
            raise ValueError(f"its class weights must be pairs; got {shortened(weights)}")
        if not all(isinstance(x, str | int | float | bool) for pair in weights for x in pair):
            raise ValueError(f"its class weights must be labels and numbers; got {shortened(weights)}")
        parameters["class_weight"] = dict(weights)
    entry({"random_state": None} | parameters, "random_state", int, type(None))
    estimator = cls(**parameters)
    try:
        check_parameters(estimator)
    except (TypeError, OverflowError) as error:
        raise ValueError(str(error)) from None
    return estimator


def _parameters(contents: Contents, num_classes: int) -> tuple[Any, Any]:
    """(coef, intercept); ValueError if shapes or dtypes do not go together."""
    missing = {"coef", "intercept"} - contents.tensors.keys()
    if missing:
        raise ValueError(f"it lacks the tensor {min(missing)!r}")
    coef, intercept = contents.tensors["coef"], contents.tensors["intercept"]
    rows = num_classes if num_classes > 2 else 1
    fits = coef.ndim == 2 and coef.shape[0] == rows and coef.shape[1] > 0 and intercept.shape == (rows,)
    if num_classes < 2 or not fits:
        raise ValueError(
            f"its coefficients {coef.shape} and intercept {intercept.shape} do not go with "
            f"{num_classes} classes"
        )
    if coef.dtype.kind != "f" or coef.dtype != intercept.dtype:
        raise ValueError(f"its coefficients are {coef.dtype}, its intercept is {intercept.dtype}")
    return coef, intercept


def _plain(value: Any) -> Any:
    """A NumPy scalar as a Python number, for JSON; other values unchanged."""
    return value.item() if isinstance(value, np.generic) else value
