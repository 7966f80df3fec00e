"""The projected loss as operators of PyTorch, so that `torch.compile` keeps its chunks."""

from __future__ import annotations

from typing import Any, cast

import torch

from xent.projection import Gradients, Wanted
from xent.spec import LossSpec
from xent.torch import bridge
from xent.torch.measured import Measured
from xent.torch.projected import Operands

Tensor = torch.Tensor

Results = tuple[Tensor, Tensor, Tensor, Tensor]

INPUTS = (  # as `_arguments` gives them
    "Tensor x, Tensor w, Tensor? b, Tensor targets, Tensor? class_weight, Tensor? sample_weight, "
    "int ignore_index, float[] options, str smoothing_over, int shift, int chunk_bytes"
)
THREE = "(Tensor, Tensor, Tensor)"
FOUR = "(Tensor, Tensor, Tensor, Tensor)"


def total(operands: Operands, measured: Measured) -> Tensor:
    """The sum of the losses, float64."""
    wanted = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in operands]
    return cast(Tensor, _total(*_arguments(operands, measured), wanted)[0])


def losses(operands: Operands, measured: Measured) -> Tensor:
    """One loss for each row of the inputs, float64."""
    return cast(Tensor, _losses(*_arguments(operands, measured)))


def _arguments(operands: Operands, measured: Measured) -> tuple[Any, ...]:
    targets, class_weight, sample_weight, spec, shift, chunk_bytes = measured
    return (
        *operands,
        targets,
        class_weight,
        sample_weight,
        spec.ignore_index,
        [spec.label_smoothing, spec.focal_gamma, spec.z_loss, spec.softcap or 0.0, spec.temperature],
        spec.smoothing_over,
        shift,
        chunk_bytes or 0,
    )


def _sweep(arguments: Any, dloss: Any, wanted: Wanted | None) -> tuple[Tensor, Gradients]:
    """`Swept.sweep` of what `_arguments` gives."""
    x, w, b, targets, class_weight, sample_weight, ignore_index, options, over, shift, chunk_bytes = arguments
    smoothing, gamma, z_loss, softcap, temperature = options
    spec = LossSpec(ignore_index, smoothing, over, gamma, z_loss, softcap or None, temperature)
    measured = Measured(targets, class_weight, sample_weight, spec, shift, chunk_bytes or None)
    operands = Operands(x, w, b)
    _, batch = measured.rows(w.shape[0], bridge.loss_dtype(x), True)
    (column,), gradients = measured.swept(batch).sweep(operands, dloss, wanted)
    return column, gradients


@torch.library.custom_op("xent::linear_total", mutates_args=(), schema=f"({INPUTS}, bool[] wanted) -> {FOUR}")
def _total(*inputs: Any) -> Results:
    *arguments, wanted = inputs
    x = inputs[0]
    column, gradients = _sweep(arguments, 1.0, tuple(wanted) if any(wanted) else None)
    return (column.sum(), *(x.new_empty(0) if g is None else g for g in gradients))


@_total.register_fake
def _(x: Tensor, w: Tensor, b: Tensor | None, *arguments: Any) -> Any:
    *_, wanted = arguments
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    inner = torch.float32 if x.dtype == torch.float16 and x.device.type == "cpu" else x.dtype
    dtypes = (inner, wide, wide)
    like = zip((x, w, b), dtypes, wanted, strict=True)
    gradients = (
        x.new_empty(0) if a is None or not want else x.new_empty(a.shape, dtype=d) for a, d, want in like
    )
    return (x.new_empty((), dtype=torch.float64), *gradients)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.dtypes = [None if x is None else x.dtype for x in inputs[:3]]
    ctx.wanted = inputs[-1]
    ctx.save_for_backward(*output[1:])


def _scaled(ctx: Any, dtotal: Tensor, *_: Any) -> Any:
    found = zip(ctx.saved_tensors, ctx.dtypes, ctx.wanted, strict=True)
    # In float32: a factor such as 1/D is rounded, or lost, in half precision.
    scaled = [(bridge.widened(g) * dtotal).to(dtype) if want else None for g, dtype, want in found]
    return *scaled, *([None] * 9)


_total.register_autograd(_scaled, setup_context=_keep)


@torch.library.custom_op("xent::linear_losses", mutates_args=(), schema=f"({INPUTS}) -> Tensor")
def _losses(*arguments: Any) -> Tensor:
    return _sweep(arguments, None, None)[0]


@_losses.register_fake
def _(x: Tensor, *arguments: Any) -> Tensor:
    return x.new_empty(x.shape[:1], dtype=torch.float64)


@torch.library.custom_op(
    "xent::linear_gradients", mutates_args=(), schema=f"(Tensor dloss, {INPUTS}, bool[] wanted) -> {THREE}"
)
def _gradients(dloss: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    *arguments, wanted = inputs
    x, w, b = inputs[:3]
    _, gradients = _sweep(arguments, dloss, tuple(wanted))
    return tuple(
        x.new_empty(0) if g is None or a is None else g.to(a.dtype)
        for g, a in zip(gradients, (x, w, b), strict=True)
    )


@_gradients.register_fake
def _(dloss: Tensor, x: Tensor, w: Tensor, b: Tensor | None, *arguments: Any) -> Any:
    *_, wanted = arguments
    return tuple(
        x.new_empty(0) if a is None or not want else torch.empty_like(a)
        for a, want in zip((x, w, b), wanted, strict=True)
    )


def _keep_all(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.rest = inputs[6:]


def _recomputed(ctx: Any, dlosses: Tensor) -> Any:
    wanted = list(ctx.needs_input_grad[:3])
    found = _gradients(dlosses, *ctx.saved_tensors, *ctx.rest, wanted)
    return *(g if want else None for g, want in zip(found, wanted, strict=True)), *([None] * 8)


_losses.register_autograd(_recomputed, setup_context=_keep_all)
