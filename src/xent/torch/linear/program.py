"""The function of a linear loss's rows, from the arguments of the loss; also inside an operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from xent.core.spec import LossSpec
from xent.engine.valid_rows import ValidRows
from xent.torch import devices
from xent.torch.arguments import Call
from xent.torch.linear.chunked import ChunkedFunction, Operands
from xent.torch.linear.operators import CHUNKING, columns_operator, sums_operator
from xent.torch.linear.products import Chunking
from xent.torch.linear.rows import Chunks, RowLosses, call_rows
from xent.torch.linear.shifts import SeveralShifts, rows_by_shift
from xent.torch.linear.tempered import tempered
from xent.torch.linear.values import DetailedLosses
from xent.torch.operator_numbers import as_floats, spec_numbers

Tensor = torch.Tensor

SCHEMA = (  # of the result of `LossProgram.packed`
    "Tensor targets, Tensor? class_weight, Tensor? sample_weight, Tensor? temperature, SymInt ignore_index, "
    f"float[] options, Tensor? dynamic, SymInt[] shift, Tensor? factors, str names, {CHUNKING}"
)


class LossProgram(NamedTuple):
    """The arguments of the losses of rows: an `operators.Program`."""

    call: Call  # with the temperature (M,) of rows, if there is one
    chunks: Chunks
    names: tuple[str, ...] = ()  # of the columns beside the loss, for each shift: see `values.columns`
    factors: Sequence[Any] | None = None  # of the losses of several shifts

    def packed(self, device: torch.device) -> tuple[Any, ...]:
        """The fields as arguments of an operator."""
        call, spec, chunks, factors = self.call, self.call.spec, self.chunks, self.factors
        numbers = spec_numbers(spec, device)
        tensors = *call.tensors[:3], call.temperature
        shifts = [chunks.shift] if factors is None else list(chunks.shift)
        column = None
        if factors is not None:
            column = torch.stack([torch.zeros((), dtype=torch.float64, device=device) + f for f in factors])
        names = ",".join(self.names)
        return *tensors, spec.ignore_index, *numbers, shifts, column, names, *chunks.chunking

    @classmethod
    def unpacked(cls, *arguments: Any) -> LossProgram:
        """The inverse of `packed`."""
        *tensors, ignore_index, options, dynamic, shifts, column, names, budget, dtype = arguments
        targets, class_weight, sample_weight, temperature = tensors
        spec = LossSpec.from_numbers(as_floats(options, dynamic), ignore_index)
        call = Call(targets, class_weight, sample_weight, spec, "none", None, False)
        factors: Any = None
        if column is not None:
            factors = column.tolist() if column.device.type == "cpu" else column.unbind()
        chunks = Chunks(shifts[0] if column is None else tuple(shifts), Chunking(budget, dtype))
        named = tuple(names.split(",")) if names else ()
        return cls(call._replace(temperature=temperature), chunks, named, factors)

    def rows(self, operands: Operands, leave_out: bool, inputs: Tensor | None = None) -> list[ValidRows]:
        """The rows that count, for each shift; ``leave_out`` and ``inputs`` as for `call_rows`."""
        dtype, num_classes = devices.loss_dtype(operands.inputs), operands.weight.shape[0]
        shift = self.chunks.shift
        if isinstance(shift, tuple):
            return rows_by_shift(self.call, shift, num_classes, dtype, leave_out, inputs)
        return [call_rows(self.call, shift, num_classes, dtype, leave_out, inputs)[1]]

    def function(self, operands: Operands) -> ChunkedFunction:
        """The function of the operands' rows that count."""
        return self.function_of_rows(self.rows(operands, leave_out=True))

    def function_of_rows(self, rows: Sequence[ValidRows]) -> ChunkedFunction:
        """The function of rows, from `rows`."""
        call, names = self.call, self.names
        losses = [RowLosses(r, call.spec, self.chunks.chunking) for r in rows]
        functions: list[ChunkedFunction] = [
            DetailedLosses(f, names, call.class_weight) if names else f for f in losses
        ]
        several = functions[0] if self.factors is None else SeveralShifts(functions, self.factors)
        return tempered(several, call.temperature)

    @property
    def num_columns(self) -> int:
        """The number of columns of the function."""
        return 1 + len(self.names) * (1 if self.factors is None else len(self.factors))


loss_sums = sums_operator("losses", LossProgram, SCHEMA, lambda program: program.num_columns)
losses = columns_operator("losses", LossProgram, SCHEMA, lambda program: program.num_columns)
