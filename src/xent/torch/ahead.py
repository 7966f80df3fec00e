"""Compiled, a loss that is linear in the row statistics: one read of the logits for loss and gradient.

A graph has its loss before it asks for a gradient, and an operator may not return what it was given. So the
operator of the forward makes the gradient that is to come, and leaves it beside the statistics; that of the
backward takes it from there if the cotangents came as expected, and computes it otherwise. Either way the
results are functions of the arguments alone, to the bit.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch

from xent.core.contract import Cotangents, RowStats
from xent.core.link import Link
from xent.torch import bridge, ops

Tensor = torch.Tensor

# By the address of the statistics, which live as long as their graph: dlogits, and its cotangents.
_made: dict[int, tuple[Tensor, list[Tensor]]] = {}


def row_stats(
    logits: Tensor, labels: Tensor | None, dense: Tensor | None, link: Link, expected: Cotangents
) -> RowStats:
    """log_prob and dense_log_prob, derivable once, where their cotangents will probably be ``expected``."""
    rows = logits.new_zeros(logits.shape[:-1], dtype=torch.float64)
    dx = None if labels is None else rows + expected.log_prob
    ds = None if dense is None else rows + expected.dense_log_prob
    x, sigma = row_stats_ahead(logits, labels, dense, *ops.link_numbers(link, logits.device), dx, ds)
    return RowStats(log_prob=None if labels is None else x, dense_log_prob=None if dense is None else sigma)


@torch.library.custom_op("xent::row_stats_ahead", mutates_args=())
def row_stats_ahead(
    logits: Tensor,
    labels: Tensor | None,
    dense: Tensor | None,
    link: Sequence[float],
    moving: Tensor | None,
    dx: Tensor | None,
    ds: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(log_prob, dense_log_prob), whose cotangents (...) are expected to be ``dx`` and ``ds``.

    Empty tensors for what has no labels, or no probabilities, and no cotangents.
    """
    want = ("log_prob",) * (labels is not None) + ("dense_log_prob",) * (dense is not None)
    stats, dlogits = bridge.row_stats_and_grad(
        logits, labels, dense, Link(*ops.as_floats(link, moving)), _cotangents(dx, ds), want
    )
    x, sigma = (
        ops.column(logits, False) if column is None else column
        for column in (stats.log_prob, stats.dense_log_prob)
    )
    if logits.numel():
        first = sigma if labels is None else x
        _made[first.data_ptr()] = dlogits, [c.clone() for c in _there(dx, ds)]
        weakref.finalize(first.untyped_storage(), _made.pop, first.data_ptr(), None).atexit = False
    return x, sigma


def _cotangents(dx: Tensor | None, ds: Tensor | None) -> Cotangents:
    return Cotangents(0.0, 0.0 if dx is None else dx, 0.0 if ds is None else ds)


def _there(*columns: Tensor | None) -> list[Tensor]:
    return [c for c in columns if c is not None]


@row_stats_ahead.register_fake
def _(logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    labels, dense, *_ = arguments
    return ops.column(logits, labels is not None), ops.column(logits, dense is not None)


@torch.library.custom_op("xent::row_grad_ahead", mutates_args=())
def row_grad_ahead(
    logits: Tensor,
    labels: Tensor | None,
    dense: Tensor | None,
    link: Sequence[float],
    moving: Tensor | None,
    first: Tensor,
    dx: Tensor | None,
    ds: Tensor | None,
) -> Tensor:
    """Equation (2) of a function of the statistics that `row_stats_ahead` gave, the ``first`` among them."""
    made = _made.pop(first.data_ptr(), None)
    if made is not None and all(map(torch.equal, made[1], _there(dx, ds))):
        return made[0]
    known = Link(*ops.as_floats(link, moving))
    return bridge.row_stats_and_grad(logits, labels, dense, known, _cotangents(dx, ds), ())[1]


@row_grad_ahead.register_fake
def _(logits: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(logits)


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    logits, labels, dense, ctx.link, moving, _, _ = inputs
    ctx.save_for_backward(logits, labels, dense, moving, output[labels is None])


def _backward(ctx: Any, dx: Any, ds: Any) -> Any:
    logits, labels, dense, moving, first = ctx.saved_tensors
    dx, ds = None if labels is None else dx, None if dense is None else ds
    dlogits = row_grad_ahead(logits, labels, dense, ctx.link, moving, first, dx, ds)
    return dlogits, None, None, None, None, None, None


row_stats_ahead.register_autograd(_backward, setup_context=_setup_context)
