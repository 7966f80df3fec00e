"""Row statistics and divergences of a large vocabulary, without its logits."""

from __future__ import annotations

from typing import Any, Literal

import torch

from xent import rows
from xent import target as targeting
from xent.link import Link
from xent.projection import require_chunk_bytes
from xent.protocol import Cotangents, RowStatistics
from xent.spec import require_reduction
from xent.target import Target
from xent.torch import arguments, bridge, composite, linear, projected, statistics
from xent.torch.formulas import Softmax
from xent.torch.products import default_chunk_bytes
from xent.torch.projected import Operands, Swept
from xent.torch.temperature import divided

Tensor = torch.Tensor

COPIES = 6  # of a chunk's logits, where its gradient is ordinary PyTorch


def linear_row_statistics(
    inputs: Tensor,
    weight: Tensor,
    labels: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    temperature: float = 1.0,
    validate: bool | None = None,
    shift: int = 0,
    chunk_bytes: int | None = None,
) -> RowStatistics:
    """`row_statistics` of ``inputs @ weight.T + bias``, which never exists whole; derivable in all three.

    Parameters
    ----------
    inputs : (..., D) tensor
    weight : (K, D) tensor
    labels : (...) tensor of integers, default None
        Without them ``log_prob`` is None. Ignored rows are 0 throughout and cost nothing.
    bias : (K,) tensor, default None
    softcap, temperature, validate, shift, chunk_bytes
        As for `linear_cross_entropy`. Without ``validate`` a label that is no class gives NaN.

    Returns
    -------
    RowStatistics
        Tensors shaped like the rows (shorter by ``shift`` on the last axis), in nats, float64 for float64
        inputs and float32 for all others; ``argmax`` is int64.

    Examples
    --------
    >>> import torch, xent.torch
    >>> hidden, head = torch.eye(2), torch.zeros(4, 2, requires_grad=True)
    >>> stats = xent.torch.linear_row_statistics(hidden, head, torch.tensor([0, 3]))
    >>> stats.log_prob.detach().numpy().round(4), stats.entropy.detach().numpy().round(4)
    (array([-1.3863, -1.3863], dtype=float32), array([1.3863, 1.3863], dtype=float32))
    """
    number, inputs, bias = divided(temperature, inputs, bias, keep_dtype=True)
    spec = arguments.spec_of(ignore_index=ignore_index, softcap=softcap, temperature=number)
    arguments.require_local(inputs=inputs, weight=weight, labels=labels)
    operands = linear.checked(inputs, weight, bias, ("inputs", "weight", "bias"))
    shape, num_classes = operands.inputs.shape[:-1], weight.shape[0]
    flat = operands._replace(inputs=rows.matrix(operands.inputs))
    chunk_bytes = _share(chunk_bytes, inputs)
    is_plain = projected.is_plain(flat, labels)
    left, index = rows.shifted(shape, shift, torch, inputs.device)
    y: Tensor | None = None
    if labels is not None:
        arguments.require_labels(labels, shape)
        arguments.require_together(inputs=inputs, labels=labels)
        if arguments.looks_at(labels, validate):
            arguments.require_targets(labels, num_classes, spec.ignore_index, "labels")
        y = composite.readable(rows.flat(labels, shift), num_classes, spec.ignore_index)
        if is_plain:
            index, (y,) = rows.counted(y < 0, None, index, (y,), torch)
    link = Link(spec.temperature, spec.softcap)

    def columns_of(part: slice, logits: Tensor) -> tuple[Tensor, ...]:
        stats = statistics.row_stats(logits, None if y is None else y[part], None, link, all=True)
        there = (stats.lse, stats.log_prob, stats.entropy, stats.argmax)
        return tuple(column for column in there if column is not None)

    def step(logits: Tensor, part: slice, dcolumns: Tensor | None) -> tuple[tuple[Tensor, ...], Any]:
        of = None if y is None else y[part]
        want = ("lse", "entropy", "argmax") if y is None else ("lse", "log_prob", "entropy", "argmax")
        stats = bridge.row_stats(logits, of, None, link, want)
        columns = tuple(getattr(stats, name) for name in want)
        if dcolumns is None:
            return columns, None
        dlse, *dlog_prob, dentropy = dcolumns.unbind(-1)
        cotangents = Cotangents(dlse.contiguous(), *(d.contiguous() for d in dlog_prob))
        bends = dentropy.device.type != "cpu" or dentropy.any()  # a GPU is not waited for
        bend = Softmax(logits, of, None, link).entropy_grad(dentropy) if bends else None
        dlogits = bridge.row_grad(logits, of, None, link, stats, cotangents, logits)
        return columns, dlogits if bend is None else dlogits.add_(bend)

    silent = None if y is None or is_plain else y < 0
    swept = Swept(index, step, columns_of, chunk_bytes, silent)
    found = projected.columns(flat, swept) if is_plain else swept.differentiable(flat)
    lse, *log_prob, entropy, argmax = (rows.unflat(c, shape, left) for c in found)
    dtype = bridge.loss_dtype(inputs)
    by_label = log_prob[0].to(dtype) if log_prob else None
    return RowStatistics(lse.to(dtype), by_label, entropy.to(dtype), argmax)


def linear_kl_divergence(
    inputs: Tensor,
    weight: Tensor,
    teacher_inputs: Tensor,
    teacher_weight: Tensor,
    *,
    bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    temperature: float = 1.0,
    direction: Literal["forward", "reverse"] = "forward",
    sample_weight: Tensor | None = None,
    reduction: str = "mean",
    denominator: Any = None,
    validate: bool | None = None,
    chunk_bytes: int | None = None,
) -> Tensor:
    """KL divergence between a teacher's and a student's softmax, each a hidden state and its weight.

    With p the teacher's and q the student's probabilities at ``temperature``, ``"forward"`` is
    ``KL(p‖q) = Σ p (log p − log q)`` (Hinton et al., 2015) and ``"reverse"`` is ``KL(q‖p)``. Neither matrix
    of logits exists whole.

    Parameters
    ----------
    inputs, teacher_inputs : (..., D) and (..., D') tensors
    weight, teacher_weight : (K, D) and (K, D') tensors
    bias, teacher_bias : (K,) tensors, default None
    temperature : float > 0, default 1.0
        Divides both logits. The gradient falls with its square; multiply the loss by T² to keep its scale.
    direction : {"forward", "reverse"}, default "forward"
    sample_weight : (...) tensor, default None
        Factor of each row; rows of weight 0 cost nothing.
    reduction, denominator, validate, chunk_bytes
        As for `linear_cross_entropy`.

    Returns
    -------
    Tensor
        In nats; float64 for float64 ``inputs``, float32 for all others. Derivable in student and teacher.
        Where the two are almost equal, the rounding of their log-probabilities may leave it below 0.

    Raises
    ------
    ValueError
        For shapes, dtypes and options that do not go together.

    Examples
    --------
    >>> import torch, xent.torch
    >>> x, w = torch.eye(3), torch.eye(3)
    >>> round(xent.torch.linear_kl_divergence(x, w, x, 2 * w).item(), 4)
    0.0989
    """
    require_reduction(reduction)
    if direction not in ("forward", "reverse"):
        raise arguments.ArgumentError(f'`direction` must be "forward" or "reverse"; got {direction!r}')
    number, inputs, bias, teacher_inputs, teacher_bias = divided(
        temperature, inputs, bias, teacher_inputs, teacher_bias, keep_dtype=True
    )
    spec = arguments.spec_of(temperature=number)
    arguments.require_local(
        inputs=inputs, weight=weight, teacher_inputs=teacher_inputs, teacher_weight=teacher_weight
    )
    student = linear.checked(inputs, weight, bias, ("inputs", "weight", "bias"))
    names = ("teacher_inputs", "teacher_weight", "teacher_bias")
    teacher = linear.checked(teacher_inputs, teacher_weight, teacher_bias, names)
    shape = student.inputs.shape[:-1]
    if teacher.inputs.shape[:-1] != shape or teacher.weight.shape[0] != student.weight.shape[0]:
        raise arguments.ArgumentError(
            f"`teacher_inputs` and `teacher_weight` must have the rows {tuple(shape)} and the "
            f"{student.weight.shape[0]} classes of the student; got {tuple(teacher.inputs.shape)} and "
            f"{tuple(teacher.weight.shape)}"
        )
    if sample_weight is not None:
        arguments.require_rows(sample_weight, shape, validate)
    of_teacher = dict(zip(names, (teacher_inputs, teacher_weight, teacher_bias), strict=True))
    arguments.require_together(inputs=inputs, **of_teacher, sample_weight=sample_weight)
    denominator = arguments.as_denominator(denominator)
    flat = student._replace(inputs=rows.matrix(student.inputs))
    known = teacher._replace(inputs=rows.matrix(teacher.inputs))
    omega = None if sample_weight is None else sample_weight.double().reshape(-1)
    index: Tensor | None = None
    divisor = denominator if isinstance(denominator, Tensor) else None
    is_plain = projected.is_plain(flat, *known, sample_weight, divisor)
    if is_plain:
        index, (omega,) = rows.counted(None, omega, None, (omega,), torch)
    num_rows, counted = targeting.totals(
        flat.inputs.shape[0] if index is None else index.shape[0], omega, None, torch
    )
    whole = Target(None, 0.0, None, 1.0, omega, num_rows, counted)
    scale = composite.inverse(targeting.denominator(whole, reduction, denominator))
    silent: Tensor | None = None
    if omega is not None and not is_plain:
        silent = omega == 0
        if composite.are_derived(sample_weight):  # its derivative at 0 is the loss of the row, if it has one
            silent = silent & ~(flat.inputs.isfinite().all(-1) & known.inputs.isfinite().all(-1))
            omega = torch.where(silent, 0.0, omega)
        known = known._replace(inputs=torch.where(silent[:, None], 0.0, known.inputs))
    is_reverse = direction == "reverse"
    swept = _divergence(known, omega, index, spec.temperature, is_reverse, _share(chunk_bytes, inputs))
    swept = swept._replace(silent=silent)
    dtype = bridge.loss_dtype(inputs)
    if is_plain and reduction != "none":
        return projected.total(flat, swept, scale).to(dtype)
    (losses,) = projected.columns(flat, swept) if is_plain else swept.differentiable(flat)
    return (losses.reshape(shape) if reduction == "none" else losses.sum() * scale).to(dtype)


def _divergence(
    teacher: Operands,
    omega: Tensor | None,
    index: Tensor | None,
    temperature: float,
    is_reverse: bool,
    chunk_bytes: int,
) -> Swept:
    """ω·KL per row of the student's logits, those of the teacher computed beside them."""

    def divergence(part: slice, logits: Tensor) -> Tensor:
        of = part if index is None else index[part]
        other = torch.nn.functional.linear(teacher.inputs[of], teacher.weight, teacher.bias)
        dtype = bridge.loss_dtype(logits)
        log_q, log_p = (torch.log_softmax(z.to(dtype) / temperature, -1) for z in (logits, other))
        one, two = (log_q, log_p) if is_reverse else (log_p, log_q)
        weight = one.exp()
        gap = torch.where(weight == 0, 0.0, one - two)  # of classes that are excluded in both, −inf + inf
        losses = (weight * gap).sum(-1, dtype=torch.float64)
        return losses if omega is None else omega[part] * losses

    def columns_of(part: slice, logits: Tensor) -> tuple[Tensor, ...]:
        return (divergence(part, logits),)

    def step(logits: Tensor, part: slice, dloss: Any) -> tuple[tuple[Tensor, ...], Any]:
        if dloss is None:
            return (divergence(part, logits),), None
        with torch.enable_grad():
            z = logits.detach().requires_grad_()
            losses = divergence(part, z)
        upstream = torch.as_tensor(dloss, dtype=losses.dtype, device=losses.device).expand_as(losses)
        (dlogits,) = torch.autograd.grad(losses, z, upstream)
        return (losses.detach(),), dlogits

    return Swept(index, step, columns_of, chunk_bytes)


def _share(chunk_bytes: int | None, inputs: Tensor) -> int:
    """The budget of a chunk's logits where there are several matrices of their size."""
    require_chunk_bytes(chunk_bytes)
    return (chunk_bytes or default_chunk_bytes(inputs.device)) // COPIES or 1
