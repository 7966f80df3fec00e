"""The one table of logits: their shapes, their scales and the layouts of their memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.tables.tolerance import DTYPES

Array = np.ndarray[Any, Any]
Layout = Callable[[tuple[int, ...], Any], Array]

SCALES = ("0.02", "1", "30", "1e4", "masked", "ties", "poisoned")
SHAPES = [(n, k) for k in (1, 2, 10, 127, 2049) for n in (1, 63, 257)] + [(16, 3), (128, 10), (2, 128256)]


def _image(shape: tuple[int, ...], dtype: Any) -> Array:
    return np.moveaxis(np.empty((*shape[:-2], shape[-1], shape[-2]), dtype), -2, -1)


# Each makes an empty array of (rows..., K) with its own strides; the values are filled in afterwards.
LAYOUTS: dict[str, Layout] = {
    "contiguous": np.empty,
    "rows_strided": lambda s, d: np.empty((2 * s[0], *s[1:]), d)[::2],
    "classes_strided": lambda s, d: np.empty((*s[:-1], 2 * s[-1]), d)[..., ::2],
    "both_strided": lambda s, d: np.empty((3 * s[0], *s[1:-1], 2 * s[-1]), d)[::3, ..., ::2],
    "class_first": lambda s, d: np.moveaxis(np.empty((s[-1], *s[:-1]), d), 0, -1),
    "image": _image,
    "fortran": lambda s, d: np.empty(s, d, order="F"),
    "rows_reversed": lambda s, d: np.empty(s, d)[::-1],
    "classes_reversed": lambda s, d: np.empty(s, d)[..., ::-1],
    "offset": lambda s, d: np.empty((*s[:-1], s[-1] + 1), d)[..., 1:],
}


def make_logits(
    scale: str, shape: tuple[int, ...], dtype: str, rng: np.random.Generator, layout: Layout = np.empty
) -> Array:
    """Read-only logits: normal ones of a scale; or small integers, with −inf, or with rows of NaN and inf."""
    logits = layout(shape, DTYPES[dtype])
    logits[...] = _values(scale, shape, dtype, rng)
    logits.flags.writeable = False
    return logits


def _values(scale: str, shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> Array:
    if scale == "ties":
        return rng.integers(-2, 3, shape).astype(DTYPES[dtype])
    factor = 3.0 if scale in ("masked", "poisoned") else float(scale)
    logits = np.asarray(rng.normal(size=shape) * factor)
    if dtype == "float16":
        logits = logits.clip(-65504, 65504)
    if scale == "masked":
        logits[..., 1:][rng.random(logits[..., 1:].shape) < 0.3] = -np.inf
    if scale == "poisoned":
        rows = logits.reshape(-1, shape[-1])
        for row, value in enumerate((np.nan, np.inf, -np.inf)):
            rows[row::7, :: 1 if value == -np.inf else 3] = value
    return logits.astype(DTYPES[dtype])
