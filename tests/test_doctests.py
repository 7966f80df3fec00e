"""The examples in the documentation of every module give what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import numpy as np
import pytest

import xent

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(xent.__path__, "xent.")
    if not module.name.rpartition(".")[2].startswith("_")
)
SHOWN_ELSEWHERE = ("RowStatistics", "SoftmaxRegression")  # by row_statistics; among MODULES
PUBLIC = [n for n in xent.__all__ if n not in SHOWN_ELSEWHERE and callable(getattr(xent, n))]


@pytest.mark.parametrize("name", ["xent", *MODULES])
def test_examples(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        pytest.skip(f"needs {error.name}")
    with np.printoptions(legacy=False):
        results = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert results.failed == 0


@pytest.mark.parametrize("name", PUBLIC)
def test_public_function_has_an_example(name: str) -> None:
    assert ">>> " in getattr(xent, name).__doc__
