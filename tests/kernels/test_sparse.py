"""The product of a CSR matrix with a dense one: SciPy's, on every instruction set and any threads."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import threadpoolctl

import xent
from xent.kernels import _native, cpu, cpu_sparse

SCORES = [0, 1, 2, 3, 4, 5, 8, 10, 16, 17, 20, 33, 64, 100]


def matrix(rows, columns, dtype, index=np.int32, seed=0):
    """Rows of very different lengths, some of them empty."""
    rng = np.random.default_rng(seed)
    full = rng.standard_normal((rows, columns)) * (rng.random((rows, columns)) < rng.random((rows, 1)) ** 4)
    x = scipy.sparse.csr_array(full.astype(dtype))
    x.indices, x.indptr = x.indices.astype(index), x.indptr.astype(index)
    return x


@pytest.fixture(params=cpu.isas())
def isa(request):
    cpu.set_isa(request.param)
    yield request.param
    cpu.set_isa(cpu.isas()[0])


@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scores", SCORES)
def test_products_are_scipys(isa, scores, dtype, index):
    x = matrix(60, 40, dtype, index)
    dense = np.random.default_rng(1).standard_normal((40, scores)).astype(dtype)
    found = cpu_sparse.product(x, dense)
    assert found.dtype == dtype
    scale = abs(x).astype(float) @ abs(dense).astype(float)
    error = abs(found - x.astype(float) @ dense.astype(float))
    assert (error <= 10 * np.finfo(dtype).eps * scale).all()


def test_threads_change_no_bit():
    x = matrix(3000, 200, np.float32)
    dense = np.random.default_rng(1).standard_normal((200, 20)).astype(np.float32)
    results = []
    for threads in (1, 2, 3, 7):
        with threadpoolctl.threadpool_limits(threads):
            results.append(cpu_sparse.product(x, dense).tobytes())
    assert len(set(results)) == 1
    assert x.nnz * 20 > 7 << 15  # enough to be shared out


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (5, 3)])
def test_nothing_stored_gives_zeros(shape):
    found = cpu_sparse.product(scipy.sparse.csr_array(shape), np.ones((shape[1], 4)))
    np.testing.assert_array_equal(found, np.zeros((shape[0], 4)))


def test_indices_of_two_widths_and_any_strides():
    x = matrix(30, 20, np.float64)
    x.indptr = x.indptr.astype(np.int64)
    dense = np.random.default_rng(1).standard_normal((6, 20)).T
    np.testing.assert_allclose(cpu_sparse.product(x, dense), x @ dense, rtol=1e-12, atol=1e-14)


def test_what_does_not_go_together_is_refused():
    x = matrix(6, 5, np.float32)
    parts, dense, out = (
        (x.data, x.indices, x.indptr),
        np.ones((5, 2), np.float32),
        np.empty((6, 2), np.float32),
    )
    for other in (dense.astype(np.float64), dense.astype(int), dense.astype(np.float16)):
        with pytest.raises(TypeError):
            _native.csr_product(*parts, other, out)
    with pytest.raises(TypeError):
        _native.csr_product(x.data, x.indices, x.indptr.astype(np.int64), dense, out)
    for wrong in (out[:5], out[:, :1], np.empty((2, 6), np.float32).T):
        with pytest.raises(ValueError, match="in C order"):
            _native.csr_product(*parts, dense, wrong)
    with pytest.raises(ValueError, match="in C order"):
        _native.csr_product(x.data[:-1], x.indices, x.indptr, dense, out)


def corrupted(kind, index):
    """A CSR matrix of 8 rows and 5 columns, damaged behind SciPy's back."""
    x = matrix(8, 5, np.float64, index, seed=3)
    x.data[...] = 1.0
    assert x.nnz > 5
    if kind == "too far":
        x.indices[5] = 5
    if kind == "very far":
        x.indices[5] = 2**31 - 1
    if kind == "negative":
        x.indices[5] = -1
    if kind == "falling":
        x.indptr[3] = x.nnz
    if kind == "beyond":
        x.indptr[-1] = x.nnz + 3
    if kind == "late":
        x.indptr[0] = 1
    if kind == "few indices":
        x.indices = x.indices[:-1]
    if kind == "few entries":
        x.data = x.data[:-1]
    if kind == "few rows":
        x.indptr = x.indptr[:-1]
    if kind == "no integers":
        x.indices = x.indices.astype(float)
    return x


DAMAGES = [
    "too far",
    "very far",
    "negative",
    "falling",
    "beyond",
    "late",
    "few indices",
    "few entries",
    "few rows",
]


@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("damage", [*DAMAGES, "no integers"])
def test_a_damaged_matrix_is_an_error_of_every_method(damage, index):
    y = np.arange(8) % 3
    model = xent.SoftmaxRegression().fit(np.random.default_rng(0).standard_normal((8, 5)), y)
    coef = model.coef_.copy()
    for call in (
        lambda x: model.fit(x, y),
        lambda x: model.partial_fit(x, y),
        lambda x: model.objective(x, y),
        lambda x: model.calibrate_temperature(x, y),
        lambda x: model.score(x, y),
        model.predict,
        model.predict_proba,
        model.predict_log_proba,
        model.decision_function,
    ):
        with pytest.raises(ValueError, match=r"`X(\.indices|\.indptr)?`"):
            call(corrupted(damage, index))
    np.testing.assert_array_equal(model.coef_, coef)


@pytest.mark.parametrize("form", ["csc", "bsr", "coo"])
def test_other_forms_are_looked_at_before_scipy_converts_them(form):
    y = np.arange(8) % 3
    x = matrix(8, 5, np.float64, seed=3).asformat(form)
    assert xent.SoftmaxRegression().fit(x, y).n_features_in_ == 5
    if form == "coo":
        x.coords[0][2] = 10**6
    else:
        x.indices[2] = 10**6
    with pytest.raises(ValueError, match=r"must be in \[0, \d\); got 1000000 at entry 2"):
        xent.SoftmaxRegression().fit(x, y)


def test_unsorted_and_repeated_indices_are_sound():
    x = scipy.sparse.csr_array((np.ones(4), np.array([2, 0, 1, 1]), np.array([0, 2, 4])), shape=(2, 3))
    cpu_sparse.require_sound(x)
    np.testing.assert_array_equal(cpu_sparse.product(x, np.eye(3)), [[1, 0, 1], [0, 2, 0]])
