"""The bins of a row: some of its classes, and all other classes together as the last bin.

The softmax of the logits (n, k + 1) of the bins has the probabilities of the k classes and the remaining
mass. These logits are the statistics on which a divergence from the k largest entries of a teacher depends.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from xent.core.contract import Cotangents, RowStats
from xent.core.link import Link
from xent.engine import valid_rows
from xent.torch import devices, modes
from xent.torch.linear import operators
from xent.torch.linear.chunked import ChunkedFunction, Operands, finished
from xent.torch.linear.products import Chunking
from xent.torch.linear.tempered import tempered
from xent.torch.operator_numbers import as_floats, link_numbers

Tensor = torch.Tensor


class Bins(NamedTuple):
    """The ``classes (n, k)`` of each row, different ones, and the bin of the others if ``has_rest``.

    If the logits are those of a part of the classes, ``is_local (n, k)`` tells which classes are in it; any
    class may stand for the others.
    """

    classes: Tensor
    temperature: float
    has_rest: bool
    is_local: Tensor | None = None

    def columns(self, logits: Tensor) -> Tensor:
        """The logits of the bins (n, k + 1), float64, of ``logits (n, K)``, in ordinary operations."""
        u = devices.widened(logits) / self.temperature
        picked = u.gather(-1, self.classes).double()
        if not self.has_rest:
            return picked
        others = u.scatter(-1, self.classes, -torch.inf)
        is_empty = (others == -torch.inf).all(-1)  # its derivative would be NaN
        rest = torch.logsumexp(torch.where(is_empty[:, None], 0.0, others), -1).double()
        return torch.cat([picked, torch.where(is_empty, -torch.inf, rest)[:, None]], -1)

    def take(self, logits: Tensor) -> Tensor:
        """As `columns`, by the kernels; the picked ``logits`` are overwritten, as `gradient` expects.

        Classes that are not local have 0.
        """
        picked = self._picked(logits)
        if not self.has_rest:
            return picked
        if self.is_local is None:
            logits.scatter_(-1, self.classes, -torch.inf)
        elif logits.shape[-1]:
            excluded = torch.where(self.is_local, -torch.inf, torch.inf).to(logits.dtype)
            logits.scatter_reduce_(-1, self.classes, excluded, "amin")
        rest = devices.row_stats(logits, None, None, Link(self.temperature), ("lse",)).lse
        return torch.cat([picked, devices.lse_or_empty(logits, rest)[:, None]], -1)

    def gradient(self, logits: Tensor, bins: Tensor, dbins: Tensor) -> Tensor:
        """The gradient of Σ dbin·bin in the ``logits`` after `take`, which it overwrites.

        ``bins`` are those of all classes.
        """
        if self.has_rest:
            rest, drest = bins[:, -1], dbins[:, -1].contiguous()
            lse = torch.where(rest == -torch.inf, 0.0, rest)
            stats, cotangents = RowStats(lse=lse), Cotangents(lse=drest)
            logits = devices.row_grad(logits, None, None, Link(self.temperature), stats, cotangents, logits)
        else:
            logits.zero_()
        dpicked = (dbins[:, : self.classes.shape[-1]] / self.temperature).to(logits.dtype)
        if self.is_local is None:
            return logits.scatter_(-1, self.classes, dpicked)
        if not logits.shape[-1]:
            return logits
        return logits.scatter_add_(-1, self.classes, torch.where(self.is_local, dpicked, 0.0))

    def _picked(self, logits: Tensor) -> Tensor:
        if self.is_local is None:
            return logits.gather(-1, self.classes).double() / self.temperature
        if not logits.shape[-1]:
            return logits.new_zeros(self.classes.shape, dtype=torch.float64)
        picked = logits.gather(-1, self.classes).double() / self.temperature
        return torch.where(self.is_local, picked, 0.0)


class RowBins(ChunkedFunction):
    """The logits (M, k + 1) of the bins of each row, as one column."""

    def __init__(
        self, bins: Bins, row_index: Tensor | None, chunking: Chunking, silent: Tensor | None
    ) -> None:
        """``bins.classes (M, k)`` are those of all rows."""
        super().__init__(row_index, chunking, silent)
        self.bins = bins

    def evaluate_chunk(self, logits: Tensor, part: slice, dloss: Any) -> tuple[tuple[Tensor, ...], Any]:
        """The logits of a chunk's bins, and the gradient if ``dloss (n, k + 1)`` is given."""
        rows = part if self.row_index is None else self.row_index[part]
        bins = self.bins._replace(classes=self.bins.classes[rows])
        column = bins.take(logits)
        return (column,), None if dloss is None else bins.gradient(logits, column, dloss)


SCHEMA = (
    "Tensor x, Tensor w, Tensor? b, Tensor classes, Tensor? counts, Tensor? temperature, "
    f"float[] link, Tensor? dynamic, bool has_rest, {operators.CHUNKING}"
)


def row_bins(
    operands: Operands,
    bins: Bins,
    counts: Tensor | None,
    row_temperature: Tensor | None,
    chunking: Chunking,
) -> Tensor:
    """The logits (M, k + 1) of the bins in a graph, derivable once in the operands; 0 without ``counts``.

    They are also divided by the ``row_temperature (M,)``, a constant, if there is one.
    """
    numbers = link_numbers(Link(bins.temperature), operands.inputs.device)
    tensors = bins.classes, counts, row_temperature
    return linear_bins(*operands, *tensors, *numbers, bins.has_rest, *chunking)


def _function(inputs: Any) -> tuple[Operands, ChunkedFunction]:
    x, w, b, classes, counts, row_temperature, numbers, dynamic, has_rest, *chunking = inputs
    row_index, silent = None, None if counts is None else ~counts
    if not modes.is_captured(x):
        row_index, _ = valid_rows.select_rows(silent, None, None, (), torch)
        silent = None
    (temperature,) = as_floats(numbers, dynamic)
    bins = Bins(classes, temperature, has_rest)
    function = RowBins(bins, row_index, Chunking(*chunking), silent)
    return Operands(x, w, b), tempered(function, row_temperature)


@torch.library.custom_op("xent::linear_bins", mutates_args=(), schema=f"({SCHEMA}) -> Tensor")
def linear_bins(*inputs: Any) -> Tensor:
    """The logits of the bins; ``counts (M,)`` is True for the rows that are read, None for all."""
    operands, function = _function(inputs)
    return function.sweep(operands)[0][0]


@linear_bins.register_fake
def _(x: Tensor, w: Tensor, b: Any, classes: Tensor, *others: Any) -> Tensor:
    return x.new_empty((classes.shape[0], classes.shape[1] + others[-3]), dtype=torch.float64)


@torch.library.custom_op(
    "xent::linear_bins_grad",
    mutates_args=(),
    schema=f"(Tensor dbins, {SCHEMA}, bool[] wanted) -> Tensor[]",
)
def linear_bins_grad(dbins: Tensor, *inputs: Any) -> list[Tensor]:
    """The gradients of Σ dbin·bin in the ``wanted`` operands."""
    *arguments, wanted = inputs
    operands, function = _function(arguments)
    _, gradients = function.sweep(operands, dbins, tuple(wanted))
    return [g for g in finished(gradients, operands, None) if g is not None]


linear_bins_grad.register_fake(operators.like_inputs)
linear_bins.register_autograd(operators.backward_by(linear_bins_grad, 3), setup_context=operators.keep_inputs)
