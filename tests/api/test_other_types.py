"""Tensors, JAX arrays and sparse matrices where they do not belong are refused, not converted."""

from __future__ import annotations

import numpy as np
import pytest

import xent
from tests.api.test_errors import Q, W, Y, Z, raises


def test_tensors_where_only_arrays_fit_are_refused() -> None:
    """A NumPy function would drop their gradient without a word."""
    torch = pytest.importorskip("torch")
    z, y = torch.zeros(3, 4), torch.tensor([0, 3, 1])
    for call in (
        lambda: xent.cross_entropy_with_grad(z, Y),
        lambda: xent.cross_entropy_hvp(z, Y, Z),
        lambda: xent.softmax(z),
    ):
        with raises(TypeError, ("`logits`", "torch", "`Tensor`", "numpy.asarray(logits)")):
            call()
    with raises(TypeError, ("`targets`", "torch", "`Tensor`")):
        xent.cross_entropy(Z, y)
    with raises(TypeError, ("`sample_weight`", "torch", "`Tensor`")):
        xent.cross_entropy(Z, Y, sample_weight=torch.ones(3))
    with raises(TypeError, ("`inputs`", "torch")):
        xent.linear_cross_entropy_with_grad(z, W, Y)


def test_tensors_go_with_tensors() -> None:
    torch = pytest.importorskip("torch")
    z, y = torch.zeros(3, 4), torch.tensor([0, 3, 1])
    for call, name in (
        (lambda: xent.cross_entropy(z, Y), "targets"),
        (lambda: xent.cross_entropy(z, y, sample_weight=np.ones(3)), "sample_weight"),
        (lambda: xent.binary_cross_entropy(z, Q), "targets"),
        (lambda: xent.linear_cross_entropy(z, W, y), "weight"),
        (lambda: xent.row_statistics(z, Y), "labels"),
    ):
        with raises(TypeError, (f"`{name}` must be a torch.Tensor", "`ndarray`")):
            call()
    with raises(ValueError, ("`targets` of torch.int64 must have shape (3,); got (2,)",)):
        xent.cross_entropy(z, y[:2])


def test_jax_arrays_are_refused_where_no_function_of_jax_is_there() -> None:
    jax = pytest.importorskip("jax")
    with raises(TypeError, ("`logits`", "jax", "numpy.asarray(logits)")):
        xent.cross_entropy_with_grad(jax.numpy.zeros((3, 4)), Y)


def test_sparse_matrices_are_refused() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    with raises(TypeError, ("`logits`", "dense", "csr")):
        xent.cross_entropy(sparse.csr_array(Z), Y)
