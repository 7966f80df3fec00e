"""optax's own tests pass of `xent.jax.optax`: every case, with many seeds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("jax")
pytest.importorskip("optax")
pytest.importorskip("absl")

ROOT = Path(__file__).parents[3]
CASES = {
    "SoftmaxCrossEntropyTest": 9,
    "SafeSoftmaxCrossEntropyTest": 4,
    "SoftmaxCrossEntropyWithIntegerLabelsTest": 15,
    "PolyLossTest": 25,
    "SigmoidCrossEntropyTest": 10,
    "SigmoidFocalLossTest": 9,
    "KLDivergenceTest": 7,
    "SmoothLabelsTest": 2,
}


@pytest.mark.parametrize("seeds", [range(5), pytest.param(range(5, 55), marks=pytest.mark.slow)], ids=len)
def test_every_case_passes(seeds: range) -> None:
    command = [sys.executable, "-m", "tests.jax.optax.suite", *map(str, seeds)]
    path = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    run = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    results = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(results) == len(seeds), run.stderr
    for result in results:
        assert result == {"passed": CASES, "others": []}, run.stderr
