"""Rows held out of files: by their number alone, within the memory, and never learnt from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import scipy.sparse

from xent.files.formats import row_numbers
from xent.files.parts.held_out import CLASS, FEATURE, HeldOut
from xent.files.parts.sources import Piece

ROWS, SEED = 1000, 3
X = np.random.default_rng(0).standard_normal((ROWS, 4))
CODES = np.minimum(np.arange(ROWS) % 300, 3)  # class 3 begins in row 3
DRAWS = np.random.default_rng(SEED).random(ROWS)
DRAWS[:4] = 1.0
ROW = 4 * FEATURE + 4 * CLASS  # bytes


def pieces(size: int, kind: str) -> list[Piece]:
    """The rows in pieces of a table or of a CSR matrix, as if of two files."""
    table = pl.DataFrame(X, schema=list("abcd")) if kind == "table" else scipy.sparse.csr_array(X)
    numbers = row_numbers.one_based(ROWS)
    rows = [np.arange(start, min(start + size, ROWS)) for start in range(0, ROWS, size)]
    return [Piece(table[each], CODES[each], Path(f"{each[0] // 500}"), numbers, each, 0, 1) for each in rows]


def passes(held_out: HeldOut, size: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """(rows learnt from, rows trained on) of two passes, as features."""
    learnt = []
    width = 4 if kind == "table" else None
    for piece in pieces(size, kind):
        parts = [held_out.to_learn(piece, CODES[piece.kept])]
        while parts is not None:
            learnt += parts
            parts = held_out.release(width)
    held_out.end_learning(width)
    trained = []
    for piece in pieces(size, kind):
        rows = held_out.to_train(piece, CODES[piece.kept])
        trained.append(piece.take(rows).features)
    return tuple(
        np.concatenate([x.to_numpy() if kind == "table" else x.toarray() for x in each])
        for each in (learnt, trained)
    )


def in_order(x: np.ndarray) -> np.ndarray:
    return x[np.lexsort(x.T)]


@pytest.mark.parametrize("kind", ["table", "csr"])
@pytest.mark.parametrize("size", [23, 250, ROWS])
@pytest.mark.parametrize(
    ("memory", "share", "sampled"),
    [(ROWS * ROW, 0.25, 1.0), (260 * ROW, 0.25, 0.26), (200 * ROW, 0.125, 0.2), (20 * ROW, 0.25 / 16, 0.02)],
)
def test_rows_are_held_out_by_their_number_as_many_as_fit(kind, size, memory, share, sampled):
    held_out = HeldOut(0.25, SEED, memory)
    learnt, trained = passes(held_out, size, kind)
    assert (held_out.share, held_out.sampled) == (share, pytest.approx(sampled))
    out = share > DRAWS
    assert 0 < out.sum() * ROW <= memory
    np.testing.assert_array_equal(trained, X[~out])
    np.testing.assert_array_equal(in_order(learnt), in_order(X[~out]))
    kept = held_out.kept()
    rows = np.flatnonzero(out | (1 - sampled <= DRAWS))
    features = kept.features if kind == "table" else kept.features.toarray()
    np.testing.assert_array_equal(features, X[rows])
    np.testing.assert_array_equal(kept.codes, CODES[rows])
    np.testing.assert_array_equal(kept.is_held_out, out[rows])
    np.testing.assert_array_equal(kept.numbers, rows + 1)
    assert (kept.word, held_out.unlabelled) == ("row", -(-ROWS // size))
    if ROWS % size == 0 and size < ROWS:
        assert kept.files.tolist() == [f"{row // 500}" for row in rows]


def test_features_of_levels_take_memory_too():
    held_out = HeldOut(0.25, SEED, 300 * ROW)
    held_out.to_learn(pieces(ROWS, "table")[0], CODES)
    assert held_out.release(4) is None
    released = held_out.release(12)
    assert sum(part.height for part in released) == (DRAWS < 0.25).sum() - (DRAWS < 0.125).sum()
    assert held_out.release(12) is None
