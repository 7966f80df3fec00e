"""The KL divergence between the softmaxes of two linear layers, by chunks, and as custom operators."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

import torch

from xent.core import head
from xent.core.link import Link
from xent.engine import valid_rows
from xent.engine.chunked_projection import Gradients
from xent.torch import arguments, devices
from xent.torch.linear import operators
from xent.torch.linear.chunked import ChunkedFunction, Operands, finished, row_blocks
from xent.torch.linear.distillation.call import (
    STUDENT,
    TEACHER,
    CountedRows,
    Distillation,
    are_finite,
    counted_rows,
)
from xent.torch.linear.products import Chunking, linear
from xent.torch.operator_numbers import as_floats, link_numbers

Tensor = torch.Tensor


SCHEMA = (  # of the result of `Divergence.packed`
    "Tensor teacher_x, Tensor teacher_w, Tensor? teacher_b, Tensor? sample_weight, Tensor? temperature, "
    f"float[] link, Tensor? dynamic, bool is_reverse, {operators.CHUNKING}"
)


class Divergence(NamedTuple):
    """ω·KL of each row, between the softmaxes of a teacher and a student: an `operators.Program`."""

    teacher_inputs: Tensor
    teacher_weight: Tensor
    teacher_bias: Tensor | None
    sample_weight: Tensor | None  # (M,)
    row_temperature: Tensor | None  # (M,), beside a `temperature` of 1
    temperature: float
    is_reverse: bool
    chunking: Chunking

    def packed(self, device: torch.device) -> tuple[Any, ...]:
        """The fields as arguments of an operator."""
        numbers = link_numbers(Link(self.temperature), device)
        return *self[:5], *numbers, self.is_reverse, *self.chunking

    @classmethod
    def unpacked(cls, *arguments: Any) -> Divergence:
        """The inverse of `packed`."""
        x, w, b, sample_weight, row_temperature, link, dynamic, is_reverse, *chunking = arguments
        (temperature,) = as_floats(link, dynamic)
        options = temperature, is_reverse, Chunking(*chunking)
        return cls(x, w, b, sample_weight, row_temperature, *options)

    def function(
        self, operands: Operands, leave_out: bool = True, dteacher: Gradients | None = None
    ) -> RowDivergences:
        """The function of the student's logits; it adds the teacher's gradients to ``dteacher``."""
        teacher = Operands(*self[:3])

        def content() -> Tensor:
            return are_finite(operands.inputs, teacher.inputs)

        rows = counted_rows(operands, self.sample_weight, leave_out, content)
        if rows.silent is not None:
            teacher = teacher._replace(inputs=torch.where(rows.silent[:, None], 0.0, teacher.inputs))
        return RowDivergences(self, teacher, rows, dteacher)


class RowDivergences(ChunkedFunction):
    """One column: ω·KL of each row of the student's logits. The teacher's logits are computed by chunks."""

    copies = 2  # the student's and the teacher's

    def __init__(
        self,
        divergence: Divergence,
        teacher: Operands,
        rows: CountedRows,
        dteacher: Gradients | None,
    ) -> None:
        super().__init__(rows.row_index, divergence.chunking, rows.silent)
        self.temperature, self.is_reverse = divergence.temperature, divergence.is_reverse
        self.teacher, self.omega, self.dteacher = teacher, rows.omega, dteacher
        t = divergence.row_temperature
        self.row_temperature = t if t is None or rows.row_index is None else t[rows.row_index]

    def columns(self, logits: Tensor, part: slice) -> tuple[Tensor, ...]:
        """The columns of a chunk in ordinary operations."""
        losses = kl_divergence(*self._log_probs(logits, self._teacher_logits(part), part))
        return (losses if self.omega is None else self.omega[part] * losses,)

    def evaluate_chunk(self, logits: Tensor, part: slice, dloss: Any) -> tuple[tuple[Tensor, ...], Any]:
        """The columns of a chunk, and its gradient if ``dloss`` is given; in blocks of rows."""
        teacher_logits = self._teacher_logits(part)
        if dloss is not None:
            dloss = torch.as_tensor(dloss, dtype=torch.float64, device=logits.device).expand(len(logits))
        columns = [
            self._evaluate_block(
                logits[block], teacher_logits[block], rows, None if dloss is None else dloss[block]
            )
            for block, rows in self.blocks(logits, part)
        ]
        if dloss is not None and self.dteacher is not None:
            _add(self.dteacher, self.teacher, self._input_rows(part), teacher_logits)
        return (torch.cat(columns),), None if dloss is None else logits

    def blocks(self, logits: Tensor, part: slice) -> Iterable[tuple[slice, slice]]:
        """The blocks of rows that are computed at a time: see `row_blocks`."""
        return row_blocks(logits, part)

    def _evaluate_block(
        self, logits: Tensor, teacher_logits: Tensor, part: slice, dloss: Tensor | None
    ) -> Tensor:
        """The column of some rows; with ``dloss`` their logits are overwritten by the gradients in them."""
        factor = None if self.omega is None else self.omega[part]
        losses, *slopes = self.losses_and_slopes(logits, teacher_logits, part)
        if dloss is not None:
            upstream = head.multiply(factor, dloss, torch) / self._temperature(part)
            upstream = upstream[:, None].to(slopes[0].dtype)
            student, teacher = slopes if self.is_reverse else slopes[::-1]
            logits.copy_(head.multiply(upstream, student, torch))
            if self.dteacher is not None:
                teacher_logits.copy_(head.multiply(upstream, teacher, torch))
        return cast(Tensor, head.multiply(factor, losses, torch))

    def losses_and_slopes(
        self, logits: Tensor, teacher_logits: Tensor, part: slice
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`divergence_and_slopes` of the logits of some rows."""
        return divergence_and_slopes(*self._log_probs(logits, teacher_logits, part))

    def divided(self, logits: Tensor, part: slice) -> Tensor:
        """The logits of some rows over their temperature, float64 or float32."""
        dtype, t = devices.loss_dtype(logits), self._temperature(part)
        return logits.to(dtype) / (t[:, None].to(dtype) if isinstance(t, Tensor) else t)

    def _temperature(self, part: slice) -> Any:
        """The temperature of all rows, or those of some rows, (n,)."""
        return self.temperature if self.row_temperature is None else self.row_temperature[part]

    def _input_rows(self, part: slice) -> Any:
        """The index of a chunk's rows into the rows of the inputs."""
        return part if self.row_index is None else self.row_index[part]

    def _teacher_logits(self, part: slice) -> Tensor:
        inputs, weight, bias = self.teacher
        return linear(inputs[self._input_rows(part)], weight, bias, self.chunking.logits_dtype)

    def _log_probs(self, logits: Tensor, teacher_logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """The log-probabilities of student and teacher, in the order of KL(one‖two)."""
        log_q, log_p = (torch.log_softmax(self.divided(z, part), -1) for z in (logits, teacher_logits))
        return (log_q, log_p) if self.is_reverse else (log_p, log_q)


def kl_divergence(one: Tensor, two: Tensor) -> Tensor:
    """KL(one‖two) (n,), float64, of log-probabilities (n, K) in ordinary operations."""
    p = one.exp()
    gap = torch.where(p == 0, 0.0, one - two)  # NaN for a class that both exclude
    return (p * gap).sum(-1, dtype=torch.float64)


def divergence_and_slopes(
    one: Tensor, two: Tensor, losses: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """D = KL(p‖q) per row, float64, and its gradients in the logits: p∘(log p − log q − D) and q − p.

    ``losses`` is D if the classes of ``one`` and ``two`` are only some of them.
    """
    p = one.exp()
    gap = torch.where(p == 0, 0.0, one - two)
    if losses is None:
        losses = (p * gap).sum(-1, dtype=torch.float64)
    return losses, p * (gap - losses[:, None].to(p.dtype)), two.exp() - p


def _add(sums: Gradients, operands: Operands, row_index: Any, dlogits: Tensor) -> None:
    """Add the gradients of one chunk to ``sums``."""
    if sums.bias is not None:
        sums.bias.add_(dlogits.sum(0, dtype=sums.bias.dtype))
    dlogits = dlogits.to(operands.weight.dtype)
    if sums.inputs is not None:
        sums.inputs[row_index] = (dlogits @ operands.weight).to(sums.inputs.dtype)
    if sums.weight is not None:
        sums.weight.add_(dlogits.T @ operands.inputs[row_index])


divergence_sum = operators.sum_operator("divergences", Divergence, SCHEMA)

INPUTS = f"{operators.OPERANDS}, {SCHEMA}"


def losses(operands: Operands, divergence: Divergence) -> Tensor:
    """ω·KL of each row in a graph; derivable once in all tensors.

    A row of weight 0 is read only if it is finite and ω requires a gradient.
    """
    omega, counts = divergence.sample_weight, None
    if omega is not None:
        counts = omega != 0
        if omega.requires_grad:
            counts = counts | are_finite(operands.inputs, divergence.teacher_inputs)
    packed = divergence._replace(sample_weight=counts).packed(operands.inputs.device)
    return cast(Tensor, head.multiply(omega, linear_divergences(*operands, *packed), torch))


def _unpacked(inputs: Sequence[Any]) -> tuple[Operands, Divergence]:
    divergence = Divergence.unpacked(*inputs[3:])
    counts = divergence.sample_weight
    if counts is not None:
        divergence = divergence._replace(sample_weight=counts.double())
    return Operands(*inputs[:3]), divergence


@torch.library.custom_op("xent::linear_divergences", mutates_args=(), schema=f"({INPUTS}) -> Tensor")
def linear_divergences(*inputs: Any) -> Tensor:
    """KL per row; ``sample_weight`` is True or 1 for the rows that count."""
    operands, divergence = _unpacked(inputs)
    return cast(Tensor, divergence.function(operands).sweep(operands)[0][0])


@linear_divergences.register_fake
def _(x: Tensor, *others: Any) -> Tensor:
    return x.new_empty(x.shape[:1], dtype=torch.float64)


@torch.library.custom_op(
    "xent::linear_divergences_grad",
    mutates_args=(),
    schema=f"(Tensor dlosses, {INPUTS}, bool[] wanted) -> Tensor[]",
)
def linear_divergences_grad(dlosses: Tensor, *inputs: Any) -> list[Tensor]:
    """The gradients of Σ dloss·KL in the ``wanted`` operands of student and teacher."""
    *arguments, wanted = inputs
    operands, divergence = _unpacked(arguments)
    teacher = Operands(*divergence[:3])
    dteacher = Gradients(
        *(
            torch.zeros(x.shape, dtype=devices.loss_dtype(x), device=x.device)
            if want and x is not None
            else None
            for x, want in zip(teacher, wanted[3:], strict=True)
        )
    )
    function = divergence.function(operands, dteacher=dteacher if any(wanted[3:]) else None)
    _, gradients = function.sweep(operands, dlosses, tuple(wanted[:3]))
    results = (*finished(gradients, operands, None), *finished(dteacher, teacher, None))
    return [g for g in results if g is not None]


linear_divergences_grad.register_fake(operators.like_inputs)
linear_divergences.register_autograd(
    operators.backward_by(linear_divergences_grad, 6), setup_context=operators.keep_inputs
)


def linear_kl_divergence(call: Distillation, teacher: Operands) -> Tensor:
    """The divergence of a checked call from a teacher with its inputs (..., D')."""
    given = {**dict(zip(STUDENT, call.student, strict=True)), **dict(zip(TEACHER, teacher, strict=True))}
    arguments.require_local(**given, temperature=call.row_temperature)
    flat = teacher._replace(inputs=valid_rows.as_matrix(teacher.inputs))
    t, (student, flat) = call.tempered(call.operands, flat)
    kl = Divergence(*flat, call.row_factors(), t, call.temperature, call.is_reverse, call.chunking)
    return call.loss(student, kl, (*flat, kl.sample_weight), divergence_sum, losses)
