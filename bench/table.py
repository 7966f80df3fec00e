"""A report as a table: one row per case, in copies of its logits."""

from __future__ import annotations

from typing import Any

COLUMNS = {
    "xent_buffer": "xent, into a buffer",
    "xent_fresh": "xent, fresh gradient",
    "xent_loss": "xent, loss only",
    "torch_eager": "PyTorch eager",
    "torch_compile": "torch.compile",
    "numpy": "NumPy textbook",
}


def markdown(report: dict[str, Any]) -> str:
    """The table, then machine, versions and method."""
    machine, versions = report["machine"], report["versions"]
    head = ["case", "copy", *COLUMNS.values(), "Hessian product / gradient", "eager / xent fresh"]
    lines = [
        "# Loss and gradient, in copies of the logits (median time)",
        "",
        _line(head),
        _line(["---", *["---:"] * (len(head) - 1)]),
        *(_row(name, case) for name, case in report["cases"].items()),
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['memory_gib']} GiB, {machine['system']}; transparent huge pages: "
        f"{machine['transparent_huge_pages']}; OpenMP runtimes loaded: {machine['openmp_runtimes']}; "
        f"load before: {machine['load_before']}.",
        ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
        f"{report['date']}, commit {report['commit']}"
        + (", with uncommitted changes." if report["uncommitted_changes"] else "."),
        "",
        *(f"* {sentence}" for sentence in report["method"]),
    ]
    return "\n".join(lines) + "\n"


def _row(name: str, case: dict[str, Any]) -> str:
    timed = case["providers"]
    copy = timed.get("copy")
    return _line([
        f"{name.partition('-')[0].replace('x', '×')} {case['dtype']}",
        f"{_time(copy['median_s'])}, {copy['gb_per_s']:.1f} GB/s" if copy else "",
        *(_cell(timed.get(column)) for column in COLUMNS),
        _times(case["hvp_over_gradient"]),
        _times(case["eager_over_xent_fresh"]),
    ])  # fmt: skip


def _cell(timed: dict[str, Any] | None) -> str:
    if timed is None:
        return ""
    time = _time(timed["median_s"])
    return time if timed["copies"] is None else f"{_times(timed['copies'])} ({time})"


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f} ×"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
