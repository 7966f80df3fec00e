"""Divergences from a teacher of DTensors over a mesh of one dimension: classes in shards, or rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import torch

from xent.torch import arguments
from xent.torch.distributed import divergence as sharded
from xent.torch.distributed.distillation import local_check
from xent.torch.distributed.dtensors import layouts
from xent.torch.distributed.dtensors.layouts import MESH, as_whole, class_columns
from xent.torch.distributed.dtensors.rows import DistributedRows
from xent.torch.distributed.handshake import LocalCheck, plain_tensors
from xent.torch.distributed.shards import Shard
from xent.torch.linear.chunked import Operands
from xent.torch.linear.distillation import divergence, topk
from xent.torch.linear.distillation.call import STUDENT, TEACHER, Distillation
from xent.torch.linear.distillation.topk import Teacher
from xent.torch.targets import require_indices, require_log_probs, require_targets

Tensor = torch.Tensor


class TeacherTensors(NamedTuple):
    """The tensors of a teacher by their names: those with a row for each row, and with one for each class."""

    rows: Mapping[str, Any]
    classes: Mapping[str, Any]
    facts: Mapping[str, Any]  # its options


def linear_kl_divergence(call: Distillation, teacher: Operands) -> Tensor:
    """The divergence of a checked call with a DTensor for a weight: one of ``Shard(0)``, or a replicated one.

    With a weight of ``Shard(0)`` the teacher's is sharded alike, and hidden states of any placement are
    gathered. With a replicated weight the rows stay where they are.
    """
    by_name = dict(zip(TEACHER, teacher, strict=True))
    rows = {TEACHER[0]: by_name.pop(TEACHER[0])}
    shard = _agreed(call, TeacherTensors(rows, by_name, {}))
    if shard is not None:
        like = call.student.weight
        own = Operands(
            as_whole(teacher.inputs),
            class_columns(teacher.weight, like, shard, 0),
            class_columns(teacher.bias, like, shard, 0),
        )
        loss = sharded.linear_kl_divergence(_local_classes(call, shard), own, shard)
        return layouts.replicated(loss, like)

    def own_loss(local: Distillation, layout: DistributedRows) -> Tensor:
        weight, bias = (layout.replicated(x) for x in teacher[1:])
        return divergence.linear_kl_divergence(
            local, Operands(layout.local_rows(teacher.inputs), weight, bias)
        )

    return _by_rows(call, own_loss)


def linear_topk_kl_divergence(call: Distillation, teacher: Teacher) -> Tensor:
    """As `linear_kl_divergence`, from the entries of a checked teacher."""
    rows = {"indices": teacher.indices, "log_probs": teacher.log_probs}
    facts = {"tail": teacher.tail, "k": teacher.indices.shape[-1]}
    shard = _agreed(call, TeacherTensors(rows, {}, facts))
    if shard is not None:
        own = Teacher(as_whole(teacher.indices), as_whole(teacher.log_probs), teacher.tail)
        loss = sharded.linear_topk_kl_divergence(_local_classes(call, shard), own, shard)
        return layouts.replicated(loss, call.student.weight)
    num_classes = call.student.weight.shape[0]
    teacher.require_classes(num_classes)

    def own_loss(local: Distillation, layout: DistributedRows) -> Tensor:
        own = Teacher(layout.local_rows(teacher.indices), layout.local_rows(teacher.log_probs), teacher.tail)

        def check() -> None:
            indices, log_probs = own.read_entries(local.counts(local.row_factors()))
            require_indices(indices, num_classes)
            require_log_probs(log_probs)

        if sharded.validates(call):
            _all_agree(check, call)
        return topk.linear_topk_kl_divergence(local, own)

    return _by_rows(call, own_loss)


def _agreed(call: Distillation, teacher: TeacherTensors) -> Shard | None:
    """The shard of this rank if the weight is sharded, None if the rows may be; an error on all ranks."""
    operands = dict(zip(STUDENT, call.student, strict=True))
    first, by_rows = layouts.first_and_by_rows(call.student, STUDENT, **teacher.rows, **teacher.classes)

    def check() -> LocalCheck[None]:
        factors = {"labels": call.labels, "sample_weight": call.sample_weight}
        factors |= {"temperature": call.row_temperature, "denominator": call.denominator}
        layouts.require_layouts(first.device_mesh, **operands, **teacher.rows, **teacher.classes, **factors)
        if by_rows:
            DistributedRows(call.student.inputs)
        else:
            layouts.require_class_shards(call.student, STUDENT, **teacher.classes)
            by_row = (call.row_temperature,) if teacher.classes else ()
            sharded.require_derivable(call, *teacher.rows.values(), *teacher.classes.values(), *by_row)
        facts = {**teacher.rows, **teacher.classes, **teacher.facts}
        return local_check(call, None, STUDENT, facts, plain_tensors(**teacher.rows))

    _, shard = layouts.agree_on(check, first, 0, MESH)
    return None if by_rows else shard


def _local_classes(call: Distillation, shard: Shard) -> Distillation:
    """The checked call for this rank's classes."""
    inputs, weight, bias = cast(Any, call.student)
    student = Operands(as_whole(inputs), weight.to_local(), class_columns(bias, weight, shard, 0))
    names = ("labels", "sample_weight", "denominator", "row_temperature")
    local = call._replace(student=student, **{name: as_whole(getattr(call, name)) for name in names})
    arguments.require_rows(local.sample_weight, local.shape, call.validate)
    return local


def _by_rows(call: Distillation, own_loss: Callable[[Distillation, DistributedRows], Tensor]) -> Tensor:
    """The loss of all rows; ``own_loss(local, layout)`` is that of this rank's."""
    inputs, weight, bias = cast(Any, call.student)
    if not DistributedRows.is_row_layout(inputs):
        inputs = layouts.gathered(inputs)
    layout, denominator = DistributedRows(inputs), as_whole(call.denominator)
    student = Operands(inputs.to_local(), layout.replicated(weight), layout.replicated(bias))
    local = call._replace(
        student=student,
        labels=layout.local_rows(call.labels),
        sample_weight=layout.local_rows(call.sample_weight),
        row_temperature=layout.local_rows(call.row_temperature),
        denominator=denominator,
        validate=False,
    )

    def check() -> None:
        arguments.require_rows(local.sample_weight, local.shape, call.validate)
        local._replace(validate=call.validate).require_temperature()
        if local.labels is not None and sharded.validates(call):
            require_targets(local.labels, weight.shape[0], call.ignore_index, "labels")

    _all_agree(check, call)
    if layout.is_all_sum(call.reduction):
        local = local._replace(reduction="sum", denominator=None)
    return layout.reduce_loss(
        own_loss(local, layout), call.reduction, denominator, lambda: local.totals(local.row_factors())
    )


def _all_agree(check: Callable[[], None], call: Distillation) -> None:
    """Raise the error of a ``check`` of values on all ranks."""

    def local() -> LocalCheck[None]:
        check()
        return LocalCheck(None)

    layouts.agree_on(local, call.student.weight, 0, MESH)
