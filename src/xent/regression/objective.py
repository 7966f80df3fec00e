"""Objective: the penalised mean loss of a linear model, its gradient and Hessian product, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from functools import cached_property
from typing import Any, Self

import numpy as np
from scipy.linalg.blas import daxpy, saxpy

from xent.api.cross_entropy import softmax
from xent.core.spec import LossSpec
from xent.core.target import Target
from xent.engine.batch_loss import Problem
from xent.kernels import cpu_sparse
from xent.regression.fused_loss import FusedLoss

Array = np.ndarray[Any, Any]

BLOCK = 1 << 19  # elements of X in a block: 2 MiB of float32, a level-2 cache
# Up to so many scores the fused kernels are faster than BLAS on such narrow matrices: 2.4 times at (784, 10),
# 1.4 at (512, 40), but 0.85 at (512, 100) in float64.
FUSED_SCORES = 48
COPY_BYTES = 64 << 20  # at most so much for float32 copies of X
ADD = {"f": saxpy, "d": daxpy}
SMALL = 1 << 16  # elements of a small X
SPARSE_BLOCK = 1 << 22  # logits in a block of a CSR matrix; each block adds a gradient of X's width


class Objective:
    """``loss (4) of X Wᵀ + b, plus alpha/2·‖W‖²``: value, gradient, Hessian product of one flat vector.

    The vector is W (C, D) and then, if fitted, the intercept (C,), in float64. With two classes C is 1: the
    logit of the second against 0. Otherwise C is K. The intercept is not penalised. W is stored row by row;
    for a CSR matrix, whose products are (D, C), column by column. `pack` and `unpack` convert it.

    Parameters
    ----------
    features : (N, D) C-contiguous array, or CSR matrix or array, of float32 or float64
        Never written or made dense; read in blocks of rows, so that a block stays in the cache between
        its two products.
    target : Target
        Labels (N,) in [0, K) or rows of probabilities (N, K), with the row weights.
    spec : LossSpec
    divisor : float > 0
        D of equation (4).
    alpha : float >= 0
    fit_intercept : bool
    num_classes : int >= 2

    Attributes
    ----------
    dtype
        The dtype of products with X: float64. `rounded` is the same objective in float32.
    is_convex : bool
        Whether (1) is convex in the logits for every row.
    """

    def __init__(
        self,
        features: Any,
        target: Target,
        spec: LossSpec,
        divisor: float,
        alpha: float,
        fit_intercept: bool,
        num_classes: int,
    ) -> None:
        self.features = features
        self.target = target
        self.spec = spec
        self.divisor = divisor
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.num_classes = num_classes
        self.dtype: np.dtype[Any] = np.dtype(np.float64)
        self.is_sparse = hasattr(features, "indptr")
        self.num_rows, self.num_features = (int(n) for n in features.shape)
        self.num_scores = num_classes if num_classes > 2 else 1

    @property
    def num_parameters(self) -> int:
        """Length of the vector."""
        return self.num_scores * (self.num_features + self.fit_intercept)

    @property
    def is_convex(self) -> bool:
        """False for focal loss, z-loss and softcap."""
        return self.spec.is_linear and self.spec.softcap is None

    @property
    def ignores_shifts(self) -> bool:
        """Whether a constant added to the scores of all classes leaves the loss unchanged."""
        return self.num_scores > 1 and not self.spec.z_loss and self.spec.softcap is None

    @property
    def rounded(self) -> Self:
        """This objective with float32 products; itself if X is small, or too large to copy.

        Float32 X is not copied. The products are 2 to 3 times as fast, but too coarse near the optimum.
        """
        return self if self._narrow is None else self._narrow

    @cached_property
    def _narrow(self) -> Self | None:
        narrow = np.dtype(np.float32)
        if self.features.dtype == narrow:
            return None if self.dtype == narrow else self._copy(narrow)
        if self.is_small or self._copy_bytes() > COPY_BYTES:
            return None
        other = self._copy(narrow)
        if self.is_sparse:
            other.features = _with_entries(self.features, self.features.data.astype(narrow))
            other.transposed = _with_entries(self.transposed, self.transposed.data.astype(narrow))
        else:
            other.features = self.features.astype(narrow)
        return other

    @cached_property
    def transposed(self) -> Any:
        """Transposed CSR features, for faster products with G; None if X is small or a copy has no room."""
        if self.is_small or self._copy_bytes() > COPY_BYTES or self.features.dtype != self.dtype:
            return None
        return self.features.T.tocsr()

    @property
    def is_small(self) -> bool:
        """Whether a product with X takes microseconds. For CSR the stored entries count."""
        return int(self.features.size) < SMALL

    def _copy_bytes(self) -> int:
        """Memory that `rounded` takes; for CSR with the transposes of both."""
        return 24 * int(self.features.nnz) if self.is_sparse else 4 * int(self.features.size)

    def subset(self, rows: Array, divisor: float) -> Self:
        """The objective of these rows (integers, or a slice), whose losses are divided by ``divisor``."""
        part = self._copy(self.dtype)
        part.transposed = None
        part.features = self.features[rows]
        part.target = _target_rows(self.target, rows)
        part.num_rows = int(part.features.shape[0])
        part.divisor = divisor
        return part

    def __call__(self, parameters: Array) -> tuple[float, Array]:
        """Objective (nats) and its gradient."""
        coef, intercept = self.unpack(parameters)
        loss, dcoef, dintercept = (self._fused_pass if self.is_fused else self._blocked_pass)(coef, intercept)
        flat = parameters[: coef.size]
        if self.alpha:  # at alpha = 0 the square must not count: it may overflow
            loss += 0.5 * self.alpha * float(flat @ flat)
        return loss, self._penalised(dcoef, dintercept, parameters)

    @property
    def is_fused(self) -> bool:
        """Whether one native pass computes the products with X and the loss; else they go block by block."""
        return not self.is_sparse and self.num_scores <= FUSED_SCORES

    @cached_property
    def _model(self) -> FusedLoss:
        return FusedLoss(self.features, self.target, self.spec, self.divisor)

    def _fused_pass(self, coef: Array, intercept: Array) -> tuple[float, Array, Array]:
        return self._model.loss_and_grad(coef.astype(self.dtype, copy=False), intercept)

    def _blocked_pass(self, coef: Array, intercept: Array) -> tuple[float, Array, Array]:
        weight = np.ascontiguousarray(coef.T, self.dtype)
        dcoef, dintercept = None, np.zeros_like(intercept)
        loss = 0.0
        for x, target in self._blocks():
            problem = self._problem(self._project(x, weight) + intercept, target)
            value, dlogits = problem.loss_and_grad(problem.logits)
            loss += float(value)
            dscores = dlogits[:, -self.num_scores :]
            dcoef = _plus(dcoef, self._pull_back(x, dscores), coef)
            dintercept += dscores.sum(0)
        return loss, np.zeros_like(coef) if dcoef is None else dcoef, dintercept

    def hvp(self, parameters: Array, vector: Array) -> Array:
        """The Hessian at ``parameters`` times ``vector``: Xᵀ of equation (3), plus alpha·V."""
        return self.hessian(parameters)(vector)

    def hessian(self, parameters: Array) -> Callable[[Array], Array]:
        """The Hessian at ``parameters`` as a function of a vector, which keeps the logits unless fused."""
        coef, intercept = self.unpack(parameters)
        if self.is_fused:
            narrow = coef.astype(self.dtype, copy=False)

            def product(vector: Array) -> Array:
                direction, bias = self.unpack(vector)
                dcoef, dintercept = self._model.hvp(narrow, intercept, direction, bias)
                return self._penalised(dcoef, dintercept, vector)

            return product
        weight = np.ascontiguousarray(coef.T, self.dtype)
        logits = np.concatenate([self._project(x, weight) for x, _ in self._blocks()])
        logits += intercept.astype(self.dtype)
        return lambda vector: self._hessian_product(logits, vector)

    def _hessian_product(self, logits: Array, vector: Array) -> Array:
        coef, intercept = self.unpack(vector)
        direction = np.ascontiguousarray(coef.T, self.dtype)
        dcoef, dintercept = None, np.zeros_like(intercept)
        start = 0
        for x, target in self._blocks():
            stop = start + x.shape[0]
            problem = self._problem(logits[start:stop], target)
            r = as_logits(self._project(x, direction) + intercept.astype(self.dtype))
            dscores = problem.hvp(r, r)[:, -self.num_scores :]
            dcoef = _plus(dcoef, self._pull_back(x, dscores), coef)
            dintercept += dscores.sum(0, dtype=np.float64)
            start = stop
        return self._penalised(np.zeros_like(coef) if dcoef is None else dcoef, dintercept, vector)

    def _penalised(self, dcoef: Array, dintercept: Array, vector: Array) -> Array:
        """(dcoef, dintercept) plus alpha times ``vector``'s W, as one vector; overwrites ``dcoef``.

        If `ignores_shifts`, the mean of the derivatives over the classes is 0 except for rounding errors.
        These are removed, since without a penalty a solver would follow them for ever.
        """
        if self.ignores_shifts:
            dcoef -= np.full(self.num_scores, 1.0 / self.num_scores, dcoef.dtype) @ dcoef
            dintercept = dintercept - dintercept.sum() / self.num_scores
        result = self.pack(dcoef, dintercept)
        if dcoef.size:  # in place, without a temporary array
            ADD[result.dtype.char](vector, result, n=dcoef.size, a=self.alpha)
        return result

    def curvature(self, parameters: Array) -> Iterator[tuple[Any, Array]]:
        """Blocks of X, and the diagonal a m p(1−p) of (3) for their rows and scores, (rows, C) float64.

        It is scaled so that at equal probabilities ``Σ X² ·`` it has exactly the Hessian's eigenvalues.
        """
        # At p = 1/K the Hessian of K scores is I/K on vectors that sum to 0; its diagonal is (1−1/K)/K.
        factor = self.num_classes / (self.num_classes - 1) if self.num_scores > 1 else 1.0
        for x, target, logits in self.logits(parameters):
            p = softmax(logits)
            spread = (p * (1.0 - p))[:, -self.num_scores :]
            yield x, spread * (factor / self.divisor * row_mass(target, len(p)))[:, None]

    def logits(self, parameters: Array) -> Iterator[tuple[Any, Target, Array]]:
        """Blocks of X, their target, and their logits (rows, K)."""
        coef, intercept = self.unpack(parameters)
        weight = np.ascontiguousarray(coef.T, self.dtype)
        for x, target in self._blocks():
            yield x, target, as_logits(self._project(x, weight) + intercept)

    @cached_property
    def feature_moments(self) -> tuple[Array, Array]:
        """Mean and variance of the features, (D,) each, in float64; the weight of a row is a m."""
        mass, sums, squares = 0.0, np.zeros(self.num_features), np.zeros(self.num_features)
        for x, target in self._in(np.float64)._blocks():
            weight = row_mass(target, x.shape[0])
            mass += float(weight.sum())
            sums += x.T @ weight
            squares += _squared(x).T @ weight
        mean = sums / mass
        return mean, np.maximum(squares / mass - mean**2, 0.0)

    def intercept_hessian(self, parameters: Array) -> Array:
        """The Hessian in the intercept, (C, C), in float64: Σ a m (diag p − ppᵀ)."""
        hessian = np.zeros((self.num_scores, self.num_scores))
        for _, target, logits in self.logits(parameters):
            p = softmax(logits)[:, -self.num_scores :]
            weighted = p * (row_mass(target, len(p)) / self.divisor)[:, None]
            hessian += np.diag(weighted.sum(0)) - weighted.T @ p
        return hessian

    def target_moments(self) -> tuple[Array, Array, Array]:
        """(Σ a t (K,), Σ a m xᵀ (D,), Σ a t xᵀ (K, D)), sums over the rows with a = ω/D."""
        class_mass = np.zeros(self.num_classes)
        by_class = None
        for x, target in self._in(np.float64)._blocks():
            t = _dense_target(target, x.shape[0], self.num_classes) / self.divisor
            class_mass += t.sum(0)
            by_class = _plus(by_class, self._pull_back(x, t), t)
        assert by_class is not None
        return class_mass, by_class.sum(0), by_class

    def pack(self, coef: Array, intercept: Array) -> Array:
        """W (C, D) and, if fitted, the intercept (C,) as one vector in the dtype of W."""
        flat = (coef.T if self.is_sparse else coef).ravel()
        whole: Array = np.concatenate([flat, intercept] if self.fit_intercept else [flat], dtype=coef.dtype)
        return whole

    def unpack(self, parameters: Array) -> tuple[Array, Array]:
        """(W, intercept) of the vector; zeros where no intercept is fitted."""
        split = self.num_scores * self.num_features
        if self.is_sparse:
            coef = parameters[:split].reshape(self.num_features, self.num_scores).T
        else:
            coef = parameters[:split].reshape(self.num_scores, self.num_features)
        return coef, parameters[split:] if self.fit_intercept else np.zeros(self.num_scores, parameters.dtype)

    def _in(self, dtype: Any) -> Self:
        return self if self.dtype == dtype else self._copy(dtype)

    def _copy(self, dtype: Any) -> Self:
        other = copy(self)
        for cached in ("_narrow", "transposed", "feature_moments", "_model"):
            other.__dict__.pop(cached, None)
        other.dtype = np.dtype(dtype)
        return other

    def _project(self, x: Any, weight: Array) -> Array:
        """x @ weight; zeros without a product for sparse x and weight 0, where fits begin."""
        if self.is_sparse and not weight.any():
            return np.zeros((x.shape[0], weight.shape[1]), self.dtype)
        scores: Array = cpu_sparse.product(x, weight) if self.is_sparse else x @ weight
        return scores

    def _pull_back(self, x: Any, dscores: Array) -> Array:
        """dscoresᵀ X of a block, (C, D)."""
        narrow = dscores.astype(self.dtype, copy=False)
        if not self.is_sparse:
            product: Array = narrow.T @ x
            return product
        if x.shape[0] < self.num_rows or self.transposed is None:
            transposed: Array = x.T @ narrow
            return transposed.T
        return cpu_sparse.product(self.transposed, narrow).T

    def _problem(self, scores: Array, target: Target) -> Problem:
        return Problem(as_logits(scores), target, self.spec, "mean", self.divisor)

    def _blocks(self) -> Iterator[tuple[Any, Target]]:
        """(rows of X in the dtype of the products, their target)."""
        size = SPARSE_BLOCK // self.num_scores if self.is_sparse else BLOCK // max(1, self.num_features)
        size = max(1, size)
        for start in range(0, self.num_rows, size):
            rows = slice(start, start + size)
            whole = size >= self.num_rows
            x = self.features if whole else self.features[rows]
            yield x.astype(self.dtype, copy=False), self.target if whole else _target_rows(self.target, rows)


def _plus(total: Array | None, part: Array, like: Array) -> Array:
    """``total + part`` in the dtype of ``like``; the first part is not copied."""
    if total is None:
        return part.astype(like.dtype, copy=False)
    total += part
    return total


def _squared(x: Any) -> Any:
    """x∘x, sharing the pattern of a CSR matrix."""
    return x * x if isinstance(x, np.ndarray) else _with_entries(x, x.data**2)


def _with_entries(x: Any, entries: Array) -> Any:
    """A CSR matrix that shares the pattern of x."""
    return type(x)((entries, x.indices, x.indptr), shape=x.shape)


def as_logits(scores: Array) -> Array:
    """(N, K) logits; one score is the logit of the second of two classes against 0."""
    return scores if scores.shape[1] > 1 else np.pad(scores, ((0, 0), (1, 0)))


def _dense_target(target: Target, rows: int, num_classes: int) -> Array:
    """ω t (rows, K), with t = α e_y + β v."""
    t = np.zeros((rows, num_classes))
    if target.dense is not None:
        t += target.beta * target.dense
    if target.labels is not None:
        t[np.arange(rows), target.labels] += target.alpha
    return t if target.weight is None else t * target.weight[:, None]


def row_mass(target: Target, rows: int) -> Array:
    """ω m (rows,), with m = α + β V."""
    mass = np.broadcast_to(np.asarray(target.alpha, np.float64), rows)
    if target.dense is not None:
        mass = mass + target.beta * target.dense.sum(-1)
    return mass if target.weight is None else mass * target.weight


def _target_rows(target: Target, rows: Any) -> Target:
    """The target of ``rows``. ``total`` still describes all rows; an Objective divides by its own divisor."""
    alpha, dense, weight = target.alpha, target.dense, target.weight
    return target._replace(
        labels=None if target.labels is None else target.labels[rows],
        alpha=alpha[rows] if isinstance(alpha, np.ndarray) and alpha.ndim else alpha,
        dense=dense[rows] if dense is not None and dense.ndim > 1 else dense,
        weight=None if weight is None else weight[rows],
    )
