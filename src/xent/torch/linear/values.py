"""Values of one pass over a linear layer's logits besides the loss: their columns and their reduction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

from xent.core import head
from xent.core.contract import RowStats
from xent.core.spec import LossSpec
from xent.torch import arguments, devices
from xent.torch.arguments import Call
from xent.torch.linear.chunked import ChunkedFunction
from xent.torch.linear.rows import Chunks, RowLosses
from xent.torch.statistics import autograd
from xent.torch.targets import label_weights, plain_weight_and_rows

Tensor = torch.Tensor


class LossValues(NamedTuple):
    """The values that ``want`` of `linear_cross_entropy` names, None for the others.

    Attributes
    ----------
    loss : Tensor
        The loss, the only value with a derivative.
    plain : Tensor
        ``−log p`` of the label.
    z_loss : Tensor
        The term ``λ·logsumexp²`` of the loss.
    accuracy : Tensor
        The share of rows whose largest logit is the label's.
    by_shift : Tensor
        The loss of each of several shifts, (S,).

    Examples
    --------
    >>> import torch, xent.torch
    >>> hidden, weight = torch.eye(2), torch.zeros(3, 2)
    >>> labels = torch.tensor([0, 2])
    >>> xent.torch.linear_cross_entropy(hidden, weight, labels, want=("plain", "accuracy"))
    LossValues(loss=None, plain=tensor(1.0986), z_loss=None, accuracy=tensor(0.5000), by_shift=None)
    """

    loss: Tensor | None = None
    plain: Tensor | None = None
    z_loss: Tensor | None = None
    accuracy: Tensor | None = None
    by_shift: Tensor | None = None


OF_LABELS = ("plain", "accuracy")


def checked_names(want: Any, call: Call, are_several: bool) -> tuple[str, ...]:
    """The names in ``want`` except "loss", in the order of `LossValues`."""
    fields = LossValues._fields
    expected = f"`want` must be None or a sequence of {', '.join(map(repr, fields))}; got {want!r}"
    if isinstance(want, str) or not isinstance(want, Sequence):
        raise TypeError(expected)
    if not want or not all(name in fields for name in want):
        raise arguments.ArgumentError(expected)
    if "by_shift" in want and not are_several:
        raise arguments.ArgumentError('"by_shift" in `want` needs a sequence of several for `shift`')
    for name in OF_LABELS:
        if call.is_soft and name in want:
            raise arguments.ArgumentError(
                f'"{name}" in `want` needs labels; got `{call.names.targets}` of {call.targets.dtype}'
            )
    return tuple(name for name in fields[1:] if name in want)


def required_stats(names: Sequence[str], spec: LossSpec) -> tuple[str, ...]:
    """The row statistics from which the columns ``names`` are computed."""
    sources = {"plain": "log_prob", "accuracy": "argmax"}
    required = [sources[name] for name in names if name in sources]
    return (*(["lse"] if "z_loss" in names and spec.z_loss else []), *required)


def columns(
    names: Sequence[str],
    stats: RowStats,
    labels: Tensor | None,
    weight: Tensor | None,
    label_weight: Tensor | None,
    spec: LossSpec,
    losses: Tensor,
) -> tuple[Tensor, ...]:
    """The columns ``names`` of rows with ``labels`` as kernels read them and the row weights ``weight``.

    ``label_weight`` are the weights of the labels' classes, None for 1.
    """
    by_name = {"by_shift": losses, "z_loss": torch.zeros_like(losses)}
    if stats.lse is not None and spec.z_loss:
        by_name["z_loss"] = head.multiply(weight, spec.z_loss * stats.lse**2, torch)
    if labels is not None and any(name in names for name in OF_LABELS):
        counts = labels >= 0
        for factor in (weight, label_weight):
            counts = counts if factor is None else counts & (factor != 0)
        if "plain" in names:
            by_name["plain"] = torch.where(counts, head.multiply(weight, 0.0 - stats.log_prob, torch), 0.0)
        if "accuracy" in names:
            by_name["accuracy"] = (counts & (stats.argmax == labels)).double()
    return tuple(by_name[name].detach() for name in names)


class Reduction(NamedTuple):
    """Equation (4): how columns (M,) become what a call returns."""

    call: Call  # with the weights of all classes
    chunks: Chunks
    names: tuple[str, ...]
    shape: tuple[int, ...]  # of the rows
    num_classes: int
    dtype: torch.dtype

    def reduced(self, column: Tensor, scale: Any, shift: Any) -> Tensor:
        """The sum of a column, or its sum, times ``scale``; for reduction "none" the column of the rows."""
        if self.call.reduction != "none":
            return column.sum() * scale
        by_row = column.reshape(self.shape)
        return by_row[..., : max(0, self.shape[-1] - shift)] if shift else by_row

    def results(self, loss: Tensor, columns: Iterable[Tensor], scales: Sequence[Any]) -> Any:
        """The loss, or the values that are wanted.

        ``columns`` are those of `names` for each shift, ``scales`` 1/D of each.
        """
        want, shift = self.chunks.want, self.chunks.shift
        if want is None:
            return loss
        are_several = isinstance(shift, tuple)
        by_name: dict[str, list[Tensor]] = {name: [] for name in self.names}
        remaining = iter(columns)
        for one, scale in zip(shift if are_several else (shift,), scales, strict=True):
            for name, factor in self._scales(one, scale).items():
                value = self.reduced(next(remaining), factor, one)
                by_name[name].append(value.detach().to(self.dtype))
        stacked = {name: torch.stack(each) if are_several else each[0] for name, each in by_name.items()}
        return LossValues(loss if "loss" in want else None, **stacked)

    def _scales(self, shift: int, scale: Any) -> dict[str, Any]:
        """What the sum of each column is multiplied by: 1/D, each with the rows that count for it."""
        factors = dict.fromkeys(self.names, scale)
        if any(name in self.names for name in OF_LABELS):
            weight, count = plain_weight_and_rows(self.call, self.num_classes, shift)
            own = {"plain": self.call.scale(weight, count), "accuracy": self.call.scale(count, count)}
            factors |= {name: factor for name, factor in own.items() if name in factors}
        return factors


class DetailedLosses(ChunkedFunction):
    """The column of `RowLosses`, and the columns ``names``, which have no derivative."""

    num_derived = 1

    def __init__(self, losses: RowLosses, names: Sequence[str], class_weight: Tensor | None) -> None:
        super().__init__(losses.row_index, losses.chunking, losses.silent)
        self.losses, self.names, self.class_weight = losses, names, class_weight

    def evaluate_chunk(self, logits: Tensor, part: slice, dloss: Any) -> tuple[tuple[Tensor, ...], Any]:
        """The columns of a chunk, and its gradient if ``dloss`` is given."""
        link, labels = self.losses.spec.link, self.losses.rows.target(part).labels
        stats, want = RowStats(), required_stats(self.names, self.losses.spec)
        if want:  # before the gradient is written over the logits
            stats = devices.row_stats(logits, labels, None, link, want)
        (losses,), dlogits = self.losses.evaluate_chunk(logits, part, dloss)
        return (losses, *self._details(stats, part, losses)), dlogits

    def columns(self, logits: Tensor, part: slice) -> tuple[Tensor, ...]:
        """The columns of a chunk in ordinary operations."""
        (losses,) = self.losses.columns(logits, part)
        link, labels = self.losses.spec.link, self.losses.rows.target(part).labels
        stats, want = RowStats(), required_stats(self.names, self.losses.spec)
        if want:
            stats = autograd.row_stats(logits.detach(), labels, None, link, want)
        return losses, *self._details(stats, part, losses)

    def _details(self, stats: RowStats, part: slice, losses: Tensor) -> tuple[Tensor, ...]:
        target, factors = self.losses.rows.target(part), self.class_weight
        labels = target.labels
        label_weight = None if labels is None or factors is None else label_weights(labels, factors)
        spec = self.losses.spec
        return columns(self.names, stats, labels, target.weight, label_weight, spec, losses)
