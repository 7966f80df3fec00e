"""Times the providers on the cases in one run, and writes core.json and its table core.md."""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import ml_dtypes
import numpy as np
import torch

import xent
from bench import machine
from bench.cases import CASES, Case
from bench.providers import PROVIDERS, Call, Data

ROUNDS, FEWER = 7, 3  # FEWER for calls of more than SLOW seconds,
SLOW, LONG = 3.0, 0.3  # and LONG ones once their case has had its share of
CAP = 240.0  # seconds of timing
RATIOS = {
    "hvp / into buffer": ("xent_hvp", "xent_into_buffer"),
    "eager / fresh": ("torch_eager", "xent_fresh"),
    "eager / xent torch": ("torch_eager", "xent_torch"),
    "compile / xent torch": ("torch_compile", "xent_torch"),
    "compile / xent compile": ("torch_compile", "xent_torch_compile"),
}
METHOD = """\
* A ratio is the median of the ratios within a round; all providers run once a round, in turn.
* A copy is PyTorch's threaded `copy_` of the logits into a buffer, in the dtype and layout of the case.
* Warm: logits, labels, buffers (written before), threads, compiled code: each provider ran twice before.
  The first time its loss, and its gradient at 64 rows, were compared with float64. Compiling is not timed.
* Logits and buffers are memory that NumPy allocated, advised for huge pages. PyTorch and the textbook make
  a fresh gradient, as does `xent fresh`; it is allocated within the time and freed outside it. Tensors of
  `xent.torch` get memory that an earlier gradient gave back, as in every training step but the first.
* The copy's GB/s count a read and a write. The textbook runs on one thread, in float32 for the halves.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="NAME")
    parser.add_argument("--skip", nargs="+", choices=PROVIDERS, default=[], metavar="PROVIDER")
    parser.add_argument("--rounds", type=int, choices=range(1, 100), default=ROUNDS, metavar="N")
    parser.add_argument("--out", type=Path, default=machine.RESULTS, metavar="DIR")
    options = parser.parse_args(arguments)
    report = describe()
    for name in options.cases:
        print(f"{name}: data, checks, compilation", file=sys.stderr)
        share = CAP / len(options.cases)
        report["cases"][name] = measure(CASES[name], options.skip, options.rounds, share)
        gc.collect()  # gigabytes, if a cycle holds them
    machine.write(options.out, {"core.json": json.dumps(report, indent=1) + "\n", "core.md": table(report)})


def measure(case: Case, skip: Sequence[str], rounds: int, share: float) -> dict[str, Any]:
    """Every provider checked, warmed up, then timed in turn with all others."""
    torch._dynamo.reset()
    data = Data(case)
    calls = {name: PROVIDERS[name][1](data) for name in case.providers if name not in skip}
    mean_loss = data.mean_loss()
    for name, call in calls.items():
        data.require_right(name, call, mean_loss)
    warm = {name: _seconds(call, case.calls) * case.calls for name, call in calls.items()}
    names, times = list(calls), {name: list[float]() for name in calls}
    deadline = time.perf_counter() + share
    for turn in range(rounds):
        first = turn % len(names)  # nobody always follows the same one
        for name in names[first:] + names[:first]:
            limit = LONG if time.perf_counter() > deadline else SLOW
            if turn < FEWER or warm[name] <= limit:
                times[name].append(_seconds(calls[name], case.calls))
        print(f"  round {turn + 1} of {rounds}", file=sys.stderr)

    def ratio(name: str, unit: str) -> float | None:
        pairs = zip(times.get(name, []), times.get(unit, []), strict=False)  # who stops early leaves a tail
        return median(ratios) if (ratios := [a / b for a, b in pairs]) else None

    def summary(name: str) -> dict[str, Any]:
        middle, size = median(times[name]), PROVIDERS[name][0] * data.logits.nbytes
        moved = {"bytes": size, "gb_per_s": size / middle / 1e9, "samples_s": times[name]}
        return {"median_s": middle, "min_s": min(times[name]), "copies": ratio(name, "copy")} | moved

    results = {"providers": {name: summary(name) for name in names}}
    return case._asdict() | results | {key: ratio(*pair) for key, pair in RATIOS.items()}


def _seconds(call: Call, calls: int) -> float:
    """Of one call. What the last one returned is freed after the clock has stopped."""
    start = time.perf_counter()
    for _ in range(calls):
        result = call()
    stop = time.perf_counter()
    del result
    return (stop - start) / calls


def describe() -> dict[str, Any]:
    """The report's head."""
    return machine.describe((np, torch, ml_dtypes, xent), torch.get_num_threads(), METHOD)


def table(report: dict[str, Any]) -> str:
    """One row per case, in copies of its logits; then what the report's head says."""
    head = ["case", *(name.replace("_", " ") for name in PROVIDERS), *RATIOS]
    rows = [head]
    for name, case in report["cases"].items():
        timed = case["providers"]
        cells = [_time(timed[column]) if column in timed else "" for column in PROVIDERS]
        cells[0] += f", {timed['copy']['gb_per_s']:.1f} GB/s" if cells[0] else ""
        ratios = [_times(case[key]) for key in RATIOS]
        rows.append([f"{name.partition('-')[0]} {case['dtype']}", *cells, *ratios])
    lines = ["# Loss and gradient, in copies of the logits (median time)", "", *machine.rows(rows)]
    lines += ["", machine.facts(report), "", report["method"]]
    return "\n".join(lines)


def _time(timed: dict[str, Any]) -> str:
    seconds = timed["median_s"]
    time = f"{seconds * 1e6:.1f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"
    return f"{_times(timed['copies'])} ({time})" if timed["copies"] else time


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f} ×"


if __name__ == "__main__":
    main()
