"""The projection of `engine.chunked_projection` with tensors."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from xent.engine.chunked_projection import Projection, require_chunk_bytes, slices
from xent.torch import arguments, devices

Tensor = torch.Tensor

WIDENED_BYTES = 48 << 20  # of a float32 accumulator: smaller products of half precision are slower
FEW_CHUNKS = 4  # their sum is as good in bfloat16: a product of all rows rounds once, this four times
CUDA_WIDENED_BYTES = 512 << 20
CUDA_LEAST_LOGITS = 256 << 20  # thousands of rows of a large vocabulary: products at full speed
CUDA_MOST_ROWS = 8192


class Chunking(NamedTuple):
    """The budget in bytes of a chunk of logits, and the dtype of the logits; None for the defaults."""

    chunk_bytes: int | None = None
    logits_dtype: torch.dtype | None = None

    def checked(self, inputs: Tensor) -> Chunking:
        """Itself, with a dtype; raise for a budget or a dtype that ``inputs`` cannot have."""
        require_chunk_bytes(self.chunk_bytes)
        wide = devices.loss_dtype(inputs)
        if self.logits_dtype is None:
            # The CPU has no product of half precision with a float32 result.
            return self._replace(logits_dtype=wide if inputs.is_cuda else inputs.dtype)
        if self.logits_dtype not in (inputs.dtype, wide):
            choices = " or ".join(str(d) for d in dict.fromkeys((inputs.dtype, wide)))
            raise arguments.ArgumentError(
                f"`logits_dtype` must be None or {choices} for operands of {inputs.dtype}; got "
                f"{self.logits_dtype!r}"
            )
        return self


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None, dtype: Any) -> Tensor:
    """``inputs @ weight.T + bias`` of ``dtype`` in ordinary operations."""
    if dtype is not None:
        inputs, weight = inputs.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    return torch.nn.functional.linear(inputs, weight, bias)


class TensorProjection(Projection):
    """A `Projection` of tensors; float16 is multiplied in float32 on the CPU, which is faster."""

    xp = torch

    def __init__(
        self,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        index: Tensor | None,
        chunking: Chunking,
        **sizes: Any,
    ) -> None:
        self._logits_dtype = chunking.logits_dtype
        if inputs.device.type != "cpu":
            self.least_logits, self.most_rows = CUDA_LEAST_LOGITS, CUDA_MOST_ROWS
        super().__init__(inputs, weight, bias, index, chunking.chunk_bytes, **sizes)

    def product_dtype(self) -> torch.dtype:
        """The dtype of the operands, except float32 for float16 on the CPU."""
        x = self.inputs
        return torch.float32 if x.dtype == torch.float16 and x.device.type == "cpu" else x.dtype

    def sum_dtype(self) -> torch.dtype:
        """float64 for float64, float32 for all others."""
        return devices.loss_dtype(self.inputs)

    def weight_sum_dtype(self) -> torch.dtype:
        """bfloat16 for the sum of few chunks of it, which saves half the memory; else as `sum_dtype`."""
        is_few = self.num_rows <= FEW_CHUNKS * self.chunk_rows
        return torch.bfloat16 if is_few and self.dtype == torch.bfloat16 else self.sum_dtype()

    def logits_dtype(self) -> torch.dtype:
        """The dtype of the logits: at least that of the products."""
        return torch.promote_types(self.dtype, self._logits_dtype or self.dtype)

    def logit_bytes(self) -> int:
        """Bytes of a logit, and of its gradient where that is of another dtype in the products."""
        dtype = self.logits_dtype()
        return dtype.itemsize + (0 if dtype == self.dtype else self.dtype.itemsize)

    def write_logits(self, x: Tensor, out: Tensor) -> None:
        """Write ``x @ weight.T`` to ``out``, by a product with a float32 result if it is wider."""
        if out.dtype == self.dtype:
            super().write_logits(x, out)
        elif out.is_cuda:
            torch.mm(x, self.weight.T, out_dtype=out.dtype, out=out)
        else:
            wide = x.to(out.dtype)
            for k in self._blocks(out.dtype):
                torch.mm(wide, self.weight[k].to(out.dtype).T, out=out[:, k])

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
        size = WIDENED_BYTES if accumulator.device.type == "cpu" else CUDA_WIDENED_BYTES
        for k in slices(accumulator.shape[0], max(1, size // max(1, accumulator[:1].nbytes))):
            product = a[k] @ b
            if first:
                accumulator[k] = product
                continue
            # PyTorch converts the whole operand of a sum; 512 rows of it stay in the cache.
            for rows, piece in zip(accumulator[k].split(512), product.split(512), strict=True):
                rows += piece
