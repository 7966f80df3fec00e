"""The projection of `engine.chunked_projection` with tensors."""

from __future__ import annotations

import torch

from xent.engine.chunked_projection import CHUNK_BYTES, Projection, slices
from xent.torch import devices

Tensor = torch.Tensor

WIDENED_BYTES = 48 << 20  # of a float32 accumulator: smaller products of half precision are slower
CUDA_CHUNK_BYTES = 512 << 20  # thousands of rows of a large vocabulary: products at full speed


def default_chunk_bytes(device: torch.device) -> int:
    """The budget of a chunk of logits where none is given."""
    return CHUNK_BYTES if device.type == "cpu" else CUDA_CHUNK_BYTES


class TensorProjection(Projection):
    """A `Projection` of tensors; float16 is multiplied in float32 on the CPU, which is faster."""

    xp = torch

    def product_dtype(self) -> torch.dtype:
        """The dtype of the operands, except float32 for float16 on the CPU."""
        x = self.inputs
        return torch.float32 if x.dtype == torch.float16 and x.device.type == "cpu" else x.dtype

    def sum_dtype(self) -> torch.dtype:
        """float64 for float64, float32 for all others."""
        return devices.loss_dtype(self.inputs)

    def chunk_bytes(self) -> int:
        """The default budget of a chunk of logits."""
        return default_chunk_bytes(self.inputs.device)

    def cast(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """``x`` as ``dtype``; ``x`` itself if it has it."""
        return x.to(dtype)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor; on the CPU on huge pages."""
        return devices.empty(shape, dtype, self.inputs.device)

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A new tensor of zeros."""
        return self.empty(shape, dtype).zero_()

    def add_product(self, accumulator: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
        """Add ``a @ b``, or assign it if ``first``; in blocks if the accumulator has a wider dtype."""
        if accumulator.dtype == b.dtype:
            torch.addmm(accumulator, a, b, beta=0.0 if first else 1.0, out=accumulator)
            return
        size = WIDENED_BYTES if accumulator.device.type == "cpu" else CUDA_CHUNK_BYTES
        for k in slices(accumulator.shape[0], max(1, size // max(1, accumulator[:1].nbytes))):
            product = a[k] @ b
            if first:
                accumulator[k] = product
                continue
            # PyTorch converts the whole operand of a sum; 512 rows of it stay in the cache.
            for rows, piece in zip(accumulator[k].split(512), product.split(512), strict=True):
                rows += piece
