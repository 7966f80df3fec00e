"""What a report says of its run: date, commit, machine, versions; and how its files are written."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from xent.kernels import cpu

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench/results"


def describe(modules: Iterable[Any], threads: int, method: str) -> dict[str, Any]:
    """The report's head; its cases are still to come."""
    processor = re.search(r"model name\s*: (.*)", _read("/proc/cpuinfo"))
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted changes": _git("status", "--porcelain", "--untracked-files=no") != "",
        "machine": {
            "processor": processor[1] if processor else platform.processor(),
            "cores": os.cpu_count(),
            "threads": threads,
            "memory GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "huge pages": _read("/sys/kernel/mm/transparent_hugepage/enabled").strip(),
            "load before": round(os.getloadavg()[0], 2),
            "xent's instruction set": cpu.isas()[0],
        },
        "versions": {"python": platform.python_version()} | {m.__name__: m.__version__ for m in modules},
        "method": method,
        "cases": {},
    }


def facts(report: Mapping[str, Any]) -> str:
    """The head in one line."""
    pairs = {key: report[key] for key in ("date", "commit", "uncommitted changes")}
    pairs |= report["machine"] | report["versions"]
    return "; ".join(f"{key}: {value}" for key, value in pairs.items()) + "."


def rows(cells: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, numbers to the right, the first row on top."""
    rule = ["---", *["---:"] * (len(cells[0]) - 1)]
    return [f"| {' | '.join(row)} |" for row in (cells[0], rule, *cells[1:])]


def ratio(found: Mapping[str, Any], name: str, unit: str) -> float:
    """The median over rounds of one provider's time in that of another."""
    pairs = zip(found["samples_s"][name], found["samples_s"][unit], strict=True)
    return median(a / b for a, b in pairs)


def write(folder: Path, files: Mapping[str, str]) -> None:
    """Each file whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / "unfinished").write_text(text, encoding="utf-8")
        os.replace(folder / "unfinished", folder / name)


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8") if Path(path).exists() else ""  # Linux alone has it


def peak() -> int:
    """The largest resident set of this process, MB; getrusage's may be that of the process that began it."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(round(int(line.split()[1]) * 1024 / 1e6) for line in lines if line.startswith("VmHWM"))


def forget_peak() -> None:
    """Have `peak` count from now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
