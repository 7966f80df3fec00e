"""Functions of a linear layer's logits as operators: a graph keeps no logits and takes any number of rows.

They go through the chunks as an eager call does; the operator of a backward goes through them again. Here are
those that are derived in the layer's operands alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

import torch

from xent.torch import devices
from xent.torch.linear.chunked import ChunkedFunction, Operands, finished

Tensor = torch.Tensor

OPERANDS = "Tensor x, Tensor w, Tensor? b"
COPIES = 6  # of a chunk's logits, where its gradient is ordinary PyTorch


class Program(Protocol):
    """A `ChunkedFunction` of one column, with the tensors and options that it is made of."""

    def packed(self, device: torch.device) -> tuple[Any, ...]:
        """Itself as an operator's arguments."""
        ...

    @classmethod
    def unpacked(cls, *arguments: Any) -> Program:
        """The inverse of `packed`, inside of an operator."""
        ...

    def function(self, operands: Operands) -> ChunkedFunction:
        """The function of the operands' rows; nothing is computed of rows that do not count."""
        ...


def total_operator(name: str, program: type[Program], schema: str) -> Callable[[Operands, Program], Tensor]:
    """Register the sum of the column as ``xent::linear_NAME_total``; its gradients are made with it.

    Three products in all. ``schema`` is that of `Program.packed`.
    """

    @torch.library.custom_op(
        f"xent::linear_{name}_total",
        mutates_args=(),
        schema=f"({OPERANDS}, {schema}, bool[] wanted) -> (Tensor, Tensor, Tensor, Tensor)",
    )
    def total(*inputs: Any) -> tuple[Tensor, ...]:
        *arguments, wanted = inputs
        operands = Operands(*arguments[:3])
        function = program.unpacked(*arguments[3:]).function(operands)
        (column, *_), gradients = function.sweep(operands, 1.0, tuple(wanted) if any(wanted) else None)
        none = operands.inputs.new_empty
        return (column.sum(), *(none(0) if g is None else g for g in gradients))

    @total.register_fake
    def _(x: Tensor, w: Tensor, b: Tensor | None, *arguments: Any) -> Any:
        *_, wanted = arguments
        wide = devices.loss_dtype(x)
        inner = torch.float32 if x.dtype == torch.float16 and x.device.type == "cpu" else x.dtype
        like = zip((x, w, b), (inner, wide, wide), wanted, strict=True)
        gradients = (
            x.new_empty(0) if a is None or not want else x.new_empty(a.shape, dtype=d) for a, d, want in like
        )
        return (x.new_empty((), dtype=torch.float64), *gradients)

    def keep(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.dtypes = [None if x is None else x.dtype for x in inputs[:3]]
        ctx.wanted, ctx.count = inputs[-1], len(inputs)
        ctx.save_for_backward(*output[1:])

    def backward(ctx: Any, dtotal: Tensor, *_: Any) -> Any:
        found = zip(ctx.saved_tensors, ctx.dtypes, ctx.wanted, strict=True)
        # In float32: a factor such as 1/D is rounded, or lost, in half precision.
        scaled = [(devices.widened(g) * dtotal).to(dtype) if want else None for g, dtype, want in found]
        return *scaled, *([None] * (ctx.count - 3))

    def call(operands: Operands, program: Program) -> Tensor:
        wanted = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in operands]
        return cast(Tensor, total(*operands, *program.packed(operands.inputs.device), wanted)[0])

    total.register_autograd(backward, setup_context=keep)
    return call


def column_operator(name: str, program: type[Program], schema: str) -> Callable[[Operands, Program], Tensor]:
    """Register the column as ``xent::linear_NAME``, float64; what it derives is known in the backward."""
    inputs = f"{OPERANDS}, {schema}"

    @torch.library.custom_op(f"xent::linear_{name}", mutates_args=(), schema=f"({inputs}) -> Tensor")
    def column(*arguments: Any) -> Tensor:
        operands = Operands(*arguments[:3])
        (found,), _ = program.unpacked(*arguments[3:]).function(operands).sweep(operands)
        return cast(Tensor, found)

    @column.register_fake
    def _(x: Tensor, *arguments: Any) -> Tensor:
        return x.new_empty(x.shape[:1], dtype=torch.float64)

    @torch.library.custom_op(
        f"xent::linear_{name}_grad",
        mutates_args=(),
        schema=f"(Tensor dcolumn, {inputs}, bool[] wanted) -> Tensor[]",
    )
    def gradients(dcolumn: Tensor, *inputs: Any) -> list[Tensor]:
        *arguments, wanted = inputs
        operands = Operands(*arguments[:3])
        function = program.unpacked(*arguments[3:]).function(operands)
        _, slopes = function.sweep(operands, dcolumn, tuple(wanted))
        return [g for g in finished(slopes, operands, None) if g is not None]

    gradients.register_fake(like_inputs)
    column.register_autograd(backward_by(gradients, 3), setup_context=keep_inputs)
    return lambda operands, program: cast(Tensor, column(*operands, *program.packed(operands.inputs.device)))


def like_inputs(upstream: Any, *inputs: Any) -> list[Tensor]:
    """The fake result of an operator of gradients: new memory for each of its inputs that is ``wanted``."""
    *arguments, wanted = inputs
    return [x.new_empty(x.shape) for x, want in zip(arguments, wanted, strict=False) if want]


def keep_inputs(ctx: Any, inputs: Any, output: Any) -> None:
    """The context of `backward_by`."""
    ctx.is_tensor = [x is None or isinstance(x, Tensor) for x in inputs]
    ctx.save_for_backward(*(x for x, is_tensor in zip(inputs, ctx.is_tensor, strict=True) if is_tensor))
    ctx.others = [x for x, is_tensor in zip(inputs, ctx.is_tensor, strict=True) if not is_tensor]
    if isinstance(output, list):
        ctx.mark_non_differentiable(*(x for x in output if not x.is_floating_point()))


def backward_by(gradients: Any, count: int) -> Callable[..., Any]:
    """The backward of an operator by another, of ``(upstream, *inputs, wanted)``, for ``count`` inputs."""

    def backward(ctx: Any, upstream: Any) -> Any:
        tensors, others = iter(ctx.saved_tensors), iter(ctx.others)
        inputs = [next(tensors if is_tensor else others) for is_tensor in ctx.is_tensor]
        wanted = list(ctx.needs_input_grad[:count])
        found = iter(gradients(upstream, *inputs, wanted))
        return *(next(found) if want else None for want in wanted), *([None] * (len(inputs) - count))

    return backward
