"""`torch.nn.functional`'s losses with its names, arguments and layouts, and the options of `xent`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Unpack

import torch
from torch.overrides import handle_torch_function, has_torch_function_unary

from xent.core.contract import RowStatistics
from xent.core.spec import ExtraOptions, with_options
from xent.engine import row_columns
from xent.torch import arguments, devices, dispatch, modes
from xent.torch.arguments import Call
from xent.torch.linear import loss as linear_loss
from xent.torch.linear.products import Chunking
from xent.torch.linear.rows import Chunks
from xent.torch.statistics import autograd
from xent.torch.targets import kernel_labels, require_labels, zero_if_valid
from xent.torch.temperature import checked_rows, divided, divided_rows, split

Tensor = torch.Tensor


def _is_stand_in(x: Any) -> bool:
    """Whether ``x`` is no tensor but takes part in PyTorch's functions, as logits of a fused layer do."""
    return not isinstance(x, Tensor) and has_torch_function_unary(x)


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
    **options: Unpack[ExtraOptions],
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

    Notes
    -----
    ``temperature`` may also be a tensor of the shape of the rows, one for each, and gets its gradient:
    equation (28). The logits are then copied. A value that is not finite and positive, in a row that counts,
    raises on the CPU and gives NaN in that row on a GPU.

    Examples
    --------
    >>> import torch, xent.torch
    >>> z = torch.tensor([[2.0, 3.0, 4.0]], requires_grad=True)
    >>> loss = xent.torch.cross_entropy(z, torch.tensor([1]))
    >>> loss.backward()
    >>> round(loss.item(), 4), z.grad.numpy().round(4)
    (1.4076, array([[ 0.09  , -0.7553,  0.6652]], dtype=float32))
    """
    if type(input) not in modes.PLAIN and _is_stand_in(input):
        given = (input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        named = {"sample_weight": sample_weight, "denominator": denominator, "validate": validate}
        return handle_torch_function(cross_entropy, (input,), *given, **named, **options)
    try:
        if size_average is not None or reduce is not None:
            reduction = arguments.legacy_reduction(size_average, reduce, reduction)
        logits, targets = arguments.classes_last(input, target)
        is_smoothed = type(label_smoothing) is not float or label_smoothing != 0.0
        by_row = None
        if options or is_smoothed or ignore_index != -100:
            if "temperature" in options:
                temperature, by_row = split(options["temperature"])
                options["temperature"], logits = divided(temperature, logits)
            spec = arguments.spec_of(ignore_index=ignore_index, label_smoothing=label_smoothing, **options)
        else:
            spec = arguments.NO_OPTIONS
    except Exception as error:
        dispatch.refuse(error, input)
    tensors = targets, weight, sample_weight
    call = Call(*tensors, spec, reduction, denominator, validate, temperature=by_row)
    return dispatch.cross_entropy(logits, call)


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
    shift: int | Sequence[int] = 0,
    shift_weight: Sequence[float] | None = None,
    want: Sequence[str] | None = None,
    chunk_bytes: int | None = None,
    logits_dtype: torch.dtype | None = None,
    **extra: Unpack[ExtraOptions],
) -> Any:
    """`cross_entropy` of ``input @ linear_weight.T + linear_bias``, which never exists whole.

    Loss and gradients take three matrix products in all (``reduction="none"``: four); frozen operands cost
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
    shift : int or sequence of int, default 0
        Position t of the last row axis predicts the target (and ``sample_weight``) at t + ``shift``: the loss
        of ``input[..., :-shift, :]`` and ``target[..., shift:]``, without slicing either. Of several shifts
        (multi-token prediction) the loss is the weighted sum of their losses, each with a mean of its own, in
        three products: equation (29). Labels and reduction "mean" or "sum" only.
    shift_weight : sequence of float >= 0, default None
        The weight of each of several shifts; None is 1.
    want : sequence of str, default None
        Return a `LossValues` with these fields, the others None, from the same pass; no product is added.
        Reduced like the loss; all but "loss" are detached, and one for each of several shifts, (S,):

        - "loss": the loss, as without ``want``; without it nothing is derived.
        - "plain": ``−log p`` of the label: the loss of the same call without class weights, smoothing, focal
          and poly-1 loss and z-loss. Rows whose class has weight 0 do not count.
        - "z_loss": the term ``λ·logsumexp²`` of the loss.
        - "accuracy": the share of the rows of "plain" whose largest logit is the label's, whatever their
          ``sample_weight`` (0 or 1 for reduction "none", their number for "sum").
        - "by_shift": the loss of each of several shifts, without its weight.
    chunk_bytes : int, default None
        Budget for the logits that exist at a time; one row at least. None: what the weight's gradient takes,
        but no more than a quarter of all logits or 1024 rows of them (8192 on a GPU), and at least 16
        million logits (256 million on a GPU).
    logits_dtype : torch.dtype, default None
        float32 for operands of half precision: their products are not rounded to half precision. None:
        float32 on a GPU, whose products give it; the dtype of the operands on the CPU, where such a product
        takes as long as one of float32 operands. The products of the gradients stay in half precision.
    weight, reduction, label_smoothing, sample_weight, denominator, validate
        As for `cross_entropy`.

    OPTIONS

    Returns
    -------
    Tensor
        float64 for float64 ``input``, float32 for all others; (...) for reduction "none", shorter by
        ``shift`` on its last axis. With ``want`` a `LossValues`.

    Raises
    ------
    ValueError
        As for `cross_entropy`, and for shapes and dtypes that do not go together.

    Notes
    -----
    Second derivatives recompute the logits chunk by chunk; under the transforms of `torch.func` and in
    forward mode PyTorch keeps what it needs of all rows. Products are computed in the dtype of the operands,
    float16 on the CPU in float32; gradients are summed over chunks in float32.

    ``temperature`` may also be a tensor of the shape of the rows, as for `cross_entropy`: with ``shift``, T
    at position t divides the logits of that position. It costs no product and no copy; if it requires a
    gradient, it copies the inputs, and beside a bias the weight.

    Examples
    --------
    >>> import torch, xent.torch
    >>> x, w = torch.eye(2), torch.zeros(3, 2)
    >>> round(xent.torch.linear_cross_entropy(x, w, torch.tensor([0, 2])).item(), 4)
    1.0986
    >>> values = xent.torch.linear_cross_entropy(x, w, torch.tensor([0, 2]), want=("loss", "accuracy"))
    >>> values.accuracy
    tensor(0.5000)
    """
    del options
    index = -100 if ignore_index is None else ignore_index
    try:
        by_row = None
        if "temperature" in extra:
            temperature, by_row = split(extra["temperature"])
            extra["temperature"], input, linear_bias = divided(
                temperature, input, linear_bias, keep_dtype=True
            )
        spec = arguments.spec_of(ignore_index=index, label_smoothing=label_smoothing, **extra)
        arguments.require_tensor(linear_weight, "linear_weight")
        operands = None
        if linear_weight.ndim <= 2:
            operands = linear_loss.checked(input, linear_weight, linear_bias, linear_loss.OPERANDS)
    except Exception as error:
        dispatch.refuse(error, input, linear_weight)
    if operands is None:  # every position has a projection of its own
        chunked: dict[str, Any] = {"chunk_bytes": chunk_bytes, "logits_dtype": logits_dtype}
        chunked |= {"shift_weight": shift_weight, "want": want}
        if shift or any(x is not None for x in chunked.values()):
            got = ", ".join(f"{name}={value!r}" for name, value in {"shift": shift, **chunked}.items())
            raise arguments.ArgumentError(
                "`shift` must be 0, and " + ", ".join(f"`{name}`" for name in chunked) + " None, for a "
                f"`linear_weight` of more than two axes, whose logits are held whole; got {got}"
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
            **asdict(spec) | ({} if by_row is None else {"temperature": by_row}),
        )
    tensors = target, weight, sample_weight
    call = Call(*tensors, spec, reduction, denominator, validate, temperature=by_row)
    chunks = Chunks(shift, Chunking(chunk_bytes, logits_dtype), shift_weight, want)
    return dispatch.linear_cross_entropy(operands, call, chunks)


def row_statistics(
    logits: Tensor,
    labels: Tensor | None = None,
    *,
    ignore_index: int = -100,
    softcap: float | None = None,
    temperature: float | Tensor = 1.0,
    validate: bool | None = None,
    want: Sequence[str] = row_columns.DEFAULT,
) -> RowStatistics:
    """Log-sum-exp, label log-probability, entropy and argmax of each row: `xent.row_statistics`, derivable.

    Parameters
    ----------
    logits : (..., K) tensor
        Classes on the last axis.
    labels : (...) tensor of integers, default None
        Without them ``log_prob`` is None. Rows whose label is ``ignore_index`` are 0 throughout.
    temperature : float, or (...) tensor, default 1.0
        As for `cross_entropy`: a number, a tensor of one number, or one for each row (equation (28)), which
        ignored rows do not read. A tensor gets its gradient; one for each row copies the logits.
    validate : bool, default None
        As for `cross_entropy`. Without it a label out of range gives NaN.
    want
        As for `xent.row_statistics`. ``argmax`` and ``is_top1`` have no derivatives.

    Returns
    -------
    RowStatistics
        (...) tensors in nats, float64 for float64 logits and float32 for all others; ``argmax`` is int64 and
        ``is_top1`` bool. None for what is not wanted.

    Examples
    --------
    >>> import torch, xent.torch
    >>> z = torch.zeros(1, 2, requires_grad=True)
    >>> stats = xent.torch.row_statistics(z, torch.tensor([1]))
    >>> stats.log_prob.sum().backward()
    >>> z.grad
    tensor([[-0.5000,  0.5000]])
    """
    wanted = row_columns.require_want(want, labels)
    temperature, by_row = split(temperature)
    number, logits = divided(temperature, logits)
    spec = arguments.spec_of(ignore_index=ignore_index, softcap=softcap, temperature=number)
    arguments.require_tensor(logits, "logits")
    tensors = {"logits": logits, "labels": labels, "temperature": by_row}
    arguments.require_local(**tensors)
    arguments.require_together(**tensors)
    zero: Tensor | None = None
    if labels is not None:
        require_labels(labels, logits.shape[:-1])
        zero = zero_if_valid(labels, logits.shape[-1], spec.ignore_index, "labels", validate)
        labels = kernel_labels(labels, logits.shape[-1], spec.ignore_index)
    if by_row is not None:
        arguments.require_row_temperature(by_row, logits.shape[:-1])
        counts = torch.ones_like(by_row, dtype=torch.bool) if labels is None else labels >= 0
        logits = divided_rows(logits, checked_rows(by_row, counts.reshape(-1), validate))
    names = row_columns.column_names(wanted)
    columns = row_columns.columns(
        autograd.row_stats, logits, labels, None, spec.link, names, devices.widened, torch
    )
    if zero is not None:
        columns = tuple(column + zero.to(column.dtype) for column in columns)
    by_name = dict(zip(names, columns, strict=True))
    dtype = devices.loss_dtype(logits)
    return row_columns.collect(by_name, wanted, labels, lambda column: column.to(dtype))
