"""The divergence of a linear layer's softmax from a teacher's, for training a student on its teacher."""

from __future__ import annotations

from typing import Any, Literal

import torch

from xent.torch import dispatch
from xent.torch.linear import loss as linear_loss
from xent.torch.linear.distillation.call import STUDENT, TEACHER, Distillation, checked_layers
from xent.torch.linear.distillation.topk import Teacher
from xent.torch.linear.products import Chunking
from xent.torch.temperature import divided, split

Tensor = torch.Tensor


def linear_kl_divergence(
    inputs: Tensor,
    weight: Tensor,
    teacher_inputs: Tensor,
    teacher_weight: Tensor,
    *,
    bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    direction: Literal["forward", "reverse"] = "forward",
    labels: Tensor | None = None,
    ignore_index: int = -100,
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
    of logits exists whole. `linear_topk_kl_divergence` takes a teacher of which only the k largest
    log-probabilities of each row are known.

    Parameters
    ----------
    inputs, teacher_inputs : (..., D) and (..., D') tensors
    weight, teacher_weight : (K, D) and (K, D') tensors
    bias, teacher_bias : (K,) tensors, default None
    temperature : float > 0, or (...) tensor, default 1.0
        Divides both logits: a number, a tensor of one number, or one for each row (equation (28)), which rows
        that are left out do not read. A tensor gets its gradient, at the cost of a teacher that is derived.
        The gradient of the student falls with the square of T; multiply the loss by T² to keep its scale.
    direction : {"forward", "reverse"}, default "forward"
    labels : (...) tensor of integers, default None
        Those of the cross-entropy of the same rows; a row whose label is ``ignore_index`` is left out. The
        divergence reads nothing else of them.
    sample_weight : (...) tensor, default None
        Factor of each row; rows of weight 0, like ignored ones, cost nothing.
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
    chunking = Chunking(chunk_bytes, logits_dtype)
    try:
        temperature, by_row = split(temperature)
        number, inputs, bias, teacher_inputs, teacher_bias = divided(
            temperature, inputs, bias, teacher_inputs, teacher_bias, keep_dtype=True
        )
        other = teacher_inputs, teacher_weight, teacher_bias
        student, teacher = checked_layers((inputs, weight, bias), STUDENT, other, TEACHER)
        options = number, direction, reduction, denominator, validate, chunking, by_row
        call = Distillation(student, labels, sample_weight, ignore_index, *options)
        call = call.checked(STUDENT[0], **dict(zip(TEACHER, teacher, strict=True)))
    except Exception as error:
        dispatch.refuse(error, weight, inputs)
    return dispatch.linear_kl_divergence(call, teacher)


def linear_topk_kl_divergence(
    inputs: Tensor,
    weight: Tensor,
    indices: Tensor,
    log_probs: Tensor,
    *,
    bias: Tensor | None = None,
    tail: Literal["bin", "renormalise"] = "bin",
    temperature: float | Tensor = 1.0,
    direction: Literal["forward", "reverse"] = "forward",
    labels: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Any = None,
    validate: bool | None = None,
    chunk_bytes: int | None = None,
    logits_dtype: torch.dtype | None = None,
) -> Tensor:
    """KL divergence between a teacher, given by k entries of each row, and a student's softmax.

    With the teacher's probabilities p_i = exp(log_prob_i) on the classes S of ``indices``, the student's q at
    ``temperature``, and what both leave to all other classes, P = 1 - Σ p_i and Q = 1 - Σ q_i:

    - ``tail="bin"``: the other classes are one. ``"forward"`` is Σ p (log p - log q) + P (log P - log Q),
      ``"reverse"`` is Σ q (log q - log p) + Q (log Q - log P). Neither exceeds the divergence from the whole
      teacher, and for k = K they are equal to it.
    - ``tail="renormalise"``: the teacher is p̃ = p/Σ p, and 0 elsewhere. ``"forward"`` is KL(p̃‖q). KL(q‖p̃)
      would be infinite, so ``"reverse"`` takes the student on S alone too: KL(q̃‖p̃) with q̃ = q/Σ q.

    Equations (22) and (23) of docs/maths.md. No matrix of rows × classes exists whole.

    Parameters
    ----------
    inputs : (..., D) tensor
    weight : (K, D) tensor
    indices : (..., k) tensor of integers
        Different classes in each row, in any order; ``torch.topk`` gives them.
    log_probs : (..., k) tensor of floats
        Log-probabilities of these classes among all K, of the teacher at the same ``temperature``; -inf for
        an entry of no mass. In a reverse divergence a P below 2⁻²³ (2⁻⁵² if they are float64), which is their
        rounding, counts as that: at P = 0 it would be infinite.
    bias : (K,) tensor, default None
    tail : {"bin", "renormalise"}, default "bin"
    temperature : float > 0, or (...) tensor, default 1.0
        Divides the student's logits: as for `linear_kl_divergence`.
    direction, labels, ignore_index, sample_weight, reduction, denominator, chunk_bytes, logits_dtype
        As for `linear_kl_divergence`. Rows that are left out may hold anything.
    validate : bool, default None
        Check that indices are different classes and log-probabilities at most 0. None: on the CPU. Without
        the check a row with an index out of range is NaN.

    Returns
    -------
    Tensor
        In nats; float64 for float64 ``inputs``, float32 for all others. Derivable in ``inputs``, ``weight``,
        ``bias``, ``log_probs`` and ``sample_weight``.

    Raises
    ------
    ValueError
        For shapes, dtypes, values and options that do not go together.

    Notes
    -----
    TRL's experimental trainers have ``tail="bin"``. NeMo-RL restricts teacher and student to S in both
    directions, as ``"renormalise"`` does in reverse. The forward top-k loss of verl omits the tail and does
    not renormalise, so that it may be negative.

    Examples
    --------
    >>> import torch, xent.torch
    >>> x, w = torch.eye(3), torch.eye(3)
    >>> teacher = torch.log_softmax(2 * x @ w.T, -1)
    >>> log_probs, indices = teacher.topk(2)
    >>> round(xent.torch.linear_topk_kl_divergence(x, w, indices, log_probs).item(), 4)
    0.0989
    """
    chunking = Chunking(chunk_bytes, logits_dtype)
    try:
        temperature, by_row = split(temperature)
        number, inputs, bias = divided(temperature, inputs, bias, keep_dtype=True)
        student = linear_loss.checked(inputs, weight, bias, STUDENT)
        options = number, direction, reduction, denominator, validate, chunking, by_row
        call = Distillation(student, labels, sample_weight, ignore_index, *options)
        call = call.checked(STUDENT[0], indices=indices, log_probs=log_probs)
        teacher = Teacher(indices, log_probs, tail).checked(call.shape)
    except Exception as error:
        dispatch.refuse(error, weight, inputs)
    return dispatch.linear_topk_kl_divergence(call, teacher)
