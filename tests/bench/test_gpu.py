"""The GPU's benchmark without a GPU: it says so; its checks, table and JSON run on interpreted kernels."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]

from bench.gpu import __main__ as gpu  # noqa: E402
from bench.gpu.case import Provider  # noqa: E402
from bench.gpu.logits import TOLERANCE  # noqa: E402
from xent.torch import devices  # noqa: E402


class HostClock:
    """Stands in for events of a device."""

    device = "cpu"
    description = {"device": "none"}  # noqa: RUF012

    def seconds(self, call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def peak(self, call: Callable[[], object]) -> int:
        call()
        return 3 << 20


@pytest.fixture(autouse=True)
def small_cases(interpreter: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cases in which nothing takes time, on the CPU."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setitem(devices.KERNELS, "cpu", "triton")
    monkeypatch.setattr(gpu, "REPEATS", 1)
    makers = [lambda device, dtype=dtype: gpu.Logits((4, 8), dtype, device) for dtype in TOLERANCE]
    monkeypatch.setitem(gpu.SECTIONS, "logits", makers)
    projected = lambda device: gpu.projection.Projected(6, 4, 8, 0.4, torch.float32, device)  # noqa: E731
    monkeypatch.setitem(gpu.SECTIONS, "projection", [projected])


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpu.write(gpu.report(["logits"], HostClock()), tmp_path)
    found = json.loads((tmp_path / "gpu.json").read_text("utf-8"))
    assert found.keys() >= {"date", "commit", "device", "versions", "seed", "method", "cases"}
    assert found["cases"]["logits"].keys() == {"4×8 bfloat16", "4×8 float32"}
    for providers in found["cases"]["logits"].values():
        assert providers.keys() >= {"copy", "xent", "row_stats", "row_grad", "row_hvp", "torch, eager"}
        assert providers["copy"]["share"] == 1.0
        for timed in providers.values():
            assert timed["giga_per_s"] == pytest.approx(timed["work"] / timed["median_s"] / 1e9)
    table = (tmp_path / "gpu.md").read_text("utf-8")
    assert table in capsys.readouterr().out
    assert "| 4×8 float32 | row_stats_and_grad | " in table
    assert f"commit: {found['commit']}" in table


def test_nothing_wrong_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    case = gpu.Logits((4, 8), torch.float32, "cpu")
    for name, provider in case.providers():
        results = provider.call()
        case.require_right(name, results, provider.tolerance)
        for what, result in results.items():
            if result is not None and what != "copy":
                wrong = {what: result.double() * 1.01 + 1e-3}
                with pytest.raises(ValueError, match=f"{name}: relative error of the {what} must be <= "):
                    case.require_right(name, wrong, provider.tolerance)


def test_projection() -> None:
    (found,) = gpu.report(["projection"], HostClock())["cases"]["projection"].items()
    assert found[0] == "6×4→8 float32, 40% ignored"
    assert found[1].keys() >= {"three products", "xent", "xent, compiled", "torch, eager"}
    case = gpu.SECTIONS["projection"][0]("cpu")
    for name, provider in case.providers():
        for what, result in provider.call().items():
            with pytest.raises(ValueError, match=f"{name}: relative error of the {what} must be <= "):
                case.require_right(name, {what: result * 1.5}, provider.tolerance)


def test_what_does_not_fit_is_said() -> None:
    class TooLarge(gpu.Logits):  # type: ignore[misc, name-defined]
        def providers(self) -> Any:
            def call() -> None:
                raise torch.OutOfMemoryError

            yield "copy", Provider(call, 1, 0.0)

    found = gpu.measure(TooLarge((2, 2), torch.float32, "cpu"), HostClock())
    assert found == {"copy": {"failed": "out of memory"}}
    assert gpu._cells(found["copy"]) == ["out of memory", "", "", ""]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu() -> None:
    done = subprocess.run([sys.executable, "-m", "bench.gpu"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == f"bench.gpu: needs a GPU; PyTorch {torch.__version__} sees none here\n"
