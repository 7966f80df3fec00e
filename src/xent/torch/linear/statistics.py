"""The public row statistics and divergences of linear layers, whose logits are never whole."""

from __future__ import annotations

from typing import Any, Literal

import torch

from xent.core import target as targeting
from xent.core.contract import RowStatistics
from xent.core.spec import require_reduction
from xent.engine import valid_rows
from xent.torch import arguments, devices, modes
from xent.torch.linear import chunked, divergence, row_stats
from xent.torch.linear import loss as linear_loss
from xent.torch.linear.divergence import Divergence
from xent.torch.linear.products import Chunking
from xent.torch.linear.row_stats import Statistics
from xent.torch.targets import kernel_labels, require_labels, zero_if_valid
from xent.torch.temperature import divided

Tensor = torch.Tensor


def linear_row_statistics(
    inputs: Tensor,
    weight: Tensor,
    labels: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    temperature: float = 1.0,
    validate: bool | None = None,
    shift: int = 0,
    chunk_bytes: int | None = None,
    logits_dtype: torch.dtype | None = None,
) -> RowStatistics:
    """`row_statistics` of ``inputs @ weight.T + bias``, which never exists whole; derivable in all three.

    Parameters
    ----------
    inputs : (..., D) tensor
    weight : (K, D) tensor
    labels : (...) tensor of integers, default None
        Without them ``log_prob`` is None. Ignored rows are 0 throughout and cost nothing.
    bias : (K,) tensor, default None
    softcap, temperature, validate, shift, chunk_bytes, logits_dtype
        As for `linear_cross_entropy`. Without ``validate`` a label out of range gives NaN.

    Returns
    -------
    RowStatistics
        Tensors shaped like the rows (shorter by ``shift`` on the last axis), in nats, float64 for float64
        inputs and float32 for all others; ``argmax`` is int64.

    Examples
    --------
    >>> import torch, xent.torch
    >>> hidden, head = torch.eye(2), torch.zeros(4, 2, requires_grad=True)
    >>> stats = xent.torch.linear_row_statistics(hidden, head, torch.tensor([0, 3]))
    >>> stats.log_prob.detach().numpy().round(4), stats.entropy.detach().numpy().round(4)
    (array([-1.3863, -1.3863], dtype=float32), array([1.3863, 1.3863], dtype=float32))
    """
    number, inputs, bias = divided(temperature, inputs, bias, keep_dtype=True)
    spec = arguments.spec_of(ignore_index=ignore_index, softcap=softcap, temperature=number)
    arguments.require_local(inputs=inputs, weight=weight, labels=labels)
    operands = linear_loss.checked(inputs, weight, bias, ("inputs", "weight", "bias"))
    shape, num_classes = operands.inputs.shape[:-1], weight.shape[0]
    flat = operands._replace(inputs=valid_rows.as_matrix(operands.inputs))
    is_plain = chunked.is_plain(flat, labels)
    zero: Tensor | None = None
    if labels is not None:
        require_labels(labels, shape)
        arguments.require_together(inputs=inputs, labels=labels)
        zero = zero_if_valid(labels, num_classes, spec.ignore_index, "labels", validate)
    link, chunking = spec.link, Chunking(chunk_bytes, logits_dtype).checked(flat.inputs)
    loss_shape, index = valid_rows.shifted_rows(shape, shift, torch, inputs.device)
    y: Tensor | None = None
    if modes.is_recorded():
        counts: Tensor | None = None
        if labels is not None:
            y = valid_rows.align_targets(
                kernel_labels(labels, num_classes, spec.ignore_index), shift, -1, torch
            )
        elif shift:
            counts = valid_rows.align_targets(inputs.new_ones(shape, dtype=torch.bool), shift, False, torch)
        stats = row_stats.row_stats(flat, y, None, counts, 0, link, True, chunking)
        columns: Any = tuple(column for column in stats if column is not None)
    else:
        if labels is not None:
            y = kernel_labels(valid_rows.flatten_rows(labels, shift), num_classes, spec.ignore_index)
            if is_plain and not modes.is_captured(y):
                index, (y,) = valid_rows.select_rows(y < 0, None, index, (y,), torch)
        silent = None if y is None or is_plain else y < 0
        function = Statistics(index, y, None, 0, link, True, chunking, silent)
        columns = function.values(flat) if is_plain else function.derivable(flat)
    lse, *log_prob, entropy, argmax = (valid_rows.unflatten_rows(c, shape, loss_shape) for c in columns)
    if zero is not None:
        lse, log_prob = lse + zero, [log_prob[0] + zero]
    dtype = devices.loss_dtype(inputs)
    by_label = log_prob[0].to(dtype) if log_prob else None
    return RowStatistics(lse.to(dtype), by_label, entropy.to(dtype), argmax)


def linear_kl_divergence(
    inputs: Tensor,
    weight: Tensor,
    teacher_inputs: Tensor,
    teacher_weight: Tensor,
    *,
    bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    temperature: float = 1.0,
    direction: Literal["forward", "reverse"] = "forward",
    sample_weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Any = None,
    validate: bool | None = None,
    chunk_bytes: int | None = None,
    logits_dtype: torch.dtype | None = None,
) -> Tensor:
    """KL divergence between a teacher's and a student's softmax, each a hidden state and its weight.

    With p the teacher's and q the student's probabilities at ``temperature``, ``"forward"`` is
    ``KL(p‖q) = Σ p (log p − log q)`` (Hinton et al., 2015) and ``"reverse"`` is ``KL(q‖p)``. Neither matrix
    of logits exists whole.

    Parameters
    ----------
    inputs, teacher_inputs : (..., D) and (..., D') tensors
    weight, teacher_weight : (K, D) and (K, D') tensors
    bias, teacher_bias : (K,) tensors, default None
    temperature : float > 0, default 1.0
        Divides both logits. The gradient falls with its square; multiply the loss by T² to keep its scale.
    direction : {"forward", "reverse"}, default "forward"
    sample_weight : (...) tensor, default None
        Factor of each row; rows of weight 0 cost nothing.
    reduction, denominator, validate, chunk_bytes, logits_dtype
        As for `linear_cross_entropy`.

    Returns
    -------
    Tensor
        In nats; float64 for float64 ``inputs``, float32 for all others. Derivable in student and teacher.
        Where the two are almost equal, the rounding of their log-probabilities may leave it below 0.

    Raises
    ------
    ValueError
        For shapes, dtypes and options that do not go together.

    Examples
    --------
    >>> import torch, xent.torch
    >>> x, w = torch.eye(3), torch.eye(3)
    >>> round(xent.torch.linear_kl_divergence(x, w, x, 2 * w).item(), 4)
    0.0989
    """
    require_reduction(reduction)
    if direction not in ("forward", "reverse"):
        raise arguments.ArgumentError(f'`direction` must be "forward" or "reverse"; got {direction!r}')
    number, inputs, bias, teacher_inputs, teacher_bias = divided(
        temperature, inputs, bias, teacher_inputs, teacher_bias, keep_dtype=True
    )
    spec = arguments.spec_of(temperature=number)
    arguments.require_local(
        inputs=inputs, weight=weight, teacher_inputs=teacher_inputs, teacher_weight=teacher_weight
    )
    student = linear_loss.checked(inputs, weight, bias, ("inputs", "weight", "bias"))
    names = ("teacher_inputs", "teacher_weight", "teacher_bias")
    teacher = linear_loss.checked(teacher_inputs, teacher_weight, teacher_bias, names)
    shape = student.inputs.shape[:-1]
    if teacher.inputs.shape[:-1] != shape or teacher.weight.shape[0] != student.weight.shape[0]:
        raise arguments.ArgumentError(
            f"`teacher_inputs` and `teacher_weight` must have the rows {tuple(shape)} and the "
            f"{student.weight.shape[0]} classes of the student; got {tuple(teacher.inputs.shape)} and "
            f"{tuple(teacher.weight.shape)}"
        )
    if sample_weight is not None:
        arguments.require_rows(sample_weight, shape, validate)
    teacher_tensors = dict(zip(names, (teacher_inputs, teacher_weight, teacher_bias), strict=True))
    arguments.require_together(inputs=inputs, **teacher_tensors, sample_weight=sample_weight)
    denominator = arguments.as_denominator(denominator)
    flat = student._replace(inputs=valid_rows.as_matrix(student.inputs))
    flat_teacher = teacher._replace(inputs=valid_rows.as_matrix(teacher.inputs))
    omega = None if sample_weight is None else sample_weight.double().reshape(-1)
    divisor = denominator if isinstance(denominator, Tensor) else None
    is_plain = chunked.is_plain(flat, *flat_teacher, omega, divisor)
    num_rows, counted = targeting.totals(flat.inputs.shape[0], omega, None, torch)
    scale = arguments.inverse(targeting.divisor(num_rows, counted, reduction, denominator))
    chunking = Chunking(chunk_bytes, logits_dtype).checked(flat.inputs)
    kl = Divergence(*flat_teacher, omega, spec.temperature, direction == "reverse", chunking)
    dtype = devices.loss_dtype(inputs)
    if modes.is_recorded():
        is_total = reduction != "none" and modes.knows_its_gradients()
        if is_total and not modes.are_derived(*kl[:4]):
            return (divergence.divergence_sum(flat, kl) * scale).to(dtype)
        losses = divergence.losses(flat, kl)
    else:
        function = kl.function(flat, is_plain)
        if is_plain and reduction != "none":
            return function.scaled_sum(flat, scale).to(dtype)
        (losses,) = function.values(flat) if is_plain else function.derivable(flat)
    return (losses.reshape(shape) if reduction == "none" else losses.sum() * scale).to(dtype)
