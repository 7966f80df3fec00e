"""A cache of prepared rows on disk: float32 features, dense or CSR, and a code for each label.

The files have no name: the system deletes them when the process ends, however it ends. Blocks are mapped one
after the other, so that the system reads ahead. It is slower to ask for the next block (posix_fadvise), or to
read it in a thread: 1.1 and 1.5 s for 1 GiB from the disk, where this takes 0.7 and a plain read 0.5.
"""

from __future__ import annotations

import errno
import os
import tempfile
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import IO, TYPE_CHECKING, Any, Self

import numpy as np

from xent.files.phrases import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

Array = np.ndarray[Any, Any]

KINDS = {"values": np.float32, "codes": np.int32, "indices": np.int32, "ends": np.int64}


class RowCache:
    """Rows, written one piece after the other and read in blocks that are cut by their number alone.

    A block of dense rows has ``entries // width`` rows (at least 1), one of CSR rows ends with the row that
    fills ``entries`` stored ones. So blocks do not depend on the files or pieces that rows came in.

    Parameters
    ----------
    width : int
        Number of features.
    is_sparse : bool
    entries : int
        Elements of a block of features.

    Attributes
    ----------
    rows : list of int
        Of each block; complete after `finish`.
    stored : int
        Elements of dense features, stored entries of CSR ones.
    written, read : int
        Bytes. ``read`` counts those of all blocks that were asked for.
    """

    def __init__(self, width: int, is_sparse: bool, entries: int) -> None:
        self.width, self.is_sparse, self.entries = width, is_sparse, entries
        self.folder = _temporary_folder()
        self.rows: list[int] = []
        self.stored = self.written = self.read = 0
        self._block_stored = [0]  # entries before each block
        self._num_rows = self._in_block = 0
        self._lock = Lock()
        self._stack = ExitStack()
        names = KINDS if is_sparse else ("values", "codes")
        with self._room():
            self._files: dict[str, IO[bytes]] = {name: self._file() for name in names}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with self._room():  # closing writes what is buffered
            self._stack.close()

    def append(self, features: Any, codes: Array) -> None:
        """Write more rows: (N, width) floats or CSR of float32, and codes (N,)."""
        if self.is_sparse:
            ends = features.indptr[1:].astype(np.int64)
            self._cut(np.diff(features.indptr))
            self._write("values", features.data)
            self._write("indices", features.indices)
            self._write("ends", ends + self.stored)
            self.stored += int(features.nnz)
        else:
            self._write("values", features)
            self.stored += features.size
        self._num_rows += len(codes)
        self._write("codes", codes)

    def finish(self) -> None:
        """End the writing: the blocks can be read."""
        with self._room():
            for file in self._files.values():
                file.flush()
        if self.is_sparse:
            self.rows.extend([self._in_block] if self._in_block else [])
            self._block_stored.append(self.stored)
        else:
            size = max(1, self.entries // max(1, self.width))
            whole, rest = divmod(self._num_rows, size)
            self.rows = [size] * whole + ([rest] if rest else [])
        self._starts = np.concatenate([[0], np.cumsum(self.rows)]).tolist()

    def codes(self, index: int) -> Array:
        """The codes of block ``index``, (N,) int32, mapped."""
        return self._mapped("codes", self._starts[index], self.rows[index])

    def features(self, index: int) -> Any:
        """The features of block ``index``, mapped: (N, width) float32, or CSR. Other threads may read too."""
        start, rows = self._starts[index], self.rows[index]
        if not self.is_sparse:
            return self._mapped("values", start * self.width, rows * self.width).reshape(rows, self.width)
        import scipy.sparse

        before = self._block_stored[index]
        ends = self._mapped("ends", start, rows) - before
        count = int(ends[-1]) if rows else 0
        indptr = np.concatenate([[0], ends])
        parts = self._mapped("values", before, count), self._mapped("indices", before, count)
        if count < 2**31:
            indptr = indptr.astype(np.int32)
        return scipy.sparse.csr_array((*parts, indptr), shape=(rows, self.width))

    def _file(self) -> IO[bytes]:
        return self._stack.enter_context(tempfile.TemporaryFile(prefix="xent-"))

    def _cut(self, entries: Array) -> None:
        """Cut CSR rows, given their numbers of entries, into blocks."""
        total = self._block_stored[-1]  # where the block begins that these rows go on with
        ends = self.stored + np.cumsum(entries, dtype=np.int64)
        start = -self._in_block
        while len(ends) and ends[-1] >= total + self.entries:
            last = int(np.searchsorted(ends, total + self.entries))
            self.rows.append(last + 1 - start)
            total, start = int(ends[last]), last + 1
            self._block_stored.append(total)
        self._in_block = len(ends) - start

    def _write(self, name: str, array: Array) -> None:
        content = np.ascontiguousarray(array, KINDS[name])
        with self._room():
            self._files[name].write(content.data.cast("B") if content.size else b"")
        self.written += content.nbytes

    def _mapped(self, name: str, start: int, count: int) -> Array:
        dtype = np.dtype(KINDS[name])
        with self._lock:
            self.read += count * dtype.itemsize
        if not count:
            return np.zeros(0, dtype)
        return np.asarray(np.memmap(self._files[name], dtype, "r", start * dtype.itemsize, (count,)))

    @contextmanager
    def _room(self) -> Iterator[None]:
        """Say what an error of a full disk means."""
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            gigabytes = f"{self.written / 1e9:.2g} GB, {counted(self._num_rows, 'row')},"
            raise OSError(
                error.errno,
                f"no room in {self.folder} for the rows, of which {gigabytes} were written: set TMPDIR to a "
                "folder with more",
            ) from None


def _temporary_folder() -> str:
    """The system's temporary folder; OSError if TMPDIR names one that cannot be written to.

    tempfile takes another folder then, which may be in memory or small.
    """
    named = os.environ.get("TMPDIR")
    if named and not (os.path.isdir(named) and os.access(named, os.W_OK | os.X_OK)):
        raise OSError(errno.ENOTDIR, "TMPDIR must be a folder that can be written to", named)
    return tempfile.gettempdir()
