"""The NumPy front end: statistics of rows of logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xent.core.spec import LossSpec, Options
from xent.engine import checks, row_columns
from xent.kernels import registry

Array = np.ndarray[Any, Any]


def row_statistics(
    logits: Any,
    labels: Any = None,
    *,
    ignore_index: int = -100,
    softcap: float | None = None,
    temperature: float = 1.0,
    validate: bool = True,
    want: Sequence[str] = row_columns.DEFAULT,
) -> Any:
    """Log-sum-exp, label log-probability, entropy (nats) and argmax of each row, or what ``want`` names.

    With the logits ``u`` after softcap and temperature, and their softmax ``p``, ``log_sum_sq_probs`` is
    ``log Σ p²``, the negative Rényi entropy of order 2 (equation (24) of docs/maths.md), ``mean_logits`` is
    ``Σ u / K``, and ``is_top1`` says whether the label is the argmax.

    Parameters
    ----------
    logits : (..., K) array, torch.Tensor or jax.Array, as for `cross_entropy`
    labels : (...) integers, default None
        Without them ``log_prob`` is None. Rows whose label is ``ignore_index`` are 0 throughout.
    ignore_index, softcap, temperature, validate
        As for `cross_entropy`.
    want : sequence of str, default ("lse", "log_prob", "entropy", "argmax")
        The fields of the result to compute, out of these and "log_sum_sq_probs", "mean_logits" and "is_top1".
        The others are None, and cost nothing.

    Returns
    -------
    RowStatistics
        Named tuple of (...) arrays, of the loss's dtype; ``argmax`` is int64, the first of equals, and
        ``is_top1`` bool. A logit of −inf makes the mean −inf.

    Raises
    ------
    TypeError, ValueError
        As for `cross_entropy`; for a name in ``want`` that is none of these, or that needs labels if there
        are none.

    Notes
    -----
    These are the outputs of the fused language-model head of TRL 1.16, with its names, except that its
    ``log_probs`` is ``log_prob``. TRL divides by its temperature T after its softcap C, which is
    ``softcap=C/T, temperature=T`` here.

    Examples
    --------
    >>> import numpy as np, xent
    >>> stats = xent.row_statistics(np.array([[0.0, 0.0]]), np.array([1]))
    >>> stats.lse.round(4), stats.log_prob.round(4), stats.entropy.round(4), stats.argmax
    (array([0.6931]), array([-0.6931]), array([0.6931]), array([0]))
    >>> xent.row_statistics(np.array([[3.0, 1.0]]), np.array([0]), want=("mean_logits", "is_top1"))[-2:]
    (array([2.]), array([ True]))
    """
    wanted = row_columns.require_want(want, labels)
    front: Any = None
    if checks.is_tensor(logits):
        from xent.torch import functional as front
    elif checks.is_jax_array(logits):
        from xent import jax as front
    if front is not None:
        return front.row_statistics(
            logits,
            labels,
            ignore_index=ignore_index,
            softcap=softcap,
            temperature=temperature,
            validate=None if validate else False,
            want=want,
        )
    options = Options(ignore_index=ignore_index, softcap=softcap, temperature=temperature)
    spec, _, _ = LossSpec.from_options(options)
    z = checks.as_logits(logits)
    y = None
    if labels is not None:
        array = checks.as_integers(labels, "labels")
        y = checks.as_target(array, z, spec, validate=validate, name="labels").labels
    names, dtype = row_columns.column_names(wanted), checks.loss_dtype(z)

    def as_dtype(x: Array) -> Array:
        return x.astype(dtype, order="C", copy=False)  # sums along contiguous rows are pairwise

    kernel = registry.get("cpu").row_stats
    with np.errstate(invalid="ignore"):  # of infinite logits
        columns = row_columns.columns(kernel, z, y, None, spec.link, names, as_dtype, np)
    return row_columns.collect(dict(zip(names, columns, strict=True)), wanted, y, as_dtype)
