"""Which modes are active: compilers, transforms, forward mode; all reads of PyTorch's private state."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch._C._functorch import TransformType
from torch.autograd import forward_ad

Tensor = torch.Tensor

PLAIN = (Tensor, torch.nn.Parameter)


def is_transformed() -> bool:
    """Whether a transform of torch.func is active."""
    return torch._C._are_functorch_transforms_active()


def is_forward() -> bool:
    """Whether forward-mode differentiation is active."""
    return forward_ad._current_level >= 0


def is_nested_forward() -> bool:
    """Whether forward-mode transforms of torch.func are nested."""
    stack = torch._C._functorch.get_interpreter_stack()
    return stack is not None and sum(level.key() == TransformType.Jvp for level in stack) > 1


def is_graphed() -> bool:
    """Whether a graph is being compiled, exported or traced, which will run on other values."""
    return torch.compiler.is_compiling() or is_traced()


def is_traced() -> bool:
    """Whether torch.jit is tracing."""
    return torch._C._get_tracing_state() is not None


def is_recorded() -> bool:
    """Whether operators are recorded whole in a graph; transforms would decompose them."""
    return is_graphed() and not is_transformed()


def is_dispatched() -> bool:
    """Whether a TorchDispatchMode sees all operations."""
    return torch._C._len_torch_dispatch_stack() > 0


def has_saved_tensor_hooks() -> bool:
    """Whether saved-tensor hooks are set, such as those of a checkpoint."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def is_batched(upstream: Tensor) -> bool:
    """Whether ``upstream`` is a batch of gradients, as for a Jacobian."""
    return is_transformed() or torch._C._functorch.is_legacy_batchedtensor(upstream)


def is_wrapped(x: Tensor) -> bool:
    """Whether a transform of torch.func wraps ``x``."""
    return torch._C._functorch.is_functorch_wrapped_tensor(x)


def is_derived(x: Tensor) -> bool:
    """Whether ``x`` may be differentiated; True in forward mode, where this cannot be tested."""
    if torch.compiler.is_exporting() or is_traced():
        return x.is_floating_point()  # the caller of the graph may differentiate it
    if torch.compiler.is_compiling():
        return x.requires_grad or is_transformed()
    if is_forward():
        return True
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x):  # also for an outer transform
        if functorch.is_gradtrackingtensor(x):
            return True
        x = functorch.get_unwrapped(x)
    return x.requires_grad


def are_derived(*tensors: Tensor | None) -> bool:
    """Whether one of the tensors may be differentiated."""
    return any(x is not None and is_derived(x) for x in tensors)


def knows_its_gradients() -> bool:
    """Whether a graph is compiled for which ``requires_grad`` of the tensors is final."""
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def is_compiled(logits: Tensor, *others: Tensor | None) -> bool:
    """Whether a graph for the CPU is compiled in which only ``logits`` are differentiated, once."""
    return (
        knows_its_gradients()
        and logits.device.type == "cpu"
        and not is_transformed()
        and not any(x is not None and x.requires_grad for x in others)
    )


def is_plain(derived: Iterable[Tensor | None], fixed: Iterable[Tensor | None]) -> bool:
    """Whether only plain reverse mode is active, and only the tensors ``derived`` may require gradients."""
    # The tests of the functions above, inlined: their calls take 1 of the 25 µs of a small loss.
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    if torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack():
        return False
    if forward_ad._current_level >= 0:
        return False
    for x in derived:
        if x is not None and type(x) not in PLAIN:
            return False
    for x in fixed:  # noqa: SIM110, a generator is slower
        if x is not None and (type(x) not in PLAIN or x.requires_grad):
            return False
    return True


def is_readable(x: Tensor) -> bool:
    """Whether ``x`` is a dense CPU tensor with values, neither traced nor mapped nor fake."""
    return x.is_cpu and x.layout == torch.strided and _has_values(x) and not is_traced()


def looks_at(x: Tensor, validate: bool | None) -> bool:
    """Whether to check the values of ``x``: if the host need not wait, or ``validate`` is True."""
    if validate is False:
        return False
    return is_readable(x) or (validate is True and _has_values(x) and not x.is_meta)


def _has_values(x: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and type(x) in PLAIN
        and not is_transformed()
        and not is_dispatched()
    )


def is_captured(x: Tensor) -> bool:
    """Whether a CUDA graph is being captured, during which the host cannot read a value."""
    return x.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
