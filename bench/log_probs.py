"""Errors of the log-probabilities of tokens, from bfloat16 operands, and of their gradients."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

import xent
from bench import machine
from xent import torch as xt

F = torch.nn.functional
Tensor = torch.Tensor
LogProbs = Callable[[Tensor, Tensor, Tensor], Tensor]

NUM_ROWS, WIDTH, NUM_CLASSES, SCALE, ROUNDS = 2048, 768, 32_000, 4.0, 5
METHOD = f"""\
* {NUM_ROWS} rows of width {WIDTH}, {NUM_CLASSES} classes; operands of bfloat16 whose logits have a standard
  deviation of {SCALE:g}. A label is drawn from the softmax of its row, as a policy draws a token.
* Errors are in nats, against float64 of the same operands; biased: the mean error.
* Gradients of Σ c·log p with c of both signs, in the operands' dtype; the error is that of all entries, as a
  share of their root mean square. bfloat16 itself rounds by 0.0017.
* Seconds of log-probabilities and gradients: the median of {ROUNDS} rounds, in a round every provider once.
"""


def eager(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    """A linear layer and a log-softmax in bfloat16."""
    return F.linear(x, w).log_softmax(-1).gather(-1, y[:, None])[:, 0]


def eager_loss(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    """Logits rounded to bfloat16, the loss in float32: what most trainers do."""
    return -F.cross_entropy(F.linear(x, w).float(), y, reduction="none")


def fused(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    """PyTorch's projected loss."""
    return -F.linear_cross_entropy(x, w, y, reduction="none")


def ours(x: Tensor, w: Tensor, y: Tensor, **options: Any) -> Tensor:
    """xent's row statistic."""
    found = xt.linear_row_statistics(x, w, y, want=("log_prob",), **options).log_prob
    assert found is not None
    return found


PROVIDERS: dict[str, LogProbs] = {
    "bfloat16 throughout": eager,
    "bfloat16 logits, float32 softmax": eager_loss,
    "F.linear_cross_entropy": fused,
    "xent, bfloat16 logits": ours,
    "xent, logits_dtype=torch.float32": lambda x, w, y: ours(x, w, y, logits_dtype=torch.float32),
}


def measure() -> dict[str, dict[str, float]]:
    """Errors and times of every provider."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(NUM_ROWS, WIDTH, generator=generator).bfloat16().requires_grad_()
    w = (
        (SCALE / WIDTH**0.5 * torch.randn(NUM_CLASSES, WIDTH, generator=generator))
        .bfloat16()
        .requires_grad_()
    )
    wide = [t.detach().double().requires_grad_() for t in (x, w)]
    exact = F.linear(*wide).log_softmax(-1)
    y = torch.multinomial(exact.detach().exp(), 1, generator=generator)[:, 0]
    upstream = torch.randn(NUM_ROWS, generator=generator)
    exact = exact.gather(-1, y[:, None])[:, 0]
    slopes = torch.autograd.grad(exact @ upstream.double(), wide)
    exact = exact.detach()
    found: dict[str, dict[str, Any]] = {name: {"samples_s": []} for name in PROVIDERS}
    for _ in range(ROUNDS):
        for name, log_probs in PROVIDERS.items():
            start = perf_counter()
            values = log_probs(x, w, y)
            gradients = torch.autograd.grad(values.float() @ upstream, (x, w))
            found[name]["samples_s"].append(perf_counter() - start)
            error = values.detach().double() - exact
            found[name] |= {
                "largest": error.abs().max().item(),
                "rms": error.pow(2).mean().sqrt().item(),
                "bias": error.mean().item(),
                "gradients": max(relative(g, s) for g, s in zip(gradients, slopes, strict=True)),
            }
    for case in found.values():
        case["median_s"] = median(case["samples_s"])
    return found


def relative(found: Tensor, exact: Tensor) -> float:
    """The root mean square of the error, as a share of that of the exact values."""
    return ((found.double() - exact).pow(2).mean().sqrt() / exact.pow(2).mean().sqrt()).item()


def table(report: dict[str, Any]) -> str:
    """One row a provider."""
    cells = [["log-probabilities by", "largest error", "rms", "bias", "gradients", "seconds"]]
    for name, case in report["cases"].items():
        errors = [f"{case[key]:.1e}" for key in ("largest", "rms", "bias", "gradients")]
        cells.append([name, *errors, f"{case['median_s']:.2f}"])
    title = "# Log-probabilities of tokens from bfloat16 operands"
    return "\n\n".join([title, "\n".join(machine.rows(cells)), machine.facts(report), report["method"]])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.log_probs", description=__doc__)
    parser.add_argument("--out", type=Path, default=machine.RESULTS, metavar="DIR")
    options = parser.parse_args(arguments)
    report = machine.describe((np, torch, xent), torch.get_num_threads(), METHOD)
    report["cases"] = measure()
    text = json.dumps(report, indent=1) + "\n"
    machine.write(options.out, {"log_probs.json": text, "log_probs.md": table(report)})


if __name__ == "__main__":
    main()
