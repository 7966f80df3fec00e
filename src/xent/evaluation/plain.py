"""The results of `xent eval` as plain values, for JSON."""

from __future__ import annotations

import math
from typing import Any

from xent.evaluation.class_scores import ClassScores
from xent.evaluation.comparison import Comparison
from xent.evaluation.tally import Evaluation


def evaluation(result: Evaluation, class_names: list[str] | None = None) -> dict[str, Any]:
    """All numbers of one model."""
    values: dict[str, Any] = _plain(result)
    return values | {
        "bits": result.bits,
        "bits_se": result.bits_se,
        "perplexity": result.perplexity,
        "perplexity_interval": result.perplexity_interval,
        "uniform": math.log(result.num_classes),
        "calibration_error": result.calibration_error,
        "class_names": class_names,
    }


def comparison(result: Comparison) -> dict[str, Any]:
    """The numbers of a comparison; its ``rows`` become ``compared_rows``."""
    values: dict[str, Any] = _plain(result)
    del values["groups"]
    return {"compared_rows": values.pop("rows")} | values


def _plain(value: Any) -> Any:
    """Named tuples as dictionaries and sequences as lists, at any depth."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _plain(each) for name, each in value._asdict().items()}
    if isinstance(value, list | tuple | ClassScores):
        return [_plain(each) for each in value]
    return value
