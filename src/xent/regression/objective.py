"""Objective: the penalised mean loss of a linear model over partitions of the rows.

The partitions compute sums over their rows: `partition_sums`. What is added here: the order of the parameters
in one vector, the penalty, and the removal of shifts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from functools import cached_property
from typing import Any, Self

import numpy as np
from scipy.linalg.blas import daxpy, saxpy

from xent.core.spec import LossSpec
from xent.regression.sums import partition_sums as sums
from xent.regression.sums.hessian_matrix import hessian_matrix
from xent.regression.sums.partition_sums import RowLoss
from xent.regression.sums.partitions import Local, Partitions

Array = np.ndarray[Any, Any]
Logits = Sequence[Any] | None  # of each partition, where it keeps them

# Up to so many scores the fused kernels are faster than BLAS on such narrow matrices: 2.4 times at (784, 10),
# 1.4 at (512, 40), but 0.85 at (512, 100) in float64.
FUSED_SCORES = 48
COPY_BYTES = 64 << 20  # at most so much for float32 copies of X, in all partitions
LOGITS_BYTES = 256 << 20  # at most so much for the logits of several partitions
ADD = {"f": saxpy, "d": daxpy}
SMALL = 1 << 16  # elements of a small X


class Objective:
    """``loss (4) of X Wᵀ + b, plus alpha/2·‖W‖²``: value, gradient, Hessian product of one flat vector.

    The vector is W (C, D) and then, if fitted, the intercept (C,), in float64. With two classes C is 1: the
    logit of the second against 0. Otherwise C is K. The intercept is not penalised. W is stored row by row;
    for a CSR matrix, whose products are (D, C), column by column. `pack` and `unpack` convert it.

    Parameters
    ----------
    partitions : Partitions
        The rows: features and targets. Never written or made dense.
    spec : LossSpec
    divisor : float > 0
        D of equation (4).
    alpha : float >= 0
    fit_intercept : bool
    num_classes : int >= 2

    Attributes
    ----------
    totals : Totals
        Of the partitions.
    num_rows : int
        In all partitions.
    dtype
        The dtype of products with X: float64. `rounded` is the same objective in float32.
    """

    def __init__(
        self,
        partitions: Partitions,
        spec: LossSpec,
        divisor: float,
        alpha: float,
        fit_intercept: bool,
        num_classes: int,
    ) -> None:
        self.partitions = partitions
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.totals = partitions.totals
        self.num_rows = sum(self.totals.rows)
        self.num_features = self.totals.num_features
        self.is_sparse = self.totals.is_sparse
        self.num_scores = num_classes if num_classes > 2 else 1
        is_fused = not self.is_sparse and self.num_scores <= FUSED_SCORES
        keeps_copies = not self.is_small and self._copy_bytes() <= COPY_BYTES
        wide = np.dtype(np.float64)
        self.row_loss = RowLoss(spec, divisor, num_classes, wide, is_fused, keeps_copies)

    @property
    def spec(self) -> LossSpec:
        """Options of the loss."""
        return self.row_loss.spec

    @property
    def divisor(self) -> float:
        """D of equation (4)."""
        return self.row_loss.divisor

    @property
    def num_classes(self) -> int:
        """K."""
        return self.row_loss.num_classes

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of products with X."""
        return self.row_loss.dtype

    @property
    def is_fused(self) -> bool:
        """Whether one native pass computes the products with X and the loss; else they go block by block."""
        return self.row_loss.is_fused

    @property
    def num_parameters(self) -> int:
        """Length of the vector."""
        return self.num_scores * (self.num_features + self.fit_intercept)

    @property
    def is_convex(self) -> bool:
        """Whether (1) is convex in the logits for every row: not for focal loss, z-loss and softcap."""
        return self.spec.is_linear and self.spec.softcap is None

    @property
    def ignores_shifts(self) -> bool:
        """Whether a constant added to the scores of all classes leaves the loss unchanged."""
        return self.num_scores > 1 and not self.spec.z_loss and self.spec.softcap is None

    @property
    def is_small(self) -> bool:
        """Whether a product with X takes microseconds. For CSR the stored entries count."""
        return self.totals.entries < SMALL

    def _copy_bytes(self) -> int:
        """Memory that `rounded` takes; for CSR with the transposes of both."""
        return (24 if self.is_sparse else 4) * self.totals.entries

    @property
    def rounded(self) -> Self:
        """This objective with float32 products; itself if X is small, or too large to copy.

        Float32 X is not copied. The products are 2 to 3 times as fast, but too coarse near the optimum.
        """
        return self if self._narrow is None else self._narrow

    @cached_property
    def _narrow(self) -> Self | None:
        narrow = np.dtype(np.float32)
        if self.dtype == narrow or not (self.totals.dtype == narrow or self.row_loss.keeps_copies):
            return None
        other = copy(self)
        other.__dict__.pop("_narrow", None)
        other.row_loss = self.row_loss._replace(dtype=narrow)
        return other

    def with_alpha(self, alpha: float) -> Self:
        """This objective with another penalty; the rows are shared."""
        other = copy(self)
        other.__dict__.pop("_narrow", None)
        other.alpha = alpha
        return other

    def subset(self, rows: Any, divisor: float) -> Self:
        """The objective of these rows, in memory, whose losses are divided by ``divisor``.

        ``rows`` are integers, sorted if there are several partitions.
        """
        part = self.partitions.sum_over(sums.take, each=self.rows_by_partition(rows), by=sums.stack)
        return type(self)(Local([part]), self.spec, divisor, self.alpha, self.fit_intercept, self.num_classes)

    def rows_by_partition(self, rows: Array) -> list[Array]:
        """Numbers of rows among all, as numbers within each partition; sorted if there are several."""
        if len(self.totals.rows) == 1:
            return [rows]
        ends = np.cumsum(self.totals.rows)
        parts = np.split(rows, np.searchsorted(rows, ends[:-1]))
        return [part - (end - n) for part, end, n in zip(parts, ends, self.totals.rows, strict=True)]

    def draw(self, count: int, random: np.random.RandomState) -> Array:
        """``count`` row numbers, sorted; from each partition its share, without replacement."""
        drawn, start = [], 0
        for rows in self.totals.rows:
            stop = start + rows
            share = stop * count // self.num_rows - start * count // self.num_rows
            if share:
                drawn.append(start + np.sort(random.choice(rows, share, replace=False)))
            start = stop
        return np.concatenate(drawn)

    def __call__(self, parameters: Array) -> tuple[float, Array]:
        """Objective (nats) and its gradient."""
        coef, intercept = self.unpack(parameters)
        loss, dcoef, dintercept = self.partitions.sum_over(sums.loss_and_grad, coef, intercept, self.row_loss)
        flat = parameters[: coef.size]
        if self.alpha:  # at alpha = 0 the square must not count: it may overflow
            loss += 0.5 * self.alpha * float(flat @ flat)
        return float(loss), self._penalised(dcoef, dintercept, parameters)

    def hvp(self, parameters: Array, vector: Array) -> Array:
        """The Hessian at ``parameters`` times ``vector``: Xᵀ of equation (3), plus alpha·V."""
        return self.hessian(parameters)(vector)

    def logits(self, parameters: Array) -> Logits:
        """The scores at ``parameters``, kept by the partitions for `hessian` and `score_curvature`.

        None, so that they are computed in each pass, if the kernels are fused or there is no room.
        """
        if self.is_fused or not self._keeps_logits:
            return None
        return self.partitions.map(sums.logits, *self.unpack(parameters), self.row_loss)

    def hessian(self, parameters: Array, logits: Logits = None) -> Callable[[Array], Array]:
        """The Hessian at ``parameters`` as a function of a vector; ``logits`` are those of `logits`."""
        at = self.unpack(parameters)

        def product(vector: Array) -> Array:
            dcoef, dintercept = self.partitions.sum_over(
                sums.hessian_product, *at, *self.unpack(vector), self.row_loss, each=logits
            )
            return self._penalised(dcoef, dintercept, vector)

        return product

    @property
    def _keeps_logits(self) -> bool:
        size = self.num_rows * self.num_scores * self.dtype.itemsize
        return len(self.totals.rows) == 1 or size <= LOGITS_BYTES

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

    @cached_property
    def feature_moments(self) -> tuple[Array, Array]:
        """Mean and variance of the features, (D,) each, in float64; the weight of a row is a m."""
        mass, total, squares = self.partitions.sum_over(sums.feature_moments, self.row_loss)
        mean = total / mass
        return mean, np.maximum(squares / mass - mean**2, 0.0)

    def target_moments(self) -> tuple[Array, Array, Array]:
        """(Σ a t (K,), Σ a m xᵀ (D,), Σ a t xᵀ (K, D)), sums over the rows with a = ω/D."""
        class_mass, by_class = self.partitions.sum_over(sums.target_moments, self.row_loss)
        return class_mass, by_class.sum(0), by_class

    def row_norm(self) -> float:
        """Root mean square norm of the rows of X."""
        whole = self.partitions.sum_over(sums.norm_of_features, by=np.hypot)
        return float(whole / max(1, self.num_rows) ** 0.5)

    def intercept_model(self, parameters: Array) -> tuple[Array, Array]:
        """(predicted masses Σ a m p (C,), the Hessian in the intercept (C, C)), in float64."""
        at = self.unpack(parameters)
        predicted, hessian = self.partitions.sum_over(sums.intercept_model, *at, self.row_loss)
        return predicted, hessian

    def score_curvature(self, parameters: Array, logits: Logits = None) -> Array:
        """Σ a m p(1−p) of each score, (C,), scaled as `gram`; ``logits`` are those of `logits`."""
        at = self.unpack(parameters)
        curvature: Array = self.partitions.sum_over(sums.score_curvature, *at, self.row_loss, each=logits)
        return curvature

    def gram(self, parameters: Array, by_class: bool, rows: Array | None = None) -> Array:
        """XᵀSX with the intercept's column of ones, (C, D+1, D+1) or, for the mean over the classes, (1, …).

        S is the diagonal of (3), scaled so that at equal probabilities the eigenvalues are the Hessian's.
        From a sample, sorted row numbers, it is estimated for all rows.
        """
        row_loss, each = self.row_loss, None
        if rows is not None:
            row_loss = row_loss._replace(divisor=self.divisor * len(rows) / self.num_rows)
            each = self.rows_by_partition(rows)
        at = self.unpack(parameters)
        gram: Array = self.partitions.sum_over(
            sums.gram, *at, row_loss, by_class, self.fit_intercept, each=each
        )
        return gram

    def hessian_matrix(self, parameters: Array) -> Array:
        """The Hessian at ``parameters`` of a convex objective, of dense features, (P, P)."""
        at = self.unpack(parameters)
        by_feature = self.partitions.sum_over(hessian_matrix, *at, self.row_loss, self.fit_intercept)
        width = self.num_features + self.fit_intercept
        order = np.arange(self.num_parameters).reshape(self.num_scores, width)
        order = self.pack(order[:, : self.num_features], order[:, -1])
        matrix: Array = by_feature[order[:, None], order]
        weights = self.num_scores * self.num_features
        matrix[range(weights), range(weights)] += self.alpha
        return matrix

    def least_mass_of_one_class(self) -> float:
        """The least weight ω m > 0 of a row; 0 if the target of a row has several classes."""
        return float(self.partitions.sum_over(sums.least_mass_of_one_class, by=np.minimum))

    def has_errors(self, parameters: Array) -> bool:
        """Whether in some row with weight the one true class has not the largest logit, beyond rounding."""
        at = self.unpack(parameters)
        return bool(self.partitions.sum_over(sums.has_errors, *at, self.row_loss, by=np.logical_or))

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
