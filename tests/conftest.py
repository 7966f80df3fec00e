"""What tests share: every backend with every instruction set, and the Hypothesis profile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import settings

from xent.kernels import cpu, registry
from xent.protocol import Kernels

settings.register_profile("xent", deadline=None, derandomize=True, max_examples=200)
settings.load_profile("xent")


class Backend(NamedTuple):
    """A backend of the registry; ``each`` selects its instruction sets one by one and back again."""

    name: str

    def each(self) -> Iterator[tuple[str, Kernels]]:
        kernels = registry.get(self.name)
        if self.name != "cpu":
            yield self.name, kernels
            return
        best = cpu.isas()[0]
        try:
            for isa in cpu.isas():
                cpu.set_isa(isa)
                yield f"{self.name}/{isa}", kernels
        finally:
            cpu.set_isa(best)


@pytest.fixture(params=[name for name in registry.BACKENDS if name != "reference"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend but the reference."""
    return Backend(request.param)
