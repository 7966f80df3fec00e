"""`xent check` agrees, and each of its columns notices what it is there to notice."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from xent import check
from xent.core.spec import LossSpec

COLUMNS = check.Row._fields[1:]


@pytest.mark.parametrize("seed", [0, 1])
def test_every_variant_agrees_with_every_judge(seed):
    rows = check.run(seed)
    assert [row.variant for row in rows] == list(check.VARIANTS)
    assert [(row.variant, row.failures) for row in rows if row.failures] == []
    assert all(error is not None for row in rows for error in row[1:]) or check.missing_libraries()


def test_every_option_of_the_loss_has_a_variant():
    variants = check.VARIANTS.values()
    binary = [options for options in variants if options.get("targets", "").startswith("binary")]
    scalars = {field.name for field in fields(LossSpec)}
    assert {name for options in variants for name in options} >= scalars | {"class_weight", "sample_weight"}
    assert {name for options in binary for name in options} >= scalars | {"pos_weight", "sample_weight"}
    for some in (variants, binary):
        assert {options.get("smoothing_over") for options in some if "label_smoothing" in options} == {
            None,
            "others",
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


@pytest.mark.parametrize("small", [True, False])
def test_a_fault_at_one_scale_of_the_logits_is_found(small, monkeypatch):
    right = check.cross_entropy_with_grad

    def wrong_there(logits, *args, **options):
        loss, grad = right(logits, *args, **options)
        return loss * (1 + 1e-9 * (bool(np.abs(logits).max() < 0.5) is small)), grad

    monkeypatch.setattr(check, "cross_entropy_with_grad", wrong_there)
    monkeypatch.setattr(check, "VARIANTS", {"plain": {}})
    (row,) = check.run()
    missing = set(check.missing_libraries())
    assert set(row.failures) == {f"loss_{name}" for name in ("mpmath", "torch") if name not in missing}


BINARY_FAULTS = {
    "binary smoothing": {"label_smoothing": 0.11},
    "binary others": {"smoothing_over": "all"},
    "binary z-loss": {"z_loss": 0.11},
    "binary softcap": {"softcap": 5.1},
    "binary temperature": {"temperature": 1.8},
    "binary labels": {"ignore_index": 1},
    "binary poly-1": {"poly1_epsilon": -0.6},
    "binary focal 2": {"focal_gamma": 2.1},
    "binary focal + cap": {"focal_gamma": 0.6},
    "binary focal + z-loss": {"z_loss": 0.11},
}


@pytest.mark.parametrize("variant", BINARY_FAULTS)
def test_a_binary_option_that_is_taken_for_another_is_found(variant, monkeypatch):
    right = {name: getattr(check, name) for name in check.__dict__ if name.startswith("binary_cross")}
    right["cross_entropy_hvp"] = check.cross_entropy_hvp
    for name, function in right.items():
        monkeypatch.setattr(
            check, name, lambda *args, f=function, **o: f(*args, **o | BINARY_FAULTS[variant])
        )
    monkeypatch.setattr(check, "VARIANTS", {variant: check.VARIANTS[variant]})
    (row,) = check.run()
    missing = {f"_{library}" for library in check.missing_libraries()}
    judges = {c for c in COLUMNS if c.endswith(("mpmath", "torch")) and not any(map(c.endswith, missing))}
    assert set(row.failures) == judges  # differences agree: all is of the other option


@pytest.mark.parametrize("library", ["mpmath", "torch"])
def test_a_library_that_is_not_installed_leaves_its_columns_empty(library, monkeypatch):
    for other in {"mpmath", "torch"} - {library}:
        pytest.importorskip(other)
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
