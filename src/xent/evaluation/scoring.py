"""Score a few rows of logits or probabilities against their targets: one number of each kind for each row."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from xent.api.cross_entropy import softmax
from xent.core.link import Link
from xent.engine import checks
from xent.kernels import cpu, cpu_evaluate, registry

Array = np.ndarray[Any, Any]

SAMPLED = 64  # one of so many rows of logits is tested for being probabilities
UNNORMALISED = 1e-3  # |1 − Σ p| above which a row is no distribution
UNNORMALISED_HALF = 2e-2  # the same in 16 bits


class Settings(NamedTuple):
    """Options for reading a row."""

    probabilities: bool = False
    ignore_index: int = -100
    top_k: int = 5


class Columns(NamedTuple):
    """One number for each row, arrays (n,)."""

    label: Array  # int64; negative if the row is ignored: then the other columns are undefined
    loss: Array  # nats; NaN where it is undefined
    confidence: Array  # the highest probability
    brier: Array  # Brier score, Σ (p − t)²
    predicted: Array  # int32
    above: Array  # int32, number of classes more probable than the label

    @property
    def counts(self) -> Array:
        """Mask (n,) of the rows that count: not ignored, with a loss."""
        return (self.label >= 0) & ~np.isnan(self.loss)


class Scores(NamedTuple):
    """The columns of rows from ``start`` on, and sums over these rows."""

    start: int
    columns: Columns
    entropy: float | None = None  # summed entropy of soft targets, nats
    target: Array | None = None  # (K,) sum of soft targets
    unnormalised: int = 0
    unnormalised_targets: int = 0
    sampled: int = 0
    like_probabilities: int = 0


def score(
    outputs: Array, targets: Array, start: int, settings: Settings, names: tuple[str, str], sample: bool
) -> Scores:
    """Score ``outputs (n, K)`` against labels (n,) or distributions (n, K).

    ``start`` is the index of the first row in the file. ``names`` are the names of the two files, for the
    ValueError about a row, which is counted from 1 there. ``sample``: whether to test a sample of the logits
    for being probabilities.
    """
    soft = targets.dtype.kind not in "iu"
    z = checks.as_logits(outputs)
    if not soft:
        labels = _labels(targets, z.shape[1], settings.ignore_index, start, names[1])
        if settings.probabilities:
            columns, unnormalised = _score_probabilities(z, labels, None, start, names[0])
            return Scores(start, columns, unnormalised=_count(unnormalised & (labels >= 0), columns))
        return Scores(start, _score_rows(z, labels), None, None, 0, 0, *_like_probabilities(z, sample))
    q = _distributions(targets, start, names[1])
    if settings.probabilities:
        columns, unnormalised = _score_probabilities(z, q.argmax(1), q, start, names[0])
    else:
        stats = registry.get("cpu").row_stats(z, None, q, Link(), ("dense_log_prob",))
        p = softmax(z.astype(np.float64))
        columns = _score_rows(z, q.argmax(1))
        columns = columns._replace(loss=0.0 - stats.dense_log_prob, brier=((p - q) ** 2).sum(1))
        unnormalised = np.zeros(len(q), bool)
    q = q[~np.isnan(columns.loss)]
    return Scores(
        start,
        columns,
        _entropy(q),
        q.sum(0),
        _count(unnormalised, columns),
        int((np.abs(q.sum(1) - 1) > _slack(targets)).sum()),
        *_like_probabilities(z, sample and not settings.probabilities),
    )


def _score_rows(
    outputs: Array, labels: Array, mass: Array | None = None, lowest: Array | None = None
) -> Columns:
    """The columns of logits; or, if ``mass`` and ``lowest`` are given, of unchanged probabilities.

    Then the sum of each row is written into ``mass`` and its least entry into ``lowest``.
    """
    n = len(outputs)
    columns = Columns(labels, *np.empty((3, n)), *np.empty((2, n), np.int32))
    bits = outputs.view(np.uint16) if checks.is_bfloat16(outputs.dtype) else outputs
    bits = np.ascontiguousarray(bits)
    cpu_evaluate.evaluate_rows(bits, labels, mass is not None, *columns[1:], mass, lowest)
    return columns


def _score_probabilities(
    p: Array, labels: Array, q: Array | None, start: int, name: str
) -> tuple[Columns, Array]:
    """(columns, mask of the rows that do not sum to 1); these rows are divided by their sum."""
    mass, lowest = np.empty((2, len(p)))
    columns = _score_rows(p, labels, mass, lowest)
    if (lowest < 0).any():
        n = int((lowest < 0).argmax())
        raise ValueError(
            f"{name}: probabilities must be >= 0; got {lowest[n]:.6g} in row {start + n + 1} (if these are "
            "logits, leave out --probabilities)"
        )
    unnormalised = ~(np.abs(mass - 1) <= _slack(p))
    if q is None and not unnormalised.any():
        return columns, unnormalised
    with np.errstate(divide="ignore", invalid="ignore"):
        mass = np.where(unnormalised, mass, 1)
        mass[~(np.isfinite(mass) & (mass > 0))] = np.nan
        if q is None:
            own = np.exp(-columns.loss)
            squares = columns.brier - 1 + 2 * own  # Σ p², before the division
            loss, brier = columns.loss + np.log(mass), squares / mass**2 - 2 * own / mass + 1
        else:
            wide = p.astype(np.float64)
            terms = np.where(q > 0, q * np.log(wide), 0.0)
            loss = q.sum(1) * np.log(mass) - terms.sum(1)
            brier = ((wide / mass[:, None] - q) ** 2).sum(1)
        confidence = columns.confidence / mass
        return columns._replace(loss=loss, confidence=confidence, brier=brier), unnormalised


def _labels(targets: Array, num_classes: int, ignore_index: int, start: int, name: str) -> Array:
    """A copy of the labels, in [0, K), or −1 for an ignored row; ValueError for other labels."""
    labels = targets.reshape(-1).astype(np.int64)
    if not 0 <= ignore_index < num_classes and cpu.all_in_range(labels, num_classes):
        return labels
    ignored = labels == ignore_index
    outside = (labels.view(np.uint64) >= num_classes) & ~ignored  # negative ones become large
    if outside.any():
        n = int(outside.argmax())
        raise ValueError(
            f"{name}: labels must be in [0, {num_classes}) or equal --ignore-index {ignore_index}; got "
            f"{targets.reshape(-1)[n]} in row {start + n + 1}"
        )
    labels[ignored] = -1
    return labels


def _distributions(targets: Array, start: int, name: str) -> Array:
    q = targets.astype(np.float64)
    bad = ~((q >= 0) & (q < np.inf))
    if bad.any():
        n, k = np.unravel_index(int(bad.argmax()), q.shape)
        raise ValueError(
            f"{name}: probabilities must be finite and >= 0; got {q[n, k]:.6g} in row {start + n + 1}, "
            f"class {k}"
        )
    return q


def _like_probabilities(z: Array, sample: bool) -> tuple[int, int]:
    """(number of sampled rows, number of these that lie in [0, 1] and sum to 1)."""
    if not sample:
        return 0, 0
    rows = z[::SAMPLED].astype(np.float64)
    with np.errstate(invalid="ignore"):  # the sum of a row with infinities is NaN
        within = (rows.min(1) >= 0) & (np.abs(rows.sum(1) - 1) < _slack(z))
    return len(rows), int(within.sum())


def _count(which: Array, columns: Columns) -> int:
    """Number of rows in the mask ``which`` that have a loss."""
    return int(np.count_nonzero(which & ~np.isnan(columns.loss))) if which.any() else 0


def _entropy(q: Array) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(q > 0, q * np.log(q), 0.0)
    return float((0.0 - terms.sum(1)).sum())


def _slack(p: Array) -> float:
    return UNNORMALISED_HALF if checks.is_half(p.dtype) else UNNORMALISED
