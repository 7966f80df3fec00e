"""What bounds the numbers of core.md: kernels without memory, memory without kernels, one call in parts."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import threadpoolctl
import torch

from bench import machine
from bench.run import describe
from xent import cross_entropy_with_grad
from xent.core import head
from xent.core.contract import Cotangents
from xent.core.link import Link
from xent.engine import checks
from xent.engine.batch_loss import Problem
from xent.kernels import _native, cpu

CACHED = {  # logits, gradient and scratch stay in a level-2 cache
    "along the row, 64x1000": (64, 1000),
    "across rows, 2048x10": (2048, 10),
    "across pixels, 1x21x2048": (1, 21, 2048),
}
LARGE = {"65536x1000": (65536, 1000), "2000000x10": (2_000_000, 10), "8x21x512x512": (8, 21, 512, 512)}


def seconds(call: Callable[[], Any], calls: int, rounds: int = 9) -> float:
    """Median over rounds of the time of one call."""
    call()
    samples = []
    for _ in range(rounds):
        start = perf_counter()
        for _ in range(calls):
            call()
        samples.append((perf_counter() - start) / calls)
    return median(samples)


def kernels() -> list[str]:
    """Loss and gradient on one thread, in the cache, beside a copy of large memory on one thread."""
    torch.set_num_threads(1)
    source, target = torch.ones(1 << 27), torch.ones(1 << 27)
    copy = seconds(partial(target.copy_, source), 1) / source.numel() * 1e9
    lines = ["| one thread, float32 | ns an element |", "| --- | ---: |", f"| copy of 512 MiB | {copy:.2f} |"]
    rng = np.random.default_rng(0)
    for name, shape in CACHED.items():
        logits = rng.standard_normal(shape, np.float32)
        gradient = np.empty_like(logits)
        if len(shape) == 3:
            logits, gradient = np.moveaxis(logits, 1, -1), np.moveaxis(gradient, 1, -1)
        labels = rng.integers(0, logits.shape[-1], logits.shape[:-1])
        arguments = (logits, labels, None, Link(), Cotangents(log_prob=-1.0), ("log_prob",), gradient)
        with threadpoolctl.threadpool_limits(1):
            each = seconds(partial(cpu.row_stats_and_grad, *arguments), 1000)
        lines.append(f"| xent in the cache, {name} | {each / logits.size * 1e9:.2f} |")
    return lines


def memory() -> list[str]:
    """Copies into new memory in units of copies into memory that is there, two threads."""
    torch.set_num_threads(2)
    lines = ["| two threads, float32 | copies |", "| --- | ---: |"]
    for name, shape in LARGE.items():
        logits = np.ones(shape, np.float32)
        source, there = torch.from_numpy(logits), torch.from_numpy(np.ones_like(logits))
        known = seconds(partial(there.copy_, source), 1)
        fresh = seconds(partial(_copy_into_new, logits, source), 1)
        lines.append(f"| copy of {name} into new memory | {fresh / known:.2f} |")
    return lines


def _copy_into_new(like: Any, source: Any) -> Any:
    return torch.from_numpy(np.empty_like(like)).copy_(source)


def call() -> list[str]:
    """The parts of one call on 32x10, from the inside out."""
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((32, 10), np.float32), rng.integers(0, 10, 32)
    gradient, log_prob = np.empty_like(logits), np.empty(32)
    build = partial(Problem.from_arguments, logits, labels, "mean", None, True, {})
    problem = build()
    stats, c = problem.stats(), Cotangents(log_prob=-1 / 32)
    native = (logits, labels, None, 1.0, 0.0, *c, gradient, None, log_prob, None, None)
    behind = (logits, labels, None, problem.link, c, ("log_prob",), gradient)
    parts: dict[str, Callable[[], Any]] = {
        "the kernel": partial(_native.row_stats_and_grad, *native),
        "the kernel behind the protocol": partial(cpu.row_stats_and_grad, *behind),
        "labels in range": partial(checks.as_labels, labels, 10, -100, True),
        "all checks, and the target": build,
        "cotangents": partial(head.cotangents, None, problem.target, problem.spec, 1 / 32, np),
        "loss from the statistics": partial(problem.loss, stats),
        "the whole call": partial(cross_entropy_with_grad, logits, labels),
    }
    lines = ["| 32x10 | µs |", "| --- | ---: |"]
    return lines + [f"| {name} | {seconds(part, 5000) * 1e6:.1f} |" for name, part in parts.items()]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.bounds", description=__doc__)
    parser.add_argument("--out", type=Path, default=machine.RESULTS, metavar="DIR")
    out = parser.parse_args().out
    report = describe()
    facts = {"date": report["date"], "commit": report["commit"], **report["machine"], **report["versions"]}
    tables = ["\n".join(part()) for part in (kernels, memory, call)]
    footer = "; ".join(f"{key}: {value}" for key, value in facts.items())
    out.mkdir(parents=True, exist_ok=True)
    (out / "bounds.md").write_text("\n\n".join(["# What bounds the core", *tables, footer]) + "\n", "utf-8")


if __name__ == "__main__":
    main()
