"""What pyproject.toml, CITATION.cff and CHANGELOG.md say of the same thing."""

from __future__ import annotations

import re
import tomllib

from tests.packaging.contents import ROOT, version

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_one_version() -> None:
    assert f"\nversion: {version()}\n" in (ROOT / "CITATION.cff").read_text()


def test_classifiers_begin_with_the_lowest_python() -> None:
    """The lowest of the classifiers is `requires-python`, and that of the tools."""
    versions = re.findall(r":: (3\.\d+)$", "\n".join(PYPROJECT["project"]["classifiers"]), re.MULTILINE)
    assert PYPROJECT["project"]["requires-python"] == f">={versions[0]}"
    assert PYPROJECT["tool"]["mypy"]["python_version"] == versions[0]
    assert PYPROJECT["tool"]["ruff"]["target-version"] == f"py{versions[0].replace('.', '')}"


def test_wheels_are_for_every_version() -> None:
    """Those below the stable ABI have wheels of their own."""
    stable = PYPROJECT["tool"]["scikit-build"]["wheel"]["py-api"]
    versions = re.findall(r":: 3\.(\d+)$", "\n".join(PYPROJECT["project"]["classifiers"]), re.MULTILINE)
    own = [f"cp3{minor}-*" for minor in versions if f"cp3{minor}" <= stable]
    assert PYPROJECT["tool"]["cibuildwheel"]["build"] == own
