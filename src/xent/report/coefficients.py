"""The coefficients of a trained model: what each feature adds to the score of each class."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from xent.files import storage
from xent.regression.model_file import Model

if TYPE_CHECKING:
    import polars

Array = np.ndarray[Any, Any]

INTERCEPT = "(intercept)"  # its name among the features of `table`


class Coefficients(NamedTuple):
    """Of C scores and F features: one score for each class, or of two classes that of the second alone.

    ``scaled`` is what the score gains for 1 more of the feature as the training had it: for a column of
    numbers one standard deviation, in sparse data its largest value; for a level, or a missing value, that
    the row has it. ``per_unit`` is what it gains for 1 more of the column as it is in the data. The score of
    the second of two classes is the logarithm of its odds; of more classes, the difference of two scores is
    that of the odds of these two, and each feature's coefficients sum to 0 over the classes.
    """

    classes: list[Any]
    against: Any  # the first of two classes, otherwise None
    features: list[str]
    scaled: Array  # (C, F)
    per_unit: Array
    intercept_scaled: Array  # (C,): the score where all features are 0, as the training had them
    intercept_per_unit: Array  # where all columns are 0, and no level is there


class Effect(NamedTuple):
    """One feature on one class, as a bar from ``start`` to ``start + share``, in %; 50 is 0."""

    feature: str
    scaled: float
    per_unit: float
    start: float
    share: float


def coefficients(model: Model) -> Coefficients:
    """Those of ``model``, in float64.

    >>> import numpy as np
    >>> from xent.report.coefficients import coefficients
    >>> from xent.regression.model_file import Model
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


def largest(found: Coefficients, row: int, most: int) -> list[Effect]:
    """The ``most`` features of the largest scaled coefficients of one class, the largest first; none of 0."""
    scaled = found.scaled[row]
    order = np.argsort(-np.abs(scaled), kind="stable")[:most]
    widest = np.abs(found.scaled).max(initial=0.0) or 1.0
    return [
        Effect(
            found.features[j],
            float(scaled[j]),
            float(found.per_unit[row, j]),
            50 + 50 * min(0.0, float(scaled[j]) / widest),
            50 * abs(float(scaled[j])) / widest,
        )
        for j in order
        if scaled[j] != 0
    ]


def plain(found: Coefficients, most: int | None = None) -> dict[str, Any]:
    """For JSON, in their order: all features, or the ``most`` whose largest coefficient is largest."""
    kept = np.arange(len(found.features))
    if most is not None and len(kept) > most:
        kept = np.sort(np.argsort(-np.abs(found.scaled).max(axis=0), kind="stable")[:most])
    return {
        "classes": found.classes,
        "against": found.against,
        "features": [found.features[j] for j in kept],
        "left_out": len(found.features) - len(kept),
        "scaled": found.scaled[:, kept].tolist(),
        "per_unit": found.per_unit[:, kept].tolist(),
        "intercept": {
            "scaled": found.intercept_scaled.tolist(),
            "per_unit": found.intercept_per_unit.tolist(),
        },
    }


def write(found: Coefficients, path: Path) -> None:
    """`table` as CSV or Parquet, by the ending of ``path``; OSError if that cannot be."""
    frame = table(found)
    if path.suffix == ".csv":
        storage.write(path, frame.write_csv().encode())
        return
    whole = io.BytesIO()
    frame.write_parquet(whole)
    storage.write(path, whole.getvalue())


def table(found: Coefficients) -> polars.DataFrame:
    """One row for each class and feature, the class's intercept first: class, feature, scaled, per_unit."""
    import polars

    names = [INTERCEPT, *found.features]
    return polars.DataFrame(
        {
            "class": np.repeat([str(each) for each in found.classes], len(names)),
            "feature": names * len(found.classes),
            "scaled": np.column_stack([found.intercept_scaled, found.scaled]).ravel(),
            "per_unit": np.column_stack([found.intercept_per_unit, found.per_unit]).ravel(),
        },
        schema_overrides={"class": polars.String, "feature": polars.String},
    )
