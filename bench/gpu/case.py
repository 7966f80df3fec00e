"""What the benchmark of a GPU times: cases, and who computes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Protocol

import torch

Tensor = torch.Tensor
Call = Callable[[], dict[str, Tensor]]  # what it computed, by the names that `Case.require_right` knows


class Provider(NamedTuple):
    """Who is timed: its call, the work that it must do at least (bytes, operations), how wrong it may be."""

    call: Call
    work: int
    tolerance: float


class Case(Protocol):
    """One row of the table: what its providers are, and what they must compute."""

    name: str

    def providers(self) -> Iterator[tuple[str, Provider]]:
        """By name; the first one is what the others are measured by."""
        ...

    def require_right(self, name: str, results: Mapping[str, Tensor], tolerance: float) -> None:
        """ValueError unless ``results`` agree with float64."""
        ...
