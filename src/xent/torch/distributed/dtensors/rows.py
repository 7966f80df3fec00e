"""The layout of rows of DTensors that are sharded over a mesh of one dimension, or whole on each rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from xent.torch import arguments
from xent.torch.arguments import Call

Tensor = torch.Tensor


class DistributedRows:
    """The layout of the rows of a DTensor ``x (..., D)``: sharded on a row axis, or replicated.

    In the losses the last row axis is shorter by ``shift``.
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
    def is_row_layout(x: Any) -> bool:
        """Whether each rank has whole rows of the DTensor ``x``, on a mesh of one dimension."""
        placement = x.placements[0]
        return placement == Replicate() or (isinstance(placement, Shard) and placement.dim < x.ndim - 1)

    def local_rows(self, x: Any) -> Any:
        """This rank's rows of a DTensor, or of a whole tensor, which gets its whole gradient."""
        if x is None:
            return None
        return self._whole(x).redistribute(self.mesh, [self.placement]).to_local()

    def replicated(self, x: Any) -> Any:
        """The whole of a parameter; its gradient is the sum over the ranks."""
        if x is None:
            return None
        placements = [Partial() if isinstance(self.placement, Shard) else Replicate()]
        return self._whole(x).redistribute(self.mesh, [Replicate()]).to_local(grad_placements=placements)

    def local_call(self, call: Call) -> Call:
        """The call for this rank's rows; if rows are split, a mean becomes a sum."""
        local = call._replace(
            targets=self.local_rows(call.targets),
            class_weight=self.replicated(call.class_weight),
            sample_weight=self.local_rows(call.sample_weight),
            temperature=self.local_rows(call.temperature),
            validate=False,
        )
        return local._replace(reduction="sum", denominator=None) if self.is_all_sum(call.reduction) else local

    def reduce_loss(
        self, loss: Tensor, reduction: str, denominator: Any, totals: Callable[[], tuple[Any, Any]]
    ) -> Tensor:
        """The loss as a DTensor, from the ``loss`` of this rank's rows; the denominator is a plain one.

        ``totals`` gives the two divisors of a mean over this rank's rows: their weight and their number.
        """
        if not self.is_all_sum(reduction):
            return self.own_dtensor(loss, reduction)
        return self.replicated_sum(loss, self.scale(reduction, denominator, totals, loss.device))

    def scale(
        self, reduction: str, denominator: Any, totals: Callable[[], tuple[Any, Any]], device: torch.device
    ) -> Any:
        """1/D of the rows of all ranks, from the ``totals`` of this rank's."""
        if reduction != "mean":
            return 1.0
        divisor = denominator
        if divisor is None or isinstance(divisor, str):
            counted = torch.as_tensor(totals()[divisor == "rows"], dtype=torch.float64)
            divisor = self._all_sum(counted.to(device))
        return arguments.inverse(divisor)

    def by_row(self, column: Tensor) -> Any:
        """A column of this rank's rows as a DTensor."""
        return self._as_dtensor(column, self.placement, self.shape)

    def is_all_sum(self, reduction: str) -> bool:
        """Whether the loss is a sum over the ranks."""
        return isinstance(self.placement, Shard) and reduction != "none"

    def replicated_sum(self, x: Tensor, scale: Any) -> Tensor:
        """The sum of ``x`` over the ranks times ``scale``, as a DTensor."""
        return cast(Tensor, self._as_dtensor((self._all_sum(x) * scale).to(x.dtype), Replicate(), x.shape))

    def own_dtensor(self, x: Tensor, reduction: str) -> Tensor:
        """A DTensor of the rows of each rank for reduction "none"; else of a value that all ranks have."""
        shape = self.shape if reduction == "none" else tuple(x.shape)
        return cast(Tensor, self._as_dtensor(x, self.placement, shape))

    def _all_sum(self, x: Tensor) -> Tensor:
        """The sum of ``x`` over the ranks, on every rank."""
        return cast(Tensor, self._as_dtensor(x, Partial(), tuple(x.shape)).full_tensor())

    def _whole(self, x: Any) -> Any:
        if isinstance(x, DTensor):
            return x
        return DTensor.from_local(x, self.mesh, [Replicate()], run_check=False)

    def _as_dtensor(self, x: Tensor, placement: Any, shape: tuple[int, ...]) -> Any:
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(
            x, self.mesh, [placement], run_check=False, shape=torch.Size(shape), stride=stride
        )
