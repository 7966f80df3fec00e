"""What keeps fused logits from being wrong silently: calls that PyTorch computes, and errors."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch

from xent.torch import devices, modes
from xent.torch.linear.chunked import Operands

Tensor = torch.Tensor

SAMPLES = 32  # rows and columns of a weight that are compared


def called(layer: Any) -> Any:
    """The module that is called: ``layer``, or a replica by DataParallel, which shares its ``forward``."""
    if torch.compiler.is_compiling():
        return layer
    running = next(running_modules(), layer)
    is_replica = type(running) is type(layer) and getattr(running, "_is_replica", False)
    return running if is_replica else layer


def reason_for_pytorch(layer: Any, operands: Operands) -> str | None:
    """Why PyTorch is to compute this call of the layer; None if it need not."""
    inputs, weight, _ = operands
    if not layer.training:
        return "eval mode"
    if getattr(layer, "_is_replica", False):
        return "a replica of DataParallel"
    if torch.compiler.is_exporting() or modes.is_traced() or modes.is_forward():
        return "an exported or traced graph, or forward mode"
    if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
        return "inference mode"
    tensors = [x for x in operands if x is not None]
    if any(type(x) not in modes.PLAIN for x in tensors):
        return "a tensor of another class"
    if hasattr(weight, "ds_id") or "_hf_hook" in vars(layer):
        return "a weight that is loaded for each call"
    if inputs.device.type not in devices.KERNELS or any(x.device != inputs.device for x in tensors):
        return "another device"
    if any(x.dtype not in devices.FLOATING or x.dtype != inputs.dtype for x in tensors):
        return "other dtypes"
    if not inputs.ndim or inputs.shape[-1] != weight.shape[-1]:
        return "a wrong shape"
    if layer._backward_hooks or layer._backward_pre_hooks or layer._forward_hooks:
        return "a hook on the layer"
    return None


class Source:
    """The operands of one call of a layer, and what shows later whether they have changed."""

    __slots__ = ("depth", "has_loss", "operands", "requires_grad", "samples", "versions", "watchers")

    def __init__(self, operands: Operands, watchers: tuple[Any, ...]) -> None:
        tensors = [x for x in operands if x is not None]
        self.requires_grad = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
        if not torch.is_grad_enabled():
            detached: Any = (None if x is None else x.detach() for x in operands)
            operands = Operands(*detached)
        self.operands, self.watchers, self.has_loss = operands, watchers, False
        is_compiled = torch.compiler.is_compiling()
        self.versions = None if is_compiled else [x._version for x in tensors]
        self.depth = 0 if is_compiled else _function_depth()
        self.samples = None if modes.is_transformed() else _samples(tensors[1:])

    def require_unchanged(self) -> None:
        """Raise if the logits might no longer be those that the layer would have returned."""
        if torch.compiler.is_compiling():
            return
        depth = _function_depth()
        if depth < self.depth or (depth > self.depth and self.requires_grad):
            raise RuntimeError(
                "logits of a fused layer cannot be an argument or a result of an autograd.Function: it finds "
                "no tensor there, and would lose the gradient; use `logits + 0`, or `unfuse` the layer"
            )
        tensors = [x for x in self.operands if x is not None]
        if modes.is_transformed():
            return
        if any(x.untyped_storage().size() == 0 for x in tensors if x.numel()):
            raise RuntimeError(
                "logits of a fused layer were asked for after the memory of its weight was freed, as by FSDP "
                "after a forward or a backward: ask for them before, or `unfuse` the layer"
            )
        is_same = self.versions is None or self.versions == [x._version for x in tensors]
        if is_same and self.samples is not None and not modes.is_captured(tensors[0]):
            is_same = all(map(_are_equal, self.samples, _samples(tensors[1:])))
        if not is_same:
            raise RuntimeError(
                "logits of a fused layer were asked for after its input or its weight was written, as by an "
                "optimizer's step: ask for them before, or `unfuse` the layer"
            )

    def watched(self, result: Any) -> Any:
        """``result``, whose gradient is an error if a watcher has returned without seeing it."""
        if self.watchers and isinstance(result, Tensor) and result.requires_grad:
            running = {id(module) for module in running_modules()}
            if not all(id(module) in running for module in self.watchers):
                result.register_hook(_refuse_gradient)
        return result


def _refuse_gradient(gradient: Tensor) -> None:
    raise RuntimeError(
        "logits of a fused layer have a gradient outside of a module that prepares its output for the "
        "backward (DistributedDataParallel, FSDP, a hook) and did not find them there: use the loss that it "
        "returned, or `unfuse` the layer"
    )


def _samples(tensors: list[Tensor]) -> list[Tensor]:
    """Copies of a few elements of each tensor: a write to ``x.data`` changes no version."""
    return [x.detach()[tuple(slice(None, None, n // SAMPLES + 1) for n in x.shape)].clone() for x in tensors]


def _are_equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.nan_to_num(), b.nan_to_num())


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _function_depth() -> int:
    """How many calls of `torch.autograd.Function.apply` have not returned."""
    return sum(frame.f_code is _APPLY for frame in _frames())


def running_modules() -> Iterator[Any]:
    """The modules whose call has not returned, from the innermost."""
    for frame in _frames():
        if frame.f_code is _CALL_MODULE:
            yield frame.f_locals["self"]


_APPLY: Any = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]
_CALL_MODULE = torch.nn.Module._call_impl.__code__
