"""A function of a linear layer's logits divided by a temperature of each row, chunk by chunk.

Equation (28). Divided inputs would round in half precision, and would leave a bias undivided.
"""

from __future__ import annotations

from typing import Any

import torch

from xent.engine.chunked_projection import ChunkEvaluator
from xent.torch import devices, modes
from xent.torch.linear.chunked import ChunkedFunction, Operands
from xent.torch.temperature import scaled

Tensor = torch.Tensor


class Tempered(ChunkedFunction):
    """``function`` of the logits divided by ``temperature (M,)``, one for each row of the inputs."""

    def __init__(self, function: ChunkedFunction, temperature: Tensor) -> None:
        super().__init__(function.row_index, function.chunking, function.silent)
        self.function, self.copies, self.num_derived = function, function.copies, function.num_derived
        self.temperature = temperature if self.row_index is None else temperature[self.row_index]

    def evaluate_chunk(self, logits: Tensor, part: slice, dloss: Any) -> tuple[tuple[Tensor, ...], Any]:
        """The columns of a chunk, and its gradient if ``dloss`` is given."""
        return tempered_evaluator(self.function.evaluate_chunk, self.temperature)(logits, part, dloss)

    def columns(self, logits: Tensor, part: slice) -> tuple[Tensor, ...]:
        """The columns of a chunk in ordinary operations."""
        return self.function.columns(logits / _divisor(self.temperature, logits, part), part)


def tempered_evaluator(evaluate: ChunkEvaluator, temperature: Tensor) -> ChunkEvaluator:
    """``evaluate`` of logits divided in place by the ``temperature (n,)`` of the rows that count."""

    def evaluate_divided(logits: Tensor, part: slice, dloss: Any) -> tuple[tuple[Tensor, ...], Any]:
        t = _divisor(temperature, logits, part)
        columns, dlogits = evaluate(logits.div_(t), part, dloss)
        return columns, None if dlogits is None else dlogits.div_(t)

    return evaluate_divided


def _divisor(temperature: Tensor, logits: Tensor, part: slice) -> Tensor:
    return temperature[part, None].to(devices.loss_dtype(logits))


def tempered(function: ChunkedFunction, temperature: Tensor | None) -> ChunkedFunction:
    """``function``, of divided logits if there is a temperature (M,) for each row."""
    return function if temperature is None else Tempered(function, temperature)


def with_derivative(operands: Operands, temperature: Tensor) -> tuple[Operands, Tensor]:
    """(operands, T₀ to divide their logits by), of which the operands have the derivative in T.

    Their logits are multiplied by T₀/T, which is 1.
    """
    constant = temperature.detach()
    if not modes.is_derived(temperature):
        return operands, constant
    return multiplied(operands, constant / temperature), constant


def multiplied(operands: Operands, ratio: Tensor) -> Operands:
    """Operands whose logits are multiplied by ``ratio (M,)``; a bias becomes a column of the weight."""
    inputs, weight, bias = operands
    inputs = scaled(inputs, ratio[:, None], keep_dtype=True)
    if bias is None:
        return Operands(inputs, weight, None)
    column = ratio[:, None].to(inputs.dtype)
    return Operands(torch.cat((inputs, column), 1), torch.cat((weight, bias[:, None]), 1), None)
