"""`torch.nn.functional`'s losses with its names, arguments and layouts, and the options of `xent`."""

from __future__ import annotations

from typing import Any, Unpack

import torch

from xent.core.contract import RowStatistics
from xent.core.spec import Further, with_options
from xent.torch import arguments, devices, dispatch, statistics
from xent.torch.arguments import Call
from xent.torch.targets import readable, require_labels, zero_if_valid
from xent.torch.temperature import divided

Tensor = torch.Tensor


@with_options(omit=("class_weight", "sample_weight", "ignore_index", "label_smoothing"))
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    sample_weight: Tensor | None = None,
    denominator: Any = None,
    validate: bool | None = None,
    **options: Unpack[Further],
) -> Tensor:
    """`torch.nn.functional.cross_entropy` in nats, faster and more exact, with more options.

    Equations (1), (2) and (4) of docs/maths.md; where it differs from PyTorch, docs/differences.md says why.

    Parameters
    ----------
    input : (C,), (N, C) or (N, C, d1, ...) tensor of float64, float32, float16 or bfloat16
        Logits.
    target : (), (N,) or (N, d1, ...) tensor of any integer dtype, or floats of the shape of ``input``
        Labels, or probabilities. Gradients flow into probabilities too.
    weight : (C,) tensor, default None
        Factor of each class.
    size_average, reduce, ignore_index, reduction, label_smoothing
        As in PyTorch.
    sample_weight : tensor of the shape of the rows, default None
        Factor of each row.
    denominator
        As for `xent.cross_entropy`.
    validate : bool, default None
        Check the range of labels, the sign of probabilities, and that weights are finite. None: on the CPU,
        outside of transforms and exports. Graphs and transforms check targets alone, when they run.

    OPTIONS

    Returns
    -------
    Tensor
        float64 for float64 ``input``, float32 for all others.

    Raises
    ------
    ValueError
        Also an instance of RuntimeError (of IndexError for a label), as PyTorch would raise.

    Examples
    --------
    >>> import torch, xent.torch
    >>> z = torch.tensor([[2.0, 3.0, 4.0]], requires_grad=True)
    >>> loss = xent.torch.cross_entropy(z, torch.tensor([1]))
    >>> loss.backward()
    >>> round(loss.item(), 4), z.grad.numpy().round(4)
    (1.4076, array([[ 0.09  , -0.7553,  0.6652]], dtype=float32))
    """
    try:
        if size_average is not None or reduce is not None:
            reduction = arguments.legacy_reduction(size_average, reduce, reduction)
        logits, targets = arguments.classes_last(input, target)
        is_smoothed = type(label_smoothing) is not float or label_smoothing != 0.0
        if options or is_smoothed or ignore_index != -100:
            if "temperature" in options:
                options["temperature"], logits = divided(options["temperature"], logits)
            spec = arguments.spec_of(ignore_index=ignore_index, label_smoothing=label_smoothing, **options)
        else:
            spec = arguments.NO_OPTIONS
    except Exception as error:
        dispatch.refuse(error, input)
    call = Call(targets, weight, sample_weight, spec, reduction, denominator, validate)
    return dispatch.cross_entropy(logits, call)


def row_statistics(
    logits: Tensor,
    labels: Tensor | None = None,
    *,
    ignore_index: int = -100,
    softcap: float | None = None,
    temperature: float = 1.0,
    validate: bool | None = None,
) -> RowStatistics:
    """Log-sum-exp, label log-probability, entropy and argmax of each row: `xent.row_statistics`, derivable.

    Parameters
    ----------
    logits : (..., K) tensor
        Classes on the last axis.
    labels : (...) tensor of integers, default None
        Without them ``log_prob`` is None. Rows whose label is ``ignore_index`` are 0 throughout.
    validate : bool, default None
        As for `cross_entropy`. Without it a label that is no class gives NaN.

    Returns
    -------
    RowStatistics
        (...) tensors in nats, float64 for float64 logits and float32 for all others; ``argmax`` is int64.

    Examples
    --------
    >>> import torch, xent.torch
    >>> z = torch.zeros(1, 2, requires_grad=True)
    >>> stats = xent.torch.row_statistics(z, torch.tensor([1]))
    >>> stats.log_prob.sum().backward()
    >>> z.grad
    tensor([[-0.5000,  0.5000]])
    """
    number, logits = divided(temperature, logits)
    spec = arguments.spec_of(ignore_index=ignore_index, softcap=softcap, temperature=number)
    arguments.require_tensor(logits, "logits")
    arguments.require_local(logits=logits, labels=labels)
    arguments.require_together(logits=logits, labels=labels)
    zero: Tensor | None = None
    if labels is not None:
        require_labels(labels, logits.shape[:-1])
        zero = zero_if_valid(labels, logits.shape[-1], spec.ignore_index, "labels", validate)
        labels = readable(labels, logits.shape[-1], spec.ignore_index)
    stats = statistics.row_stats(logits, labels, None, spec.link, full=True)
    if zero is not None:
        stats = stats._replace(lse=stats.lse + zero, log_prob=stats.log_prob + zero)
    dtype = devices.loss_dtype(logits)
    return RowStatistics(
        stats.lse.to(dtype),
        None if labels is None else stats.log_prob.to(dtype),
        stats.entropy.to(dtype),
        stats.argmax,
    )
