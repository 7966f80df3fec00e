"""The row statistics as custom operators, which `torch.compile` and `torch.export` do not decompose."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch

from xent.core.contract import Cotangents, RowStats
from xent.core.link import Link
from xent.core.spec import LossSpec
from xent.torch import devices, modes

Tensor = torch.Tensor
Numbers = tuple[list[float], Tensor | None]

_NO_OPTIONS = LossSpec().to_numbers()


def numbers(values: Sequence[float], defaults: Sequence[float], device: torch.device) -> Numbers:
    """``values`` as arguments of operators: (floats, None), or ([0.0], a tensor of them).

    A graph is compiled again for new floats, but not for new values of a tensor. So graphs for the CPU get a
    tensor unless the values are the ``defaults``. (With a CPU tensor a GPU could not use CUDA graphs.)
    """
    if not modes.knows_its_gradients() or device.type != "cpu" or list(values) == list(defaults):
        return list(values), None
    zero = torch.zeros((), dtype=torch.float64)
    # PyTorch would read an empty list as a list of tensors.
    return [0.0], torch.stack([zero + value for value in values])


def as_floats(values: Sequence[float], moving: Tensor | None) -> Sequence[float]:
    """The inverse of `numbers`, inside an operator."""
    return values if moving is None else moving.tolist()


def link_numbers(link: Link, device: torch.device) -> Numbers:
    """The link as arguments of operators: its temperature, and its softcap if there is one."""
    return numbers([x for x in link if x is not None], [1.0], device)


def spec_numbers(spec: LossSpec, device: torch.device) -> Numbers:
    """The options of a loss as arguments of operators; `LossSpec.from_numbers` is the inverse."""
    return numbers(spec.to_numbers(), _NO_OPTIONS, device)


@torch.library.custom_op("xent::row_stats", mutates_args=())
def row_stats(
    logits: Tensor,
    labels: Tensor | None,
    dense: Tensor | None,
    link: Sequence[float],
    moving: Tensor | None,
    entropy: bool,
    argmax: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(lse, log_prob, dense_log_prob, mass, entropy, argmax); the last two only where they are wanted."""
    want = fields(labels, dense, entropy, argmax)
    stats = devices.row_stats(logits, labels, dense, Link(*as_floats(link, moving)), want)
    return tuple(column(logits, False) if s is None else s for s in stats)  # type: ignore[return-value]


@row_stats.register_fake
def _(
    logits: Tensor,
    labels: Tensor | None,
    dense: Tensor | None,
    link: Sequence[float],
    moving: Tensor | None,
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
    return devices.row_grad(
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
    return devices.row_hvp(
        logits, labels, dense, Link(*as_floats(link, moving)), Cotangents(dl, dx, ds), vector
    )


@row_hvp.register_fake
def _(logits: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(logits)


# A loss that is linear in the row statistics.


def row_stats_and_grad(
    logits: Tensor, labels: Tensor | None, dense: Tensor | None, link: Link, expected: Cotangents
) -> RowStats:
    """log_prob and dense_log_prob, derivable once; one read of the logits if the cotangents are ``expected``.

    A graph computes its loss before its gradient, and an operator may not return its own argument. So the
    forward operator stores the expected gradient in `_ahead`; the backward operator takes it from there if
    the cotangents are the expected ones, and computes it otherwise. Either way the bits are the same.
    """
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
    moving: Tensor | None,
    dx: Tensor | None,
    ds: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(log_prob, dense_log_prob), whose cotangents (...) are expected to be ``dx`` and ``ds``.

    Without labels, or without a dense part, the statistic is an empty tensor and its cotangent None.
    """
    want = ("log_prob",) * (labels is not None) + ("dense_log_prob",) * (dense is not None)
    stats, dlogits = devices.row_stats_and_grad(
        logits, labels, dense, Link(*as_floats(link, moving)), _cotangents(dx, ds), want
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
    moving: Tensor | None,
    first: Tensor,
    dx: Tensor | None,
    ds: Tensor | None,
) -> Tensor:
    """Equation (2) for the statistics of `row_stats_ahead`; ``first`` is the first one present."""
    stored = _ahead.take(first, _present(dx, ds))
    if stored is not None:
        return stored
    phi = Link(*as_floats(link, moving))
    return devices.row_stats_and_grad(logits, labels, dense, phi, _cotangents(dx, ds), ())[1]


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
