"""Every row of the table of semantics (DESIGN §6) that concerns NumPy arrays on the CPU."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tolerance import DTYPES

import xent

Array = np.ndarray[Any, Any]

LOGITS = np.random.default_rng(0).normal(size=(6, 5))
LABELS = np.array([0, 4, 2, 1, 3, 0])
OPTIONS: list[dict[str, Any]] = [
    {},
    {"label_smoothing": 0.1},
    {"focal_gamma": 2.0},
    {"z_loss": 0.01, "class_weight": np.arange(1.0, 6.0)},
    {"softcap": 5.0, "temperature": 2.0},
]
each_options = pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "+".join(o) or "plain")
# Wide rows and narrow ones go through different kernels.
each_width = pytest.mark.parametrize("num_classes", [5, 40, 700])


def widen(logits: Array, num_classes: int) -> Array:
    """More classes, that take part."""
    extra = np.random.default_rng(1).normal(size=(*logits.shape[:-1], num_classes - logits.shape[-1]))
    return np.concatenate([logits, extra.astype(logits.dtype)], -1)


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


@each_options
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


@each_options
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


# −inf logits.


@each_options
@each_width
@pytest.mark.parametrize("dtype", DTYPES)
def test_class_at_minus_infinity(dtype: str, num_classes: int, options: dict[str, Any]) -> None:
    """Probability and gradient exactly 0, and the class might as well not be there."""
    if options.get("label_smoothing"):
        pytest.skip("smoothing puts mass on the class: the loss is +inf, below")
    logits = widen(LOGITS, num_classes).astype(DTYPES[dtype])
    logits[:, 1] = -np.inf
    labels = np.where(LABELS == 1, 2, LABELS)
    options = {k: np.ones(num_classes) if k == "class_weight" else v for k, v in options.items()}
    loss, grad = xent.cross_entropy_with_grad(logits, labels, **options)
    assert np.isfinite(loss)
    assert np.isfinite(grad.astype(float)).all()
    np.testing.assert_array_equal(grad[:, 1].astype(float), 0)
    np.testing.assert_array_equal(xent.softmax(logits)[:, 1].astype(float), 0)
    product = xent.cross_entropy_hvp(logits, labels, np.ones_like(logits), **options)
    np.testing.assert_array_equal(product[:, 1].astype(float), 0)
    if "class_weight" in options:
        options = options | {"class_weight": np.ones(num_classes - 1)}
    without = xent.cross_entropy(np.delete(logits, 1, 1), labels - (labels > 1), **options)
    np.testing.assert_allclose(loss, without, rtol=1e-13 if dtype == "float64" else 1e-6)


@each_width
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"focal_gamma": 2.0}, {"softcap": 9.0}])
def test_label_at_minus_infinity(dtype: str, num_classes: int, options: dict[str, Any]) -> None:
    """Loss +inf, finite gradient."""
    logits = widen(LOGITS, num_classes).astype(DTYPES[dtype])
    logits[2, LABELS[2]] = -np.inf
    losses, grad = xent.cross_entropy_with_grad(logits, LABELS, reduction="none", **options)
    assert losses[2] == np.inf
    assert np.isfinite(np.delete(losses, 2)).all()
    assert np.isfinite(grad.astype(float)).all()
    if not options:
        p = xent.softmax(logits[2].astype(np.float64))
        np.testing.assert_allclose(grad[2].astype(float), p - np.eye(num_classes)[LABELS[2]], atol=1e-2)


def test_dense_mass_at_minus_infinity() -> None:
    logits = LOGITS.copy()
    logits[:, 0] = -np.inf
    q = np.full((6, 5), 0.25)
    q[:, 0] = 0  # 0·(−inf) = 0
    loss, grad = xent.cross_entropy_with_grad(logits, q)
    np.testing.assert_allclose(loss, xent.cross_entropy(logits[:, 1:], q[:, 1:]), rtol=1e-14)
    np.testing.assert_array_equal(grad[:, 0], 0)
    q[3, 0] = 0.5
    losses, grad = xent.cross_entropy_with_grad(logits, q, reduction="none")
    np.testing.assert_array_equal(np.isinf(losses), np.arange(6) == 3)
    assert np.isfinite(grad).all()


def test_class_weight_zero_silences_a_label_at_minus_infinity() -> None:
    logits = LOGITS.copy()
    logits[2, LABELS[2]] = -np.inf
    weight = np.ones(5)
    weight[LABELS[2]] = 0
    loss, grad = xent.cross_entropy_with_grad(logits, LABELS, class_weight=weight)
    assert np.isfinite(loss)
    np.testing.assert_array_equal(grad[2], 0)


# NaN, +inf, or a row of −inf.


BAD_ROWS: dict[str, Callable[[int], Array]] = {
    "a NaN": lambda k: np.where(np.arange(k) == 3, np.nan, 0.5),
    "all NaN": lambda k: np.full(k, np.nan),
    "a +inf": lambda k: np.where(np.arange(k) == 3, np.inf, 0.5),
    "all +inf": lambda k: np.full(k, np.inf),
    "+inf and −inf": lambda k: np.where(np.arange(k) == 3, np.inf, -np.inf),
    "all −inf": lambda k: np.full(k, -np.inf),
    "NaN and −inf": lambda k: np.where(np.arange(k) == k - 1, np.nan, -np.inf),
}


@each_options
@each_width
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", BAD_ROWS)
def test_bad_row_is_nan_and_leaks_nowhere(
    bad: str, dtype: str, num_classes: int, options: dict[str, Any]
) -> None:
    options = {k: np.ones(num_classes) if k == "class_weight" else v for k, v in options.items()}
    options = options | {"reduction": "none"}
    logits = widen(LOGITS, num_classes).astype(DTYPES[dtype])
    vector = np.ones_like(logits)
    expected = (
        *xent.cross_entropy_with_grad(logits, LABELS, **options),
        xent.cross_entropy_hvp(logits, LABELS, vector, **options),
    )
    for where in (0, 3, 5):
        spoilt = logits.copy()
        spoilt[where] = BAD_ROWS[bad](num_classes).astype(logits.dtype)
        results = (
            *xent.cross_entropy_with_grad(spoilt, LABELS, **options),
            xent.cross_entropy_hvp(spoilt, LABELS, vector, **options),
        )
        function = xent.CrossEntropyLoss(**options)
        function(spoilt, LABELS)
        results = (*results, function.backward())
        for result, value in zip(results, (*expected, expected[1]), strict=True):
            assert np.isnan(result[where].astype(float)).all()
            rest = np.arange(6) != where
            if result is results[3]:
                close = 0 if options.get("z_loss") or options.get("focal_gamma") else 1
                np.testing.assert_allclose(
                    result[rest].astype(float),
                    value[rest].astype(float),
                    rtol=close * 1e-2,
                    atol=close * 1e-3,
                )
            else:
                np.testing.assert_array_equal(result[rest], value[rest])


def test_statistics_of_bad_rows() -> None:
    for make in BAD_ROWS.values():
        logits = np.stack([np.zeros(5), make(5), np.ones(5)])
        for result in (xent.logsumexp(logits), xent.softmax(logits), xent.log_softmax(logits)):
            assert np.isnan(result[1]).all()
            assert np.isfinite(result[[0, 2]]).all()
        stats = xent.row_statistics(logits, np.array([0, 0, 0]))
        assert np.isnan([stats.lse[1], stats.log_prob[1], stats.entropy[1]]).all()


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


@each_options
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 5), (0, 300), (3, 0, 5), (0, 0, 5), (0, 1), (0, 0)])
def test_no_rows(shape: tuple[int, ...], dtype: str, options: dict[str, Any]) -> None:
    logits = np.zeros(shape, DTYPES[dtype])
    options = {k: np.ones(shape[-1]) if k == "class_weight" else v for k, v in options.items()}
    soft = "focal_gamma" not in options
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


@each_options
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_class(dtype: str, options: dict[str, Any]) -> None:
    """p = 1: loss λl², gradient 2λl."""
    logits = np.array([[2.0], [-3.0], [0.0]], DTYPES[dtype])
    options = {k: np.ones(1) if k == "class_weight" else v for k, v in options.items()}
    z_loss = options.get("z_loss", 0.0)
    wide = logits.astype(float)
    for targets in (np.zeros(3, int), np.ones((3, 1))):
        if targets.ndim == 2 and "focal_gamma" in options:
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


def test_row_without_leading_axes() -> None:
    loss, grad = xent.cross_entropy_with_grad(LOGITS[1], LABELS[1])
    expected = xent.cross_entropy_with_grad(LOGITS[1:2], LABELS[1:2])
    assert loss == expected[0]
    np.testing.assert_array_equal(grad, expected[1][0])
    assert xent.cross_entropy(LOGITS[1], 4, reduction="none").shape == ()
    assert xent.logsumexp(LOGITS[1]) == xent.logsumexp(LOGITS[1:2])[0]


# Layouts, byte orders, read-only arrays. (Strides: test_conformance.py.)


@each_options
def test_inputs_are_never_written(options: dict[str, Any]) -> None:
    logits, labels, vector = LOGITS.copy(), LABELS.copy(), np.ones((6, 5))
    weight = np.ones(6)
    for array in (logits, labels, vector, weight):
        array.flags.writeable = False
    xent.cross_entropy(logits, labels, sample_weight=weight, **options)
    xent.cross_entropy_with_grad(logits, labels, sample_weight=weight, **options)
    xent.cross_entropy_hvp(logits, labels, vector, sample_weight=weight, **options)
    function = xent.CrossEntropyLoss(sample_weight=weight, **options)
    function(logits, labels)
    function.backward()
    q = np.full((6, 5), 0.2)
    q.flags.writeable = False
    xent.binary_cross_entropy_with_grad(logits, q, sample_weight=q)
    xent.linear_cross_entropy_with_grad(logits, q, labels)
    xent.softmax(logits), xent.log_softmax(logits), xent.row_statistics(logits, labels)
    np.testing.assert_array_equal(logits, LOGITS)
    np.testing.assert_array_equal(labels, LABELS)


@pytest.mark.parametrize("dtype", [">f8", ">f4", ">f2"])
def test_big_endian(dtype: str) -> None:
    logits = LOGITS.astype(dtype)
    native = logits.astype(logits.dtype.newbyteorder("="))
    loss, grad = xent.cross_entropy_with_grad(logits, LABELS.astype(">i4"), sample_weight=np.ones(6, ">f8"))
    expected = xent.cross_entropy_with_grad(native, LABELS)
    assert loss == expected[0]
    np.testing.assert_array_equal(grad, expected[1])
    assert grad.dtype.isnative
    q = np.full((6, 5), 0.2, dtype)
    np.testing.assert_allclose(
        xent.cross_entropy(logits, q), xent.cross_entropy(native, q.astype(native.dtype)), rtol=1e-6
    )


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i8"])
def test_integer_types_of_labels(dtype: str) -> None:
    expected = xent.cross_entropy(LOGITS, LABELS)
    assert xent.cross_entropy(LOGITS, LABELS.astype(dtype)) == expected
    if np.dtype(dtype).kind == "u":
        labels = LABELS.astype(dtype)
        labels[0] = np.iinfo(dtype).max
        with pytest.raises(ValueError, match=f"got {np.iinfo(dtype).max} at row 0"):
            xent.cross_entropy(LOGITS, labels)


def test_integers_and_lists_as_logits() -> None:
    """Exactly float64, and a gradient in float64."""
    loss, grad = xent.cross_entropy_with_grad([[2, 3, 4]], [1])
    assert loss == xent.cross_entropy(np.array([[2.0, 3.0, 4.0]]), np.array([1]))
    assert grad.dtype == np.float64
    assert xent.cross_entropy(np.array([[2, 3, 4]], np.uint8), [1]) == loss


def test_labels_of_any_strides() -> None:
    expected = xent.cross_entropy(LOGITS, LABELS)
    assert xent.cross_entropy(LOGITS, np.repeat(LABELS, 2)[::2]) == expected
    assert xent.cross_entropy(LOGITS, LABELS[::-1].copy()[::-1]) == expected
    image = np.random.default_rng(0).normal(size=(2, 5, 3, 4))
    labels = np.random.default_rng(0).integers(0, 5, (2, 4, 3)).transpose(0, 2, 1)
    moved = np.moveaxis(image, 1, -1)
    loss, grad = xent.cross_entropy_with_grad(moved, labels)
    expected_loss, expected_grad = xent.cross_entropy_with_grad(moved.copy(), labels.copy())
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-14)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-13)
    assert grad.strides == moved.strides  # the layout of the logits: no copy to hand back to (N, C, H, W)


def test_broadcast_logits() -> None:
    """Stride 0 is read like any other; the gradient owns its elements."""
    logits = np.broadcast_to(LOGITS[0], (6, 5))
    loss, grad = xent.cross_entropy_with_grad(logits, LABELS)
    expected_loss, expected_grad = xent.cross_entropy_with_grad(logits.copy(), LABELS)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-14)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-13)
    column = np.broadcast_to(LOGITS[:, :1], (6, 5))
    np.testing.assert_allclose(xent.cross_entropy(column, LABELS), np.log(5), rtol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_off_their_alignment(dtype: str) -> None:
    """As they come out of a packed record or a file at an odd offset."""

    def shift(array: Array) -> Array:
        moved = np.ndarray(array.shape, array.dtype, buffer=bytearray(array.nbytes + 1), offset=1)
        moved[...] = array
        assert not moved.flags.aligned
        return moved

    logits, q = LOGITS.astype(DTYPES[dtype]), np.full((6, 5), 0.2)
    weights = {"sample_weight": np.arange(1.0, 7.0), "class_weight": np.arange(1.0, 6.0)}
    for targets in (LABELS, q, q.astype(np.float32)):
        loss, grad = xent.cross_entropy_with_grad(logits, targets, **weights)
        moved = {name: shift(weight) for name, weight in weights.items()}
        moved_loss, moved_grad = xent.cross_entropy_with_grad(shift(logits), shift(targets), **moved)
        assert moved_loss == loss
        np.testing.assert_array_equal(moved_grad, grad)
        product = xent.cross_entropy_hvp(shift(logits), shift(targets), shift(LOGITS), **moved)
        np.testing.assert_array_equal(product, xent.cross_entropy_hvp(logits, targets, LOGITS, **weights))


def test_array_of_a_subclass() -> None:
    """A memory map is an array of numbers like any other."""

    class Mapped(np.ndarray):
        pass

    loss, grad = xent.cross_entropy_with_grad(LOGITS.view(Mapped), LABELS.view(Mapped))
    assert loss == xent.cross_entropy(LOGITS, LABELS)
    assert type(grad) is np.ndarray


# `out`.


@each_options
@pytest.mark.parametrize("dtype", DTYPES)
def test_out_is_written_and_returned(dtype: str, options: dict[str, Any]) -> None:
    logits = LOGITS.astype(DTYPES[dtype])
    loss, grad = xent.cross_entropy_with_grad(logits, LABELS, **options)
    product = xent.cross_entropy_hvp(logits, LABELS, LOGITS, **options)
    for out in (np.empty_like(logits), np.empty((12, 10), logits.dtype)[::2, ::2], logits.copy()):
        out_loss, result = xent.cross_entropy_with_grad(logits, LABELS, out=out, **options)
        assert result is out
        assert out_loss == loss
        np.testing.assert_array_equal(out, grad)
        assert xent.cross_entropy_hvp(logits, LABELS, LOGITS, out=out, **options) is out
        np.testing.assert_array_equal(out, product)
    buffer = logits.copy()
    in_place_loss, result = xent.cross_entropy_with_grad(buffer, LABELS, out=buffer, **options)
    assert result is buffer
    assert in_place_loss == loss
    np.testing.assert_array_equal(buffer, grad)
    buffer = logits.copy()
    np.testing.assert_array_equal(
        xent.cross_entropy_hvp(buffer, LABELS, LOGITS, out=buffer, **options), product
    )
    function = xent.CrossEntropyLoss(**options)
    function(logits, LABELS)
    out = np.empty_like(logits)
    assert function.backward(out=out) is out
    np.testing.assert_array_equal(out, function.backward())


def test_softmax_and_binary_in_place() -> None:
    buffer = LOGITS.copy()
    assert xent.softmax(buffer, out=buffer) is buffer
    np.testing.assert_array_equal(buffer, xent.softmax(LOGITS))
    buffer = LOGITS.copy()
    _, grad = xent.binary_cross_entropy_with_grad(buffer, np.ones((6, 5)), out=buffer)
    assert grad is buffer
    np.testing.assert_array_equal(buffer, xent.binary_cross_entropy_with_grad(LOGITS, np.ones((6, 5)))[1])


# The same bits in any run.


@each_options
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_again(dtype: str, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    for num_classes, rows in ((5, 4000), (700, 50)):
        logits = rng.normal(size=(rows, num_classes)).astype(DTYPES[dtype])
        labels = rng.integers(0, num_classes, rows)
        weights = {k: np.ones(num_classes) if k == "class_weight" else v for k, v in options.items()}
        loss, grad = xent.cross_entropy_with_grad(logits, labels, **weights)
        for _, out in itertools.product(range(3), (None, np.empty_like(logits))):
            again_loss, again_grad = xent.cross_entropy_with_grad(logits, labels, out=out, **weights)
            assert again_loss == loss
            np.testing.assert_array_equal(again_grad, grad)


# More than 2³¹ elements. The inputs are one row or column, broadcast, unless the gradient needs them.


@pytest.mark.slow
def test_more_than_2_to_the_31_elements_read() -> None:
    rng = np.random.default_rng(0)
    num_rows, num_classes = 2**16 + 3, 2**15 + 1
    row = rng.normal(size=num_classes).astype(np.float32)
    labels = rng.integers(0, num_classes, num_rows)
    loss = xent.cross_entropy(np.broadcast_to(row, (num_rows, num_classes)), labels, reduction="none")
    expected = -xent.log_softmax(row.astype(np.float64))[labels]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2**28 + 3, 8), (2**16 + 1, 2**15)])
def test_more_than_2_to_the_31_elements_written(shape: tuple[int, int]) -> None:
    """4 GiB of float16 overwritten by its gradient."""
    rng = np.random.default_rng(0)
    row = rng.normal(size=shape[-1]).astype(np.float16)
    logits = np.empty(shape, np.float16)
    logits[...] = row
    labels = rng.integers(0, shape[-1], shape[0])
    assert logits.size > 2**31
    loss, grad = xent.cross_entropy_with_grad(logits, labels, reduction="sum", out=logits)
    p = xent.softmax(row.astype(np.float64))
    np.testing.assert_allclose(loss, -np.log(p)[labels].sum(), rtol=1e-6)
    for where in (slice(0, 5), slice(shape[0] // 2, shape[0] // 2 + 5), slice(-5, None)):
        expected = p - np.eye(shape[-1])[labels[where]]
        np.testing.assert_allclose(grad[where].astype(float), expected, rtol=1e-3, atol=1e-7)
    assert np.all(grad[np.arange(0, shape[0], 7), labels[::7]] < 0)


@pytest.mark.slow
def test_row_of_more_than_2_to_the_31_classes() -> None:
    num_classes = 2**31 + 5
    logits = np.broadcast_to(np.float16(0.5), (1, num_classes))
    try:
        loss = xent.cross_entropy(logits, np.array([num_classes - 1]))
    except MemoryError:
        pytest.skip("the row is copied to float32, and there is no memory for it")
    np.testing.assert_allclose(loss, np.log(num_classes), rtol=1e-6)
