"""The benchmark of fits to more rows than memory: a small run reports the optimum of the fit in memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.fits import outofcore

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA, and pages that the system forgets")
def test_a_small_run_reports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    outofcore.main(["--small", "--files", "2", "--out", str(tmp_path)])
    cases: dict[str, Any] = json.loads((tmp_path / "outofcore.json").read_text(encoding="utf-8"))["cases"]
    whole, first = cases["all"], cases["first"]
    assert whole["rows"] == 2 * first["rows"]
    assert whole["gap"] <= outofcore.TOL
    assert first["objective"] == pytest.approx(first["least objective, in memory"], rel=1e-9)
    assert 0 < whole["peak MB"] * 1e6 < outofcore.LIMIT
    assert "| a pass beside a plain read from the disk |" in (tmp_path / "outofcore.md").read_text()
