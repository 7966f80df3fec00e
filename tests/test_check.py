"""`xent check` agrees, and each of its columns notices what it is there to notice."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from xent import check
from xent.spec import LossSpec

COLUMNS = check.Row._fields[1:]


@pytest.mark.parametrize("seed", [0, 1])
def test_every_variant_agrees_with_every_judge(seed):
    rows = check.run(seed)
    assert [row.variant for row in rows] == list(check.VARIANTS)
    assert [(row.variant, row.failures) for row in rows if row.failures] == []
    assert all(error is not None for row in rows for error in row[1:]) or check.missing_libraries()


def test_every_option_of_the_loss_has_a_variant():
    used = {name for options in check.VARIANTS.values() for name in options}
    assert used >= {field.name for field in fields(LossSpec)} | {
        "class_weight",
        "sample_weight",
        "pos_weight",
    }


FAULTS = {
    "cross_entropy_with_grad": (lambda r: (r[0] * (1 + 1e-9), r[1]), {"loss"}),
    "cross_entropy": (lambda r: r * (1 + 1e-9), {"loss"}),
    "cross_entropy_with_grad (gradient)": (lambda r: (r[0], r[1] + 1e-6), {"grad"}),
    "cross_entropy_hvp": (lambda r: r * (1 + 1e-6), {"hvp"}),
    "binary_cross_entropy_with_grad": (lambda r: (r[0], r[1] * (1 + 1e-6)), {"grad"}),
    "cross_entropy_hvp (NaN)": (lambda r: r * np.nan, {"hvp"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_by_every_judge_of_that_quantity(fault, monkeypatch):
    change, found = FAULTS[fault]
    name = fault.partition(" ")[0]
    right = getattr(check, name)
    monkeypatch.setattr(check, name, lambda *args, **options: change(right(*args, **options)))
    variant = "binary" if name.startswith("binary") else "plain"
    monkeypatch.setattr(check, "VARIANTS", {variant: check.VARIANTS[variant]})
    (row,) = check.run()
    missing = {f"_{library}" for library in check.missing_libraries()}
    judges = {c for c in COLUMNS if c.partition("_")[0] in found and not any(c.endswith(m) for m in missing)}
    assert set(row.failures) - {"hvp_differences"} == judges - {"hvp_differences"}


@pytest.mark.parametrize("library", ["mpmath", "torch"])
def test_a_library_that_is_not_installed_leaves_its_columns_empty(library, monkeypatch):
    monkeypatch.setattr(check, "missing_libraries", lambda: [library])
    monkeypatch.setattr(check, "VARIANTS", {"plain": {}})
    (row,) = check.run()
    empty = {name for name, error in row._asdict().items() if error is None}
    assert empty == {c for c in COLUMNS if c.endswith(library)}
    assert row.failures == ()


def test_the_gradient_check_tells_a_wrong_gradient_from_a_right_one():
    def cubic(x):
        return float((x**3).sum()), 3 * x**2

    at = np.linspace(-1, 1, 50)
    right = check.gradient_check(cubic, at, most=20, seed=0)
    assert (right.checked, right.total, right.passed) == (20, 50, True)
    wrong = check.gradient_check(lambda x: (cubic(x)[0], 3.0001 * x**2), at, most=50, seed=0)
    assert not wrong.passed
    assert wrong.error == pytest.approx(1e-4 / 3, rel=1e-2)
    assert not check.gradient_check(lambda x: (cubic(x)[0], x * np.nan), at, 50, 0).passed
