"""Labels and probabilities of tensors: their checks, and the measure that the kernels read.

Where the values are not there yet, in graphs and under transforms, the checks are operators.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from xent.core import head, target
from xent.core.spec import LossSpec
from xent.core.target import Target
from xent.engine import checks
from xent.torch import arguments, devices, modes
from xent.torch.arguments import Call

Tensor = torch.Tensor


class LabelError(ValueError, IndexError):
    """A label that is no class: a ValueError here, an IndexError in PyTorch."""


def measure(logits: Tensor, call: Call) -> Target:
    """The target measure of labels (...) or probabilities (..., K); no label is checked."""
    weight = None if call.sample_weight is None else call.sample_weight.double()
    factors = None if call.class_weight is None else call.class_weight.double()
    if call.is_soft:
        q = call.targets.to(devices.loss_dtype(logits))
        return target.from_probabilities(q, factors, weight, call.spec, torch)
    num_classes = logits.shape[-1]
    y = readable(call.targets, num_classes, call.spec.ignore_index)
    return target.from_labels(y, y < 0, num_classes, factors, weight, call.spec, torch)


def silenced(t: Target, spec: LossSpec, have_loss: Tensor | None) -> Target:
    """``t`` with the label −1, which nothing reads or derives, in rows that (1) multiplies by 0.

    A factor that is derived has a derivative at 0 too, the loss of its row: where ``have_loss`` is given,
    those rows are as they were.
    """
    rows = head.silent_rows(t, spec, torch)
    if rows is None:
        return t
    if have_loss is not None:
        rows = rows & ~have_loss
        weight, alpha = (
            torch.where(rows, 0.0, x) if isinstance(x, Tensor) else x for x in (t.weight, t.alpha)
        )
        t = t._replace(weight=weight, alpha=alpha)
    return t._replace(labels=torch.where(rows, -1, 0 if t.labels is None else t.labels))


def counts(call: Call, num_classes: int) -> tuple[Any, Any]:
    """What a mean may divide by: the total weight of the rows that count, and their number."""
    weight = None if call.sample_weight is None else call.sample_weight.double()
    if call.is_soft:
        return target.totals(call.targets.shape[:-1].numel(), weight, None, torch)
    factors = None if call.class_weight is None else call.class_weight.double()
    y = readable(call.targets, num_classes, call.spec.ignore_index)
    t = target.from_labels(y, y < 0, num_classes, factors, weight, call.spec, torch)
    return t.total, t.rows


def readable(labels: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Labels as the kernels read them: −1 for a row to leave out, K (NaN) for what is no class."""
    wide = as_int64(labels)  # 156 of 8 bits would be equal to −100
    y = torch.where((wide < 0) | (wide >= num_classes), num_classes, wide)
    return torch.where(wide == ignore_index, -1, y)


def require_labels(labels: Tensor, rows: tuple[int, ...], name: str = "labels") -> None:
    """Raise unless ``labels`` are integers, one a row."""
    arguments.require_tensor(labels, name)
    if labels.dtype not in arguments.INTEGERS:
        raise arguments.ArgumentError(f"`{name}` must have an integer dtype; got {labels.dtype}")
    if labels.shape != rows:
        raise arguments.ArgumentError(
            f"`{name}` must have the shape of the rows, {tuple(rows)}; got {tuple(labels.shape)}"
        )


def labels_of(
    labels: Tensor, num_classes: int, ignore_index: int, validate: bool, name: str = "target"
) -> tuple[Any, Any]:
    """As `checks.as_labels`, of a CPU tensor."""
    try:
        return checks.as_labels(devices.view(labels), num_classes, ignore_index, validate, name)
    except ValueError as error:
        raise LabelError(str(error)) from None


def as_int64(labels: Tensor) -> Tensor:
    """Labels of any width; what is beyond 64 bits with a sign stays large."""
    wide = labels.long()
    return wide & torch.iinfo(torch.int64).max if labels.dtype == torch.uint64 else wide


def require_targets(targets: Tensor, num_classes: int, ignore_index: int, name: str) -> None:
    """Raise for labels that are no class, probabilities that are negative or NaN; waits for their device."""
    host = targets.detach().cpu()
    if targets.is_floating_point():
        if checks.all_within(devices.view(host), math.inf):
            return
        checks.check_probabilities(devices.view(host.float() if host.dtype.itemsize == 2 else host), name)
    else:
        labels_of(host, num_classes, ignore_index, True, name)


def zero_if_valid(
    x: Tensor, num_classes: int, ignore_index: int, name: str, validate: bool | None
) -> Tensor | None:
    """Raise for labels that are no class, probabilities that are negative or NaN, where ``validate`` asks so.

    In a graph 0 is returned, or an error raised, when it runs: the caller adds it to the result, so that it
    is computed. None: there is nothing to add.
    """
    if validate is False:
        return None
    if modes.looks_at(x, validate):
        require_targets(x, num_classes, ignore_index, name)
        if not modes.is_graphed():
            return None
    return check_targets(x.detach(), num_classes, ignore_index, name) if _is_asked(x, validate) else None


def zero_if_valid_binary(x: Tensor, name: str, validate: bool | None) -> Tensor | None:
    """As `zero_if_valid`, of probabilities of one class."""
    if validate is False or x.dtype == torch.bool:
        return None
    if modes.looks_at(x, validate):
        _require_probabilities(x, name)
        if not modes.is_graphed():
            return None
    return check_binary_targets(x.detach(), name) if _is_asked(x, validate) else None


def _is_asked(x: Tensor, validate: bool | None) -> bool:
    """None asks where no device is waited for, outside of transforms and exported graphs."""
    if x.layout != torch.strided:  # the loss refuses it
        return False
    if validate:
        return True
    is_free = devices.KERNELS.get(x.device.type) == "cpu"
    return is_free and not modes.is_transformed() and not torch.compiler.is_exporting()


def _require_probabilities(q: Tensor, name: str) -> None:
    host = q if q.is_cpu else q.cpu()
    if not q.is_floating_point() or not checks.all_within(devices.view(host), 1.0):
        checks.check_probabilities(devices.view(host.to(devices.loss_dtype(host))), name, upper=1.0)


@torch.library.custom_op("xent::check_targets", mutates_args=())
def check_targets(x: Tensor, num_classes: int, ignore_index: int, name: str) -> Tensor:
    """0 where `require_targets` does not raise."""
    require_targets(x, num_classes, ignore_index, name)
    return x.new_zeros((), dtype=torch.float32)


@torch.library.custom_op("xent::check_binary_targets", mutates_args=())
def check_binary_targets(x: Tensor, name: str) -> Tensor:
    """0 where all of ``x`` is in [0, 1]."""
    _require_probabilities(x, name)
    return x.new_zeros((), dtype=torch.float32)


def _whole(operator: Any) -> None:
    """An operator of a tensor, mapped, checks all of it at once."""

    @operator.register_fake  # type: ignore[untyped-decorator]
    def _(x: Tensor, *others: Any) -> Tensor:
        return x.new_empty((), dtype=torch.float32)

    @operator.register_vmap  # type: ignore[untyped-decorator]
    def _(info: Any, in_dims: Any, x: Tensor, *others: Any) -> tuple[Tensor, None]:
        return operator(x, *others), None


_whole(check_targets)
_whole(check_binary_targets)
