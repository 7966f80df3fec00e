"""Times `xent eval` beside a plain read of the same file in the page cache: evaluation.json and .md."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import polars

import xent
from bench import machine
from xent.command.cli import main as command
from xent.evaluation.stream import threads_to_use

SIZE = 1 << 30  # bytes of a file; one exists at a time
ROUNDS = 7
METHOD = """\
* Plain read: one thread, `readinto` of a buffer of 1 MiB until the file ends. The file was read before.
* `xent eval`: the command within the running process; starting Python is not timed.
* Both run once a round. A share is the median over the rounds of read time / eval time: by the clock, and
  by processor time, the eval's divided by its threads, which is what the clock would show on a machine
  without other work. 0.5 is half the rate of the read.
* Logits: standard normal × 2, float32 before they are narrowed. Labels at random; or the label's logit
  raised by up to 12 and so often the highest, as a trained model would.
"""


class Case(NamedTuple):
    """A file of logits."""

    classes: int
    dtype: str
    right: bool  # whether the labels mostly have the highest logit


CASES = {
    "1000": Case(1000, "float32", True),
    "1000-random": Case(1000, "float32", False),
    "32000": Case(32000, "float32", True),
    "32000-random": Case(32000, "float32", False),
    "1000-float16": Case(1000, "float16", True),
    "10": Case(10, "float32", True),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.evaluation", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="NAME")
    parser.add_argument("--rounds", type=int, choices=range(1, 100), default=ROUNDS, metavar="N")
    parser.add_argument("--size", type=int, default=SIZE, metavar="BYTES")
    parser.add_argument("--folder", type=Path, default=None, help="where the files are, until the end")
    parser.add_argument("--out", type=Path, default=machine.RESULTS, metavar="DIR")
    options = parser.parse_args(arguments)
    report = machine.describe((np, polars, xent), threads_to_use(), METHOD)
    for name in options.cases:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            print(f"{name}: writing", file=sys.stderr)
            files = write(CASES[name], options.size, Path(folder))
            report["cases"][name] = CASES[name]._asdict() | measure(files, options.rounds)
    texts = {"evaluation.json": json.dumps(report, indent=1) + "\n", "evaluation.md": table(report)}
    machine.write(options.out, texts)


def write(case: Case, size: int, folder: Path) -> tuple[Path, Path]:
    """(logits, labels)."""
    rng, dtype = np.random.default_rng(0), np.dtype(case.dtype)
    rows = size // (case.classes * dtype.itemsize)
    labels = rng.integers(0, case.classes, rows)
    np.save(folder / "labels.npy", labels)
    logits = np.lib.format.open_memmap(folder / "logits.npy", "w+", dtype, (rows, case.classes))
    step = max(1, (1 << 24) // case.classes)
    for start in range(0, rows, step):
        own = labels[start : start + step]
        some = rng.standard_normal((len(own), case.classes), np.float32) * 2
        if case.right:
            some[np.arange(len(own)), own] += rng.random(len(own), np.float32) * 12
        logits[start : start + step] = some
    logits.flush()
    return folder / "logits.npy", folder / "labels.npy"


def measure(files: tuple[Path, Path], rounds: int) -> dict[str, Any]:
    """Both timed in turn, after each has run once."""
    logits, labels = files
    calls: dict[str, Callable[[], Any]] = {
        "read": lambda: read(logits),
        "eval": lambda: evaluated(logits, labels),
    }
    found = json.loads([call() for call in (*calls.values(), lambda: evaluated(logits, labels, "--json"))][2])
    times = {name: list[float]() for name in calls}
    processor = {name: list[float]() for name in calls}
    for turn in range(rounds):
        for name in sorted(calls, reverse=turn % 2 == 0):
            start = time.perf_counter(), time.process_time()
            calls[name]()
            times[name].append(time.perf_counter() - start[0])
            processor[name].append(time.process_time() - start[1])
        print(f"  round {turn + 1} of {rounds}", file=sys.stderr)
    size, threads = logits.stat().st_size, threads_to_use()
    rates = {f"{name}_gb_per_s": size / median(samples) / 1e9 for name, samples in times.items()}
    shares = {
        "share": median(a / b for a, b in zip(*times.values(), strict=True)),
        "share_processor": median(threads * a / b for a, b in zip(*processor.values(), strict=True)),
    }
    measures = {key: found[key] for key in ("rows", "loss", "accuracy", "top_k_accuracy")}
    return {"bytes": size} | shares | rates | measures | {"samples_s": times, "processor_s": processor}


def read(path: Path) -> None:
    buffer = bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def evaluated(logits: Path, labels: Path, *options: str) -> str:
    """What the command prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = command(["eval", os.fspath(logits), os.fspath(labels), *options])
    assert code == 0, code
    return printed.getvalue()


def table(report: dict[str, Any]) -> str:
    """One row a case; then what the report's head says."""
    head = ["classes", "dtype", "rows", "accuracy", "plain read", "xent eval", "share", "by processor time"]
    rows = [head]
    for case in report["cases"].values():
        rates = [f"{case[f'{name}_gb_per_s']:.2f} GB/s" for name in ("read", "eval")]
        shares = [f"{case[key]:.2f}" for key in ("share", "share_processor")]
        size = [f"{case['classes']:,}", case["dtype"], f"{case['rows']:,}", f"{case['accuracy']:.1%}"]
        rows.append([*size, *rates, *shares])
    lines = ["# xent eval, beside a plain read of the same file", "", *machine.rows(rows)]
    return "\n".join([*lines, "", machine.facts(report), "", report["method"]])


if __name__ == "__main__":
    main()
