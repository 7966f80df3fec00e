"""The divergence of a linear layer's softmax from a teacher's, for training a student on its teacher."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from xent.core import head, softmax
from xent.core import target as targeting
from xent.core.link import Link
from xent.core.spec import LossSpec, Options, require_reduction
from xent.core.target import Target
from xent.jax import arguments, dense
from xent.jax.linear import batches
from xent.jax.linear.batches import Plan
from xent.jax.linear.chunked import loss_sum, row_values
from xent.jax.linear.layers import TEACHER_NAMES, Layer, as_form, as_layer, sum_dtype
from xent.jax.softmax import exp, log_softmax_rows
from xent.jax.targets import Batch, kernel_labels

Array = Any

DIRECTIONS = ("forward", "reverse")


def linear_kl_divergence(
    inputs: Any,
    weight: Any,
    teacher_inputs: Any,
    teacher_weight: Any,
    *,
    bias: Any = None,
    teacher_bias: Any = None,
    class_axis: int = 0,
    temperature: float = 1.0,
    direction: Literal["forward", "reverse"] = "forward",
    labels: Any = None,
    ignore_index: int = -100,
    where: Any = None,
    sample_weight: Any = None,
    reduction: str = "mean",
    denominator: Any = None,
    validate: bool | None = None,
    chunk_bytes: int | None = None,
    logits_dtype: Any = None,
) -> Array:
    """KL divergence between a teacher's and a student's softmax, each a hidden state and its weight.

    With p the teacher's and q the student's probabilities at ``temperature``, ``"forward"`` is
    ``KL(p‖q) = Σ p (log p - log q)`` (Hinton et al., 2015) and ``"reverse"`` is ``KL(q‖p)``. Neither matrix
    of logits exists whole. A teacher that is not differentiated costs one product.

    Parameters
    ----------
    inputs, teacher_inputs : (..., D) and (..., D') arrays
    weight, teacher_weight : (K, D) and (K, D') arrays, or (D, K) and (D', K) with ``class_axis=1``
    bias, teacher_bias : (K,) arrays, default None
    class_axis : {0, 1}, default 0
        The axis of the classes in both weights.
    temperature : float > 0, default 1.0
        Divides both logits. The gradient of the student falls with the square of T; multiply the loss by T²
        to keep its scale.
    direction : {"forward", "reverse"}, default "forward"
    labels : (...) integers, default None
        Those of the cross-entropy of the same rows; a row whose label is ``ignore_index`` is left out. The
        divergence reads nothing else of them.
    where, sample_weight : (...) arrays, default None
        Rows to leave out where ``where`` is False; the factor of each row.
    reduction, denominator, validate, chunk_bytes, logits_dtype
        As for `linear_cross_entropy`; ``chunk_bytes`` is for the logits of the student.

    Returns
    -------
    jax.Array
        In nats; float64 for float64 ``inputs``, float32 for all others. Derivable in student and teacher.
        Where the two are almost equal, the rounding of their log-probabilities may leave it below 0.

    Raises
    ------
    TypeError, ValueError
        For shapes, dtypes and options that do not go together, and for a temperature that is traced: divide
        the inputs and biases by such a one.

    Examples
    --------
    >>> import jax.numpy as jnp, xent.jax
    >>> x = w = jnp.eye(3)
    >>> xent.jax.linear_kl_divergence(x, w, x, 2 * w).round(4)
    Array(0.0989, dtype=float32)
    """
    require_reduction(reduction)
    if direction not in DIRECTIONS:
        raise ValueError(f"`direction` must be one of {', '.join(DIRECTIONS)}; got {direction!r}")
    named = Options(ignore_index=ignore_index, temperature=temperature)
    spec, _, _ = LossSpec.from_options(named)
    student = as_layer(inputs, weight, bias, class_axis)
    teacher = as_layer(teacher_inputs, teacher_weight, teacher_bias, class_axis, TEACHER_NAMES)
    form = as_form(class_axis, logits_dtype, student.inputs.dtype)
    rows, num_classes = student.inputs.shape[:-1], form.num_classes(student)
    if teacher.inputs.shape[:-1] != rows or form.num_classes(teacher) != num_classes:
        raise ValueError(
            f"`teacher_inputs` and `teacher_weight` must have the rows {rows} and the {num_classes} classes "
            f"of the student; got {teacher.inputs.shape} and {teacher.weight.shape}"
        )
    if teacher.inputs.dtype != student.inputs.dtype:
        raise TypeError(
            f"`teacher_inputs` must have the dtype of `inputs`, {student.inputs.dtype}; got "
            f"{teacher.inputs.dtype}"
        )
    y = jnp.zeros(rows, jnp.int32) if labels is None else arguments.as_labels(labels)
    batch = batches.checked(
        student, num_classes, y, where, None, sample_weight, spec, validate, name="labels"
    )
    if labels is None:
        batch = batch._replace(targets=None)
    by_name, number = arguments.split_denominator(denominator, reduction)
    return _linear_kl_divergence(
        student,
        teacher,
        batch,
        number,
        plan=batches.as_plan(form, 0, chunk_bytes, student),
        divergence=Divergence(spec.link, direction == "reverse", spec.ignore_index),
        reduction=reduction,
        denominator=by_name,
    )


@partial(jax.jit, static_argnames=("plan", "divergence", "reduction", "denominator"))
def _linear_kl_divergence(
    student: Layer,
    teacher: Layer,
    batch: Batch,
    number: Array | float | None,
    *,
    plan: Plan,
    divergence: Divergence,
    reduction: str,
    denominator: str | None,
) -> Array:
    rows = batches.flat_rows(student, batch, plan)
    taught = batches.flat_rows(teacher, Batch(None, None, None, None), plan)
    layers, chunk_rows = [rows.layer, taught.layer], rows.chunk_rows
    if reduction == "none":
        values = row_values(
            divergence.derivable, layers, rows.batch, None, divergence.silent, plan.form, chunk_rows
        )
        return rows.unflat(values)
    weight, dtype = divergence.row_weight(rows.batch), sum_dtype(student.inputs)
    total, count = targeting.totals(rows.layer.inputs.shape[0], weight, None, jnp)
    measure = Target(None, 0.0, None, 1.0, weight, total, count)
    divide_by = number if denominator == "number" else denominator
    scale = dense.scale_of(measure, reduction, divide_by, dtype)
    return head.multiply(scale, loss_sum(layers, rows.batch, None, divergence, plan.form, chunk_rows), jnp)


class Divergence(NamedTuple):
    """ω·KL of the rows of a chunk: `chunked.RowLosses`.

    ``rows`` is a `Batch`; the teacher's logits are the last.
    """

    link: Link
    is_reverse: bool
    ignore_index: int

    def row_weight(self, rows: Batch) -> Array | None:
        """ω (M,), 0 for rows that are left out; None if every row counts once."""
        counts = rows.where
        if rows.targets is not None:
            _, ignored = kernel_labels(rows.targets, 1, self.ignore_index)
            counts = ~ignored if counts is None else counts & ~ignored
        if counts is None:
            return rows.sample_weight
        return jnp.where(counts, 1.0 if rows.sample_weight is None else rows.sample_weight, 0.0)

    def silent(self, rows: Batch, shared: None) -> Array | None:
        """Rows of weight 0."""
        weight = self.row_weight(rows)
        return None if weight is None else weight == 0

    def derivable(self, logits: list[Array], rows: Batch, shared: None) -> Array:
        """ω·KL (M,), in operations that JAX differentiates."""
        student, teacher = (log_softmax_rows(self.link.value(z.astype(sum_dtype(z)), jnp)) for z in logits)
        log_p, log_q = (student, teacher) if self.is_reverse else (teacher, student)
        divergences = softmax.multiply(exp(log_p), log_p - log_q, jnp).sum(-1)
        mask = self.silent(rows, shared)
        if mask is not None:
            divergences = jnp.where(mask, 0, divergences)
        return head.multiply(self.row_weight(rows), divergences, jnp)

    def losses(self, logits: list[Array], rows: Batch, shared: None, is_formula: bool) -> Array:
        """ω·KL (M,)."""
        return self.derivable(logits, rows, shared)

    def losses_and_grads(
        self, logits: list[Array], rows: Batch, shared: None, wanted: list[bool], is_formula: bool
    ) -> tuple[Array, list[Array | None]]:
        """ω·KL (M,) and its gradient in the logits that are wanted."""

        def total(chosen: list[Array | None]) -> tuple[Array, Array]:
            pairs = zip(chosen, logits, strict=True)
            values = self.derivable([z if x is None else x for x, z in pairs], rows, shared)
            return values.sum(), values

        chosen = [z if is_wanted else None for z, is_wanted in zip(logits, wanted, strict=True)]
        grads, values = jax.grad(total, has_aux=True)(chosen)
        return values, grads
