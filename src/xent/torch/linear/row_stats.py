"""The row statistics of a linear layer's logits, by chunks, and as custom operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from xent.core import head
from xent.core.contract import Cotangents, RowStats
from xent.core.link import Link
from xent.engine import valid_rows
from xent.torch import devices, modes, operators, statistics
from xent.torch.linear import operators as linear_operators
from xent.torch.linear.chunked import DERIVED, ChunkedFunction, Operands, finished
from xent.torch.linear.products import Chunking
from xent.torch.softmax_derivatives import Softmax

Tensor = torch.Tensor

SCHEMA = (
    "Tensor x, Tensor w, Tensor? b, Tensor? dense, Tensor? labels, Tensor? counts, SymInt shift, "
    f"float[] link, Tensor? moving, bool full, {linear_operators.CHUNKING}"
)


class Statistics(ChunkedFunction):
    """The row statistics of a linear layer's logits, one column each."""

    copies = DERIVED

    def __init__(
        self,
        row_index: Tensor | None,
        labels: Tensor | None,
        dense: Tensor | None,
        shift: int,
        link: Link,
        full: bool,
        chunking: Chunking,
        silent: Tensor | None = None,
        ddense: Tensor | None = None,
    ) -> None:
        """``row_index (n,)`` has the indices of the rows among those of the inputs, None for all.

        ``labels (n,)`` are −1 for rows that are not read. ``dense`` is (K,) or (M, K), where the row of input
        i is at i + ``shift``; its gradient is added to ``ddense``. ``full`` adds entropy and argmax.
        """
        super().__init__(row_index, chunking, silent)
        self.labels, self.dense, self.shift, self.link, self.full = labels, dense, shift, link, full
        self.ddense = ddense

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns, as in `RowStats`."""
        present = (True, self.labels is not None, self.dense is not None, False, self.full, self.full)
        return tuple(name for name, is_present in zip(RowStats._fields, present, strict=True) if is_present)

    def columns(self, logits: Tensor, part: slice) -> tuple[Tensor, ...]:
        """The columns of a chunk in ordinary operations."""
        labels = None if self.labels is None else self.labels[part]
        stats = statistics.row_stats(logits, labels, self._dense(part), self.link, self.full)
        return tuple(getattr(stats, name) for name in self.names)

    def evaluate_chunk(
        self, logits: Tensor, part: slice, dloss: Tensor | None
    ) -> tuple[tuple[Tensor, ...], Any]:
        """The columns of a chunk, and its gradient for ``dloss (n, derived columns)``."""
        labels, dense = None if self.labels is None else self.labels[part], self._dense(part)
        if dense is not None:
            dense = dense.to(devices.loss_dtype(logits))
        want = self.names if dloss is None or dense is None else (*self.names, "mass")
        stats = devices.row_stats(logits, labels, dense, self.link, want)
        columns = tuple(getattr(stats, name) for name in self.names)
        if dloss is None:
            return columns, None
        derived = [name for name in self.names if name != "argmax"]
        upstream = dict(zip(derived, dloss.reshape(-1, len(derived)).unbind(-1), strict=True))
        dentropy = upstream.pop("entropy", None)
        cotangents = Cotangents(**{name: d.contiguous() for name, d in upstream.items()})
        softmax = Softmax(logits, labels, dense, self.link)
        from_entropy = None
        # On a GPU without a test of the values, for which the host would wait.
        if dentropy is not None and (dentropy.device.type != "cpu" or dentropy.any()):
            from_entropy = softmax.entropy_grad(dentropy)
        if self.ddense is not None:
            self._add_dense(self.ddense, part, softmax, upstream["dense_log_prob"])
        dlogits = devices.row_grad(logits, labels, dense, self.link, stats, cotangents, logits)
        return columns, dlogits if from_entropy is None else dlogits.add_(from_entropy)

    def _dense_rows(self, part: slice) -> Any:
        """The index of a chunk's rows into ``dense``."""
        if self.row_index is None:
            return part
        return self.row_index[part] + self.shift

    def _dense(self, part: slice) -> Tensor | None:
        if self.dense is None or self.dense.ndim == 1:
            return self.dense
        return self.dense[self._dense_rows(part)]

    def _add_dense(self, ddense: Tensor, part: slice, softmax: Softmax, dsigma: Tensor) -> None:
        """Add the gradient of σ in v, dσ·log p, to ``ddense``; 0·(−inf) counts as 0."""
        log_p = torch.where((softmax.dense == 0) & ~softmax.log_p.isfinite(), 0.0, softmax.log_p)
        if softmax.labels is not None:
            dsigma = torch.where(softmax.labels < 0, 0.0, dsigma)
        slope = head.multiply(dsigma[:, None], log_p, torch)
        if ddense.ndim == 1:
            ddense += slope.sum(0)
        else:
            ddense[self._dense_rows(part)] = slope.to(ddense.dtype)


def row_stats(
    operands: Operands,
    labels: Tensor | None,
    dense: Tensor | None,
    counts: Tensor | None,
    shift: int,
    link: Link,
    full: bool,
    chunking: Chunking,
) -> RowStats:
    """The statistics (M,) in a graph; derivable once in the operands and ``dense``.

    Rows with a negative label in ``labels (M,)``, or False in ``counts (M,)``, are 0.
    """
    numbers = operators.link_numbers(link, operands.inputs.device)
    columns = iter(linear_statistics(*operands, dense, labels, counts, shift, *numbers, full, *chunking))
    present = (True, labels is not None, dense is not None, False, full, full)
    return RowStats(*(next(columns) if is_present else None for is_present in present))


def _function(inputs: Sequence[Any], ddense: Tensor | None = None) -> tuple[Operands, Statistics]:
    """The operands and the function, from the arguments of the operators below."""
    x, w, b, dense, labels, counts, shift, numbers, moving, full, *chunking = inputs
    ignored = None if labels is None else labels < 0
    index = silent = None
    if not modes.is_captured(x):
        index, (labels,) = valid_rows.select_rows(ignored, counts, None, (labels,), torch)
    elif counts is not None:
        silent = ~counts if ignored is None else ignored | ~counts
    else:
        silent = ignored
    if index is None and shift:  # the last rows have no target
        index = torch.arange(max(0, x.shape[0] - shift), device=x.device)
        labels, silent = (None if a is None else a[: index.shape[0]] for a in (labels, silent))
    link = Link(*operators.as_floats(numbers, moving))
    function = Statistics(index, labels, dense, shift, link, full, Chunking(*chunking), silent, ddense)
    return Operands(x, w, b), function


@torch.library.custom_op("xent::linear_statistics", mutates_args=(), schema=f"({SCHEMA}) -> Tensor[]")
def linear_statistics(*inputs: Any) -> list[Tensor]:
    """The columns (M,) of `Statistics.names`."""
    operands, function = _function(inputs)
    return list(function.sweep(operands)[0])


@linear_statistics.register_fake
def _(x: Tensor, w: Tensor, b: Any, dense: Any, labels: Any, *others: Any) -> list[Tensor]:
    full = others[-3]
    count = 1 + (labels is not None) + (dense is not None) + full
    columns = [x.new_empty(x.shape[:1], dtype=torch.float64) for _ in range(count)]
    return columns + ([x.new_empty(x.shape[:1], dtype=torch.int64)] if full else [])


@torch.library.custom_op(
    "xent::linear_statistics_grad",
    mutates_args=(),
    schema=f"(Tensor[] dcolumns, {SCHEMA}, bool[] wanted) -> Tensor[]",
)
def linear_statistics_grad(dcolumns: list[Tensor], *inputs: Any) -> list[Tensor]:
    """The gradients of Σ dcolumn·column in the ``wanted`` ones of x, w, b and dense."""
    *arguments, wanted = inputs
    dense = arguments[3]
    ddense = (
        torch.zeros_like(dense, dtype=devices.loss_dtype(dense), memory_format=torch.contiguous_format)
        if wanted[3]
        else None
    )
    operands, function = _function(arguments, ddense)
    derived = torch.stack(dcolumns[: len(dcolumns) - function.full], -1)
    _, gradients = function.sweep(operands, derived, tuple(wanted[:3]))
    results = [g for g in finished(gradients, operands, None) if g is not None]
    return results if ddense is None else [*results, ddense.to(dense.dtype)]


linear_statistics_grad.register_fake(linear_operators.like_inputs)
linear_statistics.register_autograd(
    linear_operators.backward_by(linear_statistics_grad, 4), setup_context=linear_operators.keep_inputs
)
