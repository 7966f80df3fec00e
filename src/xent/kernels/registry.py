"""The backends by name, each imported at its first use."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import cast

from xent.core.contract import Kernels

# "triton" takes tensors of a GPU, the others NumPy arrays.
BACKENDS = {"cpu": "xent.kernels.cpu", "reference": "xent.kernels.reference", "triton": "xent.kernels.triton"}


@cache
def get(name: str) -> Kernels:
    """The backend ``name``; ValueError if there is none."""
    if name not in BACKENDS:
        raise ValueError(f"`backend` must be one of {', '.join(BACKENDS)}; got {name!r}")
    return cast(Kernels, import_module(BACKENDS[name]))
