"""Modules around a fused layer that look for tensors in their output, where they would overlook logits.

Such are FSDP, DistributedDataParallel in two of its modes, and modules with hooks. Logits that leave one are
computed by a hook that runs before they look, unless their loss was computed within.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn.modules import module as hooks
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves, tree_map

from xent.torch.fused import guards
from xent.torch.fused.logits import Logits


class Around(NamedTuple):
    """The modules around a call that look into their output; a reason why PyTorch is to compute it."""

    watchers: tuple[Any, ...] = ()
    reason: str | None = None


def around(layer: Any) -> Around:
    """What is around the present call of ``layer``; each watcher gets the hook `compute_outputs`."""
    if torch.compiler.is_compiling():  # which hides the modules
        ddp: Any = DistributedDataParallel._get_active_ddp_module()
        if getattr(layer, "_is_fsdp_managed_module", False) or (ddp is not None and _looks(ddp)):
            return Around(reason="FSDP or DistributedDataParallel, compiled")
        return Around()
    if hooks._global_forward_hooks or hooks._global_backward_hooks or hooks._global_backward_pre_hooks:
        return Around(reason="a hook on all modules")
    watchers = []
    for module in guards.running_modules():
        if any(cls.__name__ == "FullyShardedDataParallel" for cls in type(module).__mro__):
            return Around(reason="FullyShardedDataParallel")
        if not _looks(module):
            continue
        if isinstance(module, DistributedDataParallel):
            module = module.module
            if not module._forward_hooks:  # the call under way will run none
                return Around(reason="DistributedDataParallel around a module without hooks")
        watch(module)
        watchers.append(module)
    return Around(tuple(watchers))


def _looks(module: Any) -> bool:
    """Whether ``module``, or who called it, looks for tensors in its output."""
    if isinstance(module, DistributedDataParallel) and (module.find_unused_parameters or module.static_graph):
        return True
    return _has_backward_hooks(module) or any(
        h is not compute_outputs for h in module._forward_hooks.values()
    )


def _has_backward_hooks(module: Any) -> bool:
    return bool(module._backward_hooks or module._backward_pre_hooks)


def watch(module: Any) -> None:
    """Have `compute_outputs` run first among the hooks on the output of ``module``."""
    unwatch(module)
    module.register_forward_hook(compute_outputs, prepend=True)


def unwatch(module: Any) -> None:
    """Undo `watch`."""
    for key, hook in list(module._forward_hooks.items()):
        if hook is compute_outputs:
            del module._forward_hooks[key]


def compute_outputs(module: Any, args: Any, output: Any) -> Any:
    """A hook: the output with tensors in the place of logits that are to be seen; None if there are none."""
    if torch.compiler.is_compiling():
        return None
    has_hooks = _has_backward_hooks(module)

    def is_seen(x: Any) -> bool:
        if type(x) is not Logits:
            return False
        source = x.memory.source
        return any(w is module for w in source.watchers) and (has_hooks or not source.has_loss)

    if not any(map(is_seen, tree_leaves(output))):
        return None
    name = f"the output of {type(module).__name__}"
    return tree_map(lambda x: x.computed(name) if is_seen(x) else x, output)
