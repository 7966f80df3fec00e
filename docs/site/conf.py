"""The site: the repository's Markdown, and the API from its docstrings. `make docs` builds it.

The source folder is the root of the repository, so that links between files are the same here and in a
checkout. Nothing is read from the network, neither to build the site nor to show it.
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

project = "xent"
author = "the xent authors"
copyright = "the xent authors, BSD-3-Clause"  # the name that Sphinx reads
version = release = metadata.version("xent")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "mathml",
    "links",
    "live_pages",
]
root_doc = "docs/index"
include_patterns = [
    "docs/**.md",
    "docs/api/**.rst",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "bench/results/*.md",
    "tests/torch/fused/zoo.md",
]
exclude_patterns = ["**/.*", "build", "dist", "examples", "native", "src"]

myst_enable_extensions = ["dollarmath", "attrs_block"]
myst_heading_anchors = 3
math_renderer = math_html_renderer = "mathml"

autosummary_generate = True
autodoc_typehints = "none"  # the docstrings say types, with shapes
autodoc_class_signature = "mixed"
default_role = "py:obj"
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Options", "params_style"), ("Attributes", "params_style")]
smartquotes_action = "De"  # dashes and dots; the docstrings quote strings of Python
python_maximum_signature_line_length = 80

FONTS = 'ui-sans-serif, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif'
BRAND = ("color-brand-primary", "color-brand-content", "color-brand-visited", "color-api-name")
html_theme = "furo"
html_title = "xent"
html_theme_options = {
    "light_css_variables": dict.fromkeys(BRAND, "#1f5f8b") | {"font-stack": FONTS},
    "dark_css_variables": dict.fromkeys(BRAND, "#7ab8e0"),
}
html_static_path = ["static", "../../src/xent/html/templates/scroll.js"]
html_css_files = ["site.css"]
html_js_files = [(name, {"defer": "defer"}) for name in ("names.js", "scroll.js")]
html_additional_pages = {"index": "start.html"}
templates_path = [str(HERE / "templates")]  # autosummary looks from the root, HTML from here
html_copy_source = False
html_show_sphinx = False
copybutton_exclude = ".linenos, .gp, .go"


def skip(app: Sphinx, what: str, name: str, member: Any, skipped: bool, options: Any) -> bool | None:
    """Leave out scikit-learn's methods, and fields of tuples, which the docstring of the class has."""
    foreign = not (getattr(member, "__module__", None) or "xent").startswith("xent")
    return True if foreign or str(member.__doc__).startswith("Alias for field") else None


def setup(app: Sphinx) -> None:
    app.connect("autodoc-skip-member", skip)
