"""Choose rows to hold out while files are read, and keep these and some of the others in memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from xent.files import dataset
from xent.files.parts.sources import Piece
from xent.files.preprocess import SPARSE_FROM

Array = np.ndarray[Any, Any]

# Memory of a row that is kept, in bytes: for each feature its value, the prepared one, and copies of both in
# products and checks; for each class its logit, probability, gradient, and copies of them.
FEATURE, CLASS = 32, 48


class Kept(NamedTuple):
    """Rows kept in memory, in the order of the files."""

    features: Any  # as `Piece.features`
    codes: Array  # (N,) of the labels
    is_held_out: Array  # (N,) or trained on
    numbers: Array  # (N,) of each row in its file
    files: Array  # (N,) names
    word: str  # what ``numbers`` count


class HeldOut:
    """Holds out rows of files that are read twice, and keeps some of the others.

    The i-th row that has a label gets the i-th draw u in [0, 1) of NumPy's generator of ``seed``. Rows with
    u < ``share`` are held out, so they do not depend on how the files are cut. But the first row of each
    class is trained on. Of the rows trained on, those with u >= 1 − ``sampled`` are kept too, as a sample.

    Parameters
    ----------
    test_size : float in [0, 1)
        ``share``, which is halved until the rows held out fit in ``memory``.
    seed : int
    memory : int
        Bytes, for the rows held out and again for the sample.
    file : int, default None
        Number of the only file, where files are read apart: each has its own draws, of ``seed`` and this.
    """

    def __init__(self, test_size: float, seed: int, memory: int, file: int | None = None) -> None:
        self.share, self.seed, self.memory, self.file = test_size, seed, memory, file
        self.sampled = 1.0
        self.unlabelled = 0  # rows without a label
        self._rows = self._entries = self._classes = 0  # of all rows
        self._waiting: list[tuple[Array, Any]] = []
        self.files: list[Kept] = []  # rows that are kept, of one piece each
        self._begin()

    def to_learn(self, piece: Piece, codes: Array) -> Any:
        """First pass: the rows of a piece to learn from, given the codes of their labels; the others wait."""
        draws = self._draws(codes)
        waiting = draws < self.share
        self._waiting.append((draws[waiting], piece.features[np.flatnonzero(waiting)]))
        self._rows += len(codes)
        self._entries += _entries(piece.features)
        self._classes = max(self._classes, int(codes.max(initial=-1)) + 1)
        self.unlabelled += piece.unlabelled
        return piece.features[np.flatnonzero(~waiting)]

    def release(self, width: int | None) -> list[Any] | None:
        """Halve ``share`` if the rows waiting take too much memory; return those to learn from now.

        ``width`` is the number of features so far, None if only stored entries count. None: they fit.
        """
        rows = sum(len(draws) for draws, _ in self._waiting)
        if self._bytes(rows, sum(_entries(x) for _, x in self._waiting), width) <= self.memory:
            return None
        self.share /= 2
        released = []
        for index, (draws, features) in enumerate(self._waiting):
            out = draws >= self.share
            released.append(features[np.flatnonzero(out)])
            self._waiting[index] = draws[~out], features[np.flatnonzero(~out)]
        return released

    def bound(self, rows: int, columns: int, width: int | None = None, classes: int = 2) -> None:
        """For files that are read elsewhere: halve ``share`` until it fits, and choose the sample's size.

        All rows are so many, with so many columns and, where known, features and classes.
        """
        self._classes = classes
        while self._bytes(held := int(self.share * rows), held * columns, width) > self.memory:
            self.share /= 2
        self.sampled = min(1.0, self.memory / max(1, self._bytes(rows, rows * columns, width)))

    def add(self, kept: list[Kept]) -> None:
        """Keep rows of files that were read elsewhere."""
        self.files += kept

    def end_learning(self, width: int | None) -> None:
        """Between the passes: forget the rows that wait, and choose the size of the sample."""
        self.sampled = min(1.0, self.memory / max(1, self._bytes(self._rows, self._entries, width)))
        self._waiting = []
        self._begin()

    def to_train(self, piece: Piece, codes: Array) -> Array:
        """Second pass: the rows of a piece to train on, as indices; the others are kept, with the sample."""
        draws = self._draws(codes)
        is_held_out = draws < self.share
        kept = np.flatnonzero(is_held_out | (draws >= 1 - self.sampled))
        files = np.full(len(kept), str(piece.path), object)
        numbers = piece.numbers.lookup(piece.kept[kept])
        rows = piece.features[kept], codes[kept], is_held_out[kept], numbers, files, piece.numbers.word
        self.files.append(Kept(*rows))
        return np.flatnonzero(~is_held_out)

    def kept(self) -> Kept:
        """After the second pass: the rows held out, and the sample of the others."""
        tables, *columns, words = zip(*self.files, strict=True)
        codes, is_held_out, numbers, files = map(np.concatenate, columns)
        return Kept(_stacked(tables), codes, is_held_out, numbers, files, words[0])

    def _begin(self) -> None:
        self._random = np.random.default_rng(self.seed if self.file is None else [self.seed, self.file])
        self._seen: set[int] = set()

    def _draws(self, codes: Array) -> Array:
        """The draws of the next rows, (N,); 1 for the first row of a class."""
        draws = self._random.random(len(codes))
        for code, row in zip(*(each.tolist() for each in np.unique(codes, return_index=True)), strict=True):
            if code not in self._seen:
                self._seen.add(code)
                draws[row] = 1.0
        return draws

    def _bytes(self, rows: int, entries: int, width: int | None) -> int:
        """Memory of so many rows, with so many entries in their columns."""
        if width is not None and rows:
            entries = max(entries, rows * min(width, SPARSE_FROM * (entries // rows)))
        return FEATURE * entries + CLASS * self._classes * rows


def _entries(features: Any) -> int:
    """Cells of a table, stored entries of a CSR matrix."""
    return int(features.nnz) if hasattr(features, "indptr") else features.height * features.width


def _stacked(tables: tuple[Any, ...]) -> Any:
    """The rows of all tables: CSR, an array if all columns are numbers, or a DataFrame."""
    if hasattr(tables[0], "indptr"):
        import scipy.sparse

        return scipy.sparse.vstack(tables, "csr")
    import polars

    return dataset.plain(polars.concat(tables))
