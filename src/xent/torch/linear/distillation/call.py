"""The arguments of a divergence from a teacher except the teacher's, the rows that count, and their mean."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from xent.core import target as targeting
from xent.core.spec import require_reduction
from xent.engine import valid_rows
from xent.torch import arguments, devices, modes
from xent.torch.linear import chunked
from xent.torch.linear import loss as linear_loss
from xent.torch.linear.chunked import Operands
from xent.torch.linear.products import Chunking
from xent.torch.linear.tempered import with_derivative
from xent.torch.targets import as_int64, require_labels, zero_if_valid
from xent.torch.temperature import checked_rows

Tensor = torch.Tensor

Layer = tuple[Any, Any, Any]  # inputs (..., D), weight (K, D), bias (K,) or None
Names = tuple[str, str, str]

STUDENT = ("inputs", "weight", "bias")  # the names of the operands
TEACHER = ("teacher_inputs", "teacher_weight", "teacher_bias")


class Distillation(NamedTuple):
    """The arguments of a divergence from a teacher, except those of the teacher."""

    student: Operands  # inputs (..., D)
    labels: Tensor | None  # (...), of which only `ignore_index` is read
    sample_weight: Tensor | None  # (...)
    ignore_index: int
    temperature: float
    direction: str
    reduction: str
    denominator: Any
    validate: bool | None
    chunking: Chunking
    row_temperature: Tensor | None = None  # (...), one for each row, beside a `temperature` of 1

    @property
    def is_reverse(self) -> bool:
        """Whether the divergence is KL(q‖p), of the student q from the teacher p."""
        return self.direction == "reverse"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the rows."""
        return tuple(self.student.inputs.shape[:-1])

    @property
    def operands(self) -> Operands:
        """The student's operands with inputs (M, D)."""
        return self.student._replace(inputs=valid_rows.as_matrix(self.student.inputs))

    @property
    def divisor(self) -> Tensor | None:
        """The denominator if it is a tensor."""
        return self.denominator if isinstance(self.denominator, Tensor) else None

    def checked(self, name: str, **teacher: Tensor | None) -> Distillation:
        """The call with its options and factors checked, beside the tensors of the teacher.

        ``name`` is the caller's for the student's inputs.
        """
        require_reduction(self.reduction)
        if self.direction not in ("forward", "reverse"):
            raise arguments.ArgumentError(
                f'`direction` must be "forward" or "reverse"; got {self.direction!r}'
            )
        spec = arguments.spec_of(ignore_index=self.ignore_index, temperature=self.temperature)
        if self.sample_weight is not None:
            arguments.require_rows(self.sample_weight, self.shape, self.validate)
        if self.labels is not None:
            require_labels(self.labels, self.shape)
        arguments.require_row_temperature(self.row_temperature, self.shape)
        factors = {"sample_weight": self.sample_weight, "labels": self.labels}
        given = {**teacher, **factors, "temperature": self.row_temperature}
        arguments.require_together(**{name: self.student.inputs}, **given)
        return self._replace(
            ignore_index=spec.ignore_index,
            temperature=spec.temperature,
            chunking=self.chunking.checked(self.student.inputs),
            denominator=arguments.as_denominator(self.denominator),
        )

    def row_factors(self) -> Tensor | None:
        """ω (M,), float64, 0 for ignored rows; None if every row counts once."""
        omega = None if self.sample_weight is None else self.sample_weight.double().reshape(-1)
        if self.labels is None:
            return omega
        counts = as_int64(self.labels).reshape(-1) != self.ignore_index
        return counts.double() if omega is None else torch.where(counts, omega, 0.0)

    def tempered(self, *layers: Operands) -> tuple[Tensor | None, list[Operands]]:
        """(the temperature (M,) of each row, ``layers`` with inputs (M, D) by `with_derivative`).

        Without temperatures of rows they are (None, ``layers``).
        """
        if self.row_temperature is None:
            return None, list(layers)
        t = self._checked_temperature(self.row_temperature)
        return t.detach(), [with_derivative(layer, t)[0] for layer in layers]

    def require_temperature(self) -> None:
        """Raise for a temperature of a row that counts out of range, if values are checked."""
        if self.row_temperature is not None:
            self._checked_temperature(self.row_temperature)

    def _checked_temperature(self, temperature: Tensor) -> Tensor:
        """The ``temperature (...)`` as (M,), by `checked_rows`."""
        omega = self.row_factors()
        counts = torch.ones_like(temperature, dtype=torch.bool).reshape(-1) if omega is None else omega != 0
        return checked_rows(temperature, counts, self.validate)

    def loss(
        self,
        flat: Operands,
        program: Any,
        constants: tuple[Tensor | None, ...],
        column_sum: Callable[[Operands, Any], Tensor],
        column: Callable[[Operands, Any], Tensor],
    ) -> Tensor:
        """The loss from the ``program`` of the row divergences, and its operators in graphs.

        ``flat`` are the student's operands with inputs (M, D), from `tempered`.
        ``constants`` are the tensors of which `ChunkedFunction.values` and ``column_sum`` have no derivative.
        """
        omega, zero = program.sample_weight, None
        if self.labels is not None:
            num_classes = flat.weight.shape[0]
            zero = zero_if_valid(self.labels, num_classes, self.ignore_index, "labels", self.validate)
        is_plain = chunked.is_plain(flat, *constants, program.row_temperature, self.divisor)
        scale, is_total = self.scale(omega), self.reduction != "none"
        if modes.is_recorded():
            if is_total and modes.knows_its_gradients() and not modes.are_derived(*constants):
                loss = column_sum(flat, program) * scale
            else:
                loss = self.reduced(column(flat, program), scale)
        else:
            function = program.function(flat, is_plain)
            if is_plain and is_total:
                loss = function.scaled_sum(flat, scale)
            else:
                (losses,) = function.values(flat) if is_plain else function.derivable(flat)
                loss = self.reduced(losses, scale)
        loss = loss.to(devices.loss_dtype(flat.inputs))
        return loss if zero is None else loss + zero

    def scale(self, omega: Tensor | None) -> Any:
        """1/D of equation (4) for the factors of `row_factors`."""
        divisor = targeting.divisor(*self.totals(omega), self.reduction, self.denominator)
        return arguments.inverse(divisor)

    def totals(self, omega: Tensor | None) -> tuple[Any, Any]:
        """(Σ ω, number of rows with ω ≠ 0), for the factors of `row_factors`."""
        return targeting.totals(math.prod(self.shape), omega, None, torch)

    def reduced(self, losses: Tensor, scale: Any) -> Tensor:
        """``losses (M,)`` in the shape of the rows, or their sum times ``scale``."""
        return losses.reshape(self.shape) if self.reduction == "none" else losses.sum() * scale

    def counts(self, omega: Tensor | None) -> Tensor | None:
        """The factors of `row_factors` in the shape of the rows."""
        return None if omega is None else omega.reshape(self.shape)


def checked_layers(
    student: Layer, names: Names, teacher: Layer, teacher_names: Names
) -> tuple[Operands, Operands]:
    """(student, teacher) from (inputs, weight, bias) of each; raises unless rows and classes are the same."""
    layer, other = linear_loss.checked(*student, names), linear_loss.checked(*teacher, teacher_names)
    rows, num_classes = layer.inputs.shape[:-1], layer.weight.shape[0]
    if other.inputs.shape[:-1] != rows or other.weight.shape[0] != num_classes:
        raise arguments.ArgumentError(
            f"`{teacher_names[0]}` and `{teacher_names[1]}` must have the rows {tuple(rows)} and the "
            f"{num_classes} classes of `{names[0]}` and `{names[1]}`; got {tuple(other.inputs.shape)} and "
            f"{tuple(other.weight.shape)}"
        )
    return layer, other


class CountedRows(NamedTuple):
    """The rows that count, or a mask of those that do not, and the factors ω of the rows."""

    row_index: Tensor | None  # None for all rows
    silent: Tensor | None  # of the rows of `row_index`; None if all of them count
    omega: Tensor | None


def counted_rows(operands: Operands, omega: Tensor | None, leave_out: bool, content: Any) -> CountedRows:
    """The rows of ``omega (M,)`` that are not 0: selected if ``leave_out``, otherwise the others are marked.

    The derivative in a factor of 0 is the loss of its row. So a row is not marked if ω is derived and
    ``content`` (M,), called for its mask, says that its loss is finite.
    """
    if leave_out and not modes.is_captured(operands.inputs):
        row_index, (omega,) = valid_rows.select_rows(None, omega, None, (omega,), torch)
        return CountedRows(row_index, None, omega)
    if omega is None:
        return CountedRows(None, None, None)
    silent = omega == 0
    if modes.are_derived(omega):
        silent = silent & ~content()
        omega = torch.where(silent, 0.0, omega)
    return CountedRows(None, silent, omega)


def are_finite(*rows: Tensor) -> Tensor:
    """Mask (M,) of the rows that are finite in each of ``rows (M, D)``."""
    masks = [x.isfinite().all(-1) for x in rows]
    return masks[0] if len(masks) == 1 else torch.stack(masks).all(0)
