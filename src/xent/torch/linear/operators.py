"""Custom operators of functions of a linear layer's logits; graphs save no logits, for any number of rows.

An operator computes chunk by chunk like an eager call, and that of its backward does so again. The operators
of this file are derivable in the operands of the layer only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

import torch

from xent.torch import devices
from xent.torch.linear.chunked import ChunkedFunction, Operands, finished

Tensor = torch.Tensor

OPERANDS = "Tensor x, Tensor w, Tensor? b"
CHUNKING = "SymInt? chunk_bytes, ScalarType? logits_dtype"  # of the fields of `Chunking`


class Program(Protocol):
    """The tensors and options that define a `ChunkedFunction` whose first column alone has a derivative."""

    def packed(self, device: torch.device) -> tuple[Any, ...]:
        """The fields as arguments of an operator."""
        ...

    @classmethod
    def unpacked(cls, *arguments: Any) -> Program:
        """The inverse of `packed`, inside an operator."""
        ...

    def function(self, operands: Operands) -> ChunkedFunction:
        """The function of the operands' rows that count."""
        ...


def sum_operator(name: str, program: type[Program], schema: str) -> Callable[[Operands, Program], Tensor]:
    """As `sums_operator`, of a function of one column."""
    sums = sums_operator(name, program, schema)
    return lambda operands, program: sums(operands, program)[0]


def sums_operator(
    name: str,
    program: type[Program],
    schema: str,
    num_columns: Callable[[Any], int] = lambda program: 1,
) -> Callable[[Operands, Any], Tensor]:
    """Register the sums of the columns, with the gradients of the first, as ``xent::linear_NAME_total``.

    It takes three products. ``schema`` is that of the result of `Program.packed`.
    """

    @torch.library.custom_op(
        f"xent::linear_{name}_total",
        mutates_args=(),
        schema=f"({OPERANDS}, {schema}, int num_columns, bool[] wanted) -> (Tensor, Tensor, Tensor, Tensor)",
    )
    def column_sums(*inputs: Any) -> tuple[Tensor, ...]:
        *arguments, _, wanted = inputs
        operands = Operands(*arguments[:3])
        function = program.unpacked(*arguments[3:]).function(operands)
        columns, gradients = function.sweep(operands, 1.0, tuple(wanted) if any(wanted) else None)
        empty, wide = operands.inputs.new_empty, devices.loss_dtype(operands.inputs)
        dinputs, *others = (empty(0) if g is None else g for g in gradients)
        sums = torch.stack([column.sum() for column in columns])
        return sums, dinputs, *(g.to(wide) if g.numel() else g for g in others)

    @column_sums.register_fake
    def _(x: Tensor, w: Tensor, b: Tensor | None, *arguments: Any) -> Any:
        *_, count, wanted = arguments
        wide = devices.loss_dtype(x)
        inner = torch.float32 if x.dtype == torch.float16 and x.device.type == "cpu" else x.dtype
        like = zip((x, w, b), (inner, wide, wide), wanted, strict=True)
        gradients = (
            x.new_empty(0) if a is None or not want else x.new_empty(a.shape, dtype=d) for a, d, want in like
        )
        return (x.new_empty(count, dtype=torch.float64), *gradients)

    def keep(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.dtypes = [None if x is None else x.dtype for x in inputs[:3]]
        ctx.wanted, ctx.count = inputs[-1], len(inputs)
        ctx.save_for_backward(*output[1:])

    def backward(ctx: Any, dsums: Tensor, *_: Any) -> Any:
        saved = zip(ctx.saved_tensors, ctx.dtypes, ctx.wanted, strict=True)
        # In float32: half precision would round a factor such as 1/D, or make it 0.
        scaled = [(devices.widened(g) * dsums[0]).to(dtype) if want else None for g, dtype, want in saved]
        return *scaled, *([None] * (ctx.count - 3))

    def call(operands: Operands, program: Program) -> Tensor:
        wanted = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in operands]
        packed = program.packed(operands.inputs.device)
        return cast(Tensor, column_sums(*operands, *packed, num_columns(program), wanted)[0])

    column_sums.register_autograd(backward, setup_context=keep)
    return call


def columns_operator(
    name: str, program: type[Program], schema: str, num_columns: Callable[[Any], int]
) -> Callable[[Operands, Any], list[Tensor]]:
    """Register the float64 columns as ``xent::linear_NAME``.

    ``xent::linear_NAME_grad`` is the gradient of the first; the others have none.
    """
    inputs = f"{OPERANDS}, {schema}"

    @torch.library.custom_op(
        f"xent::linear_{name}", mutates_args=(), schema=f"({inputs}, int num_columns) -> Tensor[]"
    )
    def columns(*arguments: Any) -> list[Tensor]:
        operands = Operands(*arguments[:3])
        values, _ = program.unpacked(*arguments[3:-1]).function(operands).sweep(operands)
        return list(values)

    @columns.register_fake
    def _(x: Tensor, *arguments: Any) -> list[Tensor]:
        return [x.new_empty(x.shape[:1], dtype=torch.float64) for _ in range(arguments[-1])]

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

    def backward(ctx: Any, dcolumns: list[Tensor]) -> Any:
        tensors, others = iter(ctx.saved_tensors), iter(ctx.others[:-1])
        given = [next(tensors if is_tensor else others) for is_tensor in ctx.is_tensor[:-1]]
        wanted = list(ctx.needs_input_grad[:3])
        results = iter(gradients(dcolumns[0], *given, wanted))
        return *(next(results) if want else None for want in wanted), *([None] * (len(given) - 2))

    def keep(ctx: Any, inputs: Any, output: Any) -> None:
        keep_inputs(ctx, inputs, None)
        ctx.mark_non_differentiable(*output[1:])

    columns.register_autograd(backward, setup_context=keep)

    def call(operands: Operands, program: Program) -> list[Tensor]:
        packed = program.packed(operands.inputs.device)
        return cast("list[Tensor]", columns(*operands, *packed, num_columns(program)))

    return call


def like_inputs(upstream: Any, *inputs: Any) -> list[Tensor]:
    """The fake result of an operator of gradients: a tensor for each ``wanted`` input."""
    *arguments, wanted = inputs
    return [x.new_empty(x.shape) for x, want in zip(arguments, wanted, strict=False) if want]


def keep_inputs(ctx: Any, inputs: Any, output: Any) -> None:
    """Save the inputs of an operator for `backward_by`."""
    ctx.is_tensor = [x is None or isinstance(x, Tensor) for x in inputs]
    ctx.save_for_backward(*(x for x, is_tensor in zip(inputs, ctx.is_tensor, strict=True) if is_tensor))
    ctx.others = [x for x, is_tensor in zip(inputs, ctx.is_tensor, strict=True) if not is_tensor]
    if isinstance(output, list):
        ctx.mark_non_differentiable(*(x for x in output if not x.is_floating_point()))


def backward_by(gradients: Any, count: int) -> Callable[..., Any]:
    """A backward for ``count`` inputs, by the operator ``gradients(upstream, *inputs, wanted)``."""

    def backward(ctx: Any, upstream: Any) -> Any:
        tensors, others = iter(ctx.saved_tensors), iter(ctx.others)
        inputs = [next(tensors if is_tensor else others) for is_tensor in ctx.is_tensor]
        wanted = list(ctx.needs_input_grad[:count])
        results = iter(gradients(upstream, *inputs, wanted))
        return *(next(results) if want else None for want in wanted), *([None] * (len(inputs) - count))

    return backward
