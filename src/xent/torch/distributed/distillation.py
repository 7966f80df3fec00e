"""Divergences from a teacher with classes split over the processes of a group: public functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from xent.engine import valid_rows
from xent.torch import arguments
from xent.torch.distributed import divergence
from xent.torch.distributed.handshake import LocalCheck, agree, checksum, plain_tensors, tensor_kind
from xent.torch.distributed.loss import GROUP, outside_graphs, size_and_device
from xent.torch.linear import loss as linear_loss
from xent.torch.linear.chunked import Operands
from xent.torch.linear.distillation.call import Distillation, checked_layers
from xent.torch.linear.distillation.topk import Teacher
from xent.torch.linear.products import Chunking
from xent.torch.temperature import split

Tensor = torch.Tensor

STUDENT = ("hidden", "weight_shard", "bias")
TEACHER = ("teacher_hidden", "teacher_weight_shard", "teacher_bias")


def vocab_parallel_linear_kl_divergence(
    hidden: Tensor,
    weight_shard: Tensor,
    teacher_hidden: Tensor,
    teacher_weight_shard: Tensor,
    *,
    group: Any,
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
    sizes: Sequence[int] | None = None,
) -> Tensor:
    """`xent.torch.linear_kl_divergence` of a student and a teacher whose classes are split over ``group``.

    Every rank has the same classes of both, calls it with the same rows and options, and gets the same bits.
    Two all-reduces of each chunk take 40 bytes a row; the gradient of ``hidden`` takes one more, of its own
    size and dtype.

    Parameters
    ----------
    hidden, teacher_hidden : (..., D) and (..., D') tensors, the same on every rank
    weight_shard, teacher_weight_shard : (K_s, D) and (K_s, D') tensors
    bias, teacher_bias : (K_s,) tensors, default None
        This rank's; all ranks have one or none.
    temperature, direction, labels, ignore_index, sample_weight, reduction, denominator
        As for `xent.torch.linear_kl_divergence`, the same on every rank.
    chunk_bytes, logits_dtype
        Likewise.
    group, validate, sizes
        As for `vocab_parallel_cross_entropy`.

    Returns
    -------
    Tensor
        In nats; float64 for float64 ``hidden``, float32 for all others. Derivable once, in the student;
        not in a ``temperature`` of each row.

    Raises
    ------
    ValueError
        As for `xent.torch.linear_kl_divergence`; on all ranks if one refuses its arguments, or if they
        differ.
    NotImplementedError
        For what would derive it twice, or in anything but the student.

    Examples
    --------
    In each process, with the classes of both heads split over the default group:

    >>> def divergence(hidden, head, teacher_hidden, teacher_head):
    ...     tensors = hidden, head.weight, teacher_hidden, teacher_head.weight
    ...     return vocab_parallel_linear_kl_divergence(*tensors, group=None, temperature=2.0)
    """

    def check() -> LocalCheck[tuple[Distillation, Operands]]:
        other = teacher_hidden, teacher_weight_shard, teacher_bias
        student, teacher = checked_layers((hidden, weight_shard, bias), STUDENT, other, TEACHER)
        chunking = Chunking(chunk_bytes, logits_dtype)
        number, by_row = split(temperature)
        options = number, direction, reduction, denominator, validate, chunking, by_row
        call = Distillation(student, labels, sample_weight, ignore_index, *options)
        given = dict(zip(TEACHER, teacher, strict=True))
        arguments.require_local(**dict(zip(STUDENT, student, strict=True)), **given, temperature=by_row)
        call = call.checked(STUDENT[0], **given)
        divergence.require_derivable(call, *teacher, by_row)
        call.require_temperature()
        shared = {"teacher_hidden": teacher.inputs} if sizes is None else None
        return local_check(call, (call, teacher), STUDENT, given, shared)

    (call, teacher), shard = agree(check, group, sizes, *size_and_device(weight_shard, 0), GROUP)
    return outside_graphs(divergence.linear_kl_divergence)(call, teacher, shard)


def vocab_parallel_linear_topk_kl_divergence(
    hidden: Tensor,
    weight_shard: Tensor,
    indices: Tensor,
    log_probs: Tensor,
    *,
    group: Any,
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
    sizes: Sequence[int] | None = None,
) -> Tensor:
    """`xent.torch.linear_topk_kl_divergence` of a student whose classes are split over ``group``.

    Every rank calls it with the same rows, teacher and options, and gets the same bits. Two all-reduces of
    each chunk take 8 (k + 2) bytes a row; the gradient of ``hidden`` takes one more, of its own size and
    dtype.

    Parameters
    ----------
    hidden : (..., D) tensor, the same on every rank
    weight_shard : (K_s, D) tensor
    indices, log_probs : (..., k) tensors, the same on every rank
        Classes among those of all ranks, and the teacher's log-probabilities of them.
    bias : (K_s,) tensor, default None
        This rank's; all ranks have one or none.
    tail, temperature, direction, labels, ignore_index, sample_weight, reduction, denominator
        As for `xent.torch.linear_topk_kl_divergence`, the same on every rank.
    chunk_bytes, logits_dtype
        Likewise.
    group, validate, sizes
        As for `vocab_parallel_cross_entropy`.

    Returns
    -------
    Tensor
        In nats; float64 for float64 ``hidden``, float32 for all others. Derivable once, in the student
        and in a ``temperature`` of each row.

    Raises
    ------
    ValueError
        As for `xent.torch.linear_topk_kl_divergence`; on all ranks if one refuses its arguments, or if they
        differ.
    NotImplementedError
        For what would derive it twice, or in anything but the student.

    Examples
    --------
    In each process, with the classes of the head split over the default group:

    >>> def divergence(hidden, head, indices, log_probs):
    ...     tensors = hidden, head.weight, indices, log_probs
    ...     return vocab_parallel_linear_topk_kl_divergence(*tensors, group=None)
    """

    def check() -> LocalCheck[tuple[Distillation, Teacher]]:
        student = linear_loss.checked(hidden, weight_shard, bias, STUDENT)
        chunking = Chunking(chunk_bytes, logits_dtype)
        number, by_row = split(temperature)
        options = number, direction, reduction, denominator, validate, chunking, by_row
        call = Distillation(student, labels, sample_weight, ignore_index, *options)
        entries = {"indices": indices, "log_probs": log_probs}
        arguments.require_local(**dict(zip(STUDENT, student, strict=True)), **entries, temperature=by_row)
        call = call.checked(STUDENT[0], **entries)
        teacher = Teacher(indices, log_probs, tail).checked(call.shape)
        divergence.require_derivable(call, log_probs)
        call.require_temperature()
        given = {**entries, "tail": tail, "k": indices.shape[-1]}
        shared = None
        if sizes is None:
            shared = entries
        return local_check(call, (call, teacher), STUDENT, given, shared)

    (call, teacher), shard = agree(check, group, sizes, *size_and_device(weight_shard, 0), GROUP)
    return outside_graphs(divergence.linear_topk_kl_divergence)(call, teacher, shard)


def local_check(
    call: Distillation,
    value: Any,
    names: tuple[str, str, str],
    teacher: Mapping[str, Any],
    shared: Mapping[str, Tensor] | None,
) -> LocalCheck[Any]:
    """The facts and tensors that all ranks must share; no tensors are compared if ``shared`` is None.

    ``names`` are those of the student's operands. ``teacher`` are the arguments of the teacher, ``shared``
    its tensors with a row for each row, if the ranks have them whole.
    """
    options = ("direction", "reduction", "ignore_index", "validate")
    factors = {name: getattr(call, name) for name in ("labels", "sample_weight", "denominator")}
    of_rows = call.row_temperature
    factors["temperature"] = call.temperature if of_rows is None else of_rows
    tensors = {**dict(zip(names, call.student, strict=True)), **teacher, **factors}
    facts = {name: tensor_kind(x) for name, x in tensors.items()}
    facts |= {name: getattr(call, name) for name in options} | call.chunking._asdict()
    facts["shape of the rows"] = call.shape
    compared = {}
    if shared is not None:
        whole = plain_tensors(**factors)
        rows = plain_tensors(**{names[0]: call.student.inputs}, **shared)
        omega = call._replace(
            labels=whole.get("labels"), sample_weight=whole.get("sample_weight")
        ).row_factors()
        sums = {name: checksum(valid_rows.as_matrix(x)) for name, x in rows.items()}
        compared = {
            **whole,
            **{name: x if omega is None else torch.where(omega == 0, 0, x) for name, x in sums.items()},
        }
    return LocalCheck(value, math.prod(call.shape), facts, compared)
