"""Links to examples lead to their page, not to a file that the browser would download."""

from __future__ import annotations

import re

from sphinx.application import Sphinx

EXAMPLE = re.compile(r"\]\((?:\.\./)?examples/(\w+)\.py\)")


def redirect(app: Sphinx, docname: str, content: list[str]) -> None:
    page = "examples.md" if docname.startswith("docs/") else "docs/examples.md"
    content[0] = EXAMPLE.sub(lambda link: f"]({page}#{link[1].replace('_', '-')})", content[0])


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", redirect)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
