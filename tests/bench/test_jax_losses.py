"""The benchmark of the losses in JAX runs on tiny cases, and refuses to time what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("optax")

import xent.jax

ROOT = Path(__file__).parents[2]


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    from bench import jax_losses

    monkeypatch.setattr(jax_losses, "DENSE", {"tiny": jax_losses.Dense((70, 8))})
    monkeypatch.setattr(jax_losses, "LINEAR", {"layer": jax_losses.Linear((64, 4, 16))})
    return jax_losses


def test_report(losses: Any, tmp_path: Path) -> None:
    losses.main(["--cases", "tiny", "layer", "--rounds", "1", "--out", str(tmp_path)])
    report = json.loads((tmp_path / "jax.json").read_text("utf-8"))
    assert report["cases"]["tiny"]["median_s"].keys() >= {"xent", "xent, XLA alone", "optax", "copy"}
    assert report["cases"]["layer"]["temporary MiB"].keys() == {"xent", "naive"}
    text = (tmp_path / "jax.md").read_text("utf-8")
    assert "| tiny |" in text
    assert "| layer |" in text


def test_nothing_wrong_is_timed(losses: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xent.jax, "cross_entropy", lambda z, y: 1.01 * losses.peer(z, y))
    with pytest.raises(ValueError, match="error of the gradient must be <="):
        losses.main(["--cases", "tiny", "--rounds", "1", "--out", str(tmp_path)])
