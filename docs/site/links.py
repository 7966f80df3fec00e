"""Links that a page in Markdown cannot write so that they also work in a checkout.

A link to an example leads to its page, not to a file that the browser would download. A name of the API,
written as code, leads to its docstring.
"""

from __future__ import annotations

import re

from docutils import nodes
from sphinx.application import Sphinx

EXAMPLE = re.compile(r"\]\((?:\.\./)?examples/(\w+)\.py\)")
# Where names stand without their module.
MODULES = {
    "docs/heads": "xent.torch",
    "docs/jax": "xent.jax",
    "docs/pytorch": "xent.torch",
    "docs/numpy": "xent",
}


def lead_to_examples(app: Sphinx, docname: str, content: list[str]) -> None:
    """Rewrite the links of a page's source."""
    page = "examples.md" if docname.startswith("docs/") else "docs/examples.md"
    content[0] = EXAMPLE.sub(lambda link: f"]({page}#{link[1].replace('_', '-')})", content[0])


def lead_to_docstrings(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Wrap code that is the name of a documented object in a link to it."""
    objects = app.env.domains["py"].objects  # type: ignore[attr-defined]
    for code in list(doctree.findall(nodes.literal)):
        name = code.astext()
        if isinstance(code.parent, nodes.reference | nodes.title):
            continue
        found = objects.get(name) or objects.get(f"{MODULES.get(docname)}.{name}")
        if found and found.docname != docname:
            address = f"{app.builder.get_relative_uri(docname, found.docname)}#{found.node_id}"
            code.replace_self(nodes.reference("", "", code.deepcopy(), internal=True, refuri=address))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", lead_to_examples)
    app.connect("doctree-resolved", lead_to_docstrings)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
