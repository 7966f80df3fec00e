"""Compiled, a loss that is linear in the row statistics: one read of the logits for loss and gradient.

A graph has its loss before it asks for a gradient, and an operator may not return what it was given. So the
operator of the forward makes the gradient that is to come, and leaves it beside the statistics; that of the
backward takes it from there if the cotangents came as expected, and computes it otherwise. Either way the
results are functions of the arguments alone, to the bit.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch

from xent.link import Link
from xent.protocol import Cotangents, RowStats
from xent.torch import bridge, ops

Tensor = torch.Tensor

# By the address of the statistics, which live as long as their graph: (dlogits, dx, ds).
_made: dict[int, tuple[Tensor, Tensor, Tensor]] = {}


def row_stats(
    logits: Tensor, labels: Tensor | None, dense: Tensor | None, link: Link, expected: Cotangents
) -> RowStats:
    """log_prob and dense_log_prob, derivable once, where their cotangents will probably be ``expected``."""
    rows = logits.new_zeros(logits.shape[:-1], dtype=torch.float64)
    dx, ds = rows + expected.log_prob, rows + expected.dense_log_prob
    x, sigma = row_stats_ahead(logits, labels, dense, link.temperature, link.softcap or 0.0, dx, ds)
    return RowStats(log_prob=None if labels is None else x, dense_log_prob=None if dense is None else sigma)


@torch.library.custom_op("xent::row_stats_ahead", mutates_args=())
def row_stats_ahead(
    logits: Tensor,
    labels: Tensor | None,
    dense: Tensor | None,
    temperature: float,
    softcap: float,
    dx: Tensor,
    ds: Tensor,
) -> tuple[Tensor, Tensor]:
    """(log_prob, dense_log_prob), whose cotangents (...) are expected to be ``dx`` and ``ds``."""
    link = ops.link_of(temperature, softcap)
    want = ("log_prob",) * (labels is not None) + ("dense_log_prob",) * (dense is not None)
    stats, dlogits = bridge.row_stats_and_grad(logits, labels, dense, link, Cotangents(0.0, dx, ds), want)
    x, sigma = (
        torch.zeros_like(dx) if column is None else column
        for column in (stats.log_prob, stats.dense_log_prob)
    )
    if logits.numel():
        kept = x.numpy().copy()
        x = torch.from_numpy(kept)
        _made[x.data_ptr()] = dlogits, dx.clone(), ds.clone()
        weakref.finalize(kept, _made.pop, x.data_ptr(), None).atexit = False
    return x, sigma


@row_stats_ahead.register_fake
def _(logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    x, sigma = (logits.new_empty(logits.shape[:-1], dtype=torch.float64) for _ in range(2))
    return x, sigma


@torch.library.custom_op("xent::row_grad_ahead", mutates_args=())
def row_grad_ahead(
    logits: Tensor,
    labels: Tensor | None,
    dense: Tensor | None,
    temperature: float,
    softcap: float,
    log_prob: Tensor,
    dx: Tensor,
    ds: Tensor,
) -> Tensor:
    """Equation (2) of a function of the two statistics that `row_stats_ahead` gave."""
    made = _made.pop(log_prob.data_ptr(), None)
    if made is not None and torch.equal(made[1], dx) and torch.equal(made[2], ds):
        return made[0]
    link = ops.link_of(temperature, softcap)
    return bridge.row_stats_and_grad(logits, labels, dense, link, Cotangents(0.0, dx, ds), ())[1]


@row_grad_ahead.register_fake
def _(logits: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(logits)


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    logits, labels, dense, ctx.temperature, ctx.softcap, _, _ = inputs
    ctx.save_for_backward(logits, labels, dense, output[0])


def _backward(ctx: Any, dx: Tensor, ds: Tensor) -> Any:
    logits, labels, dense, log_prob = ctx.saved_tensors
    dlogits = row_grad_ahead(logits, labels, dense, ctx.temperature, ctx.softcap, log_prob, dx, ds)
    return dlogits, None, None, None, None, None, None


row_stats_ahead.register_autograd(_backward, setup_context=_setup_context)
