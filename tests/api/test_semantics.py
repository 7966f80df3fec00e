"""The table of semantics (docs/differences.md), row by row: values here, arrays in test_arrays.py."""

from __future__ import annotations

from typing import Any

import mpmath
import numpy as np
import pytest

import xent
from tests.tables.tolerance import DTYPES
from tests.tables.variants import each_of_some_options
from xent.core.link import Link
from xent.kernels import reference

Array = np.ndarray[Any, Any]

LOGITS = np.random.default_rng(0).normal(size=(6, 5))
LABELS = np.array([0, 4, 2, 1, 3, 0])
# Wide rows and narrow ones go through different kernels.
each_width = pytest.mark.parametrize("num_classes", [5, 40, 700])


def widen(logits: Array, num_classes: int) -> Array:
    """More classes, that take part."""
    extra = np.random.default_rng(1).normal(size=(*logits.shape[:-1], num_classes - logits.shape[-1]))
    return np.concatenate([logits, extra.astype(logits.dtype)], -1)


# Options: numbers of any kind. The errors are in test_errors.py.


@pytest.mark.parametrize(
    "option",
    [
        {"label_smoothing": 0.125},
        {"temperature": 2},
        {"softcap": 30},
        {"focal_gamma": 2},
        {"z_loss": 0.25},
        {"ignore_index": 1},
    ],
    ids=lambda option: next(iter(option)),
)
def test_options_of_numpy_are_numbers(option: dict[str, Any]) -> None:
    ((name, value),) = option.items()
    expected = xent.cross_entropy_with_grad(LOGITS, LABELS, **option)
    kinds = [np.int8, np.int64, np.uint64] if type(value) is int else []
    kinds += [] if name == "ignore_index" else [np.float16, np.float32, np.float64]
    for same in (kind(value) for kind in (*kinds, np.array)):
        loss, grad = xent.cross_entropy_with_grad(LOGITS, LABELS, **{name: same})
        assert loss == expected[0]
        assert loss.dtype == np.float64
        np.testing.assert_array_equal(grad, expected[1])


# Labels outside [0, K): the errors are in test_errors.py.


@each_width
@pytest.mark.parametrize("label", [-1, -2, 10**6, 2**62, -(2**63)])
def test_unvalidated_label_outside_is_nan_in_its_row(label: int, num_classes: int) -> None:
    logits, labels = widen(LOGITS, num_classes), LABELS.copy()
    labels[2] = label
    call = {"reduction": "none", "validate": False}
    losses, grad = xent.cross_entropy_with_grad(logits, labels, **call)
    expected = xent.cross_entropy_with_grad(logits, LABELS, reduction="none")
    assert np.isnan(losses[2])
    assert np.isnan(grad[2]).all()
    assert np.isnan(xent.cross_entropy_hvp(logits, labels, logits, **call)[2]).all()
    assert np.isnan(xent.cross_entropy(logits, labels, class_weight=np.ones(num_classes), **call)[2])
    rest = np.arange(6) != 2
    np.testing.assert_array_equal(losses[rest], expected[0][rest])
    np.testing.assert_array_equal(grad[rest], expected[1][rest])


# Every row ignored.


@each_of_some_options
@pytest.mark.parametrize("how", ["ignore_index", "sample_weight", "mask"])
def test_every_row_ignored(options: dict[str, Any], how: str) -> None:
    labels = np.full(6, -100) if how == "ignore_index" else LABELS
    weight = {"sample_weight": np.zeros(6), "mask": np.zeros(6, bool)}.get(how)
    logits = LOGITS.copy()
    logits[0], logits[1, 2] = np.nan, np.inf
    for denominator in (None, "rows", 10):
        call = {"sample_weight": weight, "denominator": denominator, **options}
        loss, grad = xent.cross_entropy_with_grad(logits, labels, **call)
        assert loss == 0
        np.testing.assert_array_equal(grad, np.zeros((6, 5)))
        np.testing.assert_array_equal(xent.cross_entropy_hvp(logits, labels, LOGITS, **call), 0 * grad)


def test_denominator_zero_gives_zero() -> None:
    loss, grad = xent.cross_entropy_with_grad(LOGITS, LABELS, denominator=0)
    assert loss == 0
    np.testing.assert_array_equal(grad, 0)


# Half-precision inputs.


@each_of_some_options
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_of_results(dtype: str, options: dict[str, Any]) -> None:
    logits = LOGITS.astype(DTYPES[dtype])
    wide = np.float64 if dtype == "float64" else np.float32
    for reduction in ("mean", "sum", "none"):
        loss, grad = xent.cross_entropy_with_grad(logits, LABELS, reduction=reduction, **options)
        assert loss.dtype == xent.cross_entropy(logits, LABELS, reduction=reduction, **options).dtype == wide
        assert isinstance(loss, np.ndarray if reduction == "none" else wide)
        assert grad.dtype == logits.dtype
        assert grad.shape == logits.shape
    assert xent.cross_entropy_hvp(logits, LABELS, LOGITS, **options).dtype == logits.dtype


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(dtype: str) -> None:
    logits = (LOGITS * 4).astype(DTYPES[dtype])
    loss, grad = xent.cross_entropy_with_grad(logits, LABELS)
    wide_loss, wide_grad = xent.cross_entropy_with_grad(logits.astype(np.float32), LABELS)
    assert loss == wide_loss
    np.testing.assert_array_equal(grad, wide_grad.astype(DTYPES[dtype]))


# Logits of −inf, +inf and NaN are in test_infinite_logits.py; the argmax among them is here.


@each_width
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["C", "F"])
def test_argmax_is_the_first_of_the_largest_numbers(order: Any, dtype: str, num_classes: int) -> None:
    """NaN is none, wherever it stands in the row and the row in the array."""
    rng = np.random.default_rng(0)
    logits = rng.integers(-2, 3, (200, num_classes)).astype(np.float64)
    logits[rng.random(logits.shape) < rng.random((200, 1))] = np.nan
    logits[::3][rng.random(logits[::3].shape) < 0.2] = -np.inf
    logits[::5][rng.random(logits[::5].shape) < 0.2] = np.inf
    logits[0], logits[1], logits[:2, -1] = np.nan, -np.inf, [1.0, np.nan]
    logits[2], logits[3], logits[4] = np.nan, -np.inf, np.nan
    logits[4, 1:] = -np.inf
    rows = [[k for k in range(num_classes) if z[k] == np.nanmax(z)] for z in logits if not np.isnan(z).all()]
    first = np.zeros(200, np.int64)
    first[~np.isnan(logits).all(-1)] = [row[0] for row in rows]
    logits = np.array(logits.astype(DTYPES[dtype]), order=order)
    for z in (logits, logits[::-1][::-1], np.concatenate([logits, logits], -1)[:, :num_classes]):
        np.testing.assert_array_equal(xent.row_statistics(z).argmax, first)
        stats = reference.row_stats(z.astype(np.float64), None, None, Link(), ("argmax",))
        np.testing.assert_array_equal(stats.argmax, first)


# Log-softmax: the least likely classes and the likeliest one.


TAILS = {
    "one class far ahead": [1000.0, 1030.0],
    "ahead of 0": [0.0, 30.0],
    "ahead by 60": [0.0, -60.0, -70.0],
    "at 1e4": [1e4, 1e4 - 20, 1e4 - 21, 1e4 - 700],
    "far below 0": [-1e4, -1e4 + 33],
    "two ahead": [50.0, 50.0, 10.0],
    "excluded": [-np.inf, 3.0, 37.0],
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("row", TAILS)
def test_log_softmax_keeps_its_tail(row: str, dtype: str) -> None:
    logits = np.array(TAILS[row], dtype)
    with mpmath.workdps(400):
        lse = mpmath.log(sum(mpmath.exp(mpmath.mpf(float(z))) for z in logits))
        exact = np.array([float(mpmath.mpf(float(z)) - lse) for z in logits])
    assert exact.max() > -1e-6 or "two" in row
    rtol = 16 * np.finfo(dtype).eps  # of exp(−60), in the dtype
    result = xent.log_softmax(logits)
    assert result.dtype == logits.dtype
    np.testing.assert_allclose(result, exact, rtol=rtol)
    # On any axis, with other rows around it, few classes or many.
    rng = np.random.default_rng(0)
    for num_classes, place in ((len(logits), 0), (300, 150)):
        block = np.full((3, 2, num_classes), -np.inf, dtype)
        block[..., :4] = rng.normal(size=(3, 2, num_classes))[..., :4]
        block[1, 1], block[1, 1, place : place + len(logits)] = -np.inf, logits
        for axis in range(3):
            moved = xent.log_softmax(np.moveaxis(block, -1, axis), axis)
            found = np.moveaxis(moved, axis, -1)[1, 1, place : place + len(logits)]
            np.testing.assert_allclose(found, exact, rtol=rtol)


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_softmax_of_no_numbers(dtype: str) -> None:
    for shape in ((0,), (0, 3), (3, 0), (2, 0, 4)):
        for axis in range(len(shape)):
            result = xent.log_softmax(np.zeros(shape, DTYPES[dtype]), axis)
            assert (result.shape, result.dtype) == (shape, DTYPES[dtype])
    rows = [
        [-np.inf, 0, 0],
        [np.nan, 0, 1],
        [0, np.inf, 1],
        [-np.inf] * 3,
        [np.nan] * 3,
        [0, -np.inf, -np.inf],
    ]
    logits = np.array(rows, DTYPES[dtype])
    half = np.float32(-np.log(2)).astype(DTYPES[dtype]).astype(float)
    result = xent.log_softmax(logits).astype(float)
    np.testing.assert_allclose(result[0], [-np.inf, half, half], rtol=1e-7)
    assert np.isnan(result[1:5]).all()
    np.testing.assert_array_equal(result[5], [0, -np.inf, -np.inf])
    columns = xent.log_softmax(np.ascontiguousarray(logits.T), 0).astype(float).T
    np.testing.assert_array_equal(columns, result)


# Targets that are not a distribution.


def test_targets_need_not_be_a_distribution() -> None:
    q = np.random.default_rng(0).random((6, 5)) * 3
    log_p = xent.log_softmax(LOGITS)
    np.testing.assert_allclose(xent.cross_entropy(LOGITS, q, reduction="none"), -(q * log_p).sum(-1))
    np.testing.assert_array_equal(xent.cross_entropy(LOGITS, 0 * q, reduction="none"), 0)


@pytest.mark.parametrize("bad", [-0.25, np.nan])
def test_unvalidated_targets_stay_in_their_row(bad: float) -> None:
    q = np.full((6, 5), 0.2)
    q[4, 1] = bad
    losses = xent.cross_entropy(LOGITS, q, reduction="none", validate=False)
    expected = xent.cross_entropy(LOGITS, np.full((6, 5), 0.2), reduction="none")
    np.testing.assert_array_equal(np.delete(losses, 4), np.delete(expected, 4))
    np.testing.assert_allclose(losses[4], -(q[4] * xent.log_softmax(LOGITS[4])).sum())


# Empty batch, K = 1, zero-size dimensions.


@each_of_some_options
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 5), (0, 300), (3, 0, 5), (0, 0, 5), (0, 1), (0, 0)])
def test_no_rows(shape: tuple[int, ...], dtype: str, options: dict[str, Any]) -> None:
    logits = np.zeros(shape, DTYPES[dtype])
    options = {k: np.ones(shape[-1]) if k == "class_weight" else v for k, v in options.items()}
    soft = not {"focal_gamma", "poly1_epsilon"} & set(options)
    for targets in (np.zeros(shape[:-1], int), *([np.zeros(shape)] if soft else [])):
        for reduction in ("mean", "sum", "none"):
            loss, grad = xent.cross_entropy_with_grad(logits, targets, reduction=reduction, **options)
            np.testing.assert_array_equal(loss, np.zeros(shape[:-1]) if reduction == "none" else 0)
            assert grad.shape == shape
            assert grad.dtype == logits.dtype
            np.testing.assert_array_equal(
                xent.cross_entropy(logits, targets, reduction=reduction, **options), loss
            )
        assert xent.cross_entropy_hvp(logits, targets, logits, **options).shape == shape


@each_of_some_options
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_class(dtype: str, options: dict[str, Any]) -> None:
    """p = 1: loss λl², gradient 2λl."""
    logits = np.array([[2.0], [-3.0], [0.0]], DTYPES[dtype])
    options = {k: np.ones(1) if k == "class_weight" else v for k, v in options.items()}
    z_loss = options.get("z_loss", 0.0)
    wide = logits.astype(float)
    for targets in (np.zeros(3, int), np.ones((3, 1))):
        if targets.ndim == 2 and {"focal_gamma", "poly1_epsilon"} & set(options):
            continue
        losses, grad = xent.cross_entropy_with_grad(logits, targets, reduction="none", **options)
        np.testing.assert_allclose(losses, z_loss * wide[:, 0] ** 2, rtol=1e-6, atol=1e-15)
        np.testing.assert_allclose(grad.astype(float), 2 * z_loss * wide, rtol=1e-2, atol=1e-15)


def test_one_class_smoothed_over_the_others_is_plain() -> None:
    """There are no others to move probability to."""
    assert xent.cross_entropy(np.ones((2, 1)), [0, 0], label_smoothing=0.5, smoothing_over="others") == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_classes(dtype: str) -> None:
    """Rows of no logits: nothing to point at, an empty gradient, l = log 0."""
    logits = np.zeros((3, 0), DTYPES[dtype])
    loss, grad = xent.cross_entropy_with_grad(logits, np.zeros((3, 0)))
    assert loss == 0
    assert grad.shape == (3, 0)
    loss, grad = xent.cross_entropy_with_grad(logits, np.full(3, -100))
    assert loss == 0
    assert grad.shape == (3, 0)
    assert xent.softmax(logits).shape == xent.log_softmax(logits).shape == (3, 0)
    np.testing.assert_array_equal(xent.logsumexp(logits), -np.inf)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ignored_rows_of_no_classes_have_no_z_loss(dtype: str) -> None:
    """Their log-sum-exp is the 0 of a row that is not read, not log 0."""
    logits, labels = np.zeros((3, 0), DTYPES[dtype]), np.full(3, -100)
    for options in ({}, {"softcap": 5.0}, {"focal_gamma": 2.0}):
        for reduction in ("mean", "sum", "none"):
            call = {"z_loss": 0.1, "reduction": reduction, **options}
            loss, grad = xent.cross_entropy_with_grad(logits, labels, **call)
            np.testing.assert_array_equal(loss, np.zeros(3) if reduction == "none" else 0)
            np.testing.assert_array_equal(xent.cross_entropy(logits, labels, **call), loss)
            assert grad.shape == xent.cross_entropy_hvp(logits, labels, logits, **call).shape == (3, 0)
    function = xent.CrossEntropyLoss(z_loss=0.1)
    assert function(logits, labels) == 0
    assert function.backward().shape == (3, 0)
    stats = xent.row_statistics(logits, labels)
    np.testing.assert_array_equal([stats.lse, stats.log_prob, stats.entropy], 0)


def test_row_without_leading_axes() -> None:
    loss, grad = xent.cross_entropy_with_grad(LOGITS[1], LABELS[1])
    expected = xent.cross_entropy_with_grad(LOGITS[1:2], LABELS[1:2])
    assert loss == expected[0]
    np.testing.assert_array_equal(grad, expected[1][0])
    assert xent.cross_entropy(LOGITS[1], 4, reduction="none").shape == ()
    assert xent.logsumexp(LOGITS[1]) == xent.logsumexp(LOGITS[1:2])[0]


@pytest.mark.parametrize("num_classes", [2, 5, 300])
def test_a_small_probability_keeps_its_digits_where_the_label_does_not_count(num_classes):
    logits = np.zeros((3, num_classes), np.float32)
    logits[:, 1:] = [[40.0], [10.0], [80.0]]
    weight = np.ones(num_classes)
    weight[0] = 0
    options = {"class_weight": weight, "z_loss": 1.0, "reduction": "sum"}
    _, grad = xent.cross_entropy_with_grad(logits, [0, 0, 0], **options)
    wide = logits.astype(np.float64)
    expected = 2 * xent.logsumexp(wide)[:, None] * xent.softmax(wide)
    np.testing.assert_allclose(grad, expected, rtol=1e-5)


@pytest.mark.parametrize("option", ["softcap", "temperature"])
@pytest.mark.parametrize("value", [1e-30, 1e30])
def test_extreme_options_are_finite_in_float32(option: str, value: float) -> None:
    for scale in (1.0, 1e4):
        z = (scale * np.array([[1.0, 2.0, 3.0]])).astype(np.float32)
        loss, grad = xent.cross_entropy_with_grad(z, [1], **{option: value})
        exact, exact_grad = xent.cross_entropy_with_grad(z.astype(np.float64), [1], **{option: value})
        np.testing.assert_allclose(loss, exact, rtol=1e-6)
        np.testing.assert_allclose(grad, exact_grad, rtol=1e-5, atol=1e-6 * np.abs(exact_grad).max())
        assert np.isfinite(xent.cross_entropy_hvp(z, [1], z, **{option: value})).all()
