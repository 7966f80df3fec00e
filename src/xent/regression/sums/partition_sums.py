"""What one partition of the rows computes of the objective: sums over its rows, for `Partitions.sum_over`.

Each function takes a `Partition`, W (C, D) and the intercept (C,) where it needs the logits, and a `RowLoss`.
C is 1 for two classes: the logit of the second against 0. The values are float64, and are 0 for no rows.
Narrow dense features are read by the fused kernels. Others are read in blocks of rows, so that a block
stays in the cache between its two products.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

from xent.api.cross_entropy import softmax
from xent.core import head
from xent.core.spec import LossSpec
from xent.core.target import Target
from xent.engine.batch_loss import Problem
from xent.kernels import cpu_sparse
from xent.regression.sums import fused_loss
from xent.regression.sums.partitions import Partition, with_entries

Array = np.ndarray[Any, Any]

BLOCK = 1 << 19  # elements of X in a block: 2 MiB of float32, a level-2 cache
SPARSE_BLOCK = 1 << 22  # logits in a block of a CSR matrix; each block adds a gradient of X's width


class RowLoss(NamedTuple):
    """The loss of a row divided by D of (4), and how to compute it; the same for all partitions."""

    spec: LossSpec
    divisor: float  # D of (4), of all rows
    num_classes: int
    dtype: np.dtype[Any]  # of the products with X
    is_fused: bool  # by the kernels that compute products and loss in one pass over dense X
    keeps_copies: bool  # whether a partition may keep float32 copies and transposes of X

    @property
    def num_scores(self) -> int:
        """C."""
        return self.num_classes if self.num_classes > 2 else 1


def total(partition: Partition) -> float:
    """What a mean divides by: Σ ω c_y of labels, Σ ω of probabilities."""
    return float(partition.target.total)


def loss_and_grad(
    partition: Partition, coef: Array, intercept: Array, row_loss: RowLoss
) -> tuple[float, Array, Array]:
    """(Σ ℓ/D, its gradient in W, in the intercept), in one pass."""
    if row_loss.is_fused:
        weight = coef.astype(row_loss.dtype, copy=False)
        return fused_loss.loss_and_grad(*_fused(partition, row_loss), weight, intercept)
    weight = np.ascontiguousarray(coef.T, row_loss.dtype)
    dcoef, dintercept = None, np.zeros_like(intercept)
    loss = 0.0
    for x, target in _blocks(partition, row_loss):
        problem = _problem(_project(x, weight) + intercept, target, row_loss)
        value, dlogits = problem.loss_and_grad(problem.logits)
        loss += float(value)
        dscores = dlogits[:, -row_loss.num_scores :]
        dcoef = _plus(dcoef, _pull_back(partition, x, dscores, row_loss), coef)
        dintercept += dscores.sum(0)
    return loss, np.zeros_like(coef) if dcoef is None else dcoef, dintercept


def row_losses(partition: Partition, coef: Array, intercept: Array, row_loss: RowLoss) -> Array:
    """(1) of each row, (N,) float64."""
    weight = coef.astype(row_loss.dtype, copy=False)
    if row_loss.is_fused:
        return fused_loss.row_losses(*_fused(partition, row_loss)[:3], weight, intercept)
    losses = [
        head.row_losses(_problem(z, target, row_loss).stats(), target, row_loss.spec, np)
        for _, target, z in blocks_of_logits(partition, weight, intercept, row_loss)
    ]
    return np.concatenate(losses) if losses else np.zeros(0)


def logits(partition: Partition, coef: Array, intercept: Array, row_loss: RowLoss) -> Array:
    """Scores (N, C) in the dtype of the products, for `hessian_product`."""
    weight = np.ascontiguousarray(coef.T, row_loss.dtype)
    scores = [_project(x, weight) for x, _ in _blocks(partition, row_loss)]
    whole: Array = np.concatenate(scores) if scores else np.zeros((0, row_loss.num_scores), row_loss.dtype)
    whole += intercept.astype(row_loss.dtype)
    return whole


def hessian_product(
    partition: Partition,
    coef: Array,
    intercept: Array,
    direction: Array,
    bias: Array,
    row_loss: RowLoss,
    scores: Array | None = None,
) -> tuple[Array, Array]:
    """Xᵀ of equation (3) in W and in the intercept, along (direction, bias); ``scores`` if they are known."""
    dtype = row_loss.dtype
    if row_loss.is_fused:
        weight = coef.astype(dtype, copy=False)
        return fused_loss.hvp(*_fused(partition, row_loss), weight, intercept, direction, bias)
    weight, along = np.ascontiguousarray(coef.T, dtype), np.ascontiguousarray(direction.T, dtype)
    dcoef, dintercept = None, np.zeros_like(bias)
    start = 0
    for x, target in _blocks(partition, row_loss):
        stop = start + x.shape[0]
        if scores is None:
            at = _project(x, weight)
            at += intercept.astype(dtype)
        else:
            at = scores[start:stop]
        r = as_logits(_project(x, along) + bias.astype(dtype))
        dscores = _problem(at, target, row_loss).hvp(r, r)[:, -row_loss.num_scores :]
        dcoef = _plus(dcoef, _pull_back(partition, x, dscores, row_loss), direction)
        dintercept += dscores.sum(0, dtype=np.float64)
        start = stop
    return np.zeros_like(direction) if dcoef is None else dcoef, dintercept


def intercept_model(
    partition: Partition, coef: Array, intercept: Array, row_loss: RowLoss
) -> tuple[Array, Array]:
    """(Σ a m p (C,), the Hessian in the intercept (C, C): Σ a m (diag p − ppᵀ)), a = ω/D."""
    mass, crossed = np.zeros(row_loss.num_scores), np.zeros((row_loss.num_scores, row_loss.num_scores))
    for _, target, z in blocks_of_logits(partition, coef, intercept, row_loss):
        p = softmax(z)[:, -row_loss.num_scores :]
        weighted = p * (row_mass(target, len(p)) / row_loss.divisor)[:, None]
        mass += weighted.sum(0)
        crossed += weighted.T @ p
    return mass, np.diag(mass) - crossed


def score_curvature(
    partition: Partition, coef: Array, intercept: Array, row_loss: RowLoss, scores: Array | None = None
) -> Array:
    """Σ a m p(1−p) of each score, (C,), scaled as in `_curvature`; ``scores`` if they are known."""
    result = np.zeros(row_loss.num_scores)
    for _, weight in _curvature(partition, coef, intercept, row_loss, scores):
        result += weight.sum(0)
    return result


def gram(
    partition: Partition,
    coef: Array,
    intercept: Array,
    row_loss: RowLoss,
    by_class: bool,
    with_intercept: bool,
    rows: Array | None = None,
) -> Array:
    """XᵀSX of each class, (C, D, D), or of the mean of S over the classes, (1, D, D), S as in `_curvature`.

    ``with_intercept`` X has a column of ones, the last. ``rows`` are the rows to use, None for all.
    """
    sample = partition if rows is None else take(partition, rows)
    width = partition.features.shape[1] + with_intercept
    result = np.zeros((row_loss.num_scores if by_class else 1, width, width))
    for x, weight in _curvature(sample, coef, intercept, row_loss):
        roots = np.sqrt(weight if by_class else weight.mean(1, keepdims=True))
        for of_class, root in zip(result, roots.T[:, :, None], strict=True):
            scaled = np.concatenate([x * root, root], 1) if with_intercept else x * root
            of_class += scaled.T @ scaled
    return result


def feature_moments(partition: Partition, row_loss: RowLoss) -> tuple[float, Array, Array]:
    """(Σ ω m, Σ ω m x (D,), Σ ω m x² (D,)), by float64 products."""
    mass, width = 0.0, partition.features.shape[1]
    sums, squares = np.zeros(width), np.zeros(width)
    for x, target in _blocks(partition, in_float64(row_loss)):
        weight = row_mass(target, x.shape[0])
        mass += float(weight.sum())
        sums += x.T @ weight
        squares += _squared(x).T @ weight
    return mass, sums, squares


def target_moments(partition: Partition, row_loss: RowLoss) -> tuple[Array, Array]:
    """(Σ a t (K,), Σ a t xᵀ (K, D)), a = ω/D, by float64 products."""
    wide = in_float64(row_loss)
    mass, by_class = np.zeros(row_loss.num_classes), None
    for x, target in _blocks(partition, wide):
        t = _dense_target(target, x.shape[0], row_loss.num_classes) / row_loss.divisor
        mass += t.sum(0)
        by_class = _plus(by_class, _pull_back(partition, x, t, wide), t)
    if by_class is None:
        by_class = np.zeros((row_loss.num_classes, partition.features.shape[1]))
    return mass, by_class


def norm_of_features(partition: Partition) -> float:
    """Frobenius norm of X, for a sum by ``np.hypot``; also where squares overflow."""
    x = (partition.features.data if partition.is_sparse else partition.features).ravel()
    parts = [norm(x[i : i + BLOCK].astype(np.float64, copy=False)) for i in range(0, x.size, BLOCK)]
    return norm(np.array(parts))


def least_mass_of_one_class(partition: Partition) -> float:
    """The least ω m > 0 of a row, 0 if the target of a row has several classes; for ``np.minimum``."""
    target = partition.target
    if target.dense is not None:
        one_a_row = target.labels is None and (np.count_nonzero(target.dense, axis=1) <= 1).all()
        if not one_a_row:
            return 0.0
    mass = row_mass(target, partition.num_rows)
    return float(mass[mass > 0].min(initial=np.inf))


def has_errors(partition: Partition, coef: Array, intercept: Array, row_loss: RowLoss) -> bool:
    """Whether the true class of a row with weight has not the largest logit, beyond rounding.

    For a sum by ``np.logical_or``. Each row must have one class.
    """
    for x, target, z in blocks_of_logits(partition, coef, intercept, row_loss):
        own = target.labels if target.dense is None else target.dense.argmax(1)
        rows = np.arange(x.shape[0])
        above = z[rows, own]
        noise = 1e-12 * np.abs(z).max(1)
        z[rows, own] = -np.inf
        if not (above > z.max(1) + noise)[row_mass(target, len(rows)) > 0].all():
            return True
    return False


def take(partition: Partition, rows: Any) -> Partition:
    """The partition of these rows (integers, or a slice), in memory."""
    return Partition(partition.features[rows], _target_rows(partition.target, rows))


def stack(a: Partition, b: Partition) -> Partition:
    """The rows of ``a``, then those of ``b``; for a sum of partitions of one kind."""
    x = [a.features, b.features]
    s, t = a.target, b.target
    dense = s.dense
    if dense is not None and dense.ndim > 1:
        dense = np.concatenate([dense, t.dense])
    target = Target(
        labels=None if s.labels is None else np.concatenate([s.labels, t.labels]),
        alpha=np.concatenate([s.alpha, t.alpha]) if np.ndim(s.alpha) else s.alpha,
        dense=dense,
        beta=s.beta,
        weight=None if s.weight is None else np.concatenate([s.weight, t.weight]),
        total=s.total + t.total,
        rows=s.rows + t.rows,
    )
    return Partition(scipy.sparse.vstack(x, "csr") if a.is_sparse else np.concatenate(x), target)


def blocks_of_logits(
    partition: Partition, coef: Array, intercept: Array, row_loss: RowLoss, scores: Array | None = None
) -> Iterator[tuple[Any, Target, Array]]:
    """Blocks of X, their target, and their logits (rows, K); ``scores`` if they are known."""
    weight = np.ascontiguousarray(coef.T, row_loss.dtype)
    start = 0
    for x, target in _blocks(partition, row_loss):
        stop = start + x.shape[0]
        yield x, target, as_logits(_project(x, weight) + intercept if scores is None else scores[start:stop])
        start = stop


def in_float64(row_loss: RowLoss) -> RowLoss:
    """The same with float64 products."""
    return row_loss._replace(dtype=np.dtype(np.float64))


def as_logits(scores: Array) -> Array:
    """(N, K) logits; one score is the logit of the second of two classes against 0."""
    return scores if scores.shape[1] > 1 else np.pad(scores, ((0, 0), (1, 0)))


def row_mass(target: Target, rows: int) -> Array:
    """ω m (rows,), with m = α + β V."""
    mass = np.broadcast_to(np.asarray(target.alpha, np.float64), rows)
    if target.dense is not None:
        mass = mass + target.beta * target.dense.sum(-1)
    return mass if target.weight is None else mass * target.weight


def norm(x: Array) -> float:
    """‖x‖, also if its square overflows or underflows."""
    with np.errstate(over="ignore"):
        squared = float(x @ x)
    largest = 1.0
    if not 1e-280 < squared < 1e300 and x.size:
        largest = float(max(x.max(), -x.min())) or 1.0
        squared = float((x / largest) @ (x / largest))
    return float(largest * squared**0.5)


def _fused(partition: Partition, row_loss: RowLoss) -> tuple[Array, Target, LossSpec, float]:
    """The arguments of `fused_loss`."""
    return partition.features_for(row_loss.dtype), partition.target, row_loss.spec, 1.0 / row_loss.divisor


def _curvature(
    partition: Partition, coef: Array, intercept: Array, row_loss: RowLoss, scores: Array | None = None
) -> Iterator[tuple[Any, Array]]:
    """Blocks of X, and the diagonal a m p(1−p) of (3) for their rows and scores, (rows, C) float64.

    It is scaled so that at equal probabilities ``Σ X² ·`` it has exactly the Hessian's eigenvalues.
    """
    # At p = 1/K the Hessian of K scores is I/K on vectors that sum to 0; its diagonal is (1−1/K)/K.
    factor = row_loss.num_classes / (row_loss.num_classes - 1) if row_loss.num_scores > 1 else 1.0
    for x, target, z in blocks_of_logits(partition, coef, intercept, row_loss, scores):
        p = softmax(z)
        spread = (p * (1.0 - p))[:, -row_loss.num_scores :]
        yield x, spread * (factor / row_loss.divisor * row_mass(target, len(p)))[:, None]


def _problem(scores: Array, target: Target, row_loss: RowLoss) -> Problem:
    return Problem(as_logits(scores), target, row_loss.spec, "mean", row_loss.divisor)


def _blocks(partition: Partition, row_loss: RowLoss) -> Iterator[tuple[Any, Target]]:
    """(rows of X in the dtype of the products, their target)."""
    features, rows = partition.features_for(row_loss.dtype), partition.num_rows
    size = SPARSE_BLOCK // row_loss.num_scores if partition.is_sparse else BLOCK // max(1, features.shape[1])
    size = max(1, size)
    for start in range(0, rows, size):
        part = slice(start, start + size)
        whole = size >= rows
        x = features if whole else features[part]
        target = partition.target if whole else _target_rows(partition.target, part)
        yield _in_dtype(x, row_loss.dtype), target


def _in_dtype(x: Any, dtype: np.dtype[Any]) -> Any:
    """``x`` in this dtype; a CSR matrix shares its pattern."""
    if x.dtype == dtype or isinstance(x, np.ndarray):
        return x.astype(dtype, copy=False)
    return with_entries(x, x.data.astype(dtype))


def _project(x: Any, weight: Array) -> Array:
    """x @ weight; zeros without a product for sparse x and weight 0, where fits begin."""
    if isinstance(x, np.ndarray):
        return np.asarray(x @ weight)
    if not weight.any():
        return np.zeros((x.shape[0], weight.shape[1]), weight.dtype)
    return cpu_sparse.product(x, weight)


def _pull_back(partition: Partition, x: Any, dscores: Array, row_loss: RowLoss) -> Array:
    """dscoresᵀ X of a block of the partition, (C, D)."""
    narrow = dscores.astype(row_loss.dtype, copy=False)
    if not partition.is_sparse:
        product: Array = narrow.T @ x
        return product
    if x.shape[0] < partition.num_rows or not row_loss.keeps_copies:
        transposed: Array = x.T @ narrow
        return transposed.T
    return cpu_sparse.product(_in_dtype(partition.transposed_for(row_loss.dtype), row_loss.dtype), narrow).T


def _plus(total: Array | None, part: Array, like: Array) -> Array:
    """``total + part`` in the dtype of ``like``; the first part is not copied."""
    if total is None:
        return part.astype(like.dtype, copy=False)
    total += part
    return total


def _squared(x: Any) -> Any:
    """x∘x, sharing the pattern of a CSR matrix."""
    return x * x if isinstance(x, np.ndarray) else with_entries(x, x.data**2)


def _dense_target(target: Target, rows: int, num_classes: int) -> Array:
    """ω t (rows, K), with t = α e_y + β v."""
    t = np.zeros((rows, num_classes))
    if target.dense is not None:
        t += target.beta * target.dense
    if target.labels is not None:
        t[np.arange(rows), target.labels] += target.alpha
    return t if target.weight is None else t * target.weight[:, None]


def _target_rows(target: Target, rows: Any) -> Target:
    """The target of ``rows``. ``total`` still describes all rows; an Objective divides by its own divisor."""
    alpha, dense, weight = target.alpha, target.dense, target.weight
    return target._replace(
        labels=None if target.labels is None else target.labels[rows],
        alpha=alpha[rows] if isinstance(alpha, np.ndarray) and alpha.ndim else alpha,
        dense=dense[rows] if dense is not None and dense.ndim > 1 else dense,
        weight=None if weight is None else weight[rows],
    )
