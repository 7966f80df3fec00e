"""Losses of DTensors whose rows are sharded over a mesh of one dimension, or whole on each rank."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from xent.torch import arguments
from xent.torch.arguments import Call
from xent.torch.targets import weight_and_rows

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

    def local(self, call: Call) -> Call:
        """The arguments of this rank's rows; a mean over rows that are split is a sum of each rank's."""
        local = call._replace(
            targets=self.mine(call.targets),
            class_weight=self.shared(call.class_weight),
            sample_weight=self.mine(call.sample_weight),
            validate=False,
        )
        return local._replace(reduction="sum", denominator=None) if self._sums(call) else local

    def reduced(self, loss: Tensor, call: Call, local: Call, num_classes: int) -> Tensor:
        """The loss as a DTensor, of ``loss``, that of the ``local`` arguments; the denominator is whole."""
        if not self._sums(call):
            return self._dealt(loss, self.placement, self.shape if call.reduction == "none" else ())
        total = self._summed(loss)
        if call.reduction == "mean":
            divisor = call.denominator
            if divisor is None or isinstance(divisor, str):
                totals = weight_and_rows(local, num_classes)
                counted = torch.as_tensor(totals[divisor == "rows"], dtype=torch.float64)
                divisor = self._summed(counted.to(total.device))
            total = total * arguments.inverse(divisor)
        return self._dealt(total, Replicate(), ())

    def _sums(self, call: Call) -> bool:
        """Whether the ranks' losses are summed."""
        return isinstance(self.placement, Shard) and call.reduction != "none"

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
