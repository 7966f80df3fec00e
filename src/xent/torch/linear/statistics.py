"""The public row statistics of linear layers, whose logits are never whole."""

from __future__ import annotations

from typing import Any

import torch

from xent.core.contract import RowStatistics
from xent.engine import valid_rows
from xent.torch import arguments, devices, modes
from xent.torch.linear import chunked, row_stats
from xent.torch.linear import loss as linear_loss
from xent.torch.linear.products import Chunking
from xent.torch.linear.row_stats import Statistics
from xent.torch.targets import kernel_labels, require_labels, zero_if_valid
from xent.torch.temperature import divided

Tensor = torch.Tensor


def linear_row_statistics(
    inputs: Tensor,
    weight: Tensor,
    labels: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    temperature: float = 1.0,
    validate: bool | None = None,
    shift: int = 0,
    chunk_bytes: int | None = None,
    logits_dtype: torch.dtype | None = None,
) -> RowStatistics:
    """`row_statistics` of ``inputs @ weight.T + bias``, which never exists whole; derivable in all three.

    Parameters
    ----------
    inputs : (..., D) tensor
    weight : (K, D) tensor
    labels : (...) tensor of integers, default None
        Without them ``log_prob`` is None. Ignored rows are 0 throughout and cost nothing.
    bias : (K,) tensor, default None
    softcap, temperature, validate, shift, chunk_bytes, logits_dtype
        As for `linear_cross_entropy`. Without ``validate`` a label out of range gives NaN.

    Returns
    -------
    RowStatistics
        Tensors shaped like the rows (shorter by ``shift`` on the last axis), in nats, float64 for float64
        inputs and float32 for all others; ``argmax`` is int64.

    Examples
    --------
    >>> import torch, xent.torch
    >>> hidden, head = torch.eye(2), torch.zeros(4, 2, requires_grad=True)
    >>> stats = xent.torch.linear_row_statistics(hidden, head, torch.tensor([0, 3]))
    >>> stats.log_prob.detach().numpy().round(4), stats.entropy.detach().numpy().round(4)
    (array([-1.3863, -1.3863], dtype=float32), array([1.3863, 1.3863], dtype=float32))
    """
    number, inputs, bias = divided(temperature, inputs, bias, keep_dtype=True)
    spec = arguments.spec_of(ignore_index=ignore_index, softcap=softcap, temperature=number)
    arguments.require_local(inputs=inputs, weight=weight, labels=labels)
    operands = linear_loss.checked(inputs, weight, bias, ("inputs", "weight", "bias"))
    shape, num_classes = operands.inputs.shape[:-1], weight.shape[0]
    flat = operands._replace(inputs=valid_rows.as_matrix(operands.inputs))
    is_plain = chunked.is_plain(flat, labels)
    zero: Tensor | None = None
    if labels is not None:
        require_labels(labels, shape)
        arguments.require_together(inputs=inputs, labels=labels)
        zero = zero_if_valid(labels, num_classes, spec.ignore_index, "labels", validate)
    link, chunking = spec.link, Chunking(chunk_bytes, logits_dtype).checked(flat.inputs)
    loss_shape, index = valid_rows.shifted_rows(shape, shift, torch, inputs.device)
    y: Tensor | None = None
    if modes.is_recorded():
        counts: Tensor | None = None
        if labels is not None:
            y = valid_rows.align_targets(
                kernel_labels(labels, num_classes, spec.ignore_index), shift, -1, torch
            )
        elif shift:
            counts = valid_rows.align_targets(inputs.new_ones(shape, dtype=torch.bool), shift, False, torch)
        stats = row_stats.row_stats(flat, y, None, counts, 0, link, True, chunking)
        columns: Any = tuple(column for column in stats if column is not None)
    else:
        if labels is not None:
            y = kernel_labels(valid_rows.flatten_rows(labels, shift), num_classes, spec.ignore_index)
            if is_plain and not modes.is_captured(y):
                index, (y,) = valid_rows.select_rows(y < 0, None, index, (y,), torch)
        silent = None if y is None or is_plain else y < 0
        function = Statistics(index, y, None, 0, link, True, chunking, silent)
        columns = function.values(flat) if is_plain else function.derivable(flat)
    lse, *log_prob, entropy, argmax = (valid_rows.unflatten_rows(c, shape, loss_shape) for c in columns)
    if zero is not None:
        lse, log_prob = lse + zero, [log_prob[0] + zero]
    dtype = devices.loss_dtype(inputs)
    by_label = log_prob[0].to(dtype) if log_prob else None
    return RowStatistics(lse.to(dtype), by_label, entropy.to(dtype), argmax)
