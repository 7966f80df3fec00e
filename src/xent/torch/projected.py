"""A function of a linear layer's logits, derivable in the layer's operands, without the logits in memory.

Where nothing but plain reverse mode watches, the kernels go chunk by chunk and recompute what they did not
keep; all else (second order, transforms, forward mode) is ordinary PyTorch code on the same chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch.autograd import Function, forward_ad
from torch.utils.checkpoint import checkpoint

from xent.projection import Gradients, Step, Wanted, rows_per_chunk
from xent.torch import arguments, eager
from xent.torch.products import TensorProjection, default_chunk_bytes

Tensor = torch.Tensor


class Operands(NamedTuple):
    """``inputs (M, D)``, ``weight (K, D)``, ``bias (K,)`` or None."""

    inputs: Tensor
    weight: Tensor
    bias: Tensor | None


class Swept(NamedTuple):
    """What is computed of the logits, and of which rows."""

    places: Tensor | None  # of the rows that count
    step: Step  # by the kernels: columns, and the gradient of Σ dloss·(the first column)
    differentiable: Callable[[Operands], tuple[Tensor, ...]]  # the same columns in ordinary operations
    chunk_bytes: int | None

    def sweep(self, operands: Operands, dloss: Any = None, wanted: Wanted | None = None) -> Any:
        """See `Projection.sweep`; gradients are as wide as they were summed."""
        with torch.no_grad(), torch.autocast(operands.inputs.device.type, enabled=False):
            projection = TensorProjection(*operands, self.places, self.chunk_bytes)
            return projection.sweep(self.step, dloss, wanted)


def is_plain(operands: Operands, *others: Tensor | None) -> bool:
    """Whether nothing watches but reverse-mode autograd, and that only for the operands."""
    return (
        not torch.compiler.is_compiling()
        and forward_ad._current_level < 0
        and not arguments.is_transformed()
        and torch._C._len_torch_dispatch_stack() == 0
        and all(x is None or type(x) in arguments.PLAIN for x in (*operands, *others))
        and not any(x is not None and x.requires_grad for x in others)
        and operands.inputs.device.type in ("cpu", "cuda")
    )


def total(operands: Operands, swept: Swept, scale: Any) -> Tensor:
    """``scale`` times the sum of the first column, float64: three products with its gradient, one without."""
    if isinstance(scale, Tensor) and scale.device.type == "cpu":
        scale = scale.item()
    if _is_derived(operands):
        return cast(Tensor, _Total.apply(*operands, swept, scale))
    (losses, *_), _ = swept.sweep(operands)
    return losses.sum() * scale


def columns(operands: Operands, swept: Swept) -> tuple[Tensor, ...]:
    """The columns, one element a row: one product, and three in the backward."""
    if _is_derived(operands):
        return cast("tuple[Tensor, ...]", _Columns.apply(*operands, swept))
    return cast("tuple[Tensor, ...]", swept.sweep(operands)[0])


def by_chunks(
    function: Callable[..., tuple[Tensor, ...]],
    operands: Operands,
    index: Tensor | None,
    chunk_bytes: int | None,
) -> tuple[Tensor, ...]:
    """``function(part, inputs of the part, weight, bias)`` of every part of the rows, in ordinary operations.

    In plain reverse mode the logits of a part are computed again when they are needed, not kept.
    """
    inputs, weight, bias = operands
    x = inputs if index is None else inputs[index]
    wide = weight.shape[0] * 4
    size = rows_per_chunk(x.shape[0], wide, chunk_bytes or default_chunk_bytes(inputs.device))
    keeps = torch.compiler.is_compiling() or arguments.is_transformed() or forward_ad._current_level >= 0
    parts = []
    for start in range(0, max(x.shape[0], 1), max(size, 1)):
        part = slice(start, start + size)
        if keeps:
            parts.append(function(part, x[part], weight, bias))
        else:
            again = partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False)
            parts.append(again(part, x[part], weight, bias))
    columns = tuple(torch.cat(pieces) for pieces in zip(*parts, strict=True))
    if index is None:
        return columns
    return tuple(c.new_zeros(inputs.shape[0]).index_put((index,), c) for c in columns)


def _is_derived(operands: Operands) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in operands)


class _Total(Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, swept: Swept, scale: Any
    ) -> Tensor:
        operands = Operands(inputs, weight, bias)
        ctx.save_for_backward(*operands)
        ctx.swept, ctx.scale = swept, scale
        # Half precision would lose small entries of dlogits to a factor 1/D: it comes last, in float32.
        ctx.early = 1.0 if inputs.dtype.itemsize == 2 or isinstance(scale, Tensor) else scale
        (losses, *_), ctx.gradients = swept.sweep(operands, ctx.early, tuple(ctx.needs_input_grad[:3]))
        return losses.sum() * scale

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> Any:
        operands = Operands(*ctx.saved_tensors)  # raises if they were written since
        wanted = tuple(ctx.needs_input_grad[:3])
        if torch.is_grad_enabled() or eager._is_batched(dloss):
            scaled = lambda *x: ctx.swept.differentiable(Operands(*x))[0].sum() * ctx.scale  # noqa: E731
            return *_derived(scaled, operands, wanted, dloss), None, None
        gradients, ctx.gradients = ctx.gradients, None  # given away once; the caller may add to them
        if gradients is None:
            _, gradients = ctx.swept.sweep(operands, ctx.early, wanted)
        factor: Any = dloss * ctx.scale if ctx.early == 1.0 else dloss
        return *_finished(gradients, operands, factor), None, None


class _Columns(Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, swept: Swept
    ) -> tuple[Tensor, ...]:
        operands = Operands(inputs, weight, bias)
        ctx.save_for_backward(*operands)
        ctx.swept = swept
        values, _ = swept.sweep(operands)
        ctx.derived = [k for k, v in enumerate(values) if v.is_floating_point()]
        ctx.mark_non_differentiable(*(v for v in values if not v.is_floating_point()))
        return tuple(values)

    @staticmethod
    def backward(ctx: Any, *dvalues: Tensor) -> Any:
        operands = Operands(*ctx.saved_tensors)
        wanted = tuple(ctx.needs_input_grad[:3])
        if torch.is_grad_enabled() or any(eager._is_batched(d) for d in dvalues):
            again = lambda *x: ctx.swept.differentiable(Operands(*x))  # noqa: E731
            return *_derived(again, operands, wanted, *dvalues), None
        dloss = dvalues[0] if len(dvalues) == 1 else torch.stack([dvalues[k] for k in ctx.derived], -1)
        _, gradients = ctx.swept.sweep(operands, dloss, wanted)
        return *_finished(gradients, operands, None), None


def _derived(function: Any, operands: Operands, wanted: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
    """The vector-Jacobian product of ``function``, derivable again."""
    further = torch.is_grad_enabled()
    with torch.enable_grad():
        values = function(*operands)
    values = values if isinstance(values, tuple) else (values,)
    pairs = [(v, d) for v, d in zip(values, upstream, strict=True) if v.requires_grad]
    asked = [x for x, w in zip(operands, wanted, strict=True) if w and x is not None]
    found = iter(
        torch.autograd.grad(
            [v for v, _ in pairs], asked, [d for _, d in pairs], create_graph=further, allow_unused=True
        )
    )
    return tuple(next(found) if w else None for w in wanted)


def _finished(gradients: Gradients, operands: Operands, factor: Any) -> tuple[Tensor | None, ...]:
    """The gradients times ``factor``, in the dtypes of the operands."""
    if factor is not None and factor.device.type == "cpu":
        factor = factor.item()
    if factor is not None and not (isinstance(factor, float) and factor == 1.0):
        for gradient in gradients:
            if gradient is not None:
                gradient.mul_(factor)
    return tuple(
        None if g is None or x is None else g.to(x.dtype) for g, x in zip(gradients, operands, strict=True)
    )
