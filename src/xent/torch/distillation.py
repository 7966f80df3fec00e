"""The divergence of a linear layer's softmax from a teacher's, for training a student on its teacher."""

from __future__ import annotations

from typing import Any, Literal

import torch

from xent.core import target as targeting
from xent.core.spec import require_reduction
from xent.engine import valid_rows
from xent.torch import arguments, devices, modes
from xent.torch.linear import chunked, divergence
from xent.torch.linear import loss as linear_loss
from xent.torch.linear.divergence import Divergence
from xent.torch.linear.products import Chunking
from xent.torch.temperature import divided

Tensor = torch.Tensor


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
