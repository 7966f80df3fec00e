"""Arrays as they come (docs/differences.md): byte orders, strides, read-only and large ones, and `out`."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view

import xent
from tests.tables.tolerance import DTYPES
from tests.tables.variants import each_of_some_options
from xent.engine.batch_loss import Problem

Array = np.ndarray[Any, Any]

LOGITS = np.random.default_rng(0).normal(size=(6, 5))
LABELS = np.array([0, 4, 2, 1, 3, 0])


# Layouts, byte orders, read-only arrays. (Strides: test_conformance.py.)


@each_of_some_options
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


@pytest.mark.parametrize("dtype", ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i8", ">u8"])
def test_integer_types_of_binary_labels(dtype: str) -> None:
    logits, labels = LOGITS[0], np.array([0, 1, 1, 0, 1])
    expected = xent.binary_cross_entropy_with_grad(logits, labels)
    loss, grad = xent.binary_cross_entropy_with_grad(logits, labels.astype(dtype))
    assert loss == expected[0] == xent.binary_cross_entropy(logits, labels.astype(dtype))
    np.testing.assert_array_equal(grad, expected[1])
    if np.dtype(dtype).kind == "u":
        large = labels.astype(dtype)
        large[1] = np.iinfo(dtype).max - 99  # as int64 it would be −100, and ignored
        with pytest.raises(ValueError, match=f"got {np.iinfo(dtype).max - 99} at row 1"):
            xent.binary_cross_entropy(logits, large)
        losses = xent.binary_cross_entropy(logits, large, reduction="none", validate=False)
        np.testing.assert_array_equal(np.isnan(losses), np.arange(5) == 1)
        large[1] = 255
        ignored = xent.binary_cross_entropy(logits, large, ignore_index=255)
        assert ignored == xent.binary_cross_entropy(np.delete(logits, 1), np.delete(labels, 1))


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


@each_of_some_options
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


@st.composite
def slices(draw: st.DrawFn) -> Array:
    """A part of an array: each axis from somewhere, in steps, forwards or back; then all in any order."""
    shape = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    whole = np.zeros(shape, draw(st.sampled_from([np.float64, np.float32, np.float16])))
    part = whole[tuple(draw(st.slices(n)) for n in shape)]
    for axis in range(part.ndim):
        if draw(st.booleans()):
            part = np.expand_dims(part, axis)
    return part.transpose(draw(st.permutations(range(part.ndim))))


@given(slices())
def test_every_part_of_an_array_is_an_out(out: Array) -> None:
    logits = np.random.default_rng(0).normal(size=out.shape).astype(out.dtype)
    assert xent.softmax(logits, out=out) is out
    np.testing.assert_array_equal(out, xent.softmax(logits))
    labels = np.zeros(out.shape[:-1], int) if out.shape[-1] else np.full(out.shape[:-1], -100)
    assert xent.cross_entropy_with_grad(logits, labels, out=out)[1] is out
    np.testing.assert_array_equal(out, xent.cross_entropy_with_grad(logits, labels)[1])
    assert xent.binary_cross_entropy_with_grad(logits, np.ones(out.shape), out=out)[1] is out


@given(st.data())
def test_no_window_over_another_is_an_out(data: st.DataObject) -> None:
    """Whatever the windows overlap in, one row would be written over the next."""
    shape = data.draw(st.lists(st.integers(2, 6), min_size=1, max_size=3))
    window = data.draw(st.tuples(*(st.integers(1, n) for n in shape)))
    out = sliding_window_view(np.zeros(shape), window, writeable=True)
    out = out.transpose(data.draw(st.permutations(range(out.ndim))))
    places = np.broadcast_to(np.arange(np.prod(shape)).reshape(shape), shape)
    places = sliding_window_view(places, window)
    if np.unique(places).size == places.size:
        xent.softmax(np.zeros(out.shape), out=out)
    else:
        with pytest.raises(ValueError, match="`out` must own each of its elements"):
            xent.softmax(np.zeros(out.shape), out=out)


@pytest.mark.parametrize("offset", [0, 3])
@pytest.mark.parametrize("shape", [(1_700_001, 5), (8, 5, 480, 480)], ids=["rows", "planes"])
def test_large_gradient_has_the_bits_of_small_ones(shape: tuple[int, ...], offset: int) -> None:
    """Large ones are written past the cache, in whole lines, wherever those begin."""
    logits = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    out = np.empty(logits.size + offset, np.float32)[offset:].reshape(shape)
    if len(shape) > 2:
        logits, out = np.moveaxis(logits, 1, -1), np.moveaxis(out, 1, -1)
    labels = np.arange(logits.size // 5).reshape(logits.shape[:-1]) % 5
    labels.flat[::1000] = -100
    assert logits.nbytes > 32 << 20
    xent.cross_entropy_with_grad(logits, labels, reduction="sum", out=out)
    step = len(logits) // 4
    for begin in range(0, len(logits), step):
        part = slice(begin, begin + step)
        _, small = xent.cross_entropy_with_grad(logits[part], labels[part], reduction="sum")
        np.testing.assert_array_equal(out[part], small)


@pytest.mark.parametrize(
    ("dtype", "num_classes", "offset"), [("f4", 1000, 0), ("f4", 2051, 3), ("f2", 4099, 1)]
)
def test_large_wide_results_have_the_bits_of_small_ones(dtype: str, num_classes: int, offset: int) -> None:
    """The same of long rows, whose lines hold the end of one and the start of the next."""
    rng = np.random.default_rng(0)
    rows = (34 << 20) // (num_classes * np.dtype(dtype).itemsize)
    logits, vector = rng.normal(size=(2, rows, num_classes)).astype(dtype)
    labels = rng.integers(0, num_classes, rows)
    labels[::7] = -100
    labels[1::7], labels[2::7] = 0, num_classes - 1
    buffer = np.empty(logits.size + offset + 8, dtype)
    out = buffer[offset : offset + logits.size].reshape(logits.shape)
    step = rows // 4 + 1
    for options in ({}, {"label_smoothing": 0.1, "softcap": 3.0}, {"focal_gamma": 2.0}):
        plain = {"reduction": "sum", **options}
        buffer.fill(7)
        xent.cross_entropy_with_grad(logits, labels, out=out, **plain)
        small = [
            xent.cross_entropy_with_grad(logits[i : i + step], labels[i : i + step], **plain)[1]
            for i in range(0, rows, step)
        ]
        np.testing.assert_array_equal(out, np.concatenate(small))
        xent.cross_entropy_hvp(logits, labels, vector, out=out, **plain)
        small = [
            xent.cross_entropy_hvp(logits[i : i + step], labels[i : i + step], vector[i : i + step], **plain)
            for i in range(0, rows, step)
        ]
        np.testing.assert_array_equal(out, np.concatenate(small))
        assert np.all(buffer[:offset] == 7)
        assert np.all(buffer[offset + logits.size :] == 7)


def test_softmax_and_binary_in_place() -> None:
    buffer = LOGITS.copy()
    assert xent.softmax(buffer, out=buffer) is buffer
    np.testing.assert_array_equal(buffer, xent.softmax(LOGITS))
    buffer = LOGITS.copy()
    _, grad = xent.binary_cross_entropy_with_grad(buffer, np.ones((6, 5)), out=buffer)
    assert grad is buffer
    np.testing.assert_array_equal(buffer, xent.binary_cross_entropy_with_grad(LOGITS, np.ones((6, 5)))[1])


# The same bits in any run.


@each_of_some_options
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


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("reorder", [lambda z: z, np.asfortranarray, lambda z: z[::-1], lambda z: z[:, ::2]])
def test_the_short_way_has_the_same_bits(dtype: str, reorder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    z, y = reorder(rng.normal(size=(301, 12)).astype(dtype)), rng.integers(0, 6, 301)
    z.flags.writeable = y.flags.writeable = False
    long = xent.cross_entropy_with_grad(z, y, ignore_index=-100)  # an option: the long way
    with monkeypatch.context() as patch:
        patch.setattr(Problem, "from_arguments", None)
        short = xent.cross_entropy_with_grad(z, y)
        out = np.empty_like(z)
        assert xent.cross_entropy_with_grad(z, y, out=out)[1] is out
    for found in (short, (short[0], out)):
        assert found[0].tobytes() == long[0].tobytes()
        assert found[0].dtype == dtype
        assert found[1].tobytes() == long[1].tobytes()
    assert short[1].strides == long[1].strides


def test_the_short_way_knows_where_it_ends() -> None:
    z, y = np.zeros((3, 2)), np.array([0, 1, -100])
    assert xent.cross_entropy_with_grad(z, y)[1][2].tolist() == [0, 0]
    with pytest.raises(ValueError, match="got 2 at row 1"):
        xent.cross_entropy_with_grad(z, np.array([0, 2, 1]))
    assert xent.cross_entropy_with_grad(z.astype(">f8"), y)[0] == np.log(2)
    assert xent.cross_entropy_with_grad(np.zeros((0, 2)), y[:0])[0] == 0
    labels = np.zeros(6, np.int64)
    with pytest.raises(ValueError, match="overlaps one"):
        xent.cross_entropy_with_grad(np.zeros((3, 2)), labels[:3], out=labels.view(np.float64).reshape(3, 2))
