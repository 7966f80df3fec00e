"""The Triton kernels compiled ahead of time, without a GPU: no spilled register, accesses of 16 bytes.

In a process of its own each (see ahead_of_time.py). What the launches ask for is what is compiled.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

ROOT = Path(__file__).parents[3]
KERNELS = ("row_stats", "row_stats_and_grad", "row_grad", "row_hvp")
DTYPES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}
CAPABILITIES = (80, 90, 100)  # A100, H100, B200
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"dense": True},
    {"softcap": 30.0},
    {"dense": True, "softcap": 30.0},
)
# Held in registers, several rows a tile or one; longer than what is held.
CLASSES = (10, 1000, 32000, 128256)


def run(function: str, calls: list[dict[str, Any]], cache: Path) -> list[Any]:
    """What ahead_of_time.py says of the calls."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": os.pathsep.join(["src", *sys.path])}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("ahead_of_time.py")), function, json.dumps(calls)],
        capture_output=True, text=True, cwd=ROOT, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(calls: list[dict[str, Any]], cache: Path) -> None:
    for call, compiled in zip(calls, run("compile", calls, cache), strict=True):
        assert compiled["spilled"] == 0, f"{call}: {compiled}"
        num_classes, size = call["shape"][1], DTYPES[call["dtype"]]
        if num_classes * size % 16 == 0:
            assert compiled["loads"] == 128, f"{call}: {compiled}"
            assert call["name"] == "row_stats" or compiled["stores"] == 128, f"{call}: {compiled}"


def calls(names: Any, dtypes: Any, classes: Any, options: Any, capabilities: Any) -> list[dict[str, Any]]:
    return [
        {"name": name, "dtype": dtype, "shape": (64, k), "capability": capability} | option
        for name, dtype, k, option, capability in itertools.product(
            names, dtypes, classes, options, capabilities
        )
    ]


def test_no_spills(tmp_path: Path) -> None:
    """On one GPU; the slow test has them all."""
    both = calls(KERNELS, ("bfloat16", "float32"), (32000, 128256), OPTIONS[:1], (90,))
    check([c for c in both if c["name"] != "row_grad" or c["shape"][1] == 32000], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KERNELS)
def test_no_spills_in_any(name: str, dtype: str, tmp_path: Path) -> None:
    check(calls([name], [dtype], CLASSES, OPTIONS, CAPABILITIES), tmp_path)
    across = {"across": True}
    check(calls([name], [dtype], (21, 2049), [across, across | {"dense": True}], CAPABILITIES), tmp_path)


def test_a_new_value_compiles_nothing(tmp_path: Path) -> None:
    """Options, coefficients and the number of rows are not in the key of the cache of compiled kernels."""
    values = list(itertools.product((1.0, 16.0), (0.0, 1.0, 0.9), (1, 16, 17)))
    kernels = [(name, dense) for name in KERNELS for dense in (False, True)]
    asked = []
    for name, dense in kernels:
        base = {"name": name, "dense": dense, "capability": 90, "softcap": 3.0, "coefficient": 0.5}
        asked += [
            base | {"temperature": t, "softcap": t + 1.0, "coefficient": c, "shape": (n, 1000)}
            for t, c, n in values
        ]
        asked += [base, base | {"softcap": None}]
    keys = iter(run("key", asked, tmp_path))
    for kernel in kernels:
        assert len({next(keys) for _ in values}) == 1, kernel
        assert next(keys) != next(keys), kernel
