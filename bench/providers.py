"""Who is timed, on which arrays, and what must come out before anything is timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

import xent
import xent.torch
from bench.cases import Case

Array = np.ndarray[Any, Any]
Call = Callable[[], tuple[Any, Any]]  # gives (loss or None, array of the logits' shape or None)

# Largest error accepted, of the loss relative to itself and of a row of the gradient relative to its
# largest probability. Loose: PyTorch's bfloat16 loss and gradient are off by percents.
TOLERANCE = {"float64": 1e-9, "float32": 1e-3, "bfloat16": 0.1, "float16": 0.1}


class Data:
    """Tensors in the case's layout, arrays with the classes last: the same memory, which NumPy allocated.

    So it is advised for huge pages, as PyTorch's is not; and written, so that no page of it is new.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        random = torch.Generator().manual_seed(0)
        tensors = [self.new().normal_(0.0, std, generator=random) for std in (3.0, 1.0)]
        self.logits_tensor, self.out_tensor = tensors[0], self.new().zero_()
        self.logits, self.vector = map(self.as_array, tensors)
        self.out = self.as_array(self.out_tensor)
        self.labels_tensor = torch.randint(self.logits.shape[-1], self.logits.shape[:-1], generator=random)
        self.labels = self.labels_tensor.numpy()

    def new(self) -> torch.Tensor:
        if self.case.dtype == "bfloat16":
            return torch.from_numpy(np.empty(self.case.shape, np.uint16)).view(torch.bfloat16)
        return torch.from_numpy(np.empty(self.case.shape, self.case.dtype))

    def as_array(self, result: Any) -> Array:
        """With the classes last, without a copy."""
        if isinstance(result, np.ndarray):
            return result
        half = self.case.dtype == "bfloat16"
        array = result.view(torch.uint16).numpy().view(ml_dtypes.bfloat16) if half else result.numpy()
        return np.moveaxis(array, self.case.class_axis, -1)

    def mean_loss(self) -> float:
        """The mean of −log p_y in float64."""
        z = self.logits.astype(np.float64)
        z -= z.max(-1, keepdims=True)
        label = np.take_along_axis(z, self.labels[..., None], -1)[..., 0]
        return float((np.log(np.exp(z, out=z).sum(-1)) - label).mean())

    def require_right(self, provider: str, call: Call, mean_loss: float) -> None:
        """ValueError unless the loss, and the result at 64 rows, agree with the textbook in float64."""
        self.out.fill(np.nan)
        loss, result = call()
        count, tolerance = self.labels.size, TOLERANCE[self.case.dtype]
        if loss is not None and not abs(float(loss) - mean_loss) <= tolerance * mean_loss:
            raise ValueError(f"{provider}: the loss must be {mean_loss:.6g}; got {float(loss):.6g}")
        if result is None:
            return
        rows = np.unravel_index(np.random.default_rng(0).integers(count, size=64), self.labels.shape)
        z, r = (x[rows].astype(np.float64) for x in (self.logits, self.vector))
        p = np.exp(z - z.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        scale = p.max(-1, keepdims=True) / count
        if provider == "xent_hvp":
            want = p * (r - (p * r).sum(-1, keepdims=True)) / count
        else:
            p[np.arange(len(p)), self.labels[rows]] -= 1.0
            want = z if provider == "copy" else p / count
        error = np.abs(self.as_array(result)[rows] - want) / np.maximum(np.abs(want), scale)
        if not error.max() <= tolerance:
            raise ValueError(f"{provider}: relative error must be <= {tolerance}; got {error.max():.3g}")


def textbook(d: Data) -> Call:
    """softmax − one_hot as in a textbook; halves, which NumPy cannot sum, by way of float32."""
    label, dtype = d.labels[..., None], np.result_type(d.logits.dtype, np.float32)

    def call() -> tuple[Any, Array]:
        z = d.logits.astype(dtype, copy=False)
        e = np.exp(z - z.max(-1, keepdims=True))
        p = e / e.sum(-1, keepdims=True)
        p_label = np.take_along_axis(p, label, -1)
        np.put_along_axis(p, label, p_label - 1, -1)
        return -np.log(p_label).mean(), (p / label.size).astype(d.logits.dtype, copy=False)

    return call


def _autograd(d: Data, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Call:
    def call() -> tuple[Any, torch.Tensor]:
        value = loss(z, d.labels_tensor)
        return value.detach(), torch.autograd.grad(value, z)[0]

    z = d.logits_tensor.detach().requires_grad_()
    return call


# Name → (how often it must at least read or write an array of the logits' size, what makes its call).
PROVIDERS: dict[str, tuple[int, Callable[[Data], Call]]] = {
    "copy": (2, lambda d: lambda: (None, d.out_tensor.copy_(d.logits_tensor))),
    "xent_into_buffer": (2, lambda d: lambda: xent.cross_entropy_with_grad(d.logits, d.labels, out=d.out)),
    "xent_fresh": (2, lambda d: lambda: xent.cross_entropy_with_grad(d.logits, d.labels)),
    "xent_loss": (1, lambda d: lambda: (xent.cross_entropy(d.logits, d.labels), None)),
    "xent_hvp": (
        3,
        lambda d: lambda: (None, xent.cross_entropy_hvp(d.logits, d.labels, d.vector, out=d.out)),
    ),
    "xent_torch": (2, lambda d: _autograd(d, xent.torch.cross_entropy)),
    "xent_torch_compile": (
        2,
        lambda d: _autograd(d, torch.compile(xent.torch.cross_entropy, dynamic=False, fullgraph=True)),
    ),
    "torch_eager": (2, lambda d: _autograd(d, F.cross_entropy)),
    "torch_compile": (2, lambda d: _autograd(d, torch.compile(F.cross_entropy, dynamic=False))),
    "numpy_textbook": (2, textbook),
}
