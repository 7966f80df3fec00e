"""Losses of DTensors whose rows are sharded over a mesh of one dimension, or whole on each rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from xent.torch import composite

Tensor = torch.Tensor


class DealtRows:
    """How the rows of ``x (..., D)``, a DTensor, are dealt: by a leading axis, or all to every rank.

    The last row axis is shorter by ``shift`` in the losses.
    """

    def __init__(self, x: Any, shift: int = 0) -> None:
        self.mesh, self.placement = x.device_mesh, x.placements[0]
        self.shape = tuple(x.shape[:-1])
        if shift:
            self.shape = (*self.shape[:-1], max(0, self.shape[-1] - shift))
        if shift and self.placement == Shard(x.ndim - 2):
            raise NotImplementedError(
                "`shift` must be 0 where the axis that it shifts is sharded: its targets are on other ranks; "
                f"got shift={shift} and {self.placement}"
            )

    @staticmethod
    def are_dealt(x: Any) -> bool:
        """Whether each rank has whole rows of ``x``."""
        if DealtRows.are_whole(x):
            return True
        dealt = isinstance(x, DTensor) and x.device_mesh.ndim == 1 and isinstance(x.placements[0], Shard)
        return dealt and x.placements[0].dim < x.ndim - 1

    @staticmethod
    def are_whole(x: Any) -> bool:
        """Whether each rank has all of ``x``."""
        return isinstance(x, DTensor) and x.device_mesh.ndim == 1 and x.placements[0] == Replicate()

    def mine(self, x: Any) -> Any:
        """This rank's rows of a DTensor, or of a tensor that is the same on every rank."""
        if x is None or not isinstance(x, Tensor) or not x.ndim:
            return x
        whole = (
            x if isinstance(x, DTensor) else DTensor.from_local(x, self.mesh, [Replicate()], run_check=False)
        )
        return whole.redistribute(self.mesh, [self.placement]).to_local()

    def shared(self, x: Any) -> Any:
        """All of a parameter; its gradient is the sum of those that the ranks' rows give."""
        if not isinstance(x, DTensor):
            return x
        sums = [Partial() if isinstance(self.placement, Shard) else Replicate()]
        return x.redistribute(self.mesh, [Replicate()]).to_local(grad_placements=sums)

    def reduced(
        self,
        losses_of: Callable[[str, Any], Tensor],
        counts_of: Callable[[], tuple[Any, Any]],
        reduction: str,
        denominator: Any,
    ) -> Tensor:
        """The loss as a DTensor, by ``losses_of(reduction, denominator)`` this rank's rows.

        ``counts_of`` gives what a mean of these divides by: their total weight and their number.
        """
        if reduction == "none":
            losses = losses_of("none", None)
            return self._dealt(losses, self.placement, self.shape)
        if isinstance(self.placement, Replicate):
            return self._dealt(losses_of(reduction, denominator), Replicate(), ())
        total = self._dealt(losses_of("sum", None), Partial(), ())
        if reduction == "mean":
            if denominator is None or denominator == "rows":
                counted = torch.as_tensor(counts_of()[denominator == "rows"], dtype=torch.float64)
                counted = counted.to(total.device)
                denominator = self._dealt(counted, Partial(), ()).full_tensor()
            total = total * composite.inverse(denominator)
        return cast(Tensor, total.redistribute(self.mesh, [Replicate()]))

    def _dealt(self, x: Tensor, placement: Any, shape: tuple[int, ...]) -> Any:
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(
            x, self.mesh, [placement], run_check=False, shape=torch.Size(shape), stride=stride
        )
