"""Fixtures of the tests of tensors."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["one node", "ordinary code"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to a loss: the single autograd node of a plain call, and the code around statistics."""
    if request.param == "ordinary code":
        from xent.torch import devices

        monkeypatch.setattr(devices, "are_arrays", lambda *tensors: False)
    name: str = request.param
    return name
