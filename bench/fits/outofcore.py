"""Times a fit to more rows than a process may hold, and writes outofcore.json and outofcore.md."""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars

import xent
from bench import machine
from xent.regression.file_rows.rows import rows_from

FEATURES, CLASSES, FILE_ROWS, GROUP_ROWS = 50, 10, 1_000_000, 250_000
LIMIT = 2 << 30  # bytes that a process may allocate
BUFFER = 1 << 25
TOL = 1e-8
METHOD = """\
* Standard normal float32 features and one normal mean for each class, in Parquet files of 1,000,000 rows
  (row groups of 250,000, lz4). The fit runs in a process that may allocate 2 GiB (RLIMIT_DATA), its peak is
  the largest resident set, which counts mapped pages of the cache as well.
* A pass is one reading of the cache: a loss with its gradient, a Hessian product or a sum of moments. Its
  time is the median. Before each the system forgets the cache, as if it were larger than the memory; the
  plain read of as many bytes is so too. Wall and CPU seconds.
* The same optimum: the objective of a fit to the first file, and of a fit in memory of the same rows, both
  in float64 on these rows.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.fits.outofcore", description=__doc__)
    parser.add_argument("--files", type=int, default=20, metavar="N", help="of a million rows, 0.2 GB each")
    parser.add_argument("--small", action="store_true", help="tiny files, to try it; wants --out")
    parser.add_argument("--fit", metavar="PATTERN", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, metavar="DIR")
    options = parser.parse_args(arguments)
    if options.fit:
        print(json.dumps(fit(options.fit)))
        return
    if options.small and options.out is None:
        parser.error("--small wants --out: its times say nothing")
    report = machine.describe((np, polars, xent), len(os.sched_getaffinity(0)), METHOD)
    rows = 20_000 if options.small else FILE_ROWS
    with tempfile.TemporaryDirectory(prefix="xent-") as folder:
        for number in range(options.files):
            make(Path(folder, f"{number:04}.parquet"), number, rows)
        report["cases"] = {"all": in_process(folder), "first": in_process(f"{folder}/0000.parquet")}
        report["cases"]["all"] |= {"rows": rows * options.files}
        size = report["cases"]["all"]["reads"]["cache_bytes"]
        report["cases"]["all"]["plain read"] = plain_read(folder, size)
        report["cases"]["first"] |= in_memory(f"{folder}/0000.parquet", report["cases"]["first"])
    files = {"outofcore.json": json.dumps(report, indent=1) + "\n", "outofcore.md": table(report)}
    machine.write(options.out or machine.RESULTS, files)


def make(path: Path, number: int, rows: int) -> None:
    """Write one file of rows."""
    centres = np.random.default_rng(0).standard_normal((CLASSES, FEATURES), dtype=np.float32)
    random = np.random.default_rng(number + 1)
    y = random.integers(0, CLASSES, rows)
    x = 0.3 * centres[y] + random.standard_normal((rows, FEATURES), dtype=np.float32)
    frame = polars.DataFrame(x, schema=[f"x{k}" for k in range(FEATURES)])
    frame.with_columns(y=polars.Series(y)).write_parquet(path, compression="lz4", row_group_size=GROUP_ROWS)


def in_process(files: str) -> dict[str, Any]:
    """`fit` in a process of its own."""
    command = [sys.executable, "-m", "bench.fits.outofcore", "--fit", files]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def fit(files: str) -> dict[str, Any]:
    """Fit under the limit; times, memory and the parameters."""
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    passes: list[tuple[str, tuple[float, float], tuple[float, float]]] = []  # name, end of the last, start

    def progress(what: str, done: int, total: int) -> None:
        if not passes or passes[-1][0] != what:
            end = clocks()
            forget_cache()
            passes.append((what, end, clocks()))

    rows = rows_from(files, "y", progress=progress)
    start = clocks()
    model = xent.SoftmaxRegression(tol=TOL).fit(rows)
    end = clocks()
    ends = [each[1] for each in passes[1:]] + [end]
    times = np.subtract(ends, [start, *(each[2] for each in passes[1:])])
    assert rows.reads is not None
    return {
        "reading the files": times[0].tolist(),
        "pass": np.median(times[1:], axis=0).tolist(),
        "whole": np.subtract(end, start).tolist(),
        "peak MB": machine.peak(),
        "reads": rows.reads._asdict(),
        "solver": model.solver_,
        "gap": model.optimality_gap_,
        "steps": model.n_iter_,
        "coef": model.coef_.tolist(),
        "intercept": model.intercept_.tolist(),
    }


def clocks() -> tuple[float, float]:
    """(wall, CPU) in seconds."""
    return time.perf_counter(), time.process_time()


def forget(number: int) -> None:
    """Have the system write an open file to the disk and forget its pages."""
    os.fdatasync(number)
    os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)


def forget_cache() -> None:
    """`forget` the nameless files of this process."""
    for link in os.scandir("/proc/self/fd"):
        if os.path.islink(link.path) and os.readlink(link.path).endswith("(deleted)"):
            forget(int(link.name))


def plain_read(folder: str, size: int) -> dict[str, list[float]]:
    """Wall and CPU seconds, median of 3, of a read of ``size`` bytes, from the disk and from memory."""
    path, buffer = Path(folder, "cache"), bytearray(BUFFER)
    times: dict[str, list[Any]] = {"from the disk": [], "from memory": []}
    with path.open("w+b", buffering=0) as file:
        for _ in range(-(-size // BUFFER)):
            file.write(os.urandom(BUFFER))
        for _ in range(3):
            forget(file.fileno())
            for seconds in times.values():
                file.seek(0)
                start = clocks()
                while file.readinto(buffer):
                    pass
                seconds.append(np.subtract(clocks(), start))
    return {name: np.median(seconds, axis=0).tolist() for name, seconds in times.items()}


def in_memory(path: str, ours: dict[str, Any]) -> dict[str, Any]:
    """Objectives on the rows of a file: of the fit out of core, and of one in memory."""
    frame = polars.read_parquet(path)
    x = np.ascontiguousarray(frame.drop("y").to_numpy())
    y = frame["y"].to_numpy()
    model = xent.SoftmaxRegression(tol=TOL).fit(x, y)
    objective = model.objective(x.astype(np.float64), y)
    best, found = (
        objective(objective.pack(np.asarray(coef, float), np.asarray(intercept, float)))[0]
        for coef, intercept in ((model.coef_, model.intercept_), (ours["coef"], ours["intercept"]))
    )
    return {"objective": found, "least objective, in memory": best, "rows": len(y)}


def table(report: dict[str, Any]) -> str:
    """The report in Markdown."""
    whole, first = report["cases"]["all"], report["cases"]["first"]
    plain = whole["plain read"]
    lines = {
        "rows": f"{whole['rows']:,}",
        "cache": f"{whole['reads']['cache_bytes'] / 1e9:.2f} GB",
        "peak of the process": f"{whole['peak MB']:,} MB",
        "the whole fit": seconds(whole["whole"]),
        "the first pass, over the files": seconds(whole["reading the files"]),
        "a pass over the cache": seconds(whole["pass"]),
        "a plain read of the cache, from the disk": seconds(plain["from the disk"]),
        "a plain read of the cache, from memory": seconds(plain["from memory"]),
        "a pass beside a plain read from the disk": f"{whole['pass'][0] / plain['from the disk'][0]:.2f}",
        "passes": f"{whole['reads']['cache_passes']:g}",
        "certified gap": f"{whole['gap']:.1e}",
        "first file: objective, above that of the fit in memory": (
            f"{first['objective'] / first['least objective, in memory'] - 1:.1e}"
        ),
    }
    cells = [("", "wall (CPU)"), *lines.items()]
    title = "# A fit to rows that do not fit in memory"
    return "\n".join([title, "", machine.facts(report), "", METHOD, *machine.rows(cells), ""])


def seconds(times: Sequence[float]) -> str:
    """Wall and CPU."""
    return f"{times[0]:.2f} s ({times[1]:.2f} s)"


if __name__ == "__main__":
    main()
