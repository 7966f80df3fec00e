"""Fixtures of the tests of linear layers."""

from __future__ import annotations

from collections import Counter

import pytest


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts matrix products."""
    import torch

    counter: Counter[str] = Counter()
    for name in ("matmul", "addmm"):
        plain = getattr(torch, name)

        def counted(*args, plain=plain, **kwargs):
            counter["products"] += 1
            return plain(*args, **kwargs)

        monkeypatch.setattr(torch, name, counted)
    return counter
