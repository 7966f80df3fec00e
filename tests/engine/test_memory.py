"""Large gradients of arrays are made in memory that an earlier gradient gave back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xent
from xent.engine import memory

pytestmark = pytest.mark.skipif(not hasattr(memory.mmap, "MADV_HUGEPAGE"), reason="the pool is for Linux")
Z = np.random.default_rng(0).normal(size=(2048, 1024)).astype(np.float32)
Y = np.arange(2048) % 1024
W = np.ones((1024, 1024), np.float32)


@pytest.fixture(autouse=True)
def empty_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_kept", [])


CALLS: dict[str, Any] = {
    "cross_entropy_with_grad": lambda: xent.cross_entropy_with_grad(Z, Y)[1],
    "options": lambda: xent.cross_entropy_with_grad(Z, Y, label_smoothing=0.1, z_loss=0.1)[1],
    "hvp": lambda: xent.cross_entropy_hvp(Z, Y, Z),
    "log_softmax": lambda: xent.log_softmax(Z),
    "binary": lambda: xent.binary_cross_entropy_with_grad(Z, np.ones_like(Z))[1],
    "linear": lambda: xent.linear_cross_entropy_with_grad(Z[:512], W, Y[:512])[1].dweight,
}


@pytest.mark.parametrize("name", CALLS)
def test_a_gradient_is_made_where_an_earlier_one_was(name: str) -> None:
    first = CALLS[name]()
    copy, place = first.copy(), first.ctypes.data
    second = CALLS[name]()
    assert second.ctypes.data != place
    del first, second
    assert memory._kept
    places = set()
    for _ in range(2):
        again = CALLS[name]()
        places.add(again.ctypes.data)
        np.testing.assert_array_equal(again, copy)
        del again
    assert len(places) == 1


def test_a_view_keeps_its_gradient() -> None:
    view = xent.cross_entropy_with_grad(Z, Y)[1][3:5]
    copy = view.copy()
    others = [xent.cross_entropy_with_grad(-Z, Y)[1] for _ in range(3)]
    np.testing.assert_array_equal(view, copy)
    assert all(not np.may_share_memory(view, other) for other in others)


def test_release_memory() -> None:
    gradient = xent.cross_entropy_with_grad(Z, Y)[1]
    assert xent.release_memory() == 0  # it is in use
    del gradient
    assert xent.release_memory() == Z.nbytes
    assert xent.release_memory() == 0
    assert not memory._kept
