"""Times the providers on the cases in one run, and writes core.json and core.md."""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.cases import CASES, Case
from bench.data import Data
from bench.machine import describe
from bench.providers import PASSES, PROVIDERS, Call
from bench.table import markdown

ROUNDS = 7
SLOW_ROUNDS = 3  # for a call of more than SLOW seconds
SLOW = 3.0
CAP = 420.0  # seconds for all timing: past its share of them a case gives SLOW_ROUNDS to calls of LONG
LONG = 0.3


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="NAME",
                        help=f"which of {', '.join(CASES)} (default: all)")  # fmt: skip
    parser.add_argument("--skip", nargs="+", choices=list(PROVIDERS), default=[], metavar="PROVIDER",
                        help=f"leave out some of {', '.join(PROVIDERS)}")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="samples of each (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", metavar="DIR",
                        help="where to write core.json and core.md (default: bench/results)")  # fmt: skip
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"argument --rounds: must be at least 1; got {options.rounds}")
    report: dict[str, Any] = describe()
    report["cases"] = {}
    for name in options.cases:
        print(f"{name}: data, checks, compilation", file=sys.stderr)
        share = CAP / len(options.cases)
        report["cases"][name] = measure(CASES[name], options.rounds, options.skip, share)
        gc.collect()  # gigabytes, held by cycles
    options.out.mkdir(parents=True, exist_ok=True)
    _write(options.out / "core.json", json.dumps(report, indent=1) + "\n")
    _write(options.out / "core.md", markdown(report))


def measure(case: Case, rounds: int, skip: Sequence[str], share: float) -> dict[str, Any]:
    """Each provider checked, warmed up, then timed in turn with all others."""
    data = Data(case)
    calls = {name: PROVIDERS[name](data) for name in case.providers if name not in skip}
    for name, call in calls.items():
        data.buffer.fill(float("nan"))
        data.require_right(name, *call())
    warm = {name: _seconds(call, case.calls) for name, call in calls.items()}
    names, times = list(calls), {name: dict[int, float]() for name in calls}
    deadline = time.perf_counter() + share
    for turn in range(rounds):
        first = turn % len(names)  # nobody comes always after the same one
        for name in names[first:] + names[:first]:
            limit = LONG if time.perf_counter() > deadline else SLOW
            if turn < SLOW_ROUNDS or warm[name] <= limit:
                times[name][turn] = _seconds(calls[name], case.calls)
        print(f"  round {turn + 1} of {rounds}", file=sys.stderr)
    return {
        "shape": case.shape,
        "dtype": case.dtype,
        "class_axis": case.class_axis,
        "calls_per_sample": case.calls,
        "providers": {name: _summary(case, name, times) for name in names},
        "hvp_over_gradient": _ratio(times, "xent_hvp", "xent_buffer"),
        "eager_over_xent_fresh": _ratio(times, "torch_eager", "xent_fresh"),
    }


def _seconds(call: Call, calls: int) -> float:
    """Of one call; the last result is freed after the clock has stopped."""
    start = time.perf_counter()
    for _ in range(calls):
        result = call()
    stop = time.perf_counter()
    del result
    return (stop - start) / calls


def _summary(case: Case, name: str, times: dict[str, dict[int, float]]) -> dict[str, Any]:
    seconds = list(times[name].values())
    moved = PASSES[name] * case.nbytes
    return {
        "median_s": median(seconds),
        "min_s": min(seconds),
        "copies": _ratio(times, name, "copy"),
        "bytes": moved,
        "gb_per_s": moved / median(seconds) / 1e9,
        "samples_s": seconds,
    }


def _ratio(times: dict[str, dict[int, float]], name: str, unit: str) -> float | None:
    """The median of the ratios within a round, over the rounds that have both."""
    if not (name in times and unit in times):
        return None
    return median(times[name][turn] / times[unit][turn] for turn in times[name] if turn in times[unit])


def _write(path: Path, text: str) -> None:
    """All of the file or nothing of it."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
