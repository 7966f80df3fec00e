"""Losses whose classes are split over the processes of a group: public functions, and their checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, Unpack

import torch

from xent.core.spec import ExtraOptions, require_reduction, with_options
from xent.engine import valid_rows
from xent.torch import arguments, devices, modes
from xent.torch.arguments import Call, Names
from xent.torch.distributed import sharded
from xent.torch.distributed.handshake import (
    LocalCheck,
    RankGroup,
    agree,
    call_facts,
    row_checksums,
    shared_tensors,
    tensor_kind,
)
from xent.torch.distributed.sharded import validates
from xent.torch.linear import loss as linear_loss
from xent.torch.linear import values
from xent.torch.linear.chunked import Operands
from xent.torch.linear.products import Chunking
from xent.torch.linear.rows import Chunks
from xent.torch.targets import require_labels, require_targets
from xent.torch.temperature import row_temperature, split

Tensor = torch.Tensor
T = TypeVar("T")

NAMES = Names("logits_shard", "labels", "weight")
GROUP = RankGroup("`group`", ": the ranks of `group` share the rows, and have classes of their own")


@with_options(omit=("class_weight", "sample_weight", "ignore_index", "label_smoothing"))
def vocab_parallel_cross_entropy(
    logits_shard: Tensor,
    labels: Tensor,
    *,
    group: Any,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    sample_weight: Tensor | None = None,
    denominator: Any = None,
    validate: bool | None = None,
    sizes: Sequence[int] | None = None,
    **options: Unpack[ExtraOptions],
) -> Tensor:
    """`xent.cross_entropy` of logits whose classes are split over the ranks of ``group``, in its order.

    Every rank calls it with the same rows and options and gets the same bits of the loss. Two all-reduces
    take 32 bytes a row, whatever the number of classes: 8 for a maximum and 24 for sums; 8 more with class
    weights and 8 more with label smoothing; 40 for probabilities. The gradient takes none.

    Parameters
    ----------
    logits_shard : (..., K_s) tensor
        The logits of this rank's classes; K_s may differ between ranks, and be 0.
    labels : (...) tensor of integers, or (..., K_s) floats
        Labels among all classes, the same on every rank; or this rank's columns of probabilities.
    group : ProcessGroup, or None for the default group
    weight : (K_s,) tensor, default None
        Factors of this rank's classes; all ranks have it or none.
    ignore_index, reduction, sample_weight, denominator
        As for `xent.cross_entropy`, the same on every rank.
    label_smoothing
        Over the classes of all ranks.
    validate : bool, default None
        Check the range of labels and the sign of probabilities. None: on the CPU.
    sizes : sequence of int, default None
        K_s of each rank. None: the ranks tell each other, with checksums of all that must be the same and
        whether one of them refuses its arguments (88 bytes a rank; on a GPU the host waits for it). With
        ``sizes`` nothing of that is checked: a rank with other rows makes the loss of all wrong, and one that
        raises lets the others wait.

    OPTIONS

    Returns
    -------
    Tensor
        float64 for float64 logits, float32 for all others.

    Raises
    ------
    ValueError
        As for `xent.torch.cross_entropy`; on all ranks if one refuses its arguments, or if their options,
        labels, ``sample_weight`` or ``denominator`` differ.
    NotImplementedError
        For what would derive it twice, or in anything but the logits.

    Notes
    -----
    The backward expects the same upstream gradient on every rank. ``torch.compile`` runs it eagerly.

    Examples
    --------
    In each process, with logits (..., K) in shards of any sizes:

    >>> def loss_of(shard, labels):
    ...     return vocab_parallel_cross_entropy(shard, labels, group=None, label_smoothing=0.1)
    """

    def check() -> LocalCheck[Call]:
        arguments.require_tensor(logits_shard, "logits_shard")
        arguments.require_local(logits_shard=logits_shard)
        options["temperature"], by_row = split(options.get("temperature", 1.0))
        spec = arguments.spec_of(ignore_index=ignore_index, label_smoothing=label_smoothing, **options)
        if logits_shard.dtype not in devices.FLOATING or not logits_shard.ndim:
            raise arguments.ArgumentError(
                "`logits_shard` must be (..., K_s) of float64, float32, float16 or bfloat16; got "
                f"{logits_shard.dtype} of shape {tuple(logits_shard.shape)}"
            )
        given = labels, weight, sample_weight
        call = Call(*given, spec, reduction, denominator, validate, NAMES, by_row)
        call = checked(call, logits_shard.shape, logits_shard=logits_shard)
        require_derivable(call, call.temperature)
        require_values(call)
        facts = {"logits_shard": tensor_kind(logits_shard), **call_facts(call)}
        tensors = shared_tensors(call) if sizes is None else {}
        return LocalCheck(call, math.prod(logits_shard.shape[:-1]), facts, tensors)

    call, shard = agree(check, group, sizes, *size_and_device(logits_shard, -1), GROUP)
    return outside_graphs(sharded.cross_entropy)(logits_shard, call, shard)


@with_options(omit=("class_weight", "sample_weight", "ignore_index", "label_smoothing"))
def vocab_parallel_linear_cross_entropy(
    hidden: Tensor,
    weight_shard: Tensor,
    labels: Tensor,
    *,
    group: Any,
    bias: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    sample_weight: Tensor | None = None,
    denominator: Any = None,
    validate: bool | None = None,
    shift: int | Sequence[int] = 0,
    shift_weight: Sequence[float] | None = None,
    want: Sequence[str] | None = None,
    chunk_bytes: int | None = None,
    logits_dtype: torch.dtype | None = None,
    sizes: Sequence[int] | None = None,
    **options: Unpack[ExtraOptions],
) -> Any:
    """The loss of the logits ``hidden @ weight_shard.T + bias`` of all ranks, no rank's ever whole in memory.

    Loss and gradients take three matrix products in all, as on one process, and the all-reduces of
    `vocab_parallel_cross_entropy` for every chunk of rows; with ``reduction="none"`` four, and the two
    all-reduces once. The gradient of ``hidden`` takes one more, of its own size and dtype; those of
    ``weight_shard`` and ``bias`` none. Rows that are ignored or of weight 0 are left out of all. Several
    shifts take the all-reduces for each; the accuracy takes two more, of 16 bytes a row.

    Parameters
    ----------
    hidden : (..., D) tensor, the same on every rank
        To the last bit, in rows that count. Its gradient is complete on every rank. What gathered it from
        ranks that each had some of the rows (sequence parallelism) is to keep its own rows of the gradient,
        and to sum nothing.
    weight_shard : (K_s, D) tensor
    bias : (K_s,) tensor, default None
        This rank's; all ranks have one or none.
    shift, shift_weight, want, chunk_bytes, logits_dtype
        As for `xent.torch.linear_cross_entropy`.
    labels, group, weight, sizes, and all others
        As for `vocab_parallel_cross_entropy`.

    OPTIONS

    Returns
    -------
    Tensor
        float64 for float64 ``hidden``, float32 for all others; with ``want`` a `LossValues`.

    Raises
    ------
    ValueError, NotImplementedError
        As for `vocab_parallel_cross_entropy`, and for shapes and dtypes that do not go together.

    Examples
    --------
    A head that is split over the default group:

    >>> def loss_of(hidden, head, tokens):
    ...     return vocab_parallel_linear_cross_entropy(hidden, head.weight, tokens, group=None, shift=1)
    """

    def check() -> LocalCheck[tuple[Call, Operands, Chunks]]:
        options["temperature"], by_row = split(options.get("temperature", 1.0))
        spec = arguments.spec_of(ignore_index=ignore_index, label_smoothing=label_smoothing, **options)
        operands = linear_loss.checked(hidden, weight_shard, bias, ("hidden", "weight_shard", "bias"))
        arguments.require_local(hidden=hidden, weight_shard=weight_shard, bias=bias)
        given = labels, weight, sample_weight
        call = Call(*given, spec, reduction, denominator, validate, NAMES, by_row)
        call = checked(call, (*hidden.shape[:-1], weight_shard.shape[0]), hidden=hidden)
        chunks = Chunks(shift, Chunking(chunk_bytes, logits_dtype), shift_weight, want)
        chunks = checked_chunks(chunks, call, operands.inputs)
        require_derivable(call)
        require_values(call, shift=chunks.shift)
        kinds = zip(("hidden", "weight_shard", "bias"), map(tensor_kind, operands), strict=True)
        facts = {**dict(kinds), **call_facts(call), **chunks.facts}
        tensors = {}
        if sizes is None:
            tensors = {**shared_tensors(call), "hidden": row_checksums(call, hidden, chunks.shifts)}
        return LocalCheck((call, operands, chunks), math.prod(hidden.shape[:-1]), facts, tensors)

    (call, operands, chunks), shard = agree(check, group, sizes, *size_and_device(weight_shard, 0), GROUP)
    return outside_graphs(sharded.linear_cross_entropy)(operands, call, chunks, shard)


def checked(call: Call, shape: tuple[int, ...], **first: Tensor) -> Call:
    """The call, checked against logits (..., K) of ``shape`` on the device of ``first``."""
    name = call.names.targets
    require_reduction(call.reduction)
    arguments.require_tensor(call.targets, name)
    if not call.is_soft:
        require_labels(call.targets, shape[:-1], name)
    elif call.targets.shape != shape:
        raise arguments.ArgumentError(
            f"`{name}` of a floating dtype are probabilities, of shape {tuple(shape)} here; got "
            f"{tuple(call.targets.shape)}"
        )
    call = call.checked(shape)
    call.scale(1, 1)
    arguments.require_together(**first, **call.by_name)
    return call


def checked_chunks(chunks: Chunks, call: Call, inputs: Any) -> Chunks:
    """The chunks, checked for a checked call and ``inputs (..., D)``."""
    chunks = chunks.checked(call, inputs)
    for shift in chunks.shifts:
        valid_rows.shifted_rows(inputs.shape[:-1], shift, torch, inputs.device)
    if chunks.want is not None:
        values.checked_names(chunks.want, call, isinstance(chunks.shift, tuple))
    return chunks


def require_derivable(call: Call, temperature: Tensor | None = None) -> None:
    """Raise if a gradient is required that a loss of classes in shards does not compute.

    ``temperature`` is that of the rows of logits in shards, each of which would have a part of its gradient.
    """
    others = *call.tensors[:3], temperature
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in others):
        raise NotImplementedError(
            "a loss whose classes are split over processes is derivable in logits, hidden states and "
            f"weights of the projection; `{call.names.targets}`, `weight`, `sample_weight` and the "
            "`temperature` of logits must not require gradients"
        )
    if modes.is_transformed():
        raise NotImplementedError(
            "a loss whose classes are split over processes has no transforms of torch.func"
        )


def require_values(call: Call, num_classes: int | None = None, shift: Any = 0) -> None:
    """Raise for labels outside ``num_classes``, negative or NaN probabilities, and temperatures out of range.

    Of a DTensor each rank checks its local part. Without ``num_classes`` labels are not checked.
    """
    parts = {name: x.to_local() for name, x in call.by_name.items() if hasattr(x, "to_local")}
    name = call.names.targets
    if validates(call) and (call.is_soft or num_classes is not None):
        require_targets(parts.get(name, call.targets), num_classes or 0, call.spec.ignore_index, name)
    for name in (call.names.weight, "sample_weight"):
        if name in parts and modes.looks_at(parts[name], call.validate):
            arguments.require_finite(parts[name], name, is_signed=name != "class_weight")
    arguments.as_denominator(parts.get("denominator"))
    if call.temperature is not None:
        local = call._replace(
            targets=parts.get(call.names.targets, call.targets),
            sample_weight=parts.get("sample_weight", call.sample_weight),
            temperature=parts.get("temperature", call.temperature),
        )
        shape = local.targets.shape[:-1] if call.is_soft else local.targets.shape
        rows = (local.temperature, local.sample_weight)
        if all(x is None or x.shape == shape for x in rows):  # else a value out of range gives NaN
            row_temperature(local, shift)


def size_and_device(shard: Any, axis: int) -> tuple[int, torch.device]:
    """(number of classes, device) of a shard; a default if it is not a tensor, for which `check` raises."""
    if not isinstance(shard, Tensor):
        return 0, torch.device("cpu")
    return shard.shape[axis] if shard.ndim else 0, shard.device


def outside_graphs(function: Callable[..., T]) -> Callable[..., T]:
    """``function``, excluded from compilation: a compiled graph calls it eagerly."""
    return torch.compiler.disable(function) if torch.compiler.is_compiling() else function
