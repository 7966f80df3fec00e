"""Statistics as an operator that computes their gradient ahead, for losses that are linear in them.

A graph computes its loss before its gradient, and an operator may not return its own argument. So the forward
operator stores the expected gradient in `_ahead`; the backward operator takes it from there if the cotangents
are the expected ones, and computes it otherwise. Either way the bits are the same.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch

from xent.core.contract import Cotangents, RowStats
from xent.core.link import Link
from xent.torch import devices
from xent.torch.operator_numbers import as_floats, link_numbers
from xent.torch.statistics.operators import column

Tensor = torch.Tensor


def row_stats_and_grad(
    logits: Tensor, labels: Tensor | None, dense: Tensor | None, link: Link, expected: Cotangents
) -> RowStats:
    """log_prob and dense_log_prob, derivable once: one read if the cotangents are those ``expected``."""
    rows = logits.new_zeros(logits.shape[:-1], dtype=torch.float64)
    dx = None if labels is None else rows + expected.log_prob
    ds = None if dense is None else rows + expected.dense_log_prob
    x, sigma = row_stats_ahead(logits, labels, dense, *link_numbers(link, logits.device), dx, ds)
    return RowStats(log_prob=None if labels is None else x, dense_log_prob=None if dense is None else sigma)


class _Ahead:
    """Gradients computed in a forward, by the address of a statistic that lives as long as its graph."""

    def __init__(self) -> None:
        self.stored: dict[int, tuple[Tensor, list[Tensor]]] = {}

    def keep(self, statistic: Tensor, dlogits: Tensor, cotangents: list[Tensor]) -> None:
        """Store ``dlogits`` until it is taken or the memory of ``statistic`` is freed."""
        address = statistic.data_ptr()
        self.stored[address] = dlogits, [c.clone() for c in cotangents]
        weakref.finalize(statistic.untyped_storage(), self.stored.pop, address, None).atexit = False

    def take(self, statistic: Tensor, cotangents: list[Tensor]) -> Tensor | None:
        """Remove and return the stored gradient; None if there is none or its cotangents differ."""
        dlogits, expected = self.stored.pop(statistic.data_ptr(), (None, []))
        return dlogits if dlogits is not None and all(map(torch.equal, expected, cotangents)) else None


_ahead = _Ahead()


@torch.library.custom_op("xent::row_stats_ahead", mutates_args=())
def row_stats_ahead(
    logits: Tensor,
    labels: Tensor | None,
    dense: Tensor | None,
    link: Sequence[float],
    dynamic: Tensor | None,
    dx: Tensor | None,
    ds: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(log_prob, dense_log_prob), whose cotangents (...) are expected to be ``dx`` and ``ds``.

    Without labels, or without a dense part, the statistic is an empty tensor and its cotangent None.
    """
    want = ("log_prob",) * (labels is not None) + ("dense_log_prob",) * (dense is not None)
    stats, dlogits = devices.row_stats_and_grad(
        logits, labels, dense, Link(*as_floats(link, dynamic)), _cotangents(dx, ds), want
    )
    x, sigma = (
        column(logits, False) if statistic is None else statistic
        for statistic in (stats.log_prob, stats.dense_log_prob)
    )
    if logits.numel():
        _ahead.keep(sigma if labels is None else x, dlogits, _present(dx, ds))
    return x, sigma


def _cotangents(dx: Tensor | None, ds: Tensor | None) -> Cotangents:
    return Cotangents(0.0, 0.0 if dx is None else dx, 0.0 if ds is None else ds)


def _present(*columns: Tensor | None) -> list[Tensor]:
    return [c for c in columns if c is not None]


@row_stats_ahead.register_fake
def _(logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    labels, dense, *_ = arguments
    return column(logits, labels is not None), column(logits, dense is not None)


@torch.library.custom_op("xent::row_grad_ahead", mutates_args=())
def row_grad_ahead(
    logits: Tensor,
    labels: Tensor | None,
    dense: Tensor | None,
    link: Sequence[float],
    dynamic: Tensor | None,
    first: Tensor,
    dx: Tensor | None,
    ds: Tensor | None,
) -> Tensor:
    """Equation (2) for the statistics of `row_stats_ahead`; ``first`` is the first one present."""
    stored = _ahead.take(first, _present(dx, ds))
    if stored is not None:
        return stored
    phi = Link(*as_floats(link, dynamic))
    return devices.row_stats_and_grad(logits, labels, dense, phi, _cotangents(dx, ds), ())[1]


@row_grad_ahead.register_fake
def _(logits: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(logits)


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    logits, labels, dense, ctx.link, dynamic, _, _ = inputs
    ctx.save_for_backward(logits, labels, dense, dynamic, output[labels is None])


def _backward(ctx: Any, dx: Any, ds: Any) -> Any:
    logits, labels, dense, dynamic, first = ctx.saved_tensors
    dx, ds = None if labels is None else dx, None if dense is None else ds
    dlogits = row_grad_ahead(logits, labels, dense, ctx.link, dynamic, first, dx, ds)
    return dlogits, None, None, None, None, None, None


row_stats_ahead.register_autograd(_backward, setup_context=_setup_context)
