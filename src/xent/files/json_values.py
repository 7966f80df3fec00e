"""Values that JSON can hold."""

from __future__ import annotations

import math
from typing import Any


def finite_or_null(value: Any) -> Any:
    """``value``, at any depth of dictionaries and lists, with None for NaN and infinity, which JSON lacks.

    >>> from xent.files.json_values import finite_or_null
    >>> finite_or_null({"loss": float("inf"), "bins": (1, 2.5)})
    {'loss': None, 'bins': [1, 2.5]}
    """
    if isinstance(value, dict):
        return {str(name): finite_or_null(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_null(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
