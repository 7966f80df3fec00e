"""No circle of imports anywhere, those inside functions counted; those for types alone are not."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import xent

ROOT = Path(xent.__file__).parent


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All but what stands under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from nodes(node)


def imported(name: str) -> set[str]:
    """The modules of xent that one imports."""
    found = set()
    for node in nodes(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            each = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {full if full in FILES else str(node.module) for full in each.values()}
    return found & FILES.keys() - {name}


def test_no_circle() -> None:
    assert len(FILES) > 100
    list(TopologicalSorter({name: imported(name) for name in FILES}).static_order())  # CycleError names it
