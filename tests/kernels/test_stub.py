"""The stub of the extension is what nanobind's stubgen makes of the extension."""

import subprocess
import sys
from pathlib import Path

import pytest

import xent

STUB = Path(xent.__file__).parent / "kernels" / "_native.pyi"


def test_stub_is_that_of_the_extension(tmp_path):
    pytest.importorskip("nanobind", reason="nanobind, which makes the stub, is not installed")
    made = tmp_path / STUB.name
    stubgen = ["nanobind.stubgen", "--quiet", "-m", "xent.kernels._native", "-o", str(made)]
    for module in (stubgen, ["ruff", "format", "--quiet", "--line-length=110", str(made)]):
        subprocess.run([sys.executable, "-m", *module], check=True)
    assert made.read_text() == STUB.read_text(), "run `make format`"
