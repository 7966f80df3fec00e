"""The divergence between the softmaxes of two linear layers, chunk by chunk, and as operators of PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch.nn.functional import linear

from xent.core import head
from xent.core.link import Link
from xent.engine import valid_rows
from xent.engine.chunked_projection import Gradients
from xent.torch import bridge, composite, linear_ops, ops
from xent.torch.measured import is_captured
from xent.torch.projected import Operands, Swept, finished

Tensor = torch.Tensor

SCHEMA = (  # of what `packed` gives
    "Tensor teacher_x, Tensor teacher_w, Tensor? teacher_b, Tensor? sample_weight, float[] link, "
    "Tensor? moving, bool is_reverse, SymInt chunk_bytes"
)


class Divergence(NamedTuple):
    """ω·KL per row of the student's logits, those of the teacher computed beside them.

    A `linear_ops.Program`.
    """

    teacher_inputs: Tensor
    teacher_weight: Tensor
    teacher_bias: Tensor | None
    sample_weight: Tensor | None  # (M,)
    temperature: float
    is_reverse: bool
    chunk_bytes: int

    def packed(self, device: torch.device) -> tuple[Any, ...]:
        """See `linear_ops.Program`."""
        numbers = ops.link_numbers(Link(self.temperature), device)
        return *self[:4], *numbers, self.is_reverse, self.chunk_bytes

    @classmethod
    def unpacked(cls, *arguments: Any) -> Divergence:
        """See `linear_ops.Program`."""
        x, w, b, sample_weight, link, moving, is_reverse, chunk_bytes = arguments
        (temperature,) = ops.as_floats(link, moving)
        return cls(x, w, b, sample_weight, temperature, is_reverse, chunk_bytes)

    def swept(self, operands: Operands, leave_out: bool, dteacher: Gradients | None = None) -> Swept:
        """See `linear_ops.Program`; the teacher's gradients are added to ``dteacher``."""
        teacher, omega = Operands(*self[:3]), self.sample_weight
        index = silent = None
        if leave_out and not is_captured(operands.inputs):
            index, (omega,) = valid_rows.counted(None, omega, None, (omega,), torch)
        elif omega is not None:
            silent = omega == 0
            if composite.are_derived(omega):  # its derivative at 0 is the loss of the row, if it has one
                silent = silent & ~_are_finite(operands.inputs, teacher.inputs)
                omega = torch.where(silent, 0.0, omega)
            teacher = teacher._replace(inputs=torch.where(silent[:, None], 0.0, teacher.inputs))

        def other(part: slice) -> tuple[Tensor, Any]:
            place = part if index is None else index[part]
            return linear(teacher.inputs[place], teacher.weight, teacher.bias), place

        def columns_of(part: slice, logits: Tensor) -> tuple[Tensor, ...]:
            one, two = self._pair(logits, other(part)[0])
            p = one.exp()
            gap = torch.where(p == 0, 0.0, one - two)  # −inf + inf for a class that both exclude
            losses = (p * gap).sum(-1, dtype=torch.float64)
            return (losses if omega is None else omega[part] * losses,)

        def step(logits: Tensor, part: slice, dloss: Any) -> tuple[tuple[Tensor, ...], Any]:
            teacher_logits, place = other(part)
            factor = None if omega is None else omega[part]
            pair = self._pair(logits, teacher_logits)
            losses, *slopes = _divergence_and_slopes(*pair)
            column = head.times(factor, losses, torch)
            if dloss is None:
                return (column,), None
            upstream = head.times(
                factor, torch.as_tensor(dloss, dtype=torch.float64, device=logits.device), torch
            )
            upstream = (upstream / self.temperature).expand(losses.shape)[:, None].to(pair[0].dtype)
            dstudent, dother = (
                head.times(upstream, slope, torch) for slope in (slopes if self.is_reverse else slopes[::-1])
            )
            if dteacher is not None:
                _add(dteacher, teacher, place, dother.to(teacher_logits.dtype))
            return (column,), dstudent.to(logits.dtype)

        return Swept(index, step, columns_of, self.chunk_bytes, silent)

    def _pair(self, logits: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """The log-probabilities of the two, in the order in which KL(one‖two) has them."""
        dtype = bridge.loss_dtype(logits)
        log_q, log_p = (torch.log_softmax(z.to(dtype) / self.temperature, -1) for z in (logits, other))
        return (log_q, log_p) if self.is_reverse else (log_p, log_q)


def _divergence_and_slopes(one: Tensor, two: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """D = KL(p‖q) per row, float64, and its slopes in the logits of both: p∘(log p − log q − D) and q − p."""
    p = one.exp()
    gap = torch.where(p == 0, 0.0, one - two)
    losses = (p * gap).sum(-1, dtype=torch.float64)
    return losses, p * (gap - losses[:, None].to(p.dtype)), two.exp() - p


def _are_finite(x: Tensor, y: Tensor) -> Tensor:
    """Which rows of both are."""
    return x.isfinite().all(-1) & y.isfinite().all(-1)


def _add(sums: Gradients, operands: Operands, place: Any, dlogits: Tensor) -> None:
    """The part of one chunk."""
    if sums.inputs is not None:
        sums.inputs[place] = (dlogits @ operands.weight).to(sums.inputs.dtype)
    if sums.weight is not None:
        sums.weight.add_(dlogits.T @ operands.inputs[place])
    if sums.bias is not None:
        sums.bias.add_(dlogits.sum(0, dtype=sums.bias.dtype))


total = linear_ops.total_operator("divergences", Divergence, SCHEMA)

INPUTS = f"{linear_ops.OPERANDS}, {SCHEMA}"


def losses(operands: Operands, divergence: Divergence) -> Tensor:
    """ω·KL of a graph, one for each row; derivable once in all tensors.

    What a row of weight 0 holds is read only if ω is derived, and it is finite.
    """
    omega, counts = divergence.sample_weight, None
    if omega is not None:
        counts = omega != 0
        if omega.requires_grad:
            counts = counts | _are_finite(operands.inputs, divergence.teacher_inputs)
    packed = Divergence(*divergence[:3], counts, *divergence[4:]).packed(operands.inputs.device)
    return cast(Tensor, head.times(omega, linear_divergences(*operands, *packed), torch))


def _known(inputs: Sequence[Any]) -> tuple[Operands, Divergence]:
    divergence = Divergence.unpacked(*inputs[3:])
    counts = divergence.sample_weight
    if counts is not None:
        divergence = divergence._replace(sample_weight=counts.double())
    return Operands(*inputs[:3]), divergence


@torch.library.custom_op("xent::linear_divergences", mutates_args=(), schema=f"({INPUTS}) -> Tensor")
def linear_divergences(*inputs: Any) -> Tensor:
    """KL per row; ``sample_weight`` is True or 1 for the rows that count."""
    operands, known = _known(inputs)
    return cast(Tensor, known.swept(operands, True).sweep(operands)[0][0])


@linear_divergences.register_fake
def _(x: Tensor, *others: Any) -> Tensor:
    return x.new_empty(x.shape[:1], dtype=torch.float64)


@torch.library.custom_op(
    "xent::linear_divergences_grad",
    mutates_args=(),
    schema=f"(Tensor dlosses, {INPUTS}, bool[] wanted) -> Tensor[]",
)
def linear_divergences_grad(dlosses: Tensor, *inputs: Any) -> list[Tensor]:
    """The gradients of Σ dloss·KL in those operands of student and teacher that are ``wanted``."""
    *arguments, wanted = inputs
    operands, known = _known(arguments)
    teacher = Operands(*known[:3])
    dteacher = Gradients(
        *(
            torch.zeros(x.shape, dtype=bridge.loss_dtype(x), device=x.device)
            if want and x is not None
            else None
            for x, want in zip(teacher, wanted[3:], strict=True)
        )
    )
    swept = known.swept(operands, True, dteacher if any(wanted[3:]) else None)
    _, gradients = swept.sweep(operands, dlosses, tuple(wanted[:3]))
    found = (*finished(gradients, operands, None), *finished(dteacher, teacher, None))
    return [g for g in found if g is not None]


linear_divergences_grad.register_fake(linear_ops.like_inputs)
linear_divergences.register_autograd(
    linear_ops.backward_by(linear_divergences_grad, 6), setup_context=linear_ops.keep_inputs
)
