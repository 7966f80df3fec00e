"""What a few rows of logits or probabilities say of themselves against their targets."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from xent import checks
from xent.kernels import registry
from xent.link import Link

Array = np.ndarray[Any, Any]

COMPARED = 1 << 18  # elements compared at a time
FEW = 64  # classes that it is not worth to look at alone
SAMPLED = 64  # of so many rows one is looked at for being probabilities
UNNORMALISED = 1e-3  # |1 − Σ p| from which on a row is no distribution,
UNNORMALISED_HALF = 2e-2  # and in 16 bits


class Settings(NamedTuple):
    """How a row is read."""

    probabilities: bool = False
    ignore_index: int = -100
    top_k: int = 5


class Scores(NamedTuple):
    """Of rows (n,), ignored and undefined ones left out; then what there is to count."""

    label: Array
    predicted: Array
    loss: Array  # nats
    confidence: Array  # the highest probability
    among_top: Array  # whether fewer than k classes are more probable than the label
    entropy: Array | None = None  # of soft targets, nats
    target: Array | None = None  # (K,) sum of soft targets
    ignored: int = 0
    undefined: int = 0
    first_undefined: int | None = None
    unnormalised: int = 0
    unnormalised_targets: int = 0
    sampled: int = 0
    like_probabilities: int = 0


class Reading(NamedTuple):
    """Of all rows (n,): NaN where the loss is undefined."""

    loss: Array
    predicted: Array
    confidence: Array
    unnormalised: Array | None = None
    sampled: int = 0
    like_probabilities: int = 0


def score(outputs: Array, targets: Array, start: int, settings: Settings, names: tuple[str, str]) -> Scores:
    """``outputs (n, K)`` against labels (n,) or distributions (n, K); ``start`` is the first one's row.

    ``names`` are those of the two files, for the ValueError about a row.
    """
    soft = targets.dtype.kind not in "iu"
    q = _distributions(targets, start, names[1]) if soft else None
    if q is None:
        labels, ignored = _labels(targets, outputs.shape[1], settings.ignore_index, start, names[1])
    else:
        labels, ignored = q.argmax(1), np.zeros(len(q), bool)
    keys = ordered(outputs)
    if settings.probabilities:
        reading = _of_probabilities(outputs, labels, q, start, names[0])
    else:
        reading = _of_logits(outputs, keys, np.where(ignored, -1, labels), q)
    undefined = np.isnan(reading.loss) & ~ignored
    kept = ~(ignored | undefined)
    loss, predicted, confidence = reading[:3]
    if not kept.all():
        keys, labels, loss, predicted, confidence = (
            column[kept] for column in (keys, labels, loss, predicted, confidence)
        )
        q = None if q is None else q[kept]
    return Scores(
        label=labels,
        predicted=predicted,
        loss=loss,
        confidence=confidence,
        among_top=_among_top(keys, labels, settings.top_k, None if soft else loss),
        entropy=None if q is None else _entropy(q),
        target=None if q is None else q.sum(0),
        ignored=int(np.count_nonzero(ignored)),
        undefined=int(np.count_nonzero(undefined)),
        first_undefined=start + int(undefined.argmax()) if undefined.any() else None,
        unnormalised=0 if reading.unnormalised is None else int(reading.unnormalised[kept].sum()),
        unnormalised_targets=0 if q is None else int((np.abs(q.sum(1) - 1) > _slack(targets)).sum()),
        sampled=reading.sampled,
        like_probabilities=reading.like_probabilities,
    )


def _of_logits(logits: Array, keys: Array, labels: Array, q: Array | None) -> Reading:
    z = checks.as_logits(logits)
    # Measured at 1000 classes: NumPy finds the largest at 44 GB/s, the kernel computes the rest at 10 GB/s
    # and all of it at 6. Among 10 classes NumPy's costs twice as much as all of it.
    apart = z.shape[1] >= 64
    want = ("lse", "log_prob" if q is None else "dense_log_prob", *(() if apart else ("argmax",)))
    stats = registry.get("cpu").row_stats(z, labels if q is None else None, q, Link(), want)
    loss = 0.0 - (stats.log_prob if q is None else stats.dense_log_prob)
    predicted = keys.argmax(1) if apart else stats.argmax
    top = z[np.arange(len(z)), predicted].astype(np.float64)
    with np.errstate(invalid="ignore"):
        confidence = np.exp(top - stats.lse)
    sample = z[::SAMPLED].astype(np.float64)
    with np.errstate(invalid="ignore"):  # the sum of a row with infinities is NaN
        within = (sample.min(1) >= 0) & (np.abs(sample.sum(1) - 1) < _slack(z))
    return Reading(loss, predicted, confidence, sampled=len(sample), like_probabilities=int(within.sum()))


def _of_probabilities(p: Array, labels: Array, q: Array | None, start: int, name: str) -> Reading:
    slack = _slack(p)
    p = p.astype(np.float32) if checks.is_half(p.dtype) else p
    lowest = p.min(1)
    if (lowest < 0).any():
        n = int((lowest < 0).argmax())
        raise ValueError(
            f"{name}: probabilities must be >= 0; got {lowest[n]:.6g} in row {start + n} (if these are "
            "logits, leave out --probabilities)"
        )
    total = p.sum(1)
    unnormalised = np.abs(total - 1) > slack
    predicted = p.argmax(1)
    every = np.arange(len(p))
    with np.errstate(divide="ignore", invalid="ignore"):
        mass = np.where(unnormalised, total, 1).astype(np.float64)
        mass[~(np.isfinite(total) & (total > 0))] = np.nan
        if q is None:
            loss = np.log(mass) - np.log(p[every, labels].astype(np.float64))
        else:
            terms = np.where(q > 0, q * np.log(p.astype(np.float64)), 0.0)
            loss = q.sum(1) * np.log(mass) - terms.sum(1)
        return Reading(loss, predicted, p[every, predicted] / mass, unnormalised)


def _labels(
    targets: Array, num_classes: int, ignore_index: int, start: int, name: str
) -> tuple[Array, Array]:
    """(labels in [0, K), which rows are ignored: label 0 there)."""
    labels = targets.reshape(-1).astype(np.int64)
    ignored = labels == ignore_index
    outside = (labels.view(np.uint64) >= num_classes) & ~ignored  # negative ones are large then
    if outside.any():
        n = int(outside.argmax())
        raise ValueError(
            f"{name}: labels must be in [0, {num_classes}) or equal --ignore-index {ignore_index}; got "
            f"{targets.reshape(-1)[n]} in row {start + n}"
        )
    return np.where(ignored, 0, labels), ignored


def _distributions(targets: Array, start: int, name: str) -> Array:
    q = targets.astype(np.float64)
    bad = ~((q >= 0) & (q < np.inf))
    if bad.any():
        n, k = np.unravel_index(int(bad.argmax()), q.shape)
        raise ValueError(
            f"{name}: probabilities must be finite and >= 0; got {q[n, k]:.6g} in row {start + n}, column {k}"
        )
    return q


def _among_top(outputs: Array, labels: Array, top_k: int, loss: Array | None) -> Array:
    """Whether fewer than ``top_k`` classes have more than the label has."""
    size = outputs.shape[1]
    if top_k >= size:
        return np.ones(len(labels), bool)
    # With p above 1/(k+1), k others cannot be above p: most rows of a good model need no counting.
    among = np.zeros(len(labels), bool) if loss is None else loss < math.log(top_k + 1) - 1e-6
    rows = np.flatnonzero(~among)
    own = outputs[rows, labels[rows]]
    # Nor do most others: k classes above the label are among the first ones already.
    for some in (size // 64, size // 8):
        if some >= FEW and len(rows):
            in_doubt = _count_above(outputs[:, :some], rows, own) < top_k
            rows, own = rows[in_doubt], own[in_doubt]
    among[rows] = _count_above(outputs, rows, own) < top_k
    return among


def _count_above(outputs: Array, rows: Array, own: Array) -> Array:
    """How many of ``outputs[rows]`` are above ``own``, per row."""
    size = outputs.shape[1]
    counts = np.empty(len(rows), np.int64)
    step = max(1, COMPARED // size)
    above = np.zeros((step, -(-size // 8) * 8), bool)  # eight bytes, 0 or 1, are counted at once
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        block = outputs[some] if some[-1] - some[0] + 1 > len(some) else outputs[some[0] : some[-1] + 1]
        np.greater(block, own[start : start + step, None], out=above[: len(some), :size])
        counts[start : start + step] = np.bitwise_count(above[: len(some)].view(np.uint64)).sum(1)
    return counts


def ordered(x: Array) -> Array:
    """``x``, or in 16 bits integers of the same order, which NumPy compares fifty times as fast."""
    if not checks.is_half(x.dtype):
        return x
    bits = x.view(np.int16)
    keys = bits >> 15
    keys &= 0x7FFF
    keys ^= bits  # the larger the bits of a negative number, the smaller it is
    keys -= keys >> 15  # −0 is 0
    return keys


def _entropy(q: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(q > 0, q * np.log(q), 0.0)
    return np.asarray(0.0 - terms.sum(1))


def _slack(p: Array) -> float:
    return UNNORMALISED_HALF if checks.is_half(p.dtype) else UNNORMALISED
