"""The cache of rows: blocks that depend on the rows alone, equal to what was written; no trace is left."""

from __future__ import annotations

import os
import tempfile
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse

from xent.files.parts.row_cache import RowCache

ROWS, WIDTH = 57, 6
DENSE = np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float32)
SPARSE = scipy.sparse.csr_array(
    np.where(DENSE > 0.3, DENSE, np.float32(0)) * (np.arange(ROWS) % 9 > 1)[:, None]
)
CODES = np.arange(ROWS) % 5
CUTS = ([0, ROWS], [0, 1, 1, 20, 56, ROWS], list(range(ROWS + 1)))


def blocks(rows, cuts, entries):
    """[(features, codes)] of a cache that was written in pieces."""
    with RowCache(WIDTH, scipy.sparse.issparse(rows), entries) as cache:
        for start, stop in pairwise(cuts):
            cache.append(rows[start:stop], CODES[start:stop])
        cache.finish()
        found = [(cache.features(index), cache.codes(index).copy()) for index in range(len(cache.rows))]
        assert [len(codes) for _, codes in found] == cache.rows
        assert cache.read == cache.written  # each block once
        return [(x.copy(), codes) for x, codes in found]


@pytest.mark.parametrize("rows", [DENSE, SPARSE], ids=["dense", "csr"])
@pytest.mark.parametrize("entries", [1, 20, 24, 10_000])
def test_blocks_are_the_rows_and_depend_on_no_pieces(rows, entries):
    first, *others = (blocks(rows, cuts, entries) for cuts in CUTS)
    stack = scipy.sparse.vstack if scipy.sparse.issparse(rows) else np.concatenate
    whole = stack([x for x, _ in first])
    assert (whole != rows).sum() == 0
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(np.concatenate([codes for _, codes in first]), CODES)
    for other in others:
        assert [x.shape for x, _ in other] == [x.shape for x, _ in first]


@pytest.mark.parametrize(("entries", "rows"), [(1, 1), (20, 3), (24, 4), (10_000, ROWS)])
def test_blocks_of_dense_rows_have_as_many_as_fit(entries, rows):
    sizes = [len(codes) for _, codes in blocks(DENSE, CUTS[1], entries)]
    assert set(sizes[:-1]) <= {rows}
    assert 0 < sizes[-1] <= rows


def test_blocks_of_csr_rows_end_with_the_row_that_fills_them():
    entries = 20
    stored = [x.nnz for x, _ in blocks(SPARSE, CUTS[1], entries)]
    last = [int(np.diff(x.indptr)[-1]) for x, _ in blocks(SPARSE, CUTS[1], entries)]
    assert len(stored) > 3
    assert all(size >= entries > size - row for size, row in zip(stored[:-1], last[:-1], strict=True))


def test_files_have_no_name_and_their_room_is_given_back(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with RowCache(WIDTH, False, 100) as cache:
        cache.append(DENSE, CODES)
        cache.finish()
        numbers = [file.fileno() for file in cache._files.values()]
        assert all(os.fstat(number).st_nlink == 0 for number in numbers)
        assert list(tmp_path.iterdir()) == []
    for number in numbers:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the device that is always full")
def test_a_full_disk_is_said_and_the_files_are_closed(monkeypatch):
    opened = []

    def full(**options):
        opened.append(open("/dev/full", "r+b", buffering=0))  # noqa: SIM115
        return opened[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with (
        pytest.raises(OSError, match=r"no room in /.* for the rows, .*TMPDIR"),
        RowCache(WIDTH, False, 9) as cache,
    ):
        cache.append(DENSE, CODES)
    assert len(opened) == 2
    assert all(file.closed for file in opened)


def test_a_temporary_folder_that_is_none_is_an_error(tmp_path, monkeypatch):
    """Where tempfile would take /tmp, or the current folder, in silence."""
    (tmp_path / "file").touch()
    for name in ("file", "nothing"):
        monkeypatch.setenv("TMPDIR", str(tmp_path / name))
        with pytest.raises(OSError, match="TMPDIR must be a folder that can be written to"):
            RowCache(WIDTH, False, 1)
