"""Formulas as MathML, which browsers show without a script and screen readers read aloud."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from latex2mathml import converter
from sphinx.application import Sphinx

TAG = re.compile(r"\\tag\{(.+?)\}")
BOX = re.compile(r"<menclose notation=\"box\">(.*)</menclose>")  # not in MathML Core; site.css draws the box
# Names of functions need a space on the side where an operand stands, which TeX puts there by itself.
BEFORE = re.compile(r"(?<=</mi>|</mn>)(<mi>(?:log|tanh|artanh|exp|max|min)</mi>)")
AFTER = re.compile(r"(<mi>(?:log|tanh|artanh|exp|max|min)</mi>)(?!<mo stretchy=\"false\">&#x00028;|</)")
# Where words are the bound of a sum, the converter puts them beside it.
SUM = re.compile(r"<msub>(<mo>&#x02211;</mo><mrow>.*?</mrow>)</msub>")
LONG = 40  # characters of LaTeX that may be wider than a phone
SPACE = '<mspace width="0.167em" />'


def math(latex: str, display: str) -> str:
    """The element ``<math>``."""
    element = converter.convert(latex, display=display)
    element = BOX.sub(r'<mrow class="boxed">\1</mrow>', element)
    element = SUM.sub(r"<munder>\1</munder>", element)
    return AFTER.sub(rf"\1{SPACE}", BEFORE.sub(rf"{SPACE}\1", element))


def visit_inline(translator: Any, node: nodes.math) -> None:
    kind = ' class="long"' if len(node.astext()) > LONG else ""
    translator.body.append(f"<span{kind}>{math(node.astext(), 'inline')}</span>")
    raise nodes.SkipNode


def visit_block(translator: Any, node: nodes.math_block) -> None:
    """The formula; the number of its ``\\tag`` beside it is what links to equations lead to."""
    latex = node.astext()
    formula = math(TAG.sub("", latex), "block")
    tag = TAG.search(latex)
    number = f'<span class="number" id="equation-{tag[1]}">({tag[1]})</span>' if tag else ""
    translator.body.append(f'<div class="equation"><div class="formula">{formula}</div>{number}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
