"""What a number is worth nothing without: machine, versions, date, commit, and what was warm."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch

import xent
from xent.kernels import cpu

METHOD = [
    "Every ratio is the median of the ratios within a round; in a round all providers run once, in turn.",
    "A copy is PyTorch's threaded copy_ of the logits into a buffer, in the dtype and layout of the case.",
    "Warm: logits, labels and buffers (written before), the threads, and the compiled code (each provider "
    "has run twice: once checked against float64, once timed and thrown away). Compilation is not timed.",
    "Logits and buffers lie in memory that NumPy allocated. A fresh gradient is allocated within the time "
    "and freed outside it; PyTorch's two providers and NumPy's always make a fresh one.",
    "Bytes are the least a provider must move: loss and gradient read the logits and write as much.",
    "The textbook NumPy formula runs on one thread, and in float32 for float16 and bfloat16.",
]


def describe() -> dict[str, Any]:
    """The head of a report."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "machine": {
            "cpu": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "openmp_runtimes": _openmp_runtimes(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "transparent_huge_pages": _chosen("/sys/kernel/mm/transparent_hugepage/enabled"),
            "load_before": round(os.getloadavg()[0], 2),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": str(torch.__version__),
            "ml_dtypes": ml_dtypes.__version__,
            "xent": xent.__version__,
            "xent_instruction_set": cpu.isas()[0],
        },
        "method": METHOD,
    }


def _git(*arguments: str) -> str | None:
    """None outside a repository."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:  # not Linux
        return ""


def _processor() -> str:
    lines = [line for line in _read("/proc/cpuinfo").splitlines() if line.startswith("model name")]
    return lines[0].partition(":")[2].strip() if lines else platform.processor()


def _chosen(path: str) -> str | None:
    """The word in brackets: "always [madvise] never"."""
    return _read(path).partition("[")[2].partition("]")[0] or None


def _openmp_runtimes() -> int | None:
    """How many are loaded: two pools of threads can spin against each other."""
    paths = {line.split()[-1] for line in _read("/proc/self/maps").splitlines() if "omp" in line}
    return len([p for p in paths if p.rpartition("/")[2].startswith(("libgomp", "libomp", "libiomp"))]) or None
