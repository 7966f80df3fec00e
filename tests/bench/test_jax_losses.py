"""The benchmark of the losses in JAX runs on tiny cases, and refuses to time what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("optax")

import xent.jax
from bench import jax_losses


@pytest.fixture(autouse=True)
def small_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax_losses, "DENSE", {"tiny": jax_losses.Dense((70, 8))})
    monkeypatch.setattr(jax_losses, "LINEAR", {"layer": jax_losses.Linear((64, 4, 16))})


def test_report(tmp_path: Path) -> None:
    jax_losses.main(["--cases", "tiny", "layer", "--rounds", "1", "--out", str(tmp_path)])
    report = json.loads((tmp_path / "jax.json").read_text("utf-8"))
    assert report["cases"]["tiny"]["median_s"].keys() >= {"xent", "xent, XLA alone", "optax", "copy"}
    assert report["cases"]["layer"]["temporary MiB"].keys() == {"xent", "naive"}
    text = (tmp_path / "jax.md").read_text("utf-8")
    assert "| tiny |" in text
    assert "| layer |" in text


def test_nothing_wrong_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xent.jax, "cross_entropy", lambda z, y: 1.01 * jax_losses.peer(z, y))
    with pytest.raises(ValueError, match="error of the gradient must be <="):
        jax_losses.main(["--cases", "tiny", "--rounds", "1", "--out", str(tmp_path)])
