"""The problems, one after the other."""

from __future__ import annotations

import pytest

from tests.regression.solvers.problems import PROBLEMS


@pytest.fixture(params=PROBLEMS.values(), ids=PROBLEMS)
def problem(request):
    return request.param
