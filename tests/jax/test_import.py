"""A missing or an old JAX is told of in one line, with the version that is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import xent


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            "raise ImportError('none here')",
            'xent.jax needs jax >= 0.5.3: pip install "xent[jax]" (none here)',
        ),
        ("__version__ = '0.5.2'", "xent.jax needs jax >= 0.5.3; found 0.5.2"),
        ("__version__ = '0.4.38.dev2'", "xent.jax needs jax >= 0.5.3; found 0.4.38.dev2"),
    ],
    ids=["missing", "old", "older"],
)
def test_one_line(module: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "jax.py").write_text(module)
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(Path(xent.__file__).parents[1])!r}]\n"
        "try:\n    import xent.jax\nexcept ImportError as error:\n    print(error)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (result.stdout.strip(), result.stderr) == (message, "")


def test_the_extra_asks_for_the_same_version() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    init = Path(xent.__file__).parent / "jax" / "__init__.py"
    minimum = init.read_text().partition('MINIMUM = "')[2].partition('"')[0]
    assert f'jax = ["jax>={minimum}"]' in text
