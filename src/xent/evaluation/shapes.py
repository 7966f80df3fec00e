"""Check that the shapes and dtypes of outputs, targets and columns of the rows go together."""

from __future__ import annotations

import math
from collections.abc import Sequence

from xent.evaluation.scoring import Settings
from xent.files.arrays.row_stream import RowReader

FLOATS = ("float64", "float32", "float16", "bfloat16")
INTEGERS = tuple(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64))


def check(outputs: RowReader, targets: RowReader, settings: Settings) -> bool:
    """Whether the targets are distributions; ValueError if shapes or dtypes do not go together."""
    if settings.top_k < 1:
        raise ValueError(f"`--top-k` must be >= 1; got {settings.top_k}")
    if len(outputs.shape) < 2 or not outputs.shape[-1]:
        raise ValueError(f"{outputs.name}: expected shape (..., classes); got {outputs.shape}")
    if outputs.dtype not in (FLOATS if settings.probabilities else (*FLOATS, *INTEGERS)):
        raise ValueError(
            f"{outputs.name}: expected floating-point numbers, one of {', '.join(FLOATS)}; got "
            f"{outputs.dtype}"
        )
    rows = outputs.shape[:-1]
    if not math.prod(rows):  # without rows the file may claim any number of classes: allocate nothing
        raise ValueError(f"{outputs.name}: no row to score: it has shape {outputs.shape}")
    if targets.dtype == "bool" and outputs.shape[-1] != 2:
        raise ValueError(
            f"{targets.name}: booleans are labels of 2 classes; got bool, but {outputs.shape[-1]:,} classes"
        )
    if targets.dtype in (*INTEGERS, "bool"):
        if targets.shape not in (rows, (*rows, 1)):
            expected = f"labels of shape {rows}, one for each row of {outputs.name}"
            raise ValueError(f"{targets.name}: expected {expected}; got {targets.shape}")
        if targets.row != (1,):  # labels (B, T) of logits (B, T, K) are read as single numbers
            targets.row = ()
        return False
    if targets.dtype not in FLOATS:
        raise ValueError(f"{targets.name}: expected integer labels or probabilities; got {targets.dtype}")
    if targets.shape != outputs.shape:
        raise ValueError(
            f"{targets.name}: numbers with a fraction are probabilities of shape {outputs.shape}, labels are "
            f"integers of shape {rows}; got {targets.dtype} of shape {targets.shape}"
        )
    return True


def check_same(models: Sequence[RowReader]) -> None:
    """ValueError if the second of two models has other rows or classes than the first."""
    first = models[0]
    for other in models[1:]:
        if other.shape[-1:] != first.shape[-1:]:
            raise ValueError(
                f"{other.name}: has {other.shape[-1]:,} classes, {first.name} {first.shape[-1]:,}; "
                "two models need the same"
            )
        if other.shape != first.shape:
            raise ValueError(
                f"{other.name}: has shape {other.shape}, {first.name} {first.shape}; two models need "
                "the same rows"
            )
