"""The kernel of `xent eval`: each row's answers and their sums are those of NumPy in double precision."""

from __future__ import annotations

import numpy as np
import pytest

from xent.evaluation import scoring, tally
from xent.evaluation.calibration import bins
from xent.kernels import _native, cpu

RNG = np.random.default_rng(0)
SIZES = (1, 2, 3, 4, 5, 17, 31, 32, 33, 64, 255, 256, 257, 288, 1000, 8200, 17000)
# In float32 e^x has the error of a rounded x, down to x = −87, and below no full precision.
TOLERANCE = {"float64": 1e-13, "float32": 5e-6, "float16": 5e-6, "bfloat16": 5e-6}
SMALLEST = 1e-37


@pytest.fixture(params=cpu.isas())
def isa(request):
    before = cpu.set_isa(request.param)
    yield request.param
    cpu.set_isa(before)


def rows_of(outputs, labels, probabilities=False):
    mass, lowest = np.empty((2, len(outputs))) if probabilities else (None, None)
    return scoring._score_rows(outputs, labels, mass, lowest), mass, lowest


def some(num_rows, num_classes, dtype):
    """Logits with ties and wide gaps, and labels of which some are ignored."""
    z = (RNG.standard_normal((num_rows, num_classes)) * 4).round(1)
    z[1::7] *= 20
    labels = RNG.integers(-1, num_classes, num_rows)
    if dtype == "bfloat16":
        return z.astype(pytest.importorskip("ml_dtypes").bfloat16), labels
    return z.astype(dtype), labels


def check(outputs, labels, dtype, columns):
    z, kept = outputs.astype(np.float64), labels >= 0
    own = z[np.arange(len(z)), labels]
    np.testing.assert_array_equal(columns.predicted, z.argmax(1))
    np.testing.assert_array_equal(columns.above[kept], (z > own[:, None]).sum(1)[kept])
    rest = np.exp(z - z.max(1, keepdims=True))
    rest[np.arange(len(z)), z.argmax(1)] = 0
    loss = np.log1p(rest.sum(1)) - (own - z.max(1))
    np.testing.assert_allclose(columns.loss[kept], loss[kept], rtol=TOLERANCE[dtype], atol=SMALLEST)
    np.testing.assert_allclose(columns.confidence, 1 / (1 + rest.sum(1)), rtol=TOLERANCE[dtype])
    brier = rest / (1 + rest.sum(1, keepdims=True))  # of all classes but the likeliest and the label's
    top = z.argmax(1)
    miss = np.where(labels == top, rest.sum(1), 1 + rest.sum(1) - np.exp(own - z.max(1))) * columns.confidence
    brier[np.arange(len(z)), top] = columns.confidence
    brier[np.arange(len(z)), labels] = 0
    expected = (brier**2).sum(1) + miss**2
    np.testing.assert_allclose(columns.brier[kept], expected[kept], rtol=3 * TOLERANCE[dtype], atol=SMALLEST)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("num_classes", SIZES)
def test_logits(isa, dtype, num_classes):
    for num_rows in (1, 63, 64, 130) if num_classes < 1000 else (3,):
        z, labels = some(num_rows, num_classes, dtype)
        z.flags.writeable = False
        check(z, labels, dtype, rows_of(z, labels)[0])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("num_classes", SIZES)
def test_probabilities_are_taken_as_they_are(isa, dtype, num_classes):
    z, labels = some(70 if num_classes < 1000 else 3, num_classes, dtype)
    p = np.exp(z.astype(np.float64) / 80).astype(z.dtype)
    columns, mass, lowest = rows_of(p, labels, True)
    wide, kept = p.astype(np.float64), labels >= 0
    own = wide[np.arange(len(p)), labels]
    np.testing.assert_array_equal(columns.predicted, wide.argmax(1))
    np.testing.assert_array_equal(columns.confidence, wide.max(1))
    np.testing.assert_array_equal(columns.above[kept], (wide > own[:, None]).sum(1)[kept])
    np.testing.assert_array_equal(lowest, wide.min(1))
    np.testing.assert_allclose(mass, wide.sum(1), rtol=TOLERANCE[dtype])
    np.testing.assert_allclose(columns.loss[kept], -np.log(own)[kept], rtol=1e-14, atol=1e-15)
    squares = (wide**2).sum(1)
    expected = squares - 2 * own + 1
    error = TOLERANCE[dtype] * (1 + squares)
    np.testing.assert_array_less(np.abs(columns.brier - expected)[kept], error[kept])


@pytest.mark.parametrize("num_classes", [5, 40, 300])
@pytest.mark.parametrize("place", [0, 1, -1])
def test_a_row_that_is_no_distribution_has_no_loss(isa, num_classes, place):
    z = np.tile(np.arange(float(num_classes)), (8, 1))
    z[1, place], z[2, place], z[3, place], z[4] = np.nan, np.inf, -np.inf, -np.inf
    z[5] = np.finfo(float).min
    for label in (0, num_classes - 1):
        loss = rows_of(z, np.full(8, label))[0].loss
        assert np.isnan(loss[[1, 2, 4]]).all()
        assert not np.isnan(loss[[0, 5, 6, 7]]).any()
        assert loss[5] == pytest.approx(np.log(num_classes))
        assert np.isinf(loss[3]) == (label == place % num_classes)
        p = np.where(np.isposinf(z) | (z < 0), 0.0, z / num_classes)
        _, mass, _ = rows_of(p, np.full(8, label), True)
        assert np.isnan(mass).tolist() == [False, True, *[False] * 6]


def test_near_certainty_the_loss_has_all_its_digits(isa):
    for num_classes in (3, 300):
        z = np.full((1, num_classes), -40.0, np.float32)
        z[0, 2] = -20
        expected = (num_classes - 1) * np.exp(-20.0)
        columns = rows_of(z, np.array([2]))[0]
        assert columns.loss[0] == pytest.approx(expected, rel=1e-6)
        assert columns.brier[0] == pytest.approx(expected**2 + (num_classes - 1) * np.exp(-40.0), rel=1e-5)


def test_sums(isa):
    n, size, top_k = 500, 7, 3
    labels, loss = RNG.integers(-1, size, n), RNG.random(n)
    loss[[60, 90, 91]], loss[[5, 6]] = np.nan, np.inf
    labels[[60, 5, 6, 90, 91]] = 2
    confidence = RNG.random(n)
    confidence[:2] = 0, 1
    predicted, above = (RNG.integers(0, size, n, np.int32) for _ in range(2))
    brier, loss[3] = RNG.random(n), 1e4
    sums, start = tally.ColumnSums(size), 0
    for end in (0, 50, 90, n):  # in parts
        part = slice(start, end)
        columns = scoring.Columns(*(x[part] for x in (labels, loss, confidence, brier, predicted, above)))
        sums.add(columns, top_k, start)
        start = end
    kept = (labels >= 0) & ~np.isnan(loss)
    assert (sums.ignored, sums.undefined, sums.first_undefined) == ((labels < 0).sum(), 3, 60)
    y, p, right = labels[kept], predicted[kept], (labels == predicted)[kept]
    weights = (np.ones(len(y)), right, (above < top_k)[kept], loss[kept])
    expected = np.stack([np.bincount(y, w, size) for w in weights], 1)
    np.testing.assert_allclose(sums.by_class, expected, rtol=1e-14)
    np.testing.assert_array_equal(sums.predicted, np.bincount(p, minlength=size))
    number = bins.BINS * bins.FINE
    index = np.minimum((confidence[kept] * number).astype(int), number - 1)
    weights = (np.ones(len(y)), right, confidence[kept], np.isinf(loss[kept]))
    expected = np.stack([np.bincount(index, w, number) for w in weights], 1)
    np.testing.assert_allclose(sums.by_bin, expected, rtol=1e-14)
    assert sums.moments[:2].tolist() == [np.inf, np.inf]
    np.testing.assert_allclose(sums.moments[2:], [brier[kept].sum(), (brier[kept] ** 2).sum()], rtol=1e-13)
    assert sums.shift == pytest.approx(loss[:50][kept[:50] & np.isfinite(loss[:50])].mean())


def test_moments_of_nearly_equal_losses_keep_their_digits(isa):
    losses = 1e6 + RNG.random(1000)
    columns = scoring.Columns(
        np.zeros(1000, np.int64), losses, *np.ones((2, 1000)), *np.zeros((2, 1000), np.int32)
    )
    sums = tally.ColumnSums(2)
    sums.add(columns, 1, 0)
    d = losses - sums.shift
    np.testing.assert_allclose(sums.moments[:2], [d.sum(), d @ d], rtol=1e-12, atol=1e-6)
    assert sums.moments[1] / 1000 == pytest.approx(losses.var(), rel=1e-9)


def test_a_label_beyond_the_classes_is_no_access_beyond_the_array(isa):
    z, columns = np.zeros((2, 3)), (*np.zeros((3, 2)), *np.zeros((2, 2), np.int32))
    sums = np.zeros((3, 4)), np.zeros(3), np.zeros((15, 4)), np.zeros(4)
    with pytest.raises(ValueError, match="no class"):
        _native.evaluate_fold(np.array([0, 3]), *columns, 5, 0.0, *sums)
    with pytest.raises(ValueError, match="no class"):
        _native.evaluate_rows(z, np.array([0, 3]), False, *columns, None, None)
