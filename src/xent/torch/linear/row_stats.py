"""The row statistics of a linear layer's logits, chunk by chunk, and as operators of PyTorch."""

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
from xent.torch.linear.chunked import ChunkedFunction, Operands, finished
from xent.torch.softmax_derivatives import Softmax

Tensor = torch.Tensor

SCHEMA = (
    "Tensor x, Tensor w, Tensor? b, Tensor? dense, Tensor? labels, Tensor? counts, SymInt shift, "
    "float[] link, Tensor? moving, bool full, SymInt chunk_bytes"
)


class Statistics(ChunkedFunction):
    """Statistics of the rows of a linear layer, as columns."""

    def __init__(
        self,
        places: Tensor | None,
        labels: Tensor | None,
        dense: Tensor | None,
        shift: int,
        link: Link,
        full: bool,
        chunk_bytes: int,
        silent: Tensor | None = None,
        ddense: Tensor | None = None,
    ) -> None:
        """``places (n,)`` are those of the rows among the inputs', or None for all.

        ``labels (n,)`` are −1 for a row that is not read. ``dense`` is (K,), or one row for each of the
        inputs', ``shift`` rows further on; its gradient is added to ``ddense``. ``full`` gives entropy and
        argmax too.
        """
        super().__init__(places, chunk_bytes, silent)
        self.labels, self.dense, self.shift, self.link, self.full = labels, dense, shift, link, full
        self.ddense = ddense

    @property
    def names(self) -> tuple[str, ...]:
        """The fields of `RowStats` that the columns are."""
        present = (True, self.labels is not None, self.dense is not None, False, self.full, self.full)
        return tuple(name for name, is_present in zip(RowStats._fields, present, strict=True) if is_present)

    def columns(self, logits: Tensor, part: slice) -> tuple[Tensor, ...]:
        """See `ChunkedFunction`."""
        labels = None if self.labels is None else self.labels[part]
        stats = statistics.row_stats(logits, labels, self._dense(part), self.link, self.full)
        return tuple(getattr(stats, name) for name in self.names)

    def evaluate_chunk(
        self, logits: Tensor, part: slice, dloss: Tensor | None
    ) -> tuple[tuple[Tensor, ...], Any]:
        """See `ChunkedFunction`; ``dloss`` has a column for each that is derived."""
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
        bend = None
        # A GPU is not waited for.
        if dentropy is not None and (dentropy.device.type != "cpu" or dentropy.any()):
            bend = softmax.entropy_grad(dentropy)
        if self.ddense is not None:
            self._add_dense(self.ddense, part, softmax, upstream["dense_log_prob"])
        dlogits = devices.row_grad(logits, labels, dense, self.link, stats, cotangents, logits)
        return columns, dlogits if bend is None else dlogits.add_(bend)

    def _place(self, part: slice) -> Any:
        """Where ``dense`` has the rows of a part."""
        if self.places is None:
            return part
        return self.places[part] + self.shift

    def _dense(self, part: slice) -> Tensor | None:
        if self.dense is None or self.dense.ndim == 1:
            return self.dense
        return self.dense[self._place(part)]

    def _add_dense(self, ddense: Tensor, part: slice, softmax: Softmax, dsigma: Tensor) -> None:
        """∂σ/∂v = log p; 0·(−inf) = 0."""
        log_p = torch.where((softmax.dense == 0) & ~softmax.log_p.isfinite(), 0.0, softmax.log_p)
        if softmax.labels is not None:
            dsigma = torch.where(softmax.labels < 0, 0.0, dsigma)
        slope = head.multiply(dsigma[:, None], log_p, torch)
        if ddense.ndim == 1:
            ddense += slope.sum(0)
        else:
            ddense[self._place(part)] = slope.to(ddense.dtype)


def row_stats(
    operands: Operands,
    labels: Tensor | None,
    dense: Tensor | None,
    counts: Tensor | None,
    shift: int,
    link: Link,
    full: bool,
    chunk_bytes: int,
) -> RowStats:
    """The statistics of a graph, one a row of the inputs; derivable once in the operands and ``dense``.

    ``labels (M,)`` and ``counts (M,)`` say which rows are left out; those are 0 throughout.
    """
    numbers = operators.link_numbers(link, operands.inputs.device)
    found = iter(linear_statistics(*operands, dense, labels, counts, shift, *numbers, full, chunk_bytes))
    present = (True, labels is not None, dense is not None, False, full, full)
    return RowStats(*(next(found) if is_present else None for is_present in present))


def _function(inputs: Sequence[Any], ddense: Tensor | None = None) -> tuple[Operands, Statistics]:
    """The operands and the function that the operators below were given."""
    x, w, b, dense, labels, counts, shift, numbers, moving, full, chunk_bytes = inputs
    ignored = None if labels is None else labels < 0
    index = silent = None
    if not modes.is_captured(x):
        index, (labels,) = valid_rows.select_rows(ignored, counts, None, (labels,), torch)
    elif counts is not None:
        silent = ~counts if ignored is None else ignored | ~counts
    else:
        silent = ignored
    if index is None and shift:  # the last rows of all have no target
        index = torch.arange(max(0, x.shape[0] - shift), device=x.device)
        labels, silent = (None if a is None else a[: index.shape[0]] for a in (labels, silent))
    link = Link(*operators.as_floats(numbers, moving))
    function = Statistics(index, labels, dense, shift, link, full, chunk_bytes, silent, ddense)
    return Operands(x, w, b), function


@torch.library.custom_op("xent::linear_statistics", mutates_args=(), schema=f"({SCHEMA}) -> Tensor[]")
def linear_statistics(*inputs: Any) -> list[Tensor]:
    """Those of `Statistics.names`, as (M,) columns."""
    operands, function = _function(inputs)
    return list(function.sweep(operands)[0])


@linear_statistics.register_fake
def _(x: Tensor, w: Tensor, b: Any, dense: Any, labels: Any, *others: Any) -> list[Tensor]:
    count = 1 + (labels is not None) + (dense is not None) + others[-2]
    columns = [x.new_empty(x.shape[:1], dtype=torch.float64) for _ in range(count)]
    return columns + ([x.new_empty(x.shape[:1], dtype=torch.int64)] if others[-2] else [])


@torch.library.custom_op(
    "xent::linear_statistics_grad",
    mutates_args=(),
    schema=f"(Tensor[] dcolumns, {SCHEMA}, bool[] wanted) -> Tensor[]",
)
def linear_statistics_grad(dcolumns: list[Tensor], *inputs: Any) -> list[Tensor]:
    """The gradients of Σ dcolumn·column in those of x, w, b and dense that are ``wanted``."""
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
    found = [g for g in finished(gradients, operands, None) if g is not None]
    return found if ddense is None else [*found, ddense.to(dense.dtype)]


linear_statistics_grad.register_fake(linear_operators.like_inputs)
linear_statistics.register_autograd(
    linear_operators.backward_by(linear_statistics_grad, 4), setup_context=linear_operators.keep_inputs
)
