"""A fitted model, and its file."""

from __future__ import annotations

import pytest

import xent


@pytest.fixture(scope="module")
def model() -> xent.SoftmaxRegression:
    from tests.regression.saved.test_model_file import fitted

    return fitted(["setosa", "versicolor", "virginica"])


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("models") / "m.safetensors"
    model.save(path)
    return path.read_bytes()
