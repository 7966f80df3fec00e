"""Pages of the command within the site: the explorer of a row, and the report of a fit."""

from __future__ import annotations

from pathlib import Path

from sphinx.application import Sphinx

from xent.explain import explorer
from xent.files import dataset
from xent.report import page, training


def write(app: Sphinx, error: Exception | None) -> None:
    """Write explorer.html and report.html beside the pages that show them."""
    if error or app.builder.format != "html":
        return
    run = training.run(dataset.load("digits"), training.Settings())
    folder = Path(app.outdir, "docs")
    (folder / "explorer.html").write_text(explorer.html([2.0, 3.0, 4.0], 1, {}), "utf-8")
    report = page.html(run, "xent fit digits --report report.html")
    (folder / "report.html").write_text(report, "utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
