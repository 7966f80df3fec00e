"""The row statistics as a differentiable function: any order, forward and reverse, under every transform.

One `Function` gives the statistics, another their vector-Jacobian product (2); the derivative of that is
equation (3). Every option of the loss is ordinary PyTorch code on what they return.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.autograd import Function

from xent.core.contract import Cotangents, RowStats
from xent.core.link import Link
from xent.torch import modes
from xent.torch.operator_numbers import link_numbers
from xent.torch.statistics import operators
from xent.torch.statistics.softmax_derivatives import Softmax

Tensor = torch.Tensor


def row_stats(
    logits: Tensor, labels: Tensor | None, dense: Tensor | None, link: Link, want: tuple[str, ...] = ()
) -> RowStats:
    """The float64 `RowStats`, derivable in the logits; entropy and argmax only if ``want`` names them.

    They are also derivable in ``dense`` if it requires gradients, by PyTorch operations.
    """
    passes = "entropy" in want, "argmax" in want
    if _needs_formulas():
        return Softmax(logits.double(), labels, dense, link).stats(operators.fields(labels, dense, *passes))
    constant = None if dense is None else dense.detach()
    apply = operators.row_stats if modes.is_graphed() else _Statistics.apply
    stats = RowStats(*apply(logits, labels, constant, *link_numbers(link, logits.device), *passes))
    sigma, mass = stats.dense_log_prob, stats.mass
    if dense is not None and modes.is_derived(dense):
        derived = Softmax(logits.to(dense.dtype), labels, dense, link).stats(("dense_log_prob", "mass"))
        sigma, mass = derived.dense_log_prob, derived.mass
    return RowStats(
        stats.lse,
        None if labels is None else stats.log_prob,
        None if dense is None else sigma,
        None if dense is None else mass,
        stats.entropy if passes[0] else None,
        stats.argmax if passes[1] else None,
    )


def _needs_formulas() -> bool:
    """Whether `Softmax` must be used, since an operator or Function would give wrong derivatives or none.

    Compiled transforms cannot differentiate operators; nested forward mode treats the tangents of a Function
    as constants.
    """
    if modes.is_graphed():
        return modes.is_transformed()
    return modes.is_nested_forward()


class _Statistics(Function):
    @staticmethod
    def forward(*inputs: Any) -> Any:
        return operators.row_stats(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        logits, labels, dense, ctx.link, dynamic, ctx.has_entropy, _ = inputs
        lse, log_prob, _, mass, _, argmax = output
        ctx.save_for_backward(logits, labels, dense, dynamic, lse, log_prob, mass)
        ctx.save_for_forward(logits, labels, dense)
        ctx.mark_non_differentiable(mass, argmax)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _backward(ctx, _Gradient.apply, *grads)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Any:
        logits, labels, dense = ctx.saved_tensors
        softmax = Softmax(logits, labels, dense, Link(*ctx.link))
        dl, dx, ds = (d.double() for d in softmax.jvp(tangent))
        none = dl.new_zeros(0)
        dentropy = softmax.entropy_jvp(tangent).double() if ctx.has_entropy else none
        return dl, none if labels is None else dx, none if dense is None else ds, None, dentropy, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        logits, labels, dense, link, dynamic, *passes = inputs
        logits, labels, dense = _batched(info.batch_size, in_dims, logits, labels, dense)
        stats = list(_Statistics.apply(logits, labels, dense, link, dynamic, *passes))
        if dense is not None and dense.ndim == 1:
            stats[3] = stats[3].expand(stats[0].shape)
        present = operators.presence(labels, dense, *passes)
        return tuple(stats), tuple(0 if p else None for p in present)


def _backward(ctx: Any, gradient: Any, *grads: Tensor) -> Any:
    logits, labels, dense, dynamic, lse, log_prob, mass = ctx.saved_tensors
    dl, dx, ds, _, dentropy, _ = grads
    stats = (lse.detach(), log_prob.detach(), mass.detach())
    none = torch.zeros_like(dl)
    coefficients = (dl, none if labels is None else dx, none if dense is None else ds)
    dlogits = gradient(logits, labels, dense, ctx.link, dynamic, *stats, *coefficients)
    if ctx.has_entropy:
        link = Link(*(ctx.link if dynamic is None else dynamic.unbind()))
        softmax = Softmax(logits, labels, dense, link)
        dlogits = dlogits + softmax.entropy_grad(dentropy).to(dlogits.dtype)
    return dlogits, *([None] * 6)


class _Gradient(Function):
    @staticmethod
    def forward(*inputs: Any) -> Any:
        return operators.row_grad(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        logits, labels, dense, ctx.link, _, _, _, _, *coefficients = inputs
        ctx.save_for_backward(logits, labels, dense, *coefficients)
        ctx.save_for_forward(logits, labels, dense, *coefficients)

    @staticmethod
    def backward(ctx: Any, vector: Tensor) -> Any:
        logits, labels, dense, *coefficients = ctx.saved_tensors
        is_derived, are_derived = torch.is_grad_enabled(), any(ctx.needs_input_grad[8:])
        if is_derived or are_derived:
            softmax = Softmax(logits, labels, dense, Link(*ctx.link))
        if is_derived:
            dlogits = softmax.hvp(Cotangents(*coefficients), vector).to(logits.dtype)
        else:
            dlogits = operators.row_hvp(logits, labels, dense, ctx.link, None, *coefficients, vector)
        slopes: list[Any] = [None, None, None]
        if are_derived:
            slopes = [s.to(c.dtype) for s, c in zip(softmax.jvp(vector), coefficients, strict=True)]
        return (dlogits, *([None] * 7), *slopes)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *tangents: Any) -> Any:
        logits, labels, dense, *coefficients = ctx.saved_tensors
        softmax = Softmax(logits, labels, dense, Link(*ctx.link))
        slopes = [
            torch.zeros_like(c) if t is None else t for t, c in zip(tangents[7:], coefficients, strict=True)
        ]
        product = softmax.grad(Cotangents(*slopes))
        if tangent is not None:
            product = product + softmax.hvp(Cotangents(*coefficients), tangent)
        return product.to(logits.dtype)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        logits, labels, dense, link, dynamic, *columns = inputs
        columns = [
            _rows(column, dim, info.batch_size) if column.numel() or dim is not None else column
            for column, dim in zip(columns, in_dims[5:], strict=True)
        ]
        logits, labels, dense = _batched(info.batch_size, in_dims, logits, labels, dense)
        return _Gradient.apply(logits, labels, dense, link, dynamic, *columns), 0


def _batched(size: int, in_dims: Any, logits: Tensor, labels: Any, dense: Any) -> tuple[Tensor, Any, Any]:
    """The arguments with the mapped axis first and one batch shape; a shared (K,) stays (K,)."""
    logits = _rows(logits, in_dims[0], size)
    if labels is not None:
        labels = _rows(labels, in_dims[1], size)
    if dense is not None and (in_dims[2] is not None or dense.ndim > 1):
        dense = _rows(dense, in_dims[2], size)
        dense = dense.reshape(size, *([1] * (logits.ndim - dense.ndim)), *dense.shape[1:]).expand(
            logits.shape
        )
    return logits, labels, dense


def _rows(x: Tensor, dim: int | None, size: int) -> Tensor:
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


operators.row_stats.register_autograd(
    lambda ctx, *grads: _backward(ctx, operators.row_grad, *grads),
    setup_context=cast(Any, _Statistics.setup_context),
)
