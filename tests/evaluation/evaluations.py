"""Evaluate arrays by way of files, for the tests of this folder."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from xent.evaluation.scoring import Settings
from xent.evaluation.stream import NO_COLUMNS, RowColumns, evaluate_models
from xent.files.arrays.row_reader import open_rows

RNG = np.random.default_rng(7)
ROWS, CLASSES = 600, 5
TRUE = 2 * RNG.standard_normal((ROWS, CLASSES))
LABELS = (TRUE + RNG.gumbel(size=TRUE.shape)).argmax(1)  # drawn from the softmax of TRUE
GROUPS = RNG.integers(0, 40, ROWS)
OTHER = TRUE + RNG.standard_normal(TRUE.shape)


def results(folder: Path, models, targets, *, columns: RowColumns = NO_COLUMNS, costliest=0, **settings):
    """The results of arrays (N, K) of one model or two."""
    with ExitStack() as opened:
        readers = []
        for name, array in (*((f"z{k}", z) for k, z in enumerate(models)), ("y", targets)):
            np.save(folder / f"{name}.npy", array)
            readers.append(opened.enter_context(open_rows(str(folder / f"{name}.npy"))))
        *outputs, labels = readers
        own = [Settings(**settings)] * len(models)
        return evaluate_models(outputs, labels, own, chunk=1000, columns=columns, costliest=costliest)


def losses(logits, labels=LABELS):
    """−log p of each row, in NumPy."""
    z = np.asarray(logits, np.float64)
    return np.log(np.exp(z - z.max(1, keepdims=True)).sum(1)) + z.max(1) - z[np.arange(len(z)), labels]


def clustered(values, groups, counts=None):
    """Standard error of Σ values / Σ counts over clusters, of the ratio estimator, in loops."""
    counts = np.ones(len(values)) if counts is None else counts
    ratio = values.sum() / counts.sum()
    total, clusters = 0.0, np.unique(groups)
    for g in clusters:
        total += float((values[groups == g] - ratio * counts[groups == g]).sum()) ** 2
    return np.sqrt(len(clusters) / (len(clusters) - 1) * total) / counts.sum()


def tensors(path: Path, content: bytes = bytes(16), **entry) -> None:
    """A safetensors file of one tensor, whose entry in the header says what it says."""
    whole = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | entry}
    header = json.dumps(whole).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + content)
