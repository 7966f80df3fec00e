"""The kernels as operators of PyTorch, opaque to its tracers: shapes for fake tensors, and derivatives.

``want`` is not part of an operator's schema: `row_stats` gives all statistics that its arguments allow, and
empty tensors for the others.
"""

from __future__ import annotations

from typing import Any

import torch

from xent.link import Link
from xent.protocol import Cotangents, RowStats
from xent.torch import bridge

Tensor = torch.Tensor


def link_of(temperature: float, softcap: float) -> Link:
    """The link of an operator's arguments; a softcap of 0 is none."""
    return Link(temperature, softcap or None)


@torch.library.custom_op("xent::row_stats", mutates_args=())
def row_stats(
    logits: Tensor, labels: Tensor | None, dense: Tensor | None, temperature: float, softcap: float, all: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(lse, log_prob, dense_log_prob, mass) and, if ``all`` is asked for, (entropy, argmax)."""
    there = _there(labels, dense, all)
    want = tuple(name for name, is_there in zip(RowStats._fields, there, strict=True) if is_there)
    stats = bridge.row_stats(logits, labels, dense, link_of(temperature, softcap), want)
    return tuple(column(logits, False) if s is None else s for s in stats)  # type: ignore[return-value]


@row_stats.register_fake
def _(
    logits: Tensor, labels: Tensor | None, dense: Tensor | None, temperature: float, softcap: float, all: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    *columns, argmax = (column(logits, is_there) for is_there in _there(labels, dense, all))
    return (*columns, argmax.long() if all else argmax)  # type: ignore[return-value]


def _there(labels: Tensor | None, dense: Tensor | None, all: bool) -> tuple[bool, ...]:
    return True, labels is not None, dense is not None, dense is not None, all, all


def column(logits: Tensor, is_there: bool) -> Tensor:
    """New memory for a statistic of ``logits``; none if it is not there."""
    return logits.new_empty(logits.shape[:-1] if is_there else (0,), dtype=torch.float64)


@torch.library.custom_op("xent::row_grad", mutates_args=())
def row_grad(
    logits: Tensor,
    labels: Tensor | None,
    dense: Tensor | None,
    temperature: float,
    softcap: float,
    lse: Tensor,
    log_prob: Tensor,
    mass: Tensor,
    dl: Tensor,
    dx: Tensor,
    ds: Tensor,
) -> Tensor:
    """Equation (2) with the cotangents ``dl, dx, ds`` of (lse, log_prob, dense_log_prob)."""
    stats = RowStats(
        lse=lse,
        log_prob=None if labels is None else log_prob,
        mass=None if dense is None else mass,
    )
    return bridge.row_grad(
        logits, labels, dense, link_of(temperature, softcap), stats, Cotangents(dl, dx, ds)
    )


@row_grad.register_fake
def _(logits: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(logits)


@torch.library.custom_op("xent::row_hvp", mutates_args=())
def row_hvp(
    logits: Tensor,
    labels: Tensor | None,
    dense: Tensor | None,
    temperature: float,
    softcap: float,
    dl: Tensor,
    dx: Tensor,
    ds: Tensor,
    vector: Tensor,
) -> Tensor:
    """Equation (3) with constant cotangents: the derivative of `row_grad` in the logits along ``vector``."""
    return bridge.row_hvp(
        logits, labels, dense, link_of(temperature, softcap), Cotangents(dl, dx, ds), vector
    )


@row_hvp.register_fake
def _(logits: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(logits)
