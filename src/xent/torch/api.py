"""The functions of `xent` on tensors, with its names for arguments and classes on the last axis."""

from __future__ import annotations

from typing import Any

import torch

from xent.core.spec import Options
from xent.engine import checks
from xent.torch import arguments, devices, dispatch
from xent.torch.arguments import Call
from xent.torch.binary.loss import BinaryCall, elementwise_loss
from xent.torch.linear import loss as linear_loss
from xent.torch.linear.products import Chunking
from xent.torch.linear.rows import Chunks
from xent.torch.temperature import divided, split

Tensor = torch.Tensor


def cross_entropy(
    logits: Tensor, targets: Any, reduction: str, denominator: Any, validate: bool, options: Options
) -> Tensor:
    """`xent.cross_entropy` of a tensor."""
    try:
        spec, class_weight, sample_weight, by_row, logits = _checked(logits, targets, options)
    except Exception as error:
        dispatch.refuse(error, logits)
    check, names = _validation_mode(validate), arguments.OURS
    tensors = targets, class_weight, sample_weight
    call = Call(*tensors, spec, reduction, denominator, check, names, by_row)
    return dispatch.cross_entropy(logits, call)


def _checked(logits: Tensor, targets: Any, options: Options) -> tuple[Any, ...]:
    """(scalar options, class_weight, sample_weight, temperatures of rows, logits), checked; see `_split`."""
    arguments.require_tensor(targets, "targets")
    if logits.dtype not in devices.FLOATING:
        raise arguments.ArgumentError(
            f"`logits` must be float64, float32, float16 or bfloat16; got {logits.dtype}"
        )
    if logits.ndim == 0:
        raise arguments.ArgumentError("`logits` must have at least one axis, the classes; got a scalar")
    soft = targets.is_floating_point()
    shape = logits.shape if soft else logits.shape[:-1]
    if targets.shape != shape:
        raise arguments.ArgumentError(
            f"`targets` of {targets.dtype} must have shape {tuple(shape)}; got {tuple(targets.shape)}"
        )
    if not soft and targets.dtype not in arguments.INTEGERS:
        raise TypeError(f"`targets` must have an integer or a floating dtype; got {targets.dtype}")
    return _split(options, logits)


def _split(options: Options, *parts: Any, keep_dtype: bool = False) -> tuple[Any, ...]:
    """(scalar options, class_weight, sample_weight, temperatures of rows or None, *parts).

    `temperature.divided` scales the parts.
    """
    scalars: dict[str, Any] = dict(options)
    class_weight, sample_weight = (scalars.pop(name, None) for name in ("class_weight", "sample_weight"))
    by_row = None
    if "temperature" in scalars:
        temperature, by_row = split(scalars["temperature"])
        scalars["temperature"], *others = divided(temperature, *parts, keep_dtype=keep_dtype)
        parts = tuple(others)
    return arguments.spec_of(**scalars), class_weight, sample_weight, by_row, *parts


def binary_cross_entropy(
    logits: Tensor,
    targets: Any,
    pos_weight: Any,
    alpha: float | None,
    reduction: str,
    denominator: Any,
    validate: bool,
    options: Options,
) -> Tensor:
    """`xent.binary_cross_entropy` of a tensor: a mean over the weight of the elements that count."""
    arguments.require_tensor(targets, "targets")
    scalars: dict[str, Any] = dict(options)
    if "temperature" in scalars:
        scalars["temperature"], logits = divided(scalars["temperature"], logits)
    if "class_weight" in scalars:
        raise TypeError("`class_weight` has no place in a binary loss; use `pos_weight`")
    weight = scalars.pop("sample_weight", None)
    spec = arguments.spec_of(**scalars)
    if targets.shape != logits.shape:
        raise arguments.ArgumentError(
            f"`targets` must have the shape of the logits, {tuple(logits.shape)}; got {tuple(targets.shape)}"
        )
    check = _validation_mode(validate)
    arguments.require_together(logits=logits, targets=targets, sample_weight=weight, pos_weight=pos_weight)
    arguments.require_rows(weight, logits.shape, check)
    if pos_weight is not None:
        if isinstance(pos_weight, Tensor):
            like = logits.shape, "logits"
            arguments.require_factor(pos_weight, "pos_weight", *like, check, is_signed=False)
        else:
            pos_weight = checks.as_pos_weight(pos_weight)
        pos_weight = torch.as_tensor(pos_weight, dtype=torch.float64, device=logits.device)
    names = arguments.OURS._replace(weight="sample_weight")
    factors, index = (weight, pos_weight, alpha), spec.ignore_index
    call = BinaryCall(targets, *factors, spec, index, reduction, denominator, check, True, names)
    return elementwise_loss(logits, call)


def _validation_mode(validate: bool) -> bool | None:
    """``validate`` as functions of `xent.torch` take it: True becomes None, which never waits for a GPU."""
    return None if validate else False


def linear_cross_entropy(
    inputs: Tensor,
    weight: Any,
    targets: Any,
    bias: Any,
    reduction: str,
    denominator: Any,
    validate: bool,
    shift: int,
    chunk_bytes: int | None,
    options: Options,
) -> Tensor:
    """`xent.linear_cross_entropy` of tensors."""
    try:
        operands = linear_loss.checked(inputs, weight, bias, ("inputs", "weight", "bias"))
        x, b = operands.inputs, operands.bias
        spec, class_weight, sample_weight, by_row, x, b = _split(options, x, b, keep_dtype=True)
        operands = operands._replace(inputs=x, bias=b)
    except Exception as error:
        dispatch.refuse(error, inputs, weight)
    check, names = _validation_mode(validate), arguments.OURS._replace(logits="inputs")
    tensors = targets, class_weight, sample_weight
    call = Call(*tensors, spec, reduction, denominator, check, names, by_row)
    return dispatch.linear_cross_entropy(operands, call, Chunks(shift, Chunking(chunk_bytes)))
