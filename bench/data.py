"""The arrays of one case, and what a provider must make of them before it is timed."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import torch

from bench.cases import Case

Array = np.ndarray[Any, Any]

# Largest error accepted, of the loss relative to itself and of a row of the gradient relative to its
# largest probability. Loose: PyTorch's bfloat16 loss and gradient are off by percents.
TOLERANCE = {"float64": 1e-9, "float32": 1e-3, "bfloat16": 0.1, "float16": 0.1}
SAMPLED_ROWS = 64


class Data:
    """Logits, labels, a direction and a buffer: as tensors in the case's layout, as arrays classes last.

    Arrays and tensors are the same memory, which NumPy allocated: advised for huge pages, as PyTorch's
    is not. The buffer has been written, so no page of it is new.
    """

    def __init__(self, case: Case) -> None:
        random = torch.Generator().manual_seed(0)
        self.case = case
        self.logits_tensor = _new(case).normal_(0.0, 3.0, generator=random)
        self.buffer_tensor = _new(case).zero_()
        self.logits, self.buffer = self.as_array(self.logits_tensor), self.as_array(self.buffer_tensor)
        self.vector = self.logits[:0]
        if "xent_hvp" in case.providers:
            self.vector = self.as_array(_new(case).normal_(0.0, 1.0, generator=random))
        rows, num_classes = self.logits.shape[:-1], self.logits.shape[-1]
        self.labels_tensor = torch.randint(num_classes, rows, generator=random)
        self.labels = self.labels_tensor.numpy()
        self.loss = _mean_loss(self.logits, self.labels)
        self.sample = np.unravel_index(
            np.random.default_rng(0).integers(self.labels.size, size=SAMPLED_ROWS), rows
        )

    def as_array(self, x: Any) -> Array:
        """A result as an array with the classes last, without a copy."""
        if not isinstance(x, torch.Tensor):
            return np.asarray(x)
        half = x.dtype == torch.bfloat16
        array = x.view(torch.uint16).numpy().view(ml_dtypes.bfloat16) if half else x.numpy()
        return np.moveaxis(array, self.case.class_axis, -1)

    def require_right(self, provider: str, loss: Any, result: Any) -> None:
        """Raise ValueError unless the loss, and the result at sampled rows, are those of float64."""
        tolerance = TOLERANCE[self.case.dtype]
        if loss is not None and not abs(float(loss) - self.loss) <= tolerance * self.loss:
            raise ValueError(f"{provider}: the loss must be {self.loss:.6g}; got {float(loss):.6g}")
        if result is None:
            return
        got = self.as_array(result)[self.sample].astype(np.float64)
        want, scale = self._expected(provider)
        error = float((np.abs(got - want) / np.maximum(np.abs(want), scale)).max())
        if not error <= tolerance:
            raise ValueError(f"{provider}: the relative error must be <= {tolerance:g}; got {error:.3g}")

    def _expected(self, provider: str) -> tuple[Array, Array]:
        """(the result at the sampled rows by the textbook, what an error is measured against)."""
        z = self.logits[self.sample].astype(np.float64)
        if provider == "copy":
            return z, np.abs(z).max(-1, keepdims=True)
        p = np.exp(z - z.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        scale = p.max(-1, keepdims=True) / self.labels.size
        if provider == "xent_hvp":
            r = self.vector[self.sample].astype(np.float64)
            return p * (r - (p * r).sum(-1, keepdims=True)) / self.labels.size, scale
        p[np.arange(len(p)), self.labels[self.sample]] -= 1.0
        return p / self.labels.size, scale


def _new(case: Case) -> torch.Tensor:
    half = case.dtype == "bfloat16"
    tensor = torch.from_numpy(np.empty(case.shape, np.uint16 if half else case.dtype))
    return tensor.view(torch.bfloat16) if half else tensor


def _mean_loss(logits: Array, labels: Array) -> float:
    """The mean of −log p_y in float64, a few million logits at a time."""
    parts = min(len(logits), logits.size // 2**22 + 1)
    total = 0.0
    for rows, y in zip(np.array_split(logits, parts), np.array_split(labels, parts), strict=True):
        z = rows.astype(np.float64)
        z -= z.max(-1, keepdims=True)
        label = np.take_along_axis(z, y[..., None], -1)[..., 0]
        total += float((np.log(np.exp(z, out=z).sum(-1)) - label).sum())
    return total / labels.size
