"""Preconditioners: the inverse of an estimate of the Hessian, as a function of a vector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.linalg.lapack import dtrtri

from xent.regression.objective import Logits, Objective

Array = np.ndarray[Any, Any]
Preconditioner = Callable[[Array], Array]

WIDEST = 2048  # features up to which X is whitened, which takes time of their third power
WIDEST_BY_CLASS = 80  # features up to which each class is whitened; load_digits (64): 12 steps, not 20
FLOOR = 1e-10  # least curvature of a direction, relative to that of single features
# The estimate samples the largest of these numbers of rows:
ROWS = 8  # for each feature,
LEAST = 500  # in all,
SHARE = 16  # or one row in so many


def preconditioner(
    objective: Objective,
    parameters: Array,
    random: np.random.RandomState,
    by_class: bool = False,
    logits: Logits = None,
) -> Preconditioner:
    """`whitening` if X is dense and not wide, otherwise `diagonal`; ``logits`` of `Objective.rounded`."""
    if is_whitened(objective):
        return whitening(objective, estimated_gram(objective, parameters, random, by_class))
    return diagonal(objective, parameters, logits)


def is_whitened(objective: Objective) -> bool:
    """Whether X is dense and not wide."""
    return not objective.is_sparse and objective.num_features <= WIDEST


def is_cheap_by_class(objective: Objective) -> bool:
    """Whether whitening each class by itself takes less time than the steps it saves."""
    return objective.is_fused and objective.ignores_shifts and objective.num_features <= WIDEST_BY_CLASS


def estimated_gram(
    objective: Objective, parameters: Array, random: np.random.RandomState, by_class: bool
) -> Array:
    """`Objective.gram` at ``parameters``, from a sample of the rows if they are many."""
    width = objective.num_features + objective.fit_intercept
    rows = max(LEAST, ROWS * width, objective.num_rows // SHARE)
    sample = objective.draw(rows, random) if rows < objective.num_rows else None
    return objective.gram(parameters, by_class, sample)


def whitening(objective: Objective, gram: Array) -> Preconditioner:
    """``(XᵀSX + αI)⁻¹`` on the weights of each class, intercept included; S is the curvature of a row.

    S is the diagonal of (3): its mean over the classes, which gives the inverse Hessian at W = 0, or, if
    ``gram`` has a matrix for each class, that of each class. ``gram`` is XᵀSX, of `Objective.gram`.
    """
    by_class = len(gram) > 1
    gram = gram.copy()
    size = np.einsum("kii->ki", gram)  # a view
    size[:, : objective.num_features] += objective.alpha
    # Scale the diagonal to 1 before FLOOR is added, so that FLOOR does not hide features of a small scale.
    # FLOOR makes the matrix positive definite where features are linearly dependent.
    unit = 1.0 / np.sqrt(np.where(size > 0, size, 1.0))
    gram *= unit[:, :, None] * unit[:, None, :]
    size += FLOOR
    root = np.stack([_inverse_of_lower(factor) for factor in np.linalg.cholesky(gram)]) * unit[:, None, :]

    def apply(vector: Array) -> Array:
        coef, intercept = objective.unpack(vector)
        if objective.fit_intercept:
            coef = np.concatenate([coef, intercept[:, None]], 1)
        product = _by_class(coef, root, objective) if by_class else coef @ root[0].T @ root[0]
        if not objective.fit_intercept:
            return objective.pack(product, intercept)
        return objective.pack(product[:, :-1], product[:, -1])

    return apply


def _by_class(vectors: Array, root: Array, objective: Objective) -> Array:
    """``rootᵀ root`` of each class on its vector less the mean over classes; on the mean the penalty's αI."""
    mean = vectors.sum(0) / len(vectors)
    product: Array = ((vectors - mean)[:, None, :] @ root.transpose(0, 2, 1) @ root)[:, 0, :]
    product -= product.sum(0) / len(product)
    if objective.alpha:
        product[:, : objective.num_features] += mean[: objective.num_features] / objective.alpha
    return product


def _inverse_of_lower(factor: Array) -> Array:
    """Inverse of a lower triangular matrix; its transpose is upper triangular for Fortran-ordered LAPACK."""
    inverse: Array = dtrtri(factor.T)[0].T
    return inverse


def diagonal(objective: Objective, parameters: Array, logits: Logits = None) -> Preconditioner:
    """The inverse Hessian as if features were uncorrelated: Jacobi for centred features.

    With means μ and variances v of the features, and Σ a m p(1−p) = c for a class, the Hessian is about
    ``c [diag v + μμᵀ, μ; μᵀ, 1]`` + αI. Counts have a mean: on word counts 6 and 13 products give the gaps
    for which plain Jacobi needs 20 and 42.
    """
    mean, variance = objective.feature_moments
    curvature = objective.rounded.score_curvature(parameters, logits)
    curvature = np.where(curvature > 0, curvature, 1.0)
    dtype = objective.rounded.dtype
    inverse, _ = objective.unpack(np.empty(objective.num_parameters, dtype))
    np.multiply(curvature[:, None], variance, out=inverse, casting="same_kind")
    inverse += objective.alpha
    inverse[inverse <= 0] = 1.0
    np.reciprocal(inverse, out=inverse)
    mean, curvature = mean.astype(dtype), curvature.astype(dtype)
    # Without an intercept μμᵀ remains, of rank one: Sherman-Morrison formula.
    share = curvature / (1.0 + curvature * (inverse @ mean**2))

    def apply(vector: Array) -> Array:
        coef, intercept = objective.unpack(vector)
        result = np.empty(vector.shape, dtype)
        product, bias = objective.unpack(result)
        if objective.fit_intercept:
            np.multiply(intercept[:, None], mean, out=product, casting="same_kind")
            np.subtract(coef, product, out=product, casting="same_kind")
            product *= inverse
            bias[...] = intercept / curvature - product @ mean
            return result
        np.multiply(coef, inverse, out=product, casting="same_kind")
        product -= inverse * mean * (share * (product @ mean))[:, None]
        return result

    return apply
