"""The products of a projection with tensors, on the device they are on."""

from __future__ import annotations

import torch

from xent.engine.chunked_projection import CHUNK_BYTES, Projection, slices
from xent.torch import devices

Tensor = torch.Tensor

WIDENED_BYTES = 48 << 20  # of a float32 sum: smaller products of half precision are slower
CUDA_CHUNK_BYTES = 512 << 20  # thousands of rows of a large vocabulary: products at their full rate


def default_chunk_bytes(device: torch.device) -> int:
    """The budget of a chunk of logits where none is given."""
    return CHUNK_BYTES if device.type == "cpu" else CUDA_CHUNK_BYTES


class TensorProjection(Projection):
    """See `Projection`; float16 on the CPU, which has no fast products, is multiplied in float32."""

    xp = torch

    def product_dtype(self) -> torch.dtype:
        """The dtype of the operands where the device multiplies it well."""
        x = self.inputs
        return torch.float32 if x.dtype == torch.float16 and x.device.type == "cpu" else x.dtype

    def sum_dtype(self) -> torch.dtype:
        """float64 for float64, float32 for all others."""
        return devices.loss_dtype(self.inputs)

    def chunk_bytes(self) -> int:
        """The default budget of a chunk of logits."""
        return default_chunk_bytes(self.inputs.device)

    def cast(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """``x`` itself if it has the dtype."""
        return x.to(dtype)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """New memory, on huge pages where it is the machine's."""
        return devices.empty(shape, dtype, self.inputs.device)

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """New memory, zero."""
        return self.empty(shape, dtype).zero_()

    def add_product(self, total: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
        """``total += a @ b``, or ``= a @ b``; where the sum is wider, a block at a time."""
        if total.dtype == b.dtype:
            torch.addmm(total, a, b, beta=0.0 if first else 1.0, out=total)
            return
        size = WIDENED_BYTES if total.device.type == "cpu" else CUDA_CHUNK_BYTES
        for k in slices(total.shape[0], max(1, size // max(1, total[:1].nbytes))):
            product = a[k] @ b
            if first:
                total[k] = product
                continue
            # PyTorch widens what it adds whole; a piece of it stays in the cache.
            for sum, piece in zip(total[k].split(512), product.split(512), strict=True):
                sum += piece
