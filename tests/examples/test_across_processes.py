"""The recipes of examples/ across processes do what they say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from examples import gradient_accumulation  # noqa: E402

ROOT = Path(__file__).parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def rows_of(*command: str) -> list[list[str]]:
    """What an example prints below its heading, by columns from the right."""
    path = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path)}
    for _ in range(3):
        result = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
        )
        # A process aborts at its end if a thread of PyTorch outlives it, as on a busy machine.
        if "terminate called without an active exception" not in result.stderr:
            break
    assert result.returncode == 0, result.stderr
    return [line.split() for line in result.stdout.splitlines()[1:]]


def test_parts_add_up_by_the_count_of_all():
    rows = gradient_accumulation.compare(num_parts=3)
    loss, _ = rows["the whole batch"]
    value, distance = rows["parts, by the count of all"]
    assert value == pytest.approx(loss, rel=1e-6)
    assert distance < 1e-6
    value, distance = rows["a mean of means"]
    assert value != pytest.approx(loss, rel=1e-3)
    assert distance > 0.01


def test_tensor_parallel():
    rows = rows_of(*TORCHRUN, "examples/tensor_parallel.py", "--steps", "5")
    assert [row[0] for row in rows] == ["0", "1", "2", "3", "4"]
    for _, split, whole, difference in rows:
        assert float(split) == pytest.approx(float(whole), rel=1e-4)
        assert float(difference) < 1e-3
    assert float(rows[-1][1]) < float(rows[0][1])


@pytest.mark.slow
def test_gradient_accumulation_on_two_processes():
    whole, counted, means = rows_of(*TORCHRUN, "examples/gradient_accumulation.py")
    assert float(counted[-2]) == pytest.approx(float(whole[-2]), rel=1e-6)
    assert float(counted[-1]) < 1e-6 < 0.01 < float(means[-1])
