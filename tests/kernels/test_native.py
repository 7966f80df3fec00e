"""The native functions called directly: each refuses what would lead it out of an array, or is right."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from xent.kernels import _native

N, K, D = 6, 4, 3
RNG = np.random.default_rng(0)
FLAT = (None,) * 6


def strided(x):
    """The same numbers, two elements apart."""
    wide = np.zeros((*x.shape, 2), x.dtype)
    wide[..., 0] = x
    return wide[..., 0]


def misaligned(x):
    raw = np.zeros(x.nbytes + 1, np.uint8)
    moved = raw[1:].view(x.dtype).reshape(x.shape)
    moved[...] = x
    return moved


def readonly(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def foreign(x):
    return x.astype(x.dtype.newbyteorder(">"))


def shorter(x):
    return np.ascontiguousarray(x[:-1])


def narrower(x):
    return np.ascontiguousarray(x[..., :-1])


def narrow(x):
    """In half of the bytes, whatever those are."""
    return x.astype({"f8": "f4", "f4": "f2", "i8": "i4", "i4": "i2"}[x.dtype.str[1:]])


def nothing(x):
    return np.zeros((), x.dtype)


def overlapping(x):
    return np.lib.stride_tricks.as_strided(x, strides=(0, *x.strides[1:]))


def calls():
    """Name -> (function, arguments, places of arrays that are read, that are written)."""
    z, v = RNG.normal(size=(N, K)), RNG.random((N, K))
    y, row = RNG.integers(0, K, N), RNG.normal(size=N)
    x, w, b = RNG.normal(size=(N, D)), RNG.normal(size=(K, D)), RNG.normal(size=K)

    def new(*shape, dtype=np.float64):
        return np.zeros(shape or (N,), dtype)

    stats = (new(), new(), new(), new())
    yield "row_stats", (z, y, v, 1.0, 0.0, *stats, new(), new(dtype=np.int64)), (0, 1, 2), range(5, 11)
    known = (row, row.copy(), row.copy())
    yield (
        "row_grad",
        (z, y, v, 1.0, 0.0, *known, row, row, row, new(N, K)),
        (0, 1, 2, 5, 6, 7, 8, 9, 10),
        (11,),
    )
    yield (
        "row_stats_and_grad",
        (z, y, v, 1.0, 0.0, row, row, row, new(N, K), *stats),
        (0, 1, 2, 5, 6, 7),
        range(8, 13),
    )
    yield "row_hvp", (z, y, v, 1.0, 0.0, *[row] * 5, z, new(N, K)), (0, 1, 2, *range(5, 11)), (11,)
    model = (x, w, b, False, y, v, 1.0, 0.0)
    yield "linear_stats", (*model, *stats, new(), new(dtype=np.int64)), (0, 1, 2, 4, 5), range(8, 14)
    yield (
        "linear_stats_and_grad",
        (*model, row, row, row, *stats, new(K, D), new(K)),
        (0, 1, 2, 4, 5, 8, 9, 10),
        range(11, 17),
    )
    yield (
        "linear_hvp",
        (*model, *[row] * 5, w, b, new(K, D), new(K)),
        (0, 1, 2, 4, 5, *range(8, 15)),
        (15, 16),
    )
    each = (new(), new(), new(), new(dtype=np.int32), new(dtype=np.int32))
    yield "evaluate_rows", (v, y, True, *each, new(), new()), (0, 1), range(3, 10)
    yield (
        "evaluate_fold",
        (y, row, RNG.random(N), row, *each[3:], 5, 0.5, new(K, 4), new(K), new(15, 4), new(4)),
        range(6),
        (8, 9, 10, 11),
    )
    q = RNG.random(N)
    yield "binary_loss", (row, q, q, q, q, 1.0, 0.0, 1.0, 0.0, 1.0, new(), new()), range(5), (10, 11)
    columns, starts = np.array([0, 2, 1, 0], np.int32), np.array([0, 2, 2, 3, 4, 4, 4], np.int32)
    yield "csr_product", (np.ones(4), columns, starts, w.T.copy(), new(N, K)), range(4), (4,)
    yield "csr_is_sound", (columns, starts, D), (0, 1), ()
    yield "all_in_range", (y, K), (0,), ()
    yield "all_within", (q, 1.0), (0,), ()
    yield "total", (row,), (0,), ()


CALLS = {name: rest for name, *rest in calls()}
REFUSED = {
    "read": [misaligned, foreign, nothing],
    "written": [misaligned, foreign, nothing, readonly, strided, shorter, narrower, narrow],
}


# Gradients may have any strides, there may be any number of bins, and one value has one axis or none.
TAKEN = {
    *(
        (name, place, strided)
        for name, place in (("row_grad", 11), ("row_stats_and_grad", 8), ("row_hvp", 11))
    ),
    ("evaluate_fold", 10, shorter),
    ("all_in_range", 0, nothing),
    ("total", 0, nothing),
}


def changed(name, place, change):
    arguments = [x.copy() if isinstance(x, np.ndarray) else x for x in CALLS[name][0]]
    for written in CALLS[name][2]:
        arguments[written][...] = 0
    arguments[place] = change(arguments[place])
    return arguments


@pytest.mark.parametrize("name", CALLS)
def test_sound_arguments_are_taken(name):
    getattr(_native, name)(*CALLS[name][0])


@pytest.mark.parametrize(
    ("name", "place", "change"),
    [
        pytest.param(name, place, change, id=f"{name}-{place}-{change.__name__}")
        for name, (_, read, written) in CALLS.items()
        for kind, places in (("read", read), ("written", written))
        for place in places
        for change in REFUSED[kind]
    ],
)
def test_hostile_arrays_are_refused(name, place, change):
    if (name, place, change) in TAKEN:
        return
    with pytest.raises((TypeError, ValueError)):
        getattr(_native, name)(*changed(name, place, change))


@pytest.mark.parametrize(
    ("name", "place", "change"),
    [
        pytest.param(name, place, change, id=f"{name}-{place}-{change.__name__}")
        for name, (_, read, _) in CALLS.items()
        for place in read
        for change in (strided, readonly, narrow, shorter, narrower)
    ],
)
def test_what_is_read_is_refused_or_read_right(name, place, change):
    """Never a converted copy that is gone when it is read."""
    arguments = changed(name, place, change)
    try:
        found = getattr(_native, name)(*arguments)
    except (TypeError, ValueError):
        return
    assert change not in (shorter, narrower) or name in (
        "total",
        "all_in_range",
        "all_within",
        "binary_loss",
        "csr_is_sound",
    )
    expected = changed(name, place, lambda x: np.ascontiguousarray(change(x)).astype(x.dtype))
    assert found == getattr(_native, name)(*expected) or found is None
    for place in CALLS[name][2]:
        np.testing.assert_allclose(arguments[place], expected[place], rtol=1e-3 if change is narrow else 0)


def test_gradients_own_each_of_their_elements():
    for name, place in (("row_grad", 11), ("row_stats_and_grad", 8), ("row_hvp", 11)):
        with pytest.raises(ValueError, match="own each"):
            getattr(_native, name)(*changed(name, place, overlapping))
    columns = changed("row_grad", 11, lambda x: np.zeros((K, N)).T)
    _native.row_grad(*columns)
    plain = changed("row_grad", 11, lambda x: x)
    _native.row_grad(*plain)
    np.testing.assert_allclose(columns[11], plain[11], rtol=1e-12)


@pytest.mark.parametrize("coefficient", [0, None, "1", True, [1.0] * N, np.float32(1)])
def test_a_coefficient_is_a_float_or_an_array(coefficient):
    with pytest.raises(TypeError):
        _native.row_grad(*changed("row_grad", 8, lambda x: coefficient))


def test_an_exporter_whose_memory_goes_is_kept_while_it_is_read():
    class Fleeting:
        """A new array at each export."""

        def __dlpack__(self, **options):
            return np.full(N, 2.0).__dlpack__()

        def __dlpack_device__(self):
            return (1, 0)

    arguments, plain = changed("row_grad", 8, lambda x: Fleeting()), changed("row_grad", 8, lambda x: 2.0)
    _native.row_grad(*arguments)
    _native.row_grad(*plain)
    np.testing.assert_array_equal(arguments[11], plain[11])


def test_there_are_classes_bins_and_weights():
    with pytest.raises(ValueError, match="at least one class"):
        _native.row_stats(np.zeros((N, 0)), None, None, 1.0, 0.0, *FLAT)
    with pytest.raises(ValueError, match="classes"):
        _native.evaluate_rows(*changed("evaluate_rows", 0, lambda x: np.zeros((N, 0))))
    with pytest.raises(ValueError, match="at least one bin"):
        _native.evaluate_fold(*changed("evaluate_fold", 10, lambda x: np.zeros((0, 4))))
    for zero_class in (False, True):
        with pytest.raises(ValueError, match="weight must have 1"):
            _native.linear_stats(
                np.ones((N, D)), np.ones((0, D)), None, zero_class, None, None, 1.0, 0.0, *FLAT
            )


def test_no_features_leave_the_bias():
    lse = np.zeros(N)
    empty = np.zeros((N, 0)), np.zeros((K, 0)), np.arange(4.0)
    _native.linear_stats(*empty, False, None, None, 1.0, 0.0, lse, *FLAT[1:])
    np.testing.assert_allclose(lse, np.logaddexp.reduce(np.arange(4.0)))
    dweight, dbias = np.zeros((K, 0)), np.zeros(K)
    labels = np.zeros(N, np.int64)
    _native.linear_stats_and_grad(
        *empty, False, labels, None, 1.0, 0.0, 0.0, -1.0, 0.0, *FLAT[:4], dweight, dbias
    )
    assert dbias.sum() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("shape", [(K, D + 1), (K + 1, D), (D, K), (0, D)])
def test_gradients_have_the_shape_of_the_weight(shape):
    for name, place in (("linear_stats_and_grad", 15), ("linear_hvp", 15)):
        with pytest.raises(ValueError, match="gradients must be"):
            getattr(_native, name)(*changed(name, place, lambda x: np.zeros(shape)))


@pytest.mark.parametrize("classes", [-(2**63), -1, 0, 1, 2, 2**63 - 1])
def test_ranges_of_labels(classes):
    for label in (-(2**63), -1, 0, 1, 2**63 - 1):
        assert _native.all_in_range(np.array([label]), classes) == (0 <= label < classes)
    assert _native.all_in_range(np.zeros(0, np.int64), classes)


@pytest.mark.parametrize("confidence", [np.nan, np.inf, -np.inf, 1e300, -1e300, -0.1, 1.0])
def test_any_confidence_has_a_bin(confidence):
    arguments = changed("evaluate_fold", 2, lambda x: np.full(N, confidence))
    _native.evaluate_fold(*arguments)
    bins = arguments[10][:, 0]
    assert bins.sum() == N == bins[0 if not confidence > 0 else -1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_largest_numbers_are_within_what_is_larger(dtype):
    largest = np.finfo(dtype).max
    assert _native.all_within(np.array([largest]), 1.7976931348623157e308)
    assert not _native.all_within(np.array([np.inf], dtype), 1.7976931348623157e308)
    assert _native.all_within(np.array([np.inf], dtype), np.inf)


@pytest.mark.parametrize("classes", [2**31, 2**40, 2**52, 2**55, 2**56, 2**58])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_absurd_shapes_are_refused(classes, dtype):
    """Stride 0: the size of scratch memory must not wrap around to something small."""
    z = np.broadcast_to(dtype(0), (1, classes))
    for rows in (z, z[:0], np.broadcast_to(dtype(0), (2, 1, classes))):
        with pytest.raises((MemoryError, ValueError)):
            _native.row_stats(rows, None, None, 1.0, 0.0, np.zeros(rows.shape[:-1]), *FLAT[1:])
    if dtype is not np.float16:
        weight = np.broadcast_to(dtype(0), (3, classes))
        for features, matrix in (
            (z, weight),
            (np.zeros((1, 2), dtype), np.broadcast_to(dtype(0), (classes, 2))),
        ):
            with pytest.raises((MemoryError, ValueError)):
                _native.linear_stats(
                    features, matrix, None, False, None, None, 1.0, 0.0, np.zeros(1), *FLAT[1:]
                )
    none = *np.zeros((3, 0)), *np.zeros((2, 0), np.int32)
    with pytest.raises((MemoryError, ValueError, TypeError)):
        _native.evaluate_rows(np.zeros((0, classes), dtype), np.zeros(0, np.int64), False, *none, None, None)


CSR = {
    "a column too far": ([0, 3], [0, 1, 2], ValueError),
    "the largest int32": ([0, 2**31 - 1], [0, 1, 2], ValueError),
    "a negative column": ([0, -1], [0, 1, 2], ValueError),
    "starts that fall": ([0, 1], [0, 2, 1], ValueError),
    "starts beyond the entries": ([0, 1], [0, 1, 3], ValueError),
    "starts that do not begin at 0": ([0, 1], [1, 1, 2], ValueError),
    "negative starts": ([0, 1], [0, -5, 2], ValueError),
    "unsorted and repeated columns": ([2, 2], [0, 2, 2], None),
    "entries that no row has": ([0, 1], [0, 1, 1], None),
}


@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize(("columns", "starts", "error"), CSR.values(), ids=CSR)
def test_indices_stay_inside(columns, starts, error, index):
    columns, starts = np.array(columns, index), np.array(starts, index)
    assert _native.csr_is_sound(columns, starts, 3) == (error is None)
    for scores in (1, 5, 40):
        dense, out = np.arange(3.0 * scores).reshape(3, scores), np.zeros((2, scores))
        if error is not None:
            with pytest.raises(error):
                _native.csr_product(np.ones(2), columns, starts, dense, out)
            continue
        _native.csr_product(np.ones(2), columns, starts, dense, out)
        expected = [dense[columns[a:b]].sum(0) for a, b in pairwise(starts)]
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("place", [0, 70_000, 199_999])
def test_one_bad_index_of_many_is_found(place):
    columns, starts = np.zeros(200_000, np.int32), np.arange(0, 200_001, 10, np.int32)
    columns[place] = 7
    out = np.zeros((20_000, 3))
    assert _native.csr_is_sound(columns, starts, 8)
    assert not _native.csr_is_sound(columns, starts, 7)
    _native.csr_product(np.ones(200_000), columns, starts, np.ones((8, 3)), out)
    assert (out == 10).all()
    with pytest.raises(ValueError, match=r"columns must be in \[0, D\)"):
        _native.csr_product(np.ones(200_000), columns, starts, np.ones((7, 3)), out)
