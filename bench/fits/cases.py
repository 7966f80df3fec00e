"""The data of the benchmark of whole fits: five kinds, each made from a seed, at full and at small size."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
from sklearn.datasets import load_digits

Array = np.ndarray[Any, Any]


class Data(NamedTuple):
    """``features`` (N, D), dense or CSR; ``labels`` (N,). The penalty is scikit-learn's default C = 1."""

    features: Any
    labels: Array

    @property
    def alpha(self) -> float:
        """Of the mean loss: 1/(C·N)."""
        return 1.0 / len(self.labels)

    def digest(self) -> str:
        """Of every bit of the data: an optimum is kept with it, and serves no other data."""
        x = self.features
        parts = [x.data, x.indices, x.indptr] if scipy.sparse.issparse(x) else [x]
        state = hashlib.blake2b(repr((x.shape, x.dtype)).encode(), digest_size=12)
        for part in (*parts, self.labels):
            state.update(np.ascontiguousarray(part).data)
        return state.hexdigest()


class Case(NamedTuple):
    """``make(num_rows, num_features, num_classes)`` gives the data; ``small`` is the same in a moment."""

    make: Callable[[int, int, int], Data]
    shape: tuple[int, int]
    num_classes: int
    small: tuple[int, int]
    dtype: str = "float64"

    def data(self, small: bool = False) -> Data:
        """The same bits at every call."""
        x, y = self.make(*(self.small if small else self.shape), self.num_classes)
        return Data(x.astype(self.dtype, copy=False), y)


def digits(num_rows: int, num_features: int, num_classes: int) -> Data:
    """scikit-learn's 8×8 images, scaled to [0, 1] as a person would."""
    x, y = load_digits(return_X_y=True)
    return Data(np.ascontiguousarray(x[:num_rows]) / 16.0, y[:num_rows])


def gaussian(num_rows: int, num_features: int, num_classes: int) -> Data:
    """Rotated normal features, standard deviations from 1 to 1/100 in a geometric row (condition 10⁴).

    Labels are drawn from a softmax model that looks in every direction alike.
    """
    random = np.random.default_rng(0)
    deviations = np.geomspace(1.0, 0.01, num_features)
    rotation = np.linalg.qr(random.standard_normal((num_features, num_features)))[0]
    x = (random.standard_normal((num_rows, num_features)) * deviations) @ rotation
    weight = random.standard_normal((num_features, num_classes)) * (3.0 / np.linalg.norm(deviations))
    return Data(x, _drawn(random, x @ weight))


def images(num_rows: int, num_features: int, num_classes: int) -> Data:
    """The digits drawn larger, each moved and stretched a little, with noise on the ink, in 256 greys."""
    random = np.random.default_rng(0)
    small, labels = load_digits(return_X_y=True)
    side, old = round(num_features**0.5), 8
    chosen = random.integers(len(labels), size=num_rows)
    x = np.empty((num_rows, num_features))
    for start in range(0, num_rows, 10_000):
        block = slice(start, min(start + 10_000, num_rows))
        ink = small[chosen[block]].reshape(-1, old, old) / 16.0
        # Linear interpolation, one matrix (side, 8) per image and axis: nothing is drawn past the edge.
        place = (np.arange(side) + 0.5) / side - 0.5
        zoom = random.uniform(0.85, 1.15, (2, len(ink), 1))
        shift = random.uniform(-0.08, 0.08, (2, len(ink), 1))
        at = ((place * zoom + shift + 0.5) * old - 0.5)[..., None]
        down, across = np.maximum(0.0, 1.0 - np.abs(at - np.arange(old)))
        drawn = down @ ink @ across.transpose(0, 2, 1)
        drawn *= 1.0 + 0.3 * random.standard_normal(drawn.shape)
        x[block] = drawn.reshape(len(ink), -1)
    return Data(np.rint(np.clip(x, 0.0, 1.0) * 255.0) / 255.0, labels[chosen])


def text(num_rows: int, num_features: int, num_classes: int) -> Data:
    """Words of a Zipf law that each class bends, counted, weighted by tf-idf, rows of length 1: CSR."""
    random = np.random.default_rng(0)
    common = 1.0 / (np.arange(num_features) + 2.7)
    column = random.permutation(num_features).astype(np.int32)  # a vocabulary is not sorted by frequency
    labels = random.integers(num_classes, size=num_rows)
    lengths = np.maximum(8, random.lognormal(np.log(100.0), 0.6, num_rows)).astype(int)
    counts = []
    for k in range(num_classes):
        rows = np.flatnonzero(labels == k)
        bent = np.cumsum(common * np.exp(0.7 * random.standard_normal(num_features)))
        draws = random.random(int(lengths[rows].sum())) * bent[-1]
        words = column[np.minimum(np.searchsorted(bent, draws), num_features - 1)]
        place = (np.repeat(rows, lengths[rows]), words)
        shape = (num_rows, num_features)
        counts.append(scipy.sparse.csr_matrix((np.ones(len(words)), place), shape))
    x = sum(counts[1:], counts[0])
    x.sort_indices()
    documents = np.bincount(x.indices, minlength=num_features)
    idf = np.log((1.0 + num_rows) / (1.0 + documents)) + 1.0
    x.data = (1.0 + np.log(x.data)) * idf[x.indices]
    x.data /= np.repeat(np.sqrt(np.add.reduceat(x.data**2, x.indptr[:-1])), np.diff(x.indptr))
    return Data(x, labels)


def table(num_rows: int, num_features: int, num_classes: int) -> Data:
    """Correlated columns of a data frame, standardised; two classes, one in five rows in the second."""
    random = np.random.default_rng(0)
    x = random.standard_normal((num_rows, num_features))
    x[:, 1:] += 0.7 * x[:, :-1]
    x -= x.mean(0)
    x /= x.std(0)
    score = x @ (random.standard_normal(num_features) * (1.5 / num_features**0.5)) - 1.8
    return Data(x, _drawn(random, np.stack([np.zeros(num_rows), score], 1)))


def _drawn(random: np.random.Generator, logits: Array) -> Array:
    """Labels from the softmax of the logits, by the largest of logits plus Gumbel noise."""
    noise = random.gumbel(size=logits.shape)
    return np.asarray((logits + noise).argmax(1))


CASES = {
    "digits": Case(digits, (1797, 64), 10, (600, 64)),
    "gaussian": Case(gaussian, (60_000, 784), 10, (500, 20)),
    "gaussian-float32": Case(gaussian, (60_000, 784), 10, (500, 20), "float32"),
    "images": Case(images, (60_000, 784), 10, (400, 64), "float32"),
    "text": Case(text, (20_000, 100_000), 20, (300, 500)),
    "table": Case(table, (1_000_000, 30), 2, (2000, 5)),
}
