"""The budget of a chunk of logits where none is given."""

from __future__ import annotations

import numpy as np
import pytest

from xent.engine import chunked_projection
from xent.engine.chunked_projection import MOST_ROWS, Projection

MIB = 1 << 20


def chunk_rows(num_rows: int, width: int, num_classes: int) -> int:
    def nothing(*shape: int) -> np.ndarray:
        return np.broadcast_to(np.float32(0), shape)

    return Projection(nothing(num_rows, width), nothing(num_classes, width), None, None, None).chunk_rows


@pytest.mark.parametrize(
    ("num_rows", "width", "num_classes", "expected"),
    [
        (100, 16, 1000, 100),  # all in 64 MiB
        (2048, 512, 128_000, 512),  # the weight's gradient, 512 rows
        (4096, 1024, 32_000, 1024),
        (2048, 2048, 50_304, 512),  # a quarter of the logits is less than the gradient
        (100_000, 16, 100_000, 168),  # 64 MiB, which is more than a gradient of 6 MiB
        (100_000, 4096, 100_000, 1021),  # no more than 1024 rows, in chunks of almost equal size
    ],
)
def test_default(num_rows: int, width: int, num_classes: int, expected: int) -> None:
    rows = chunk_rows(num_rows, width, num_classes)
    assert abs(rows - expected) <= 0.02 * expected
    assert rows * num_classes * 4 <= max(64 * MIB, min(width, MOST_ROWS) * num_classes * 4)


def test_a_machine_of_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Projection, "memory_bytes", 1024 * MIB)
    assert chunk_rows(2048, 512, 128_000) * 128_000 * 4 <= 64 * MIB
    assert chunked_projection.MEMORY_BYTES > 64 * MIB
