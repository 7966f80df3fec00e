"""The checks of targets; of those whose values are not there yet, as operators in graphs and transforms."""

from __future__ import annotations

from typing import Any

import torch

from xent.engine import checks
from xent.torch import arguments, bridge

Tensor = torch.Tensor


def targets(
    x: Tensor, num_classes: int, ignore_index: int, name: str, validate: bool | None
) -> Tensor | None:
    """Raise for labels that are no class, probabilities that are negative or NaN, where ``validate`` asks so.

    A graph raises when it runs, if its result has what is returned here added to it: 0. None: nothing to add.
    """
    if validate is False:
        return None
    if arguments.looks_at(x, validate):
        arguments.require_targets(x, num_classes, ignore_index, name)
        if not arguments.is_graphed():
            return None
    return check_targets(x.detach(), num_classes, ignore_index, name) if _is_asked(x, validate) else None


def binary_targets(x: Tensor, name: str, validate: bool | None) -> Tensor | None:
    """As `targets`, of probabilities of one class."""
    if validate is False or x.dtype == torch.bool:
        return None
    if arguments.looks_at(x, validate):
        _require_probabilities(x, name)
        if not arguments.is_graphed():
            return None
    return check_binary_targets(x.detach(), name) if _is_asked(x, validate) else None


def _is_asked(x: Tensor, validate: bool | None) -> bool:
    """None asks where no device is waited for, outside of transforms and exported graphs."""
    if x.layout != torch.strided:  # the loss refuses it
        return False
    if validate:
        return True
    is_free = bridge.KERNELS.get(x.device.type) == "cpu"
    return is_free and not arguments.is_transformed() and not torch.compiler.is_exporting()


def _require_probabilities(q: Tensor, name: str) -> None:
    host = q if q.is_cpu else q.cpu()
    if not q.is_floating_point() or not checks.all_within(bridge.view(host), 1.0):
        checks.check_probabilities(bridge.view(host.to(bridge.loss_dtype(host))), name, upper=1.0)


@torch.library.custom_op("xent::check_targets", mutates_args=())
def check_targets(x: Tensor, num_classes: int, ignore_index: int, name: str) -> Tensor:
    """0 where `arguments.require_targets` does not raise."""
    arguments.require_targets(x, num_classes, ignore_index, name)
    return x.new_zeros((), dtype=torch.float32)


@torch.library.custom_op("xent::check_binary_targets", mutates_args=())
def check_binary_targets(x: Tensor, name: str) -> Tensor:
    """0 where all of ``x`` is in [0, 1]."""
    _require_probabilities(x, name)
    return x.new_zeros((), dtype=torch.float32)


def _whole(operator: Any) -> None:
    """An operator of a tensor, mapped, checks all of it at once."""

    @operator.register_fake  # type: ignore[untyped-decorator]
    def _(x: Tensor, *others: Any) -> Tensor:
        return x.new_empty((), dtype=torch.float32)

    @operator.register_vmap  # type: ignore[untyped-decorator]
    def _(info: Any, in_dims: Any, x: Tensor, *others: Any) -> tuple[Tensor, None]:
        return operator(x, *others), None


_whole(check_targets)
_whole(check_binary_targets)
