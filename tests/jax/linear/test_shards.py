"""Losses of two devices, forced upon the CPU, in a process of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

jax = pytest.importorskip("jax")


@pytest.mark.skipif(not hasattr(jax, "shard_map"), reason="jax.shard_map came with JAX 0.6")
def test_two_devices() -> None:
    command = [sys.executable, "-W", "error", "-m", "tests.jax.linear.two_devices"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
