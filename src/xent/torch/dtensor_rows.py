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
        """Whether each rank has whole rows of ``x``, a DTensor on a mesh of one dimension."""
        placement = x.placements[0]
        return placement == Replicate() or (isinstance(placement, Shard) and placement.dim < x.ndim - 1)

    def mine(self, x: Any) -> Any:
        """This rank's rows of a DTensor, or of a whole tensor; its gradient is whole then."""
        if x is None:
            return None
        return self._whole(x).redistribute(self.mesh, [self.placement]).to_local()

    def shared(self, x: Any) -> Any:
        """All of a parameter; its gradient is the sum of those that the ranks' rows give."""
        if x is None:
            return None
        sums = [Partial() if isinstance(self.placement, Shard) else Replicate()]
        return self._whole(x).redistribute(self.mesh, [Replicate()]).to_local(grad_placements=sums)

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
        if isinstance(self.placement, Replicate) or reduction == "none":
            losses = losses_of(reduction, denominator)
            shape = self.shape if reduction == "none" else ()
            return self._dealt(losses, self.placement, shape)
        total = self._summed(losses_of("sum", None))
        if reduction == "mean":
            if denominator is None or denominator == "rows":
                counted = torch.as_tensor(counts_of()[denominator == "rows"], dtype=torch.float64)
                denominator = self._summed(counted.to(total.device))
            total = total * composite.inverse(denominator)
        return self._dealt(total, Replicate(), ())

    def _summed(self, x: Tensor) -> Tensor:
        """The sum of the ranks' numbers, on every rank."""
        return cast(Tensor, self._dealt(x, Partial(), ()).full_tensor())

    def _whole(self, x: Any) -> Any:
        if isinstance(x, DTensor):
            return x
        return DTensor.from_local(x, self.mesh, [Replicate()], run_check=False)

    def _dealt(self, x: Tensor, placement: Any, shape: tuple[int, ...]) -> Any:
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(
            x, self.mesh, [placement], run_check=False, shape=torch.Size(shape), stride=stride
        )
