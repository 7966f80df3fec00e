"""The loss of a linear layer's output, from the layer's input and its weight, the output never whole."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Unpack

import torch

from xent.core.spec import Further, with_options
from xent.torch import arguments, dispatch
from xent.torch.arguments import Call
from xent.torch.functional import cross_entropy
from xent.torch.linear import loss as linear_loss
from xent.torch.linear.rows import Chunks
from xent.torch.temperature import divided

Tensor = torch.Tensor


@with_options(omit=("class_weight", "sample_weight", "ignore_index", "label_smoothing"))
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
    sample_weight: Tensor | None = None,
    denominator: Any = None,
    validate: bool | None = None,
    shift: int = 0,
    chunk_bytes: int | None = None,
    **further: Unpack[Further],
) -> Tensor:
    """`cross_entropy` of ``input @ linear_weight.T + linear_bias``, which never exists whole.

    Loss and gradients take three matrix products in all (``reduction="none"``: four); what is frozen costs
    no product, and rows that are ignored or of weight 0 are left out before the first.

    Parameters
    ----------
    input : (..., D) tensor
    linear_weight : (C, D) tensor; as in PyTorch also (C, d1, ..., D), whose logits are held whole
    target : (...) tensor of integers, or (..., C) floats
    linear_bias : (C,) or (C, d1, ...) tensor, default None
    ignore_index : int, default None
        None is -100.
    options
        Taken for PyTorch's sake and not needed: see ``chunk_bytes``.
    shift : int, default 0
        Position t of the last row axis predicts the target (and ``sample_weight``) at t + ``shift``: the loss
        of ``input[..., :-shift, :]`` and ``target[..., shift:]``, without slicing either.
    chunk_bytes : int, default 40 MiB on the CPU, 512 MiB on a GPU
        Budget for the logits that exist at a time; one row at least.
    weight, reduction, label_smoothing, sample_weight, denominator, validate
        As for `cross_entropy`.

    OPTIONS

    Returns
    -------
    Tensor
        float64 for float64 ``input``, float32 for all others; (...) for reduction "none", shorter by
        ``shift`` on its last axis.

    Raises
    ------
    ValueError
        As for `cross_entropy`, and for shapes and dtypes that do not go together.

    Notes
    -----
    Second derivatives recompute the logits chunk by chunk; under the transforms of `torch.func` and in
    forward mode PyTorch keeps what it needs of all rows. Products are computed in the dtype of the operands,
    float16 on the CPU in float32; gradients are summed over chunks in float32.

    Examples
    --------
    >>> import torch, xent.torch
    >>> x, w = torch.eye(2), torch.zeros(3, 2)
    >>> round(xent.torch.linear_cross_entropy(x, w, torch.tensor([0, 2])).item(), 4)
    1.0986
    """
    del options
    index = -100 if ignore_index is None else ignore_index
    try:
        if "temperature" in further:
            further["temperature"], input, linear_bias = divided(
                further["temperature"], input, linear_bias, keep_dtype=True
            )
        spec = arguments.spec_of(ignore_index=index, label_smoothing=label_smoothing, **further)
        arguments.require_tensor(linear_weight, "linear_weight")
        operands = None
        if linear_weight.ndim <= 2:
            operands = linear_loss.checked(input, linear_weight, linear_bias, linear_loss.OPERANDS)
    except Exception as error:
        dispatch.refuse(error, input, linear_weight)
    if operands is None:  # every position has a projection of its own
        if shift or chunk_bytes is not None:
            raise arguments.ArgumentError(
                "`shift` must be 0 and `chunk_bytes` None for a `linear_weight` of more than two axes, whose "
                f"logits are held whole; got shift={shift!r} and chunk_bytes={chunk_bytes!r}"
            )
        x, w, b = linear_loss.checked(input, linear_weight, linear_bias, linear_loss.OPERANDS, is_stack=True)
        logits = torch.nn.functional.linear(x, w.flatten(0, -2), None if b is None else b.flatten())
        logits = logits.unflatten(-1, w.shape[:-1])
        return cross_entropy(
            logits,
            target,
            weight,
            reduction=reduction,
            sample_weight=sample_weight,
            denominator=denominator,
            validate=validate,
            **asdict(spec),
        )
    call = Call(target, weight, sample_weight, spec, reduction, denominator, validate)
    return dispatch.linear_cross_entropy(operands, call, Chunks(shift, chunk_bytes))
