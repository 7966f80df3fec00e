"""Counts that start at 0 in each test; the warning of computed logits has a test of its own."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def counts():
    from xent.torch import fused  # tests without PyTorch are skipped by their modules

    fused.counts.clear()
    fused.counts["computed for nothing"] = 0  # so that none is the first
    yield fused.counts
    fused.counts.clear()
