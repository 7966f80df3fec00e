"""Which backend computes: looked up by name, loaded when first asked for."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import cast

from xent.core.contract import Kernels

# NumPy arrays, but for "triton": tensors of a GPU.
BACKENDS = {"cpu": "xent.kernels.cpu", "reference": "xent.kernels.reference", "triton": "xent.kernels.triton"}


@cache
def get(name: str) -> Kernels:
    """The backend ``name``; ValueError names the ones that exist."""
    if name not in BACKENDS:
        raise ValueError(f"`backend` must be one of {', '.join(BACKENDS)}; got {name!r}")
    return cast(Kernels, import_module(BACKENDS[name]))
