"""The public row statistics of linear layers, whose logits are never whole."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from xent.core.contract import RowStatistics
from xent.engine import row_columns
from xent.torch import arguments, dispatch
from xent.torch.linear import loss as linear_loss
from xent.torch.linear import row_stats
from xent.torch.linear.products import Chunking
from xent.torch.linear.row_stats import Request
from xent.torch.temperature import divided, split

Tensor = torch.Tensor


def linear_row_statistics(
    inputs: Tensor,
    weight: Tensor,
    labels: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    temperature: float | Tensor = 1.0,
    validate: bool | None = None,
    shift: int = 0,
    chunk_bytes: int | None = None,
    logits_dtype: torch.dtype | None = None,
    want: Sequence[str] = row_columns.DEFAULT,
) -> RowStatistics:
    """`row_statistics` of ``inputs @ weight.T + bias``, which never exists whole; derivable in all three.

    Parameters
    ----------
    inputs : (..., D) tensor
    weight : (K, D) tensor
        It may be a DTensor of ``Shard(0)``; or a replicated one beside ``inputs`` as a DTensor, whose rows
        stay where they are. Then the statistics are DTensors, derivable once where classes are in shards.
    labels : (...) tensor of integers, default None
        Without them ``log_prob`` is None. Ignored rows are 0 throughout and cost nothing.
    bias : (K,) tensor, default None
    softcap, validate, shift, chunk_bytes, logits_dtype
        As for `linear_cross_entropy`. Without ``validate`` a label out of range gives NaN.
    temperature : float, or (...) tensor, default 1.0
        As for `linear_cross_entropy`: a number, a tensor of one number, or one for each row (equation (28)),
        which ignored rows do not read. A tensor gets its gradient.
    want
        As for `xent.row_statistics`. ``argmax`` and ``is_top1`` have no derivatives.

    Returns
    -------
    RowStatistics
        Tensors shaped like the rows (shorter by ``shift`` on the last axis), in nats, float64 for float64
        inputs and float32 for all others; ``argmax`` is int64 and ``is_top1`` bool. None for what is not
        wanted.

    Examples
    --------
    >>> import torch, xent.torch
    >>> hidden, head = torch.eye(2), torch.zeros(4, 2, requires_grad=True)
    >>> stats = xent.torch.linear_row_statistics(hidden, head, torch.tensor([0, 3]))
    >>> stats.log_prob.detach().numpy().round(4), stats.entropy.detach().numpy().round(4)
    (array([-1.3863, -1.3863], dtype=float32), array([1.3863, 1.3863], dtype=float32))
    """
    try:
        wanted = row_columns.require_want(want, labels)
        temperature, by_row = split(temperature)
        number, inputs, bias = divided(temperature, inputs, bias, keep_dtype=True)
        spec = arguments.spec_of(ignore_index=ignore_index, softcap=softcap, temperature=number)
        operands = linear_loss.checked(inputs, weight, bias, row_stats.OPERANDS)
        chunking = Chunking(chunk_bytes, logits_dtype)
        request = Request(labels, spec, wanted, shift, chunking, validate, by_row)
    except Exception as error:
        dispatch.refuse(error, inputs, weight)
    return dispatch.linear_row_statistics(operands, request)
