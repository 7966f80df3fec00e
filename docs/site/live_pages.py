"""Pages that the command writes, within the site: the explorer of a row, and the report of a fit."""

from __future__ import annotations

import io
from contextlib import chdir, redirect_stdout
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

from xent.command import cli

CALLS = (
    ["explain", "2 3 4", "--label", "1", "--html", "explorer.html"],
    ["fit", "digits", "--report", "report.html"],
)


def write(app: Sphinx, error: Exception | None) -> None:
    """Write the files of CALLS beside the pages that show them."""
    if error or app.builder.format != "html":
        return
    with chdir(Path(app.outdir, "docs")), redirect_stdout(io.StringIO()):
        for call in CALLS:
            if cli.main(call) != 0:
                raise ExtensionError(f"xent {' '.join(call)} failed")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
