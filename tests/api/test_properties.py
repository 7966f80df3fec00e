"""What must hold of the loss whatever computes it (rule 5), for every variant."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xent
from tests.conftest import Backend
from tests.tables.tolerance import DTYPES
from tests.tables.variants import Kind, Variant, chosen, every_case

Array = np.ndarray[Any, Any]

ROWS, K = 12, 7


def cases_without(*options: str) -> pytest.MarkDecorator:
    """The variants that use none of these options."""
    return chosen(lambda variant, kind: not set(options) & set(variant.options))


def make(variant: Variant, kind: Kind, scale: float = 2.0) -> tuple[Array, Array, dict[str, Any]]:
    """Logits, targets and options, reduced by a sum unless the variant says how."""
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(ROWS, K)) * scale
    targets, options = variant.make(kind, (ROWS,), K, rng)
    return logits, targets, options | {"reduction": "sum"}


def close(actual: Any, expected: Any, rtol: float = 1e-12, atol: float = 1e-13) -> None:
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def pick(options: dict[str, Any], rows: Any) -> dict[str, Any]:
    """The options of some of the rows."""
    weight = options.get("sample_weight")
    return options if weight is None else options | {"sample_weight": weight[rows]}


@cases_without("softcap", "z_loss")
def test_shift_of_the_logits_changes_nothing(variant: Variant, kind: Kind) -> None:
    """Where the link is linear and l itself does not enter: equation (9) with λ = 0."""
    logits, targets, options = make(variant, kind)
    loss, grad = xent.cross_entropy_with_grad(logits, targets, **options)
    for shift in (3.0, -50.0, 700.0):
        shifted_loss, shifted_grad = xent.cross_entropy_with_grad(logits + shift, targets, **options)
        close(shifted_loss, loss, rtol=1e-11)
        close(shifted_grad, grad, rtol=1e-10)


@every_case
def test_permuted_classes(variant: Variant, kind: Kind) -> None:
    logits, targets, options = make(variant, kind)
    loss, grad = xent.cross_entropy_with_grad(logits, targets, **options)
    order = np.random.default_rng(2).permutation(K)
    place = {old: new for new, old in enumerate(order.tolist())}
    moved = dict(options)
    if "class_weight" in options:
        moved["class_weight"] = options["class_weight"][order]
    if "ignore_index" in options:
        moved["ignore_index"] = place.get(options["ignore_index"], options["ignore_index"])
    labels = kind == "labels"
    there = [place.get(y, y) for y in targets.tolist()] if labels else targets[:, order]
    moved_loss, moved_grad = xent.cross_entropy_with_grad(logits[:, order], there, **moved)
    close(moved_loss, loss)
    close(moved_grad, grad[:, order])


@every_case
def test_permuted_rows(variant: Variant, kind: Kind) -> None:
    logits, targets, options = make(variant, kind)
    options["reduction"] = "none"
    losses, grad = xent.cross_entropy_with_grad(logits, targets, **options)
    order = np.random.default_rng(2).permutation(ROWS)
    moved_losses, moved_grad = xent.cross_entropy_with_grad(
        logits[order], targets[order], **pick(options, order)
    )
    close(moved_losses, losses[order])
    close(moved_grad, grad[order])


@every_case
def test_shards_equal_the_whole(variant: Variant, kind: Kind) -> None:
    """Of the rows, by a common denominator: data parallelism and gradient accumulation."""
    logits, targets, options = make(variant, kind)
    options |= {"reduction": "mean", "denominator": 7.0}
    loss, grad = xent.cross_entropy_with_grad(logits, targets, **options)
    shards = [
        xent.cross_entropy_with_grad(logits[part], targets[part], **pick(options, part))
        for part in (slice(0, 5), slice(5, 6), slice(6, ROWS))
    ]
    close(sum(shard_loss for shard_loss, _ in shards), loss)
    close(np.concatenate([shard_grad for _, shard_grad in shards]), grad)


@cases_without("softcap")
def test_gradient_sums_to_twice_lambda_l(variant: Variant, kind: Kind) -> None:
    """Equation (9), Σ_k ∂ℓ/∂u_k = 2λωl: with a linear link ∂ℓ/∂u = T·∂ℓ/∂z."""
    logits, targets, options = make(variant, kind)
    _, grad = xent.cross_entropy_with_grad(logits, targets, **options)
    temperature = options.get("temperature", 1.0)
    weight = options.get("sample_weight", np.ones(ROWS)).astype(float)
    if kind == "labels":
        weight = weight * (targets != options.get("ignore_index", -100))
    expected = 2 * options.get("z_loss", 0.0) * weight * xent.logsumexp(logits / temperature)
    close(grad.sum(-1) * temperature, expected)


@every_case
def test_rows_left_out_are_exactly_zero(variant: Variant, kind: Kind) -> None:
    """Whatever they hold, in loss, gradient and Hessian product; and they change no other row."""
    logits, targets, options = make(variant, kind)
    options["reduction"] = "none"
    out = np.zeros(ROWS, bool)
    if options.get("sample_weight") is not None:
        out |= options["sample_weight"] == 0
    if kind == "labels":
        out |= targets == options.get("ignore_index", -100)
    poisoned = np.where(out[:, None], np.array([np.nan, np.inf, -np.inf, 1, 2, 3, 4]), logits)
    losses, grad = xent.cross_entropy_with_grad(poisoned, targets, **options)
    product = xent.cross_entropy_hvp(poisoned, targets, logits, **options)
    for result in (losses, grad, product):
        np.testing.assert_array_equal(result[out], 0)
    clean_losses, clean_grad = xent.cross_entropy_with_grad(logits, targets, **options)
    np.testing.assert_array_equal(losses, clean_losses)
    np.testing.assert_array_equal(grad, clean_grad)


@every_case
def test_gradient_is_the_slope_of_the_loss(variant: Variant, kind: Kind) -> None:
    logits, targets, options = make(variant, kind)
    _, grad = xent.cross_entropy_with_grad(logits, targets, **options)
    direction = np.random.default_rng(3).normal(size=logits.shape)
    h = 1e-5
    up, down = (xent.cross_entropy(logits + s * h * direction, targets, **options) for s in (1, -1))
    close((up - down) / (2 * h), np.sum(grad * direction), rtol=1e-7, atol=1e-8)


@every_case
def test_hessian_product_is_the_slope_of_the_gradient(variant: Variant, kind: Kind) -> None:
    logits, targets, options = make(variant, kind)
    direction = np.random.default_rng(3).normal(size=logits.shape)
    product = xent.cross_entropy_hvp(logits, targets, direction, **options)
    h = 1e-5
    up, down = (
        xent.cross_entropy_with_grad(logits + s * h * direction, targets, **options)[1] for s in (1, -1)
    )
    close(product, (up - down) / (2 * h), rtol=1e-6, atol=1e-8)


@every_case
def test_hessian_is_symmetric(variant: Variant, kind: Kind) -> None:
    logits, targets, options = make(variant, kind)
    a, b = np.random.default_rng(3).normal(size=(2, *logits.shape))
    left = np.sum(a * xent.cross_entropy_hvp(logits, targets, b, **options))
    right = np.sum(b * xent.cross_entropy_hvp(logits, targets, a, **options))
    close(left, right, rtol=1e-10, atol=1e-12)


@cases_without("focal_gamma", "softcap", "z_loss")
def test_hessian_is_positive_where_the_loss_is_convex(variant: Variant, kind: Kind) -> None:
    logits, targets, options = make(variant, kind)
    for seed in range(5):
        r = np.random.default_rng(seed).normal(size=logits.shape)
        assert np.sum(r * xent.cross_entropy_hvp(logits, targets, r, **options)) >= 0


@every_case
def test_with_grad_is_loss_and_gradient(variant: Variant, kind: Kind) -> None:
    """Fused, separate, and by the object any number of times."""
    logits, targets, options = make(variant, kind)
    for reduction in ("mean", "sum", "none"):
        options["reduction"] = reduction
        denominator = variant.denominator if reduction == "mean" else None
        loss, grad = xent.cross_entropy_with_grad(logits, targets, denominator=denominator, **options)
        separate = xent.cross_entropy(logits, targets, denominator=denominator, **options)
        np.testing.assert_array_equal(loss, separate)
        function = xent.CrossEntropyLoss(denominator=denominator, **options)
        for _ in range(2):
            np.testing.assert_array_equal(function(logits, targets), separate)
            for _ in range(3):
                close(function.backward(), grad)
        close(function.backward(-2.5), -2.5 * grad)
        np.testing.assert_array_equal(function.backward(), function.backward())
    upstream = np.linspace(-1, 2, ROWS)  # the last reduction is "none"
    close(function.backward(upstream), upstream[:, None] * grad)


@every_case
def test_mean_is_the_sum_over_the_denominator(variant: Variant, kind: Kind) -> None:
    logits, targets, options = make(variant, kind)
    losses = xent.cross_entropy(logits, targets, **(options | {"reduction": "none"}))
    total, grad = xent.cross_entropy_with_grad(logits, targets, **options)
    close(np.sum(losses), total)
    weight = options.get("sample_weight", np.ones(ROWS)).astype(float)
    if kind == "labels":
        weight = weight * (targets != options.get("ignore_index", -100))
    rows = np.count_nonzero(weight)
    if kind == "labels" and options.get("class_weight") is not None:
        weight = weight * options["class_weight"][targets.clip(0, K - 1)]
    for denominator, divisor in ((None, weight.sum()), ("rows", rows), (7, 7.0), (np.array(2.5), 2.5)):
        scale = 1 / divisor if divisor else 0.0
        mean = options | {"reduction": "mean", "denominator": denominator}
        mean_loss, mean_grad = xent.cross_entropy_with_grad(logits, targets, **mean)
        close(mean_loss, total * scale)
        close(mean_grad, grad * scale)


def test_loss_is_linear_in_the_targets() -> None:
    rng = np.random.default_rng(0)
    logits, a, b = rng.normal(size=(4, 5)), rng.random((4, 5)), rng.random((4, 5))

    def solve(q: Array) -> tuple[Any, Array]:
        return xent.cross_entropy_with_grad(logits, q, reduction="sum", class_weight=np.arange(5.0))

    (loss_a, grad_a), (loss_b, grad_b), (loss, grad) = solve(a), solve(b), solve(2 * a + 3 * b)
    close(loss, 2 * loss_a + 3 * loss_b)
    close(grad, 2 * grad_a + 3 * grad_b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_label_is_a_one_hot_target(dtype: str) -> None:
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(9, 6)) * 3).astype(DTYPES[dtype])
    labels = rng.integers(0, 6, 9)
    one_hot = np.eye(6)[labels]
    weight = rng.uniform(0.5, 2, 6)
    for options in (
        {},
        {"z_loss": 0.1},
        {"softcap": 4.0, "temperature": 0.5},
        {"class_weight": weight, "denominator": "rows"},
        {"label_smoothing": 0.2},
    ):
        loss, grad = xent.cross_entropy_with_grad(logits, labels, **options)
        soft_loss, soft_grad = xent.cross_entropy_with_grad(logits, one_hot, **options)
        close(soft_loss, loss, rtol=1e-12 if dtype == "float64" else 1e-6)
        rounding = {"float64": 1e-13, "float32": 1e-7, "float16": 1e-3, "bfloat16": 8e-3}[dtype]
        grad = grad.astype(float)  # an element near 0 is a difference of terms as large as the largest
        close(soft_grad.astype(float), grad, rtol=rounding, atol=rounding * abs(grad).max())


def test_smoothing_is_its_explicit_target() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(9, 6)), rng.integers(0, 6, 9)
    one_hot = np.eye(6)[labels]
    for weight in (None, rng.uniform(0.5, 2, 6)):
        for over, target in (
            ("all", 0.7 * one_hot + 0.3 / 6),
            ("others", 0.7 * one_hot + 0.3 / 5 * (1 - one_hot)),
        ):
            options = {"reduction": "sum", "class_weight": weight}
            loss, grad = xent.cross_entropy_with_grad(
                logits, labels, label_smoothing=0.3, smoothing_over=over, **options
            )
            explicit_loss, explicit_grad = xent.cross_entropy_with_grad(logits, target, **options)
            close(loss, explicit_loss)
            close(grad, explicit_grad)


def test_smoothing_limits() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(9, 6)), rng.integers(0, 6, 9)
    plain = xent.cross_entropy_with_grad(logits, labels)
    for over in ("all", "others"):
        loss, grad = xent.cross_entropy_with_grad(logits, labels, label_smoothing=0.0, smoothing_over=over)
        assert loss == plain[0]
        np.testing.assert_array_equal(grad, plain[1])
    everywhere = xent.cross_entropy_with_grad(logits, np.full((9, 6), 1 / 6))
    for a, b in zip(xent.cross_entropy_with_grad(logits, labels, label_smoothing=1), everywhere, strict=True):
        close(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gamma_zero_is_cross_entropy_to_the_bit(dtype: str) -> None:
    rng = np.random.default_rng(0)
    logits, labels = (rng.normal(size=(9, 6)) * 5).astype(DTYPES[dtype]), rng.integers(0, 6, 9)
    for options in ({}, {"z_loss": 0.1}, {"softcap": 3.0}):
        plain = xent.cross_entropy_with_grad(logits, labels, **options)
        focal = xent.cross_entropy_with_grad(logits, labels, focal_gamma=0.0, **options)
        assert plain[0] == focal[0]
        np.testing.assert_array_equal(plain[1], focal[1])


def test_a_weight_of_two_is_a_row_twice() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(9, 6)), rng.integers(0, 6, 9)
    times = rng.integers(0, 4, 9)
    for options in ({}, {"label_smoothing": 0.1, "class_weight": rng.random(6)}, {"focal_gamma": 2.0}):
        loss, grad = xent.cross_entropy_with_grad(logits, labels, sample_weight=times, **options)
        again_loss, again_grad = xent.cross_entropy_with_grad(
            np.repeat(logits, times, 0), np.repeat(labels, times), **options
        )
        close(again_loss, loss)
        close(grad[times > 0], np.add.reduceat(again_grad, (np.cumsum(times) - times)[times > 0]))


@pytest.mark.parametrize("num_classes", [2, 3, 10, 127, 2049])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("soft", [False, True])
def test_tail_precision(backend: Backend, soft: bool, dtype: str, num_classes: int) -> None:
    """Near p_y = 1 the loss is log1p(rest): the plain float32 formula gives 0 for 2.06e-9."""
    logits = np.full((5, num_classes), -60000.0 if dtype == "float16" else -1e30, DTYPES[dtype])
    logits[:, 0], logits[:, -1] = -12, 8
    labels = np.full(5, num_classes - 1)
    expected = np.log1p(np.exp(-20.0))
    assert expected == pytest.approx(2.0611536e-9)
    targets = np.eye(num_classes, dtype=np.float32)[labels] if soft else labels
    for _ in backend.each():
        losses, grad = xent.cross_entropy_with_grad(logits, targets, reduction="none")
        close(losses, np.full(5, expected), rtol=1e-6, atol=0)
        function = xent.CrossEntropyLoss(reduction="none")
        close(function(logits, targets), losses, rtol=1e-7, atol=0)
        for g in (grad, function.backward()):
            g = g.astype(np.float64)  # float16 has nothing between 0 and 6e-8
            rounding = {"float16": 1.0, "bfloat16": 4e-3}.get(dtype, 1e-6)
            close(g[:, -1], -(1 - 1 / (1 + np.exp(-20.0))), rtol=rounding, atol=0)
            close(g[:, 0], np.exp(-20.0) / (1 + np.exp(-20.0)), rtol=rounding, atol=0)


def test_hessian_where_the_gradient_is_zero() -> None:
    """λl² at l = 0 has the curvature 2λ: a row without slope is not one without bend."""
    z = np.full((1, 2), -np.log(2.0))
    z[0, 0] = np.log(0.5)
    assert xent.logsumexp(z)[0] == 0
    product = xent.cross_entropy_hvp(z, [0], [[1.0, 1.0]], z_loss=0.5, class_weight=[0, 1], reduction="sum")
    close(product, [[0.5, 0.5]])
