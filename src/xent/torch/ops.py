"""The kernels as operators of PyTorch, opaque to its tracers: shapes for fake tensors, and derivatives.

``want`` is not part of an operator's schema: `row_stats` gives all statistics that its arguments allow, and
empty tensors for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from xent.core.contract import Cotangents, RowStats
from xent.core.link import Link
from xent.core.spec import LossSpec
from xent.torch import bridge

Tensor = torch.Tensor
Numbers = tuple[list[float], Tensor | None]

_NO_OPTIONS = LossSpec().to_numbers()


def numbers(values: Sequence[float], defaults: Sequence[float], device: torch.device) -> Numbers:
    """``values`` as operators take them: floats, or a tensor of them.

    Each new float is a new graph, each new value of a tensor is not. So a graph for the CPU gives a tensor,
    unless the values are the ``defaults``. (A tensor of the CPU would cost a GPU its CUDA graphs.)
    """
    in_graph = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    if not in_graph or device.type != "cpu" or list(values) == list(defaults):
        return list(values), None
    zero = torch.zeros((), dtype=torch.float64)
    # PyTorch takes an empty list for one of tensors.
    return [0.0], torch.stack([zero + value for value in values])


def as_floats(values: Sequence[float], moving: Tensor | None) -> Sequence[float]:
    """What `numbers` was given; for the inside of an operator."""
    return values if moving is None else moving.tolist()


def link_numbers(link: Link, device: torch.device) -> Numbers:
    """The link as operators take it: a temperature, and a softcap if there is one."""
    return numbers([x for x in link if x is not None], [1.0], device)


def spec_numbers(spec: LossSpec, device: torch.device) -> Numbers:
    """The options of a loss as operators take them; `LossSpec.from_numbers` reads them."""
    return numbers(spec.to_numbers(), _NO_OPTIONS, device)


@torch.library.custom_op("xent::row_stats", mutates_args=())
def row_stats(
    logits: Tensor,
    labels: Tensor | None,
    dense: Tensor | None,
    link: Sequence[float],
    moving: Tensor | None,
    all: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(lse, log_prob, dense_log_prob, mass) and, if ``all`` is asked for, (entropy, argmax)."""
    there = _there(labels, dense, all)
    want = tuple(name for name, is_there in zip(RowStats._fields, there, strict=True) if is_there)
    stats = bridge.row_stats(logits, labels, dense, Link(*as_floats(link, moving)), want)
    return tuple(column(logits, False) if s is None else s for s in stats)  # type: ignore[return-value]


@row_stats.register_fake
def _(
    logits: Tensor,
    labels: Tensor | None,
    dense: Tensor | None,
    link: Sequence[float],
    moving: Tensor | None,
    all: bool,
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
    link: Sequence[float],
    moving: Tensor | None,
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
        logits, labels, dense, Link(*as_floats(link, moving)), stats, Cotangents(dl, dx, ds)
    )


@row_grad.register_fake
def _(logits: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(logits)


@torch.library.custom_op("xent::row_hvp", mutates_args=())
def row_hvp(
    logits: Tensor,
    labels: Tensor | None,
    dense: Tensor | None,
    link: Sequence[float],
    moving: Tensor | None,
    dl: Tensor,
    dx: Tensor,
    ds: Tensor,
    vector: Tensor,
) -> Tensor:
    """Equation (3) with constant cotangents: the derivative of `row_grad` in the logits along ``vector``."""
    return bridge.row_hvp(
        logits, labels, dense, Link(*as_floats(link, moving)), Cotangents(dl, dx, ds), vector
    )


@row_hvp.register_fake
def _(logits: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(logits)
