"""The loss and derivatives of logits on a GPU: a case of the benchmark, beside a copy and its peers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec

import torch
import torch.nn.functional as F  # noqa: N812

import xent.torch
from bench.gpu.case import Call, Provider
from xent.core.contract import Cotangents, Curvatures
from xent.core.link import Link
from xent.kernels import registry

Tensor = torch.Tensor

# Largest error accepted, relative to what `require_right` says. PyTorch's and Liger's 16-bit losses and
# gradients are off by percents.
TOLERANCE = {torch.bfloat16: 1 / 128, torch.float32: 2e-5}
LOOSE = {torch.bfloat16: 0.25, torch.float32: 1e-3}


class Logits:
    """Loss and derivatives of logits that are there: a `Case`."""

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype, device: str) -> None:
        self.name = f"{shape[0]}×{shape[1]} {str(dtype).partition('.')[2]}"
        self.dtype = dtype
        self.z = torch.randn(shape, device=device, dtype=dtype).mul_(3).requires_grad_()
        self.vector = torch.randn(shape, device=device, dtype=dtype)
        self.y = torch.randint(shape[1], shape[:1], device=device)
        self.out = torch.empty_like(self.z)
        self.rows = torch.randint(shape[0], (64,), device=device)
        self.held = shape[1] <= 32768

    def providers(self) -> Iterator[tuple[str, Provider]]:
        """See `Case`."""
        size = self.z.numel() * self.z.element_size()
        once, fused = 2 * size, (2 if self.held else 3) * size
        exact, loose = TOLERANCE[self.dtype], LOOSE[self.dtype]
        yield "copy", Provider(lambda: {"copy": self.out.copy_(self.z.detach())}, once, 0.0)
        yield "xent", Provider(self._training(xent.torch.cross_entropy), fused, exact)
        compiled = torch.compile(xent.torch.cross_entropy, fullgraph=True)
        yield "xent, compiled", Provider(self._training(compiled), fused, exact)
        for name, (call, size_of_call) in self._kernels(size, fused).items():
            yield name, Provider(call, size_of_call, exact)
        yield "torch, eager", Provider(self._training(F.cross_entropy), once, loose)
        yield "torch, compiled", Provider(self._training(torch.compile(F.cross_entropy)), once, loose)
        if find_spec("liger_kernel"):
            from liger_kernel.transformers.functional import liger_cross_entropy

            # It writes the gradient over the logits: a copy of them is part of a fair step.
            def liger(z: Tensor, y: Tensor) -> Tensor:
                loss: Tensor = liger_cross_entropy(z.clone(), y)
                return loss

            yield "Liger-Kernel", Provider(self._training(liger), once, loose)

    def _training(self, loss: Callable[[Tensor, Tensor], Tensor]) -> Call:
        """Forward and backward of a mean."""

        def call() -> dict[str, Tensor]:
            value = loss(self.z, self.y)
            return {"loss": value.detach(), "gradient": torch.autograd.grad(value, self.z)[0]}

        return call

    def _kernels(self, size: int, fused: int) -> dict[str, tuple[Call, int]]:
        """The four calls of the backend, into a buffer; the gradient's statistics are computed before."""
        kernels = registry.get("triton")
        arrays = (self.z.detach(), self.y, None, Link())
        cotangents = Cotangents(log_prob=-1.0 / len(self.y))
        known = kernels.row_stats(*arrays, ("lse", "log_prob"))

        def both() -> dict[str, Tensor]:
            stats, grad = kernels.row_stats_and_grad(*arrays, cotangents, ("lse", "log_prob"), self.out)
            return {"lse": stats.lse, "log_prob": stats.log_prob, "gradient": grad}

        return {
            "row_stats": (lambda: kernels.row_stats(*arrays, ("lse", "log_prob", "entropy"))._asdict(), size),
            "row_stats_and_grad": (both, fused),
            "row_grad": (
                lambda: {"gradient": kernels.row_grad(*arrays, known, cotangents, self.out)},
                2 * size,
            ),
            "row_hvp": (
                lambda: {
                    "product": kernels.row_hvp(*arrays, cotangents, Curvatures(), self.vector, self.out)
                },
                3 * size if self.held else 5 * size,
            ),
        }

    def require_right(self, name: str, results: Mapping[str, Tensor], tolerance: float) -> None:
        """See `Case`."""
        rows, count = self.rows, len(self.y)
        z, r, y = self.z.detach()[rows].double(), self.vector[rows].double(), self.y[rows]
        log_p = torch.log_softmax(z, -1)
        p, label = log_p.exp(), y[:, None]
        one_hot = F.one_hot(y, z.shape[1])
        rho, size = ((p * x).sum(-1, keepdim=True) for x in (r, r.abs()))
        numbers = {
            "loss": self._mean_loss(),
            "lse": torch.logsumexp(z, -1),
            "log_prob": log_p.gather(1, label)[:, 0],
            "entropy": -(p * log_p).sum(-1),
        }
        # Each with what its error is measured by: an entry by the sum of its terms' absolute values, as in
        # tests/tables/tolerance.py, for a gradient or a product may cancel to any smallness.
        expected = {name: (e, e.abs().clamp_min(1)) for name, e in numbers.items()} | {
            "copy": (z, z.abs()),
            "gradient": ((p - one_hot) / count, (p + one_hot) / count),
            "product": (p * (r - rho) / count, p * (r.abs() + size) / count),
        }
        for what, result in results.items():
            if result is None:
                continue
            e, magnitude = expected[what]
            a = result.double() if what == "loss" else result[rows].double()
            difference = (a - e).abs()
            error = torch.where(difference == 0, 0.0, difference / magnitude).max().item()
            if not error <= tolerance:
                raise ValueError(
                    f"{name}: relative error of the {what} must be <= {tolerance}; got {error:.3g}"
                )

    def _mean_loss(self) -> Tensor:
        """In float64, a few rows at a time."""
        pairs = zip(self.z.detach().split(256), self.y.split(256), strict=True)
        return torch.stack([F.cross_entropy(z.double(), y, reduction="sum") for z, y in pairs]).sum() / len(
            self.y
        )
