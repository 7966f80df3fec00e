"""The projected loss beside its three bare products and its peers: time and memory, forward and backward."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

import xent
from bench import machine
from xent import torch as xt

F = torch.nn.functional
Tensor = torch.Tensor
Call = Callable[[], Any]

ROUNDS, SLOW = 3, 20.0  # a call of more than SLOW seconds is timed in the first round only
METHOD = """\
* Seconds: the median over rounds; in a round every provider runs once, in turn. Ratios: the median over
  rounds of the ratio to the bare products within the round.
* Bare: the three products of all rows at once, into memory that is there: the logits, the gradient in the
  inputs and that in the weight, in the dtype of the operands, and nothing else.
* All others make fresh gradients in the inputs and in the weight (frozen: in the inputs alone). 40% ignored:
  the labels of two rows in five are ignore_index. Warm: each ran once before; compiling is not timed.
* Memory: the peak of a process that runs the provider once, less what it held with its operands and less the
  gradients' own bytes. The compiled one ran once before, since compiling takes more. (The gradient in a
  bfloat16 weight is summed beyond bfloat16: that counts here.)
"""


class Case(NamedTuple):
    """Rows, width of the hidden state, classes."""

    num_rows: int
    width: int
    num_classes: int
    dtype: str


CASES = {
    f"{n}x{d}->{k} {dtype}": Case(n, d, k, dtype)
    for n, d, k, dtype in (
        (2048, 512, 128_000, "float32"),
        (4096, 1024, 32_000, "float32"),
        (2048, 2048, 50_304, "float32"),
        (2048, 768, 32_000, "bfloat16"),
    )
}


class Data:
    """The operands of a case: a hidden state, a weight that makes logits of about unit size, labels."""

    def __init__(self, case: Case) -> None:
        generator = torch.Generator().manual_seed(0)
        dtype = getattr(torch, case.dtype)
        x = torch.randn(case.num_rows, case.width, generator=generator)
        w = torch.randn(case.num_classes, case.width, generator=generator) / case.width**0.5
        self.x = x.to(dtype).requires_grad_()
        self.w = w.to(dtype).requires_grad_()
        self.y = torch.randint(0, case.num_classes, (case.num_rows,), generator=generator)

    def gradients(self, loss: Callable[..., Tensor]) -> tuple[float, Tensor, Tensor]:
        """Loss, and its gradients in both operands."""
        value = loss(self.x, self.w, self.y)
        dx, dw = torch.autograd.grad(value, (self.x, self.w))
        return value.item(), dx, dw


def bare(data: Data) -> Call:
    """Only the products."""
    x, w = data.x.detach(), data.w.detach()
    logits, dx, dw = torch.empty(len(x), len(w), dtype=w.dtype), torch.empty_like(x), torch.empty_like(w)

    def call() -> None:
        torch.mm(x, w.T, out=logits)
        torch.mm(logits, w, out=dx)
        torch.mm(logits.T, x, out=dw)

    return call


def ours(data: Data) -> Call:
    """xent's."""
    return lambda: data.gradients(xt.linear_cross_entropy)


def frozen(data: Data) -> Call:
    """xent's, without a gradient in the weight."""
    w = data.w.detach()
    return lambda: torch.autograd.grad(xt.linear_cross_entropy(data.x, w, data.y), data.x) and None


def ignored(data: Data) -> Call:
    """xent's, where two rows in five are ignored."""
    y = data.y.where(torch.arange(len(data.y)) % 5 > 1, -100)
    return lambda: data.gradients(lambda x, w, _: xt.linear_cross_entropy(x, w, y)) and None


def eager(data: Data) -> Call:
    """PyTorch's linear layer and loss."""
    return lambda: data.gradients(lambda x, w, y: F.cross_entropy(F.linear(x, w), y))


def compiled(data: Data) -> Call:
    """The same, compiled."""
    loss = torch.compile(lambda x, w, y: F.cross_entropy(F.linear(x, w), y))
    return lambda: data.gradients(loss)


def plain(data: Data) -> Call:
    """PyTorch's own projected loss at its defaults, which holds the logits."""
    return lambda: data.gradients(F.linear_cross_entropy)


def chunked(data: Data) -> Call:
    """PyTorch's own projected loss with its options on: in chunks."""
    options = torch.nn.LinearCrossEntropyOptions()
    return lambda: data.gradients(lambda x, w, y: F.linear_cross_entropy(x, w, y, options=options))


PROVIDERS: dict[str, Callable[[Data], Call]] = {
    "bare products": bare,
    "xent": ours,
    "xent, frozen weight": frozen,
    "xent, 40% ignored": ignored,
    "eager": eager,
    "compile": compiled,
    "F.linear_cross_entropy": plain,
    "with options": chunked,
}


PEERS = ("eager", "compile", "F.linear_cross_entropy", "with options")


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Every provider, checked against eager, then timed in turn with all others."""
    torch._dynamo.reset()
    data = Data(case)
    calls = {name: make(data) for name, make in PROVIDERS.items()}
    expected = calls["eager"]()
    tolerance = 1e-4 if case.dtype == "float32" else 5e-2
    for name, call in calls.items():
        found = call()
        if found is not None:
            for a, b in zip(found[1:], expected[1:], strict=True):
                assert (a - b).abs().max() <= tolerance * b.abs().max(), name
            assert abs(found[0] - expected[0]) <= tolerance * expected[0], name
            del found, a, b
    del expected
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        for name, call in calls.items():
            if not turn or times[name][0] <= SLOW:
                gc.collect()
                start = time.perf_counter()
                result = call()
                times[name].append(time.perf_counter() - start)
                del result
        print(f"  round {turn + 1} of {rounds}", file=sys.stderr)
    unit = times["bare products"]
    return {
        name: {
            "median_s": median(samples),
            "samples_s": samples,
            "bare products": median(a / b for a, b in zip(samples, unit, strict=False)),
        }
        for name, samples in times.items()
    }


def memory(name: str, provider: str) -> None:
    """In a process of its own: prints the MiB beyond operands and gradients."""
    data = Data(CASES[name])
    call = PROVIDERS[provider](data)
    small = Data(Case(8, CASES[name].width, 16, CASES[name].dtype))
    PROVIDERS[provider](small)()  # loads what is loaded at first use
    if provider == "compile":
        call()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak, which a child takes over from its parent
    before = _kib("VmRSS")
    kept = call()
    peak = _kib("VmHWM")
    own = 0 if kept is None else sum(g.nbytes for g in kept[1:])
    print(round((peak - before) / 2**10 - own / 2**20))


def _kib(name: str) -> int:
    """A line of what the system says of this process's memory."""
    return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0])


def table(report: dict[str, Any]) -> str:
    """One row a case; the time in bare products, seconds and MiB of each provider."""
    head = ["case", *PROVIDERS]
    cells = [head]
    for name, case in report["cases"].items():
        row = [name]
        for found in case.values():
            mib = "" if found.get("mib") is None else f", {found['mib']} MiB"
            row.append(f"{found['bare products']:.2f} × ({found['median_s']:.2f} s{mib})")
        cells.append(row)
    title = "# The loss of a linear layer's output, forward and backward"
    return "\n\n".join([title, "\n".join(machine.rows(cells)), machine.facts(report), report["method"]])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.linear", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N")
    parser.add_argument("--memory", nargs=2, metavar=("CASE", "PROVIDER"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=machine.RESULTS, metavar="DIR")
    options = parser.parse_args(arguments)
    if options.memory:
        memory(*options.memory)
        return
    report = machine.describe((np, torch, xent), torch.get_num_threads(), METHOD)
    for name in options.cases:
        print(name, file=sys.stderr)
        found = measure(CASES[name], options.rounds)
        gc.collect()
        for provider, timed in found.items():
            if provider in ("xent", *PEERS):
                run = [sys.executable, "-m", "bench.linear", "--memory", name, provider]
                timed["mib"] = int(subprocess.run(run, check=True, capture_output=True, text=True).stdout)
        report["cases"][name] = found
    text = json.dumps(report, indent=1) + "\n"
    machine.write(options.out, {"linear.json": text, "linear.md": table(report)})


if __name__ == "__main__":
    main()
