"""Every variant of the loss on every backend: target, head and kernels together, in each reduction."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import xent
from tests.conftest import Backend
from tests.engine.whole_loss import check_loss, make_case
from tests.tables.tolerance import DTYPES
from tests.tables.variants import Kind, Variant, each_of_few, every_case
from xent.engine.batch_loss import Problem
from xent.kernels import registry


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@every_case
def test_variants(backend: Backend, variant: Variant, kind: Kind, dtype: str) -> None:
    for reduction, num_classes, scale in (
        ("mean", 10, "30"),
        ("sum", 3, "1"),
        ("none", 127, "0.02"),
        ("none", 10, "masked"),
        ("none", 10, "poisoned"),
    ):
        check_loss(backend, make_case(variant, kind, (4, 7), num_classes, dtype, scale, reduction))


@pytest.mark.parametrize("dtype", DTYPES)
@each_of_few
def test_dtypes(backend: Backend, variant: Variant, kind: Kind, dtype: str) -> None:
    for reduction, (num_classes, scale) in itertools.product(
        ("mean", "sum", "none"), ((3, "1"), (10, "30"), (127, "0.02"))
    ):
        check_loss(backend, make_case(variant, kind, (4, 7), num_classes, dtype, scale, reduction))


@every_case
def test_front_end_is_the_problem(variant: Variant, kind: Kind) -> None:
    """The public functions give, to the bit, what their backend gives."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 5))
    targets, options = variant.make(kind, (6,), 5, rng)
    p = Problem.from_arguments(
        logits, targets, "mean", variant.denominator, True, dict(options), registry.get("cpu")
    )
    options["denominator"] = variant.denominator
    loss, grad = xent.cross_entropy_with_grad(logits, targets, **options)
    expected_loss, expected_grad = p.loss_and_grad(np.empty_like(logits))
    assert loss == expected_loss
    np.testing.assert_array_equal(grad, expected_grad)
    assert xent.cross_entropy(logits, targets, **options) == p.loss(p.stats())
    product = xent.cross_entropy_hvp(logits, targets, logits, **options)
    np.testing.assert_array_equal(product, p.hvp(logits, np.empty_like(logits)))
