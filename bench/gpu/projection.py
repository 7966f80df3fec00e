"""The projected loss on a GPU: a case of the benchmark, beside its three bare products and its peers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

import xent.torch
from bench.gpu.case import Call, Provider

Tensor = torch.Tensor

TOLERANCE, LOOSE = 1 / 32, 0.2  # of the largest entry: bfloat16 logits, and what is summed of them


class Projected:
    """Rows, width of the hidden state, classes, the share of rows that is ignored: a `Case`."""

    def __init__(
        self, num_rows: int, width: int, num_classes: int, ignored: float, dtype: torch.dtype, device: str
    ) -> None:
        self.name = f"{num_rows}×{width}→{num_classes} {str(dtype).partition('.')[2]}"
        self.name += f", {ignored:.0%} ignored" if ignored else ""
        self.x = torch.randn(num_rows, width, device=device, dtype=dtype).requires_grad_()
        self.w = torch.randn(num_classes, width, device=device, dtype=dtype).div_(width**0.5).requires_grad_()
        self.y = torch.randint(num_classes, (num_rows,), device=device)
        self.y[torch.rand(num_rows, device=device) < ignored] = -100

    def providers(self) -> Iterator[tuple[str, Provider]]:
        """See `Case`. The work is that of three products of all rows, whoever does it."""
        work = 3 * 2 * self.x.shape[0] * self.w.numel()
        yield "three products", Provider(self._products, work, 0.0)
        ours = xent.torch.linear_cross_entropy
        yield "xent", Provider(self._training(ours), work, TOLERANCE)
        yield "xent, rounded logits", Provider(self._training(self._rounded), work, TOLERANCE)
        yield "xent, compiled", Provider(self._training(torch.compile(ours, fullgraph=True)), work, TOLERANCE)
        plain: Callable[..., Tensor] = lambda x, w, y: F.cross_entropy(F.linear(x, w), y)  # noqa: E731
        yield "torch, eager", Provider(self._training(plain), work, LOOSE)
        yield "torch, compiled", Provider(self._training(torch.compile(plain)), work, LOOSE)
        if find_spec("liger_kernel"):
            from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

            def liger(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
                found: Any = LigerFusedLinearCrossEntropyFunction.apply(x, w, y)
                return found[0] if isinstance(found, tuple) else found

            yield "Liger-Kernel", Provider(self._training(liger), work, LOOSE)
        if find_spec("cut_cross_entropy"):
            from cut_cross_entropy import linear_cross_entropy

            yield "cut-cross-entropy", Provider(self._training(linear_cross_entropy), work, LOOSE)

    @staticmethod
    def _rounded(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
        """xent's, with logits in the dtype of the operands; its default on a GPU is float32."""
        return xent.torch.linear_cross_entropy(x, w, y, logits_dtype=x.dtype)

    def _products(self) -> dict[str, Tensor]:
        """The logits of as many rows as fit in 2 GiB at a time, and the products with both operands."""
        x, w = self.x.detach(), self.w.detach()
        rows = max(1, (2 << 30) // (w.shape[0] * w.element_size()))
        for part in x.split(rows):
            logits = part @ w.T
            torch.mm(logits, w)
            torch.mm(logits.T, part)
        return {}

    def _training(self, loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Call:
        """Forward and backward of a mean."""

        def call() -> dict[str, Tensor]:
            value = loss(self.x, self.w, self.y)
            dx, dw = torch.autograd.grad(value, (self.x, self.w))
            return {"loss": value.detach(), "gradient in the inputs": dx, "gradient in the weight": dw}

        return call

    def require_right(self, name: str, results: Mapping[str, Tensor], tolerance: float) -> None:
        """See `Case`: the loss, and the gradients in 64 rows of the inputs and of the weight."""
        if not results:
            return
        expected = self._expected()
        for what, result in results.items():
            rows, e = expected[what]
            a = result.double() if rows is None else result[rows].double()
            error = ((a - e).abs().max() / e.abs().max()).item()
            if not error <= tolerance:
                raise ValueError(
                    f"{name}: relative error of the {what} must be <= {tolerance}; got {error:.3g}"
                )

    def _expected(self) -> dict[str, tuple[Tensor | None, Tensor]]:
        """(which rows, the values) in float64, a few rows of the inputs at a time."""
        w, count = self.w.detach().double(), (self.y >= 0).sum()
        inputs = torch.arange(min(64, len(self.x)), device=w.device)
        classes = torch.arange(min(64, len(w)), device=w.device)
        loss, dx = w.new_zeros(()), []
        dw = w.new_zeros(len(classes), w.shape[1])
        for x, y in zip(self.x.detach().split(64), self.y.split(64), strict=True):
            log_p = torch.log_softmax(x.double() @ w.T, -1)
            kept = (y >= 0)[:, None]
            label = torch.where(y >= 0, y, 0)[:, None]
            loss -= (log_p.gather(1, label) * kept).sum()
            g = (log_p.exp().scatter_add(1, label, -torch.ones_like(label, dtype=w.dtype)) * kept) / count
            dw += g[:, classes].T @ x.double()
            if not dx:
                dx.append(g @ w)
        return {
            "loss": (None, loss / count),
            "gradient in the inputs": (inputs, dx[0]),
            "gradient in the weight": (classes, dw),
        }


# (rows, width, classes, share of rows ignored)
SHAPES = (
    *((n, 4096, 128256, 0.0) for n in (1024, 2048, 4096, 8192, 16384)),
    (8192, 4096, 128256, 0.4),
    (8192, 2304, 256000, 0.0),
)
