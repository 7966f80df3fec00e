"""The sum over chunks of the gradient in a bfloat16 weight."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import xent.torch as xt  # noqa: E402
from xent.torch.linear.products import FEW_CHUNKS, Chunking, TensorProjection  # noqa: E402

F = torch.nn.functional
N, D, K = 640, 16, 40
G = torch.Generator().manual_seed(0)
# Of one sign, so that the sum over rows grows and small terms are lost in it.
X = torch.rand(N, D, generator=G).bfloat16()
W = (0.2 * torch.randn(K, D, generator=G)).bfloat16()
Y = torch.zeros(N, dtype=torch.long)


def weight_grad(loss, dtype):
    w = W.to(dtype).requires_grad_()
    return torch.autograd.grad(3.0 * loss(X.to(dtype), w), w)[0].double()


def in_chunks(count):
    return lambda x, w: xt.linear_cross_entropy(x, w, Y, chunk_bytes=N // count * K * 2)


@pytest.mark.parametrize("count", [1, 2, FEW_CHUNKS, FEW_CHUNKS + 1, 64, N])
def test_no_number_of_chunks_loses_digits(count):
    exact = weight_grad(lambda x, w: F.cross_entropy(F.linear(x, w), Y), torch.float64)
    plain = weight_grad(lambda x, w: F.cross_entropy(F.linear(x, w), Y), torch.bfloat16)
    found = weight_grad(in_chunks(count), torch.bfloat16)
    assert (found - exact).abs().max() <= 3 * max((plain - exact).abs().max(), 2.0**-9 * exact.abs().max())


def test_the_sum_of_few_chunks_takes_no_more_memory_than_the_gradient():
    for count, dtype in ((FEW_CHUNKS, torch.bfloat16), (FEW_CHUNKS + 1, torch.float32)):
        projection = TensorProjection(X, W, None, None, Chunking(-(-N // count) * K * 2))
        assert projection.weight_sum_dtype() == dtype
    wide = TensorProjection(X.float(), W.float(), None, None, Chunking())
    assert wide.weight_sum_dtype() == torch.float32
