"""The row statistics as custom operators, which `torch.compile` and `torch.export` do not decompose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from xent.core.contract import Cotangents, RowStats
from xent.core.link import Link
from xent.torch import devices
from xent.torch.operator_numbers import as_floats

Tensor = torch.Tensor


@torch.library.custom_op("xent::row_stats", mutates_args=())
def row_stats(
    logits: Tensor,
    labels: Tensor | None,
    dense: Tensor | None,
    link: Sequence[float],
    dynamic: Tensor | None,
    entropy: bool,
    argmax: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(lse, log_prob, dense_log_prob, mass, entropy, argmax); the last two only where they are wanted."""
    want = fields(labels, dense, entropy, argmax)
    stats = devices.row_stats(logits, labels, dense, Link(*as_floats(link, dynamic)), want)
    return tuple(column(logits, False) if s is None else s for s in stats)  # type: ignore[return-value]


@row_stats.register_fake
def _(
    logits: Tensor,
    labels: Tensor | None,
    dense: Tensor | None,
    link: Sequence[float],
    dynamic: Tensor | None,
    entropy: bool,
    argmax: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    *columns, last = (column(logits, is_present) for is_present in presence(labels, dense, entropy, argmax))
    return (*columns, last.long() if argmax else last)  # type: ignore[return-value]


def fields(labels: Tensor | None, dense: Tensor | None, entropy: bool, argmax: bool) -> tuple[str, ...]:
    """The names of the statistics that these arguments allow."""
    present = presence(labels, dense, entropy, argmax)
    return tuple(name for name, is_present in zip(RowStats._fields, present, strict=True) if is_present)


def presence(labels: Any, dense: Any, entropy: bool, argmax: bool) -> tuple[bool, ...]:
    """Whether each of `RowStats` is there."""
    return True, labels is not None, dense is not None, dense is not None, entropy, argmax


def column(logits: Tensor, is_present: bool) -> Tensor:
    """An uninitialised statistic of ``logits``, or an empty tensor if it is not present."""
    return logits.new_empty(logits.shape[:-1] if is_present else (0,), dtype=torch.float64)


@torch.library.custom_op("xent::row_grad", mutates_args=())
def row_grad(
    logits: Tensor,
    labels: Tensor | None,
    dense: Tensor | None,
    link: Sequence[float],
    dynamic: Tensor | None,
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
    return devices.row_grad(
        logits, labels, dense, Link(*as_floats(link, dynamic)), stats, Cotangents(dl, dx, ds)
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
    dynamic: Tensor | None,
    dl: Tensor,
    dx: Tensor,
    ds: Tensor,
    vector: Tensor,
) -> Tensor:
    """Equation (3) with constant cotangents: the derivative of `row_grad` in the logits along ``vector``."""
    return devices.row_hvp(
        logits, labels, dense, Link(*as_floats(link, dynamic)), Cotangents(dl, dx, ds), vector
    )


@row_hvp.register_fake
def _(logits: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(logits)
