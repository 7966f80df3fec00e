"""`import xent` is light, and its public names are exactly those it says."""

from __future__ import annotations

import importlib
import subprocess
import sys
import types

import pytest

import xent

HEAVY = (
    "torch",
    "jax",
    "sklearn",
    "scipy",
    "matplotlib",
    "polars",
    "typer",
    "rich",
    "jinja2",
    "pandas",
    "dask",
)


def test_import_loads_no_framework() -> None:
    code = (
        "import sys, numpy as np, xent\n"
        "loss, grad = xent.cross_entropy_with_grad(np.zeros((2, 3)), np.array([0, 1]), label_smoothing=0.1)\n"
        "xent.linear_cross_entropy(grad, grad, [0, 1]), xent.information.entropy([1.0])\n"
        f"print(sorted({{name.partition('.')[0] for name in sys.modules}} & set({HEAVY})))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (result.stdout.strip(), result.stderr) == ("[]", "")


def test_all_is_exact() -> None:
    assert sorted(xent.__all__) == xent.__all__
    assert dir(xent) == xent.__all__
    for name in xent.__all__:  # loaded when asked for
        getattr(xent, name)
    public = {
        name
        for name, value in vars(xent).items()
        if not name.startswith("_")
        and not (isinstance(value, types.ModuleType) and name != "information")
        and getattr(value, "__module__", "xent").startswith("xent")
        and name not in ("annotations", "TYPE_CHECKING")
    }
    assert public <= set(xent.__all__)
    assert set(xent.__all__) - public == {"__version__"}


@pytest.mark.parametrize("name", xent.__all__)
def test_public_name_is_there(name: str) -> None:
    if name == "SoftmaxRegression":
        pytest.importorskip("sklearn")
    value = getattr(xent, name)
    if name != "__version__":
        assert value.__doc__


def test_star_import() -> None:
    pytest.importorskip("sklearn")
    names: dict[str, object] = {}
    exec("from xent import *", names)
    assert set(xent.__all__) <= set(names)


def test_information_is_public() -> None:
    information = importlib.import_module("xent.information")
    for name in (
        "entropy",
        "cross_entropy",
        "kl_divergence",
        "js_divergence",
        "decompose",
        "perplexity",
        "bits",
    ):
        assert callable(getattr(information, name))
