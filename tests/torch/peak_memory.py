"""The memory that a step takes at its peak, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

MEASURE = """
import os, sys
from pathlib import Path

def measure(way, num_rows, num_classes):
    prepare(way)
    step(way, 160, 400)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    peak = lambda: int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
    before = peak()
    step(way, num_rows, num_classes)
    print(way, (peak() - before) // 1024, sep="=", flush=True)

rows, classes, *ways = sys.argv[1:]
for way in ways:  # each in a process of its own, for which PyTorch is imported already
    if os.fork() == 0:
        measure(way, int(rows), int(classes))
        os._exit(0)
    assert os.wait()[1] == 0, way
"""


def peaks(code: str, ways: Sequence[str], num_rows: int, num_classes: int) -> dict[str, int]:
    """MiB by which the peak grows in ``step(way, num_rows, num_classes)`` of ``code``, for each of ``ways``.

    ``prepare(way)`` of ``code`` makes what does not count. Linux alone tells the peak.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # threads do not outlive a fork
    command = [sys.executable, "-c", code + MEASURE, str(num_rows), str(num_classes), *ways]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found = dict(line.split("=") for line in run.stdout.splitlines())
    assert list(found) == list(ways)
    return {way: int(mib) for way, mib in found.items()}
