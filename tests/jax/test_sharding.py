"""Rows split over devices: in shard_map, under jit, and on a mesh of explicit axes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("jax")


def test_two_devices() -> None:
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    script = Path(__file__).with_name("sharded.py")
    command = [sys.executable, "-W", "error", str(script)]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ, **flags}, check=False
    )
    assert result.returncode == 0, result.stderr
