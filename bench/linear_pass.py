"""The fused pass of a linear model beside one read of its features and beside two matrix products."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, thread_time
from typing import Any

import numpy as np
import threadpoolctl
import torch

from bench.machine import RESULTS, describe, facts, ratio, rows, write
from xent.core.contract import Cotangents
from xent.core.link import Link
from xent.kernels import cpu, cpu_linear

Array = np.ndarray[Any, Any]
# Rows, features, rows of W (1: two classes, one of them always 0), dtypes of features and W.
CASES = [
    (60_000, 784, 10, "float32", "float32"),
    (60_000, 784, 10, "float32", "float64"),
    (1_000_000, 30, 1, "float32", "float32"),
    (100_000, 100, 3, "float32", "float32"),
    (20_000, 784, 64, "float32", "float32"),
    (20_000, 784, 256, "float32", "float32"),
    (4_000, 5_000, 10, "float32", "float32"),
    (4_000, 5_000, 64, "float32", "float32"),
]
BLOCK = 1 << 19  # elements of X a block of the two products
METHOD = (
    "Seconds: median over rounds; in a round each call runs once, in turn. Ratios: median over rounds of the "
    "ratio within the round. The read is PyTorch's sum of X. One thread is timed by its own clock, which "
    "other programs on the machine disturb little, several by the wall's."
)


def by_products(features: Array, weight: Array, labels: Array, cotangents: Cotangents) -> tuple[Array, Array]:
    """Loss and gradient in blocks that stay in the cache between the two products."""
    step = max(1, BLOCK // features.shape[1])
    zero = len(weight) == 1
    narrow, dweight, dbias = weight.T.copy(), np.zeros(weight.shape), np.zeros(len(weight))
    for start in range(0, len(labels), step):
        x = features[start : start + step].astype(weight.dtype, copy=False)
        logits = np.pad(x @ narrow, ((0, 0), (1, 0))) if zero else x @ narrow
        y = labels[start : start + step]
        _, g = cpu.row_stats_and_grad(logits, y, None, Link(), cotangents, ("log_prob",), logits)
        g = g[:, 1:] if zero else g
        dweight += g.T @ x
        dbias += g.sum(0)
    return dweight, dbias


def measure(case: tuple[int, int, int, str, str], rounds: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Seconds of each call and its ratio to the read, of one case."""
    num_rows, num_features, num_scores, narrow, wide = case
    rng = np.random.default_rng(0)
    features = rng.standard_normal((num_rows, num_features), np.float32).astype(narrow, copy=False)
    weight = rng.normal(size=(num_scores, num_features)).astype(wide)
    labels = rng.integers(0, max(2, num_scores), num_rows)
    cotangents = Cotangents(log_prob=-1.0 / num_rows)
    model = (features, weight, None, labels, None, Link(), cotangents, ("log_prob",))
    fused = partial(cpu_linear.linear_stats_and_grad, *model, zero_class=num_scores == 1)
    calls: dict[str, Callable[[], Any]] = {
        "read": torch.from_numpy(features).sum,
        "fused": fused,
        "products": partial(by_products, features, weight, labels, cotangents),
    }
    size = np.abs(fused()[1]).max()
    assert np.abs(fused()[1] - by_products(features, weight, labels, cotangents)[0]).max() < 1e-3 * size
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = clock()
            call()
            samples[name].append(clock() - start)
    times_of = partial(ratio, {"samples_s": samples})
    return {
        "seconds": {name: median(times) for name, times in samples.items()},
        "least seconds": {name: min(times) for name, times in samples.items()},
        "fused / read": times_of("fused", "read"),
        "products / fused": times_of("products", "fused"),
    }


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    cells = [["", "read, ms", "fused, ms", "products, ms", "fused / read", "products / fused"]]
    for name, case in report["cases"].items():
        ms = [f"{case['seconds'][call] * 1e3:.1f}" for call in ("read", "fused", "products")]
        cells.append([name, *ms, f"{case['fused / read']:.2f}", f"{case['products / fused']:.2f}"])
    title = "# Loss and gradient of a linear model in one pass"
    return "\n\n".join([title, report["method"], "\n".join(rows(cells)), facts(report)])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.linear_pass", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = thread_time if arguments.threads == 1 else perf_counter
    report = describe([np, torch], arguments.threads, METHOD)
    with threadpoolctl.threadpool_limits(arguments.threads):
        for case in CASES:
            num_rows, num_features, num_scores, narrow, wide = case
            name = f"{num_rows}x{num_features}x{num_scores}, X {narrow}, W {wide}"
            report["cases"][name] = measure(case, arguments.rounds, clock)
    text = json.dumps(report, indent=1) + "\n"
    write(arguments.out, {"linear_pass.json": text, "linear_pass.md": table(report) + "\n"})


if __name__ == "__main__":
    main()
