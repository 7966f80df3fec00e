"""Times the binary loss with its gradient beside PyTorch's, and writes binary.json and binary.md."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

import xent
import xent.torch
from bench import machine

Tensor = torch.Tensor

CASES = {  # shape, dtype, options (of `pos_weight` the length), calls a sample
    "4096x4096 float32": ((4096, 4096), torch.float32, {}, 1),
    "4096x4096 float32, pos_weight of each class": ((4096, 4096), torch.float32, {"pos_weight": 4096}, 1),
    "4096x4096 float64": ((4096, 4096), torch.float64, {}, 1),
    "4096x4096 bfloat16": ((4096, 4096), torch.bfloat16, {}, 1),
    "4096x4096 float32, focal": ((4096, 4096), torch.float32, {"focal_gamma": 2.0}, 1),
    "64x1 float32": ((64, 1), torch.float32, {}, 500),
}
METHOD = """\
* Forward and backward of a mean with a new gradient; `xent arrays`: loss and gradient into a buffer, by
  `binary_cross_entropy_with_grad`, with the targets checked as in all calls. A copy is PyTorch's `copy_`.
* PyTorch has no focal loss; its operations are those of torchvision's `sigmoid_focal_loss`.
* All providers run once a round, in turn; medians over rounds, ratios within a round. Each ran twice before,
  and its gradient and loss were compared with float64. Compiling is not timed.
"""
RATIOS = {"eager / xent": ("torch eager", "xent"), "compiled / xent": ("torch compiled", "xent")}
ROUNDS = 9
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.binary", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="NAME")
    parser.add_argument("--rounds", type=int, choices=range(1, 100), default=ROUNDS, metavar="N")
    parser.add_argument("--out", type=Path, default=machine.RESULTS, metavar="DIR")
    options = parser.parse_args(arguments)
    report = machine.describe((np, torch, xent), torch.get_num_threads(), METHOD)
    for name in options.cases:
        report["cases"][name] = measure(*CASES[name], options.rounds)
    text = table(report)
    print(text)
    machine.write(options.out, {"binary.json": json.dumps(report, indent=1) + "\n", "binary.md": text})


def measure(
    shape: tuple[int, ...], dtype: torch.dtype, options: dict[str, float], calls: int, rounds: int
) -> dict[str, Any]:
    """Seconds of each provider, by rounds."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    z = torch.randn(shape, dtype=dtype).mul_(2).requires_grad_()
    labels = torch.rand(shape) < 0.3
    q = labels if "focal_gamma" in options else labels.to(dtype)
    given: dict[str, Any] = dict(options)
    if "pos_weight" in given:
        given["pos_weight"] = torch.rand(given["pos_weight"], dtype=dtype)
    providers = {
        name: _training(loss, z, q, given)
        for name, loss in {
            "xent": xent.torch.binary_cross_entropy_with_logits,
            "xent compiled": torch.compile(xent.torch.binary_cross_entropy_with_logits, fullgraph=True),
            "torch eager": plain,
            "torch compiled": torch.compile(plain),
        }.items()
    }
    for name, call in providers.items():
        _require_right(name, call(), z, q, given)
        call()
    buffer = torch.empty_like(z, requires_grad=False)
    providers["copy"] = lambda: buffer.copy_(z.detach())
    if dtype != torch.bfloat16 and "pos_weight" not in given:
        arrays = z.detach().numpy(), q.numpy()
        out = np.zeros_like(arrays[0])
        providers["xent arrays"] = lambda: xent.binary_cross_entropy_with_grad(*arrays, out=out, **given)
    for call in providers.values():
        call()
    samples: dict[str, list[float]] = {name: [] for name in providers}
    for _ in range(rounds):
        for name, call in providers.items():
            start = time.perf_counter()
            for _ in range(calls):
                call()
            samples[name].append((time.perf_counter() - start) / calls)
    found: dict[str, Any] = {"samples_s": samples}
    return found | {"ratios": {key: machine.ratio(found, *pair) for key, pair in RATIOS.items()}}


def plain(z: Tensor, q: Tensor, focal_gamma: float = 0.0, **factors: Tensor) -> Tensor:
    """The loss in PyTorch's own operations."""
    if not focal_gamma:
        return F.binary_cross_entropy_with_logits(z, q, **factors)
    target = q.to(z.dtype)
    p = torch.sigmoid(z)
    loss = F.binary_cross_entropy_with_logits(z, target, reduction="none", **factors)
    p_label = p * target + (1 - p) * (1 - target)
    return (loss * (1 - p_label) ** focal_gamma).mean()


def _training(loss: Callable[..., Tensor], z: Tensor, q: Tensor, options: dict[str, Any]) -> Any:
    def call() -> tuple[Tensor, Tensor]:
        value = loss(z, q, **options)
        return value, torch.autograd.grad(value, z)[0]

    return call


def _require_right(name: str, found: Any, z: Tensor, q: Tensor, options: dict[str, Any]) -> None:
    exact = z.detach().double().requires_grad_()
    wide = {key: x.double() if isinstance(x, Tensor) else x for key, x in options.items()}
    loss = plain(exact, q.double(), **wide)
    (gradient,) = torch.autograd.grad(loss, exact)
    tolerance = TOLERANCE[z.dtype]
    for what, a, e in (("loss", found[0], loss), ("gradient", found[1], gradient)):
        error = ((a.double() - e).abs().max() / e.abs().max()).item()
        if not error <= tolerance:
            raise ValueError(f"{name}: relative error of the {what} must be <= {tolerance}; got {error:.3g}")


def table(report: dict[str, Any]) -> str:
    """A row a case, milliseconds; then what the report's head says."""
    names = ["copy", "xent arrays", "xent", "xent compiled", "torch eager", "torch compiled"]
    cells = [["case, ms", *names, *RATIOS]]
    for case, found in report["cases"].items():
        middle = {name: f"{median(x) * 1e3:.3g}" for name, x in found["samples_s"].items()}
        cells.append(
            [
                case,
                *(middle.get(name, "") for name in names),
                *(f"{found['ratios'][key]:.2f} ×" for key in RATIOS),
            ]
        )
    return "\n".join(
        [
            "# The binary loss and its gradient",
            "",
            *machine.rows(cells),
            "",
            machine.facts(report),
            "",
            METHOD,
        ]
    )


if __name__ == "__main__":
    main()
