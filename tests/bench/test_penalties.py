"""The benchmark of the choice of alpha: its curve is that of scikit-learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def penalties(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    from bench import penalties

    return penalties


def test_a_small_run_reports(penalties: Any, tmp_path: Path) -> None:
    names = ["wine", "table", "normal-float32"]
    penalties.main(["--small", "--cases", *names, "--rounds", "1", "--out", str(tmp_path)])
    report = json.loads((tmp_path / "penalties.json").read_text("utf-8"))
    assert list(report["cases"]) == names
    for case in report["cases"].values():
        assert case["ratio"] == case["samples_s"]["auto"][0] / case["samples_s"]["single"][0]
        assert case["alpha"] in case["alphas"]
        assert len(case["scikit-learn"]["losses"]) == len(case["alphas"])
        assert case["scikit-learn"]["difference"] < 0.5
    assert "| wine 178×13 float64, 3 classes |" in (tmp_path / "penalties.md").read_text("utf-8")


def test_small_numbers_do_not_replace_the_committed_ones(penalties: Any) -> None:
    with pytest.raises(SystemExit, match="2"):
        penalties.main(["--small"])
