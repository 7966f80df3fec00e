"""The benchmark runs on a tiny case, reports what it says it does, and refuses to time what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xent

pytest.importorskip("torch")
pytest.importorskip("ml_dtypes")

from bench import cases, run

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def small_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cases in which nothing takes time: the layout of an image, and rows of bfloat16."""
    image = cases.Case((2, 5, 3, 4), cases.HESSIAN, class_axis=1, calls=2)
    monkeypatch.setitem(cases.CASES, "image", image)
    monkeypatch.setitem(cases.CASES, "rows", cases.Case((6, 7), cases.LARGE, "bfloat16"))


def test_report(tmp_path: Path) -> None:
    compiled = {"torch_compile", "xent_torch_compile"}
    run.main(["--cases", "image", "rows", "--rounds", "1", "--out", str(tmp_path), "--skip", *compiled])
    text = (tmp_path / "core.json").read_text(encoding="utf-8")
    report = json.loads(text)
    assert report.keys() == {
        "date", "commit", "uncommitted changes", "machine", "versions", "method", "cases",
    }  # fmt: skip
    assert report["versions"].keys() == {"python", "numpy", "torch", "ml_dtypes", "xent"}
    assert str(ROOT) not in text
    image, rows = report["cases"]["image"], report["cases"]["rows"]
    assert set(run.PROVIDERS) - image["providers"].keys() == compiled
    assert set(run.PROVIDERS) - rows["providers"].keys() == {*compiled, "xent_hvp"}
    for summary in image["providers"].values():
        assert summary.keys() == {"median_s", "min_s", "copies", "bytes", "gb_per_s", "samples_s"}
    assert image["providers"]["copy"]["copies"] == 1.0
    assert image["providers"]["xent_into_buffer"]["bytes"] == 2 * 4 * 2 * 5 * 3 * 4
    assert image["hvp / into buffer"] > 0
    assert rows["hvp / into buffer"] is None
    table = (tmp_path / "core.md").read_text(encoding="utf-8")
    assert "| image float32 |" in table
    assert "| rows bfloat16 |" in table
    assert sorted(path.name for path in tmp_path.iterdir()) == ["core.json", "core.md"]


@pytest.mark.parametrize("wrong", ["loss", "gradient"])
def test_nothing_wrong_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    right = xent.cross_entropy_with_grad

    def broken(*args: Any, **kwargs: Any) -> tuple[Any, np.ndarray[Any, Any]]:
        loss, dlogits = right(*args, **kwargs)
        if wrong == "loss":
            return loss * 1.01, dlogits
        dlogits *= 1.01
        return loss, dlogits

    monkeypatch.setattr(xent, "cross_entropy_with_grad", broken)
    with pytest.raises(ValueError, match=r"xent_into_buffer: .* must be .*; got "):
        run.main(["--cases", "image", "--rounds", "1", "--skip", "torch_compile", "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())
