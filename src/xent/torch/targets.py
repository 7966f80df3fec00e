"""Labels and probabilities of tensors: their checks, and the `Target` that the kernels read.

In graphs and under transforms values are not known yet, so the checks are operators.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from xent.core import head, target
from xent.core.spec import LossSpec
from xent.core.target import Target
from xent.engine import checks, valid_rows
from xent.torch import arguments, devices, modes
from xent.torch.arguments import Call

Tensor = torch.Tensor

LARGEST_LOG_PROB = 1e-3  # the rounding of a log-softmax in half precision, and of its subtraction in float32


class LabelError(ValueError, IndexError):
    """A label out of range: both a ValueError, as in this library, and an IndexError, as in PyTorch."""


def make_target(logits: Tensor, call: Call) -> Target:
    """The target from labels (...) or probabilities (..., K), without a check of their values."""
    weight = None if call.sample_weight is None else call.sample_weight.double()
    factors = None if call.class_weight is None else call.class_weight.double()
    if call.is_soft:
        q = call.targets.to(devices.loss_dtype(logits))
        return target.from_probabilities(q, factors, weight, call.spec, torch)
    num_classes = logits.shape[-1]
    y = kernel_labels(call.targets, num_classes, call.spec.ignore_index)
    return target.from_labels(y, y < 0, num_classes, factors, weight, call.spec, torch)


def mask_silent_rows(t: Target, spec: LossSpec, have_loss: Tensor | None) -> Target:
    """``t`` with the label −1 in rows that (1) multiplies by 0, so that they are neither read nor derived.

    The derivative in a factor is the loss of its row, also where the factor is 0: rows of ``have_loss`` are
    left unchanged for it.
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


def weight_and_rows(call: Call, num_classes: int) -> tuple[Any, Any]:
    """(total weight of the rows that count, their number): the two divisors of a mean."""
    weight = None if call.sample_weight is None else call.sample_weight.double()
    if call.is_soft:
        return target.totals(call.targets.shape[:-1].numel(), weight, None, torch)
    factors = None if call.class_weight is None else call.class_weight.double()
    y = kernel_labels(call.targets, num_classes, call.spec.ignore_index)
    t = target.from_labels(y, y < 0, num_classes, factors, weight, call.spec, torch)
    return t.total, t.rows


def plain_weight_and_rows(call: Call, num_classes: int, shift: int = 0) -> tuple[Tensor, Tensor]:
    """As `weight_and_rows` of labels, without class weights; rows whose class has weight 0 do not count."""
    y = kernel_labels(valid_rows.flatten_rows(call.targets, shift), num_classes, call.spec.ignore_index)
    counts, omega = y >= 0, valid_rows.flatten_rows(call.sample_weight, shift)
    if call.class_weight is not None:
        counts = counts & (label_weights(y, call.class_weight) != 0)
    weight = counts.double() if omega is None else torch.where(counts, omega.double(), 0.0)
    return weight.sum(), torch.count_nonzero(weight)


def label_weights(labels: Tensor, class_weight: Tensor) -> Tensor:
    """The weight of the class of each label as kernels read them, 1 out of range."""
    num_classes = class_weight.shape[0]
    if not num_classes:
        return torch.ones(labels.shape, dtype=class_weight.dtype, device=labels.device)
    in_range = (labels >= 0) & (labels < num_classes)
    return torch.where(in_range, class_weight[torch.where(in_range, labels, 0)], 1.0)


def counted_rows(call: Call, shift: int = 0) -> Tensor:
    """Mask (M,) of the rows whose target, ``shift`` positions later, is not ignored and has a weight."""
    labels, weight = call.targets, call.sample_weight
    if call.is_soft:
        counts = torch.ones(labels.shape[:-1], dtype=torch.bool, device=labels.device)
    else:
        counts = as_int64(labels) != call.spec.ignore_index
    if weight is not None:
        counts = counts & (weight != 0)
    mask: Tensor = valid_rows.align_targets(counts, shift, False, torch)
    return mask


def kernel_labels(labels: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Labels as the kernels read them: −1 for an ignored row, K (which gives NaN) for one out of range."""
    wide = as_int64(labels)  # in 8 bits 156 would equal −100
    y = torch.where((wide < 0) | (wide >= num_classes), num_classes, wide)
    return torch.where(wide == ignore_index, -1, y)


def require_labels(labels: Tensor, rows: tuple[int, ...], name: str = "labels") -> None:
    """Raise unless ``labels`` are integers with the shape of the rows."""
    arguments.require_tensor(labels, name)
    if labels.dtype not in arguments.INTEGERS:
        raise arguments.ArgumentError(f"`{name}` must have an integer dtype; got {labels.dtype}")
    if labels.shape != rows:
        raise arguments.ArgumentError(
            f"`{name}` must have the shape of the rows, {tuple(rows)}; got {tuple(labels.shape)}"
        )


def cpu_labels(
    labels: Tensor, num_classes: int, ignore_index: int, validate: bool, name: str = "target"
) -> tuple[Any, Any]:
    """As `checks.as_labels`, of a CPU tensor."""
    try:
        return checks.as_labels(devices.view(labels), num_classes, ignore_index, validate, name)
    except ValueError as error:
        raise LabelError(str(error)) from None


def as_int64(labels: Tensor) -> Tensor:
    """Labels as int64; uint64 values beyond its range stay large and positive."""
    wide = labels.long()
    return wide & torch.iinfo(torch.int64).max if labels.dtype == torch.uint64 else wide


def require_targets(targets: Tensor, num_classes: int, ignore_index: int, name: str) -> None:
    """Raise for labels out of range, or for negative or NaN probabilities; synchronises with a GPU."""
    host = targets.detach().cpu()
    if targets.is_floating_point():
        if checks.all_within(devices.view(host), math.inf):
            return
        checks.check_probabilities(devices.view(host.float() if host.dtype.itemsize == 2 else host), name)
    else:
        cpu_labels(host, num_classes, ignore_index, True, name)


def zero_if_valid(
    x: Tensor, num_classes: int, ignore_index: int, name: str, validate: bool | None
) -> Tensor | None:
    """Check targets as `require_targets` if ``validate`` asks for it; None, or a 0 to add to the result.

    The 0 is that of a graph, which raises when it computes it. The caller adds it so that it is computed.
    """
    if validate is False:
        return None
    if modes.looks_at(x, validate):
        require_targets(x, num_classes, ignore_index, name)
        if not modes.is_graphed():
            return None
    return check_targets(x.detach(), num_classes, ignore_index, name) if _is_asked(x, validate) else None


def split_ignored(q: Tensor, ignore_index: int | None) -> tuple[Tensor, Tensor | None]:
    """(``q`` with 0 where it equals ``ignore_index``, the mask of these elements), of binary targets.

    The mask is None where it is known that there are none.
    """
    if ignore_index is None:
        return q, None
    is_soft, is_readable = q.is_floating_point(), modes.is_readable(q)
    if is_soft and is_readable and ignore_index not in (0, 1) and checks.all_within(devices.view(q), 1.0):
        return q, None
    ignored = (q if is_soft else as_int64(q)) == ignore_index
    if is_readable and not bool(ignored.any()):
        return q, None
    return torch.where(ignored, 0, q), ignored


def zero_if_valid_binary(x: Tensor, option: str | None, name: str, validate: bool | None) -> Tensor | None:
    """As `zero_if_valid`, for targets in [0, 1] of a binary loss; 0 or 1 if an ``option`` needs labels."""
    if validate is False or x.dtype == torch.bool:
        return None
    if modes.looks_at(x, validate):
        _require_pair_targets(x, option, name)
        if not modes.is_graphed():
            return None
    return check_binary_targets(x.detach(), option or "", name) if _is_asked(x, validate) else None


def zero_if_valid_topk(
    indices: Tensor, log_probs: Tensor, num_classes: int, validate: bool | None
) -> Tensor | None:
    """As `zero_if_valid`, for the entries (..., k) of a teacher."""
    if validate is False:
        return None
    if modes.looks_at(indices, validate) and modes.looks_at(log_probs, validate):
        require_indices(indices, num_classes)
        require_log_probs(log_probs)
        if not modes.is_graphed():
            return None
    if not _is_asked(indices, validate):
        return None
    return check_indices(indices.detach(), num_classes) + check_log_probs(log_probs.detach())


def require_indices(indices: Tensor, num_classes: int) -> None:
    """Raise unless each row of ``indices`` (..., k) has different classes; synchronises with a GPU."""
    host = as_int64(indices.detach().cpu())
    ordered = host.sort(-1)
    is_repeated = torch.zeros_like(host, dtype=torch.bool)
    is_repeated.scatter_(-1, ordered.indices[..., 1:], ordered.values[..., 1:] == ordered.values[..., :-1])
    is_outside = (host < 0) | (host >= num_classes)
    for is_wrong, expected in (
        (is_outside, f"in [0, {num_classes})"),
        (is_repeated, "different classes in each row"),
    ):
        if is_wrong.any():
            where = tuple(is_wrong.nonzero()[0])
            raise arguments.ArgumentError(
                f"`indices` must be {expected}; got {host[where].item()} at {checks.describe_index(where)}"
            )


def require_log_probs(log_probs: Tensor) -> None:
    """Raise for NaN and for log-probabilities above 0 by more than rounding; synchronises with a GPU."""
    is_wrong = ~(log_probs.detach() <= LARGEST_LOG_PROB)
    if is_wrong.any():
        where = tuple(is_wrong.nonzero()[0].cpu())
        raise arguments.ArgumentError(
            "`log_probs` must be logarithms of probabilities, at most 0; got "
            f"{log_probs[where].item()} at {checks.describe_index(where)}"
        )


def _is_asked(x: Tensor, validate: bool | None) -> bool:
    """Whether ``validate`` asks for a check: None does on the CPU, outside transforms and exported graphs."""
    if x.layout != torch.strided:  # the loss itself raises for it
        return False
    if validate:
        return True
    is_free = devices.KERNELS.get(x.device.type) == "cpu"
    return is_free and not modes.is_transformed() and not torch.compiler.is_exporting()


def _require_pair_targets(q: Tensor, option: str | None, name: str) -> None:
    host = q if q.is_cpu else q.cpu()
    if option or not q.is_floating_point() or not checks.all_within(devices.view(host), 1.0):
        checks.check_pair_targets(devices.view(host.to(devices.loss_dtype(host))), name, option or None)


@torch.library.custom_op("xent::check_targets", mutates_args=())
def check_targets(x: Tensor, num_classes: int, ignore_index: int, name: str) -> Tensor:
    """0 if `require_targets` does not raise."""
    require_targets(x, num_classes, ignore_index, name)
    return x.new_zeros((), dtype=torch.float32)


@torch.library.custom_op("xent::check_binary_targets", mutates_args=())
def check_binary_targets(x: Tensor, option: str, name: str) -> Tensor:
    """0 if all of ``x`` is in [0, 1], or is 0 or 1 if an ``option`` needs labels; else raises."""
    _require_pair_targets(x, option, name)
    return x.new_zeros((), dtype=torch.float32)


@torch.library.custom_op("xent::check_indices", mutates_args=())
def check_indices(x: Tensor, num_classes: int) -> Tensor:
    """0 if `require_indices` does not raise."""
    require_indices(x, num_classes)
    return x.new_zeros((), dtype=torch.float32)


@torch.library.custom_op("xent::check_log_probs", mutates_args=())
def check_log_probs(x: Tensor) -> Tensor:
    """0 if `require_log_probs` does not raise."""
    require_log_probs(x)
    return x.new_zeros((), dtype=torch.float32)


def _register_rules(operator: Any) -> None:
    """Register a fake result, and a rule for vmap that checks the whole batch at once."""

    @operator.register_fake  # type: ignore[untyped-decorator]
    def _(x: Tensor, *others: Any) -> Tensor:
        return x.new_empty((), dtype=torch.float32)

    @operator.register_vmap  # type: ignore[untyped-decorator]
    def _(info: Any, in_dims: Any, x: Tensor, *others: Any) -> tuple[Tensor, None]:
        return operator(x, *others), None


_register_rules(check_targets)
_register_rules(check_binary_targets)
_register_rules(check_indices)
_register_rules(check_log_probs)
