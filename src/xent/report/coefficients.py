"""The coefficients of a trained model: how much each feature adds to the score of each class."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from xent.files import storage
from xent.regression.saved.model_file import Model

if TYPE_CHECKING:
    import polars

Array = np.ndarray[Any, Any]

INTERCEPT = "(intercept)"  # its name among the features of `table`


class Coefficients(NamedTuple):
    """The coefficients for C scores and F features; C is 1 for two classes, otherwise the number of classes.

    ``scaled`` is the gain of the score for 1 more of the scaled feature: for a column of numbers one standard
    deviation, or in sparse data its largest value; for a level, or a missing value, that the row has it.
    ``per_unit`` is the gain for 1 more of the column in the units of the data. With two classes the score is
    the logarithm of the odds of the second. With more, the difference of two scores is the logarithm of their
    odds, and the coefficients of a feature sum to 0 over the classes.
    """

    classes: list[Any]
    against: Any  # the first of two classes; None for more classes
    features: list[str]
    scaled: Array  # (C, F)
    per_unit: Array
    intercept_scaled: Array  # (C,) score where all scaled features are 0
    intercept_per_unit: Array  # (C,) score where all columns are 0 and no level is present


class Effect(NamedTuple):
    """The effect of a feature on a class, and its bar from ``start`` to ``start + share`` in %; 50 is 0."""

    feature: str
    scaled: float
    per_unit: float
    start: float
    share: float


def coefficients(model: Model) -> Coefficients:
    """The coefficients of ``model``, in float64.

    >>> import numpy as np
    >>> from xent.report.coefficients import coefficients
    >>> from xent.regression.saved.model_file import Model
    >>> from xent.files.preprocess import Preprocessor
    >>> from xent.regression.estimator import SoftmaxRegression
    >>> x, y = np.array([[10.0], [20.0], [30.0], [40.0]]), ["no", "no", "yes", "yes"]
    >>> learnt = Preprocessor.fit(x, ["age"])
    >>> c = coefficients(Model(SoftmaxRegression().fit(learnt.transform(x), y), learnt, {}))
    >>> c.classes, c.against, bool(np.isclose(c.scaled[0, 0], c.per_unit[0, 0] * x.std()))
    (['yes'], 'no', True)
    """
    estimator, learnt = model.estimator, model.preprocessor
    classes = estimator.classes_.tolist()
    scaled, intercept = (np.asarray(each, np.float64) for each in (estimator.coef_, estimator.intercept_))
    numbers = len(learnt.numbers)
    with np.errstate(over="ignore"):
        of_numbers = scaled[:, :numbers] / learnt.scale
        per_unit = np.concatenate([of_numbers, scaled[:, numbers:]], axis=1)
        at_zero = intercept - of_numbers @ learnt.mean
    two = len(scaled) == 1
    return Coefficients(
        classes=classes[1:] if two else classes,
        against=classes[0] if two else None,
        features=learnt.feature_names,
        scaled=scaled,
        per_unit=per_unit,
        intercept_scaled=intercept,
        intercept_per_unit=at_zero,
    )


def largest(values: Coefficients, row: int, most: int) -> list[Effect]:
    """The ``most`` largest scaled coefficients of class ``row``, the largest first; without zeros."""
    scaled = values.scaled[row]
    order = np.argsort(-np.abs(scaled), kind="stable")[:most]
    widest = np.abs(values.scaled).max(initial=0.0) or 1.0
    return [
        Effect(
            values.features[j],
            float(scaled[j]),
            float(values.per_unit[row, j]),
            50 + 50 * min(0.0, float(scaled[j]) / widest),
            50 * abs(float(scaled[j])) / widest,
        )
        for j in order
        if scaled[j] != 0
    ]


def plain(values: Coefficients, most: int | None = None) -> dict[str, Any]:
    """As a dict for JSON: all features, or the ``most`` with the largest coefficients, in their order."""
    kept = np.arange(len(values.features))
    if most is not None and len(kept) > most:
        kept = np.sort(np.argsort(-np.abs(values.scaled).max(axis=0), kind="stable")[:most])
    return {
        "classes": values.classes,
        "against": values.against,
        "features": [values.features[j] for j in kept],
        "left_out": len(values.features) - len(kept),
        "scaled": values.scaled[:, kept].tolist(),
        "per_unit": values.per_unit[:, kept].tolist(),
        "intercept": {
            "scaled": values.intercept_scaled.tolist(),
            "per_unit": values.intercept_per_unit.tolist(),
        },
    }


def write(values: Coefficients, path: Path) -> None:
    """Write `table` as CSV or Parquet, by the suffix of ``path``; OSError if the file cannot be written."""
    frame = table(values)
    if path.suffix == ".csv":
        storage.write(path, frame.write_csv().encode())
        return
    whole = io.BytesIO()
    frame.write_parquet(whole)
    storage.write(path, whole.getvalue())


def table(values: Coefficients) -> polars.DataFrame:
    """One row for each class and feature, the class's intercept first: class, feature, scaled, per_unit."""
    import polars

    names = [INTERCEPT, *values.features]
    return polars.DataFrame(
        {
            "class": np.repeat([str(each) for each in values.classes], len(names)),
            "feature": names * len(values.classes),
            "scaled": np.column_stack([values.intercept_scaled, values.scaled]).ravel(),
            "per_unit": np.column_stack([values.intercept_per_unit, values.per_unit]).ravel(),
        },
        schema_overrides={"class": polars.String, "feature": polars.String},
    )
