"""The benchmark of the binary loss runs on a tiny case, and refuses to time what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import xent.torch  # noqa: E402
from bench import binary  # noqa: E402


@pytest.fixture(autouse=True)
def small_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    tiny = {
        "tiny": ((5, 3), torch.float32, {"pos_weight": 3}, 2),
        "half": ((4,), torch.bfloat16, {}, 1),
        "focal": ((5, 3), torch.float32, {"focal_gamma": 2.0}, 1),
    }
    monkeypatch.setattr(binary, "CASES", tiny)


def test_report(tmp_path: Path) -> None:
    binary.main(["--cases", "tiny", "half", "focal", "--rounds", "1", "--out", str(tmp_path)])
    report = json.loads((tmp_path / "binary.json").read_text("utf-8"))
    assert report["cases"]["tiny"]["ratios"].keys() == {"eager / xent", "compiled / xent"}
    assert "| tiny |" in (tmp_path / "binary.md").read_text("utf-8")


def test_nothing_wrong_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = xent.torch.binary_cross_entropy_with_logits
    monkeypatch.setattr(
        xent.torch, "binary_cross_entropy_with_logits", lambda z, *a, **k: right(1.1 * z, *a, **k)
    )
    with pytest.raises(ValueError, match="xent: relative error of the loss"):
        binary.main(["--cases", "tiny", "--rounds", "1", "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())
