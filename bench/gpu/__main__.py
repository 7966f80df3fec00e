"""On a GPU: checks every kernel against float64, times it beside PyTorch, writes gpu.json and gpu.md."""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch

import xent
from bench import machine
from bench.gpu import projection
from bench.gpu.case import Case
from bench.gpu.logits import Logits

REPEATS = 20
METHOD = """\
* Times are medians of 20, between two events of the device, after two calls that are not counted. Before
  each, 512 MB of zeros overwrite the cache.
* Of logits, work is GB, the least that a provider must move: a read of the logits and a write of the
  gradient; another read where a row is longer than what a program holds (32768 classes). Statistics alone are
  a read, a Hessian product two reads and a write. A copy is a read and a write.
* Of a projection, work is a billion operations: those of three products of all rows, whoever does them.
* Share: work a second over that of the case's first provider in the same run: PyTorch's `copy_` of the same
  logits; the three bare products, in chunks of at most 2 GiB of logits.
* Peak: the most that was allocated during a call, beyond the operands; gradients count.
* Random logits of a new seed in each run. Before a provider is timed its loss, and its statistics, gradients
  and products of 64 rows, are compared with float64.
"""


class Clock(Protocol):
    """What times a call."""

    device: str
    description: Mapping[str, Any]

    def seconds(self, call: Callable[[], object]) -> float:
        """Of one call, with a cold cache."""
        ...

    def peak(self, call: Callable[[], object]) -> int:
        """Bytes allocated at most during a call, beyond those allocated before."""
        ...


class DeviceClock:
    """Events of the current GPU."""

    device = "cuda"

    def __init__(self) -> None:
        self.cache = torch.empty(512 << 20, dtype=torch.uint8, device="cuda")
        properties = torch.cuda.get_device_properties("cuda")
        self.description = {
            "device": properties.name,
            "compute capability": f"{properties.major}.{properties.minor}",
            "device memory GiB": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "CUDA": torch.version.cuda,
        }

    def seconds(self, call: Callable[[], object]) -> float:
        """See `Clock`."""
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.cache.zero_()
        start.record()
        call()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3

    def peak(self, call: Callable[[], object]) -> int:
        """See `Clock`."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


Maker = Callable[[str], Case]  # (device) → its case
SHAPES = ((8192, 128256), (4096, 32000), (65536, 1000))
# Each section of the report; what makes a case allocates it.
SECTIONS: dict[str, list[Maker]] = {
    "logits": [
        lambda device, shape=shape, dtype=dtype: Logits(shape, dtype, device)  # type: ignore[misc]
        for shape in SHAPES
        for dtype in (torch.bfloat16, torch.float32)
    ],
    "projection": [
        lambda device, shape=shape: projection.Projected(*shape, torch.bfloat16, device)  # type: ignore[misc]
        for shape in projection.SHAPES
    ],
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="NAME")
    parser.add_argument("--out", type=Path, default=machine.RESULTS, metavar="DIR")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit(f"bench.gpu: needs a GPU; PyTorch {torch.__version__} sees none here")
    write(report(options.sections, DeviceClock()), options.out)


def report(sections: Sequence[str], clock: Clock) -> dict[str, Any]:
    """Everything checked and timed."""
    found = machine.describe((torch, xent), torch.get_num_threads(), METHOD)
    found["device"] = dict(clock.description)
    found["versions"] |= {"triton": __import__("triton").__version__}
    found["seed"] = torch.seed()
    found["cases"] = {}
    for section in sections:
        for make in SECTIONS[section]:
            case = make(clock.device)
            print(f"{section}: {case.name}", file=sys.stderr)
            found["cases"].setdefault(section, {})[case.name] = measure(case, clock)
            del case
            gc.collect()
            torch._dynamo.reset()
    return found


def measure(case: Case, clock: Clock) -> dict[str, Any]:
    """Each provider: checked, warmed up, timed; or what went wrong with it."""
    results: dict[str, Any] = {}
    per_second = 0.0
    for name, provider in case.providers():
        try:
            case.require_right(name, provider.call(), provider.tolerance)
            clock.seconds(provider.call)
        except torch.OutOfMemoryError:
            results[name] = {"failed": "out of memory"}
            continue
        samples = [clock.seconds(provider.call) for _ in range(REPEATS)]
        speed = provider.work / median(samples)
        per_second = per_second or speed
        results[name] = {
            "median_s": median(samples),
            "work": provider.work,
            "giga_per_s": speed / 1e9,
            "share": speed / per_second,
            "peak_bytes": clock.peak(provider.call),
            "samples_s": samples,
        }
    return results


def table(found: Mapping[str, Any]) -> str:
    """A row for each case and provider; then what the report's head says."""
    rows = [["case", "provider", "time", "work/s", "share of the first", "peak MiB"]]
    for section in found["cases"].values():
        for case, providers in section.items():
            rows += [[case, name, *_cells(timed)] for name, timed in providers.items()]
    facts = {**found, "machine": found["device"] | found["machine"]}
    lines = ["# Loss and derivatives on a GPU", "", *machine.rows(rows)]
    return "\n".join([*lines, "", machine.facts(facts), "", found["method"]])


def _cells(timed: Mapping[str, Any]) -> list[str]:
    if "failed" in timed:
        return [timed["failed"], "", "", ""]
    return [
        f"{timed['median_s'] * 1e3:.3f} ms",
        f"{timed['giga_per_s']:.0f}",
        f"{timed['share']:.0%}",
        f"{timed['peak_bytes'] / 2**20:.0f}",
    ]


def write(found: Mapping[str, Any], folder: Path) -> None:
    """gpu.json and gpu.md; the table to the terminal too."""
    text = table(found)
    print(text)
    machine.write(folder, {"gpu.json": json.dumps(found, indent=1) + "\n", "gpu.md": text})


if __name__ == "__main__":
    main()
