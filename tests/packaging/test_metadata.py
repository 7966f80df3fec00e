"""What pyproject.toml, CITATION.cff and CHANGELOG.md say of the same thing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib

import pytest

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
    assert [x for x in PYPROJECT["tool"]["cibuildwheel"]["build"] if "t-" not in x] == own


SYSTEMS = {
    "linux": [f"{libc}_{arch}" for libc in ("manylinux", "musllinux") for arch in ("x86_64", "aarch64")],
    "macos": ["macosx_arm64"],
    "windows": ["win_amd64"],
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_cibuildwheel_reads_the_table(system: str) -> None:
    """For each system and processor a wheel for 3.11, one for 3.12 and later, one without a global lock."""
    pytest.importorskip("cibuildwheel")
    command = [sys.executable, "-m", "cibuildwheel", "--print-build-identifiers", "--platform", system, ROOT]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CIBW_")}
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    wheels = {f"{python}-{end}" for python in ("cp311", "cp312", "cp314t") for end in SYSTEMS[system]}
    assert set(printed.split()) == wheels


def test_wheels_are_tested_with_what_the_tests_need() -> None:
    table, extras = PYPROJECT["tool"]["cibuildwheel"], PYPROJECT["project"]["optional-dependencies"]
    assert table["test-extras"] == ["tools"]
    assert set(table["test-requires"]) <= set(extras["fit"])
    assert all((ROOT / path).exists() for path in table["test-sources"])
    folders = [part for part in table["test-command"].split() if part.startswith("tests/")]
    assert all((ROOT / folder).is_dir() for folder in folders)
