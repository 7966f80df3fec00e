"""float32 logits of operands of half precision: values, gradients, every way of computing them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import xent.torch as xt  # noqa: E402
from xent.torch.linear.products import Chunking, TensorProjection  # noqa: E402

Tensor = torch.Tensor
N, D, K = 24, 32, 50
G = torch.Generator().manual_seed(0)
X, W, B = (torch.randn(*shape, generator=G) * s for *shape, s in ((N, D, 3.0), (K, D, 1.5), (K, 2.0)))
X2, W2 = ((X + 0.1 * torch.randn(N, D, generator=G)).bfloat16(), W.roll(1, 0).bfloat16())  # of a teacher
Y = torch.randint(0, K, (N,), generator=G).where(torch.arange(N) % 5 != 0, -100)
ENTRIES = torch.stack([torch.randperm(K, generator=G)[:3] for _ in range(N)])
UPSTREAM = torch.linspace(-2.0, 3.0, N, dtype=torch.float64)
HALF = [torch.bfloat16, torch.float16]


def statistics(x: Tensor, w: Tensor, b: Tensor, **o: Any) -> Tensor:
    """Log-probability and entropy, each with a factor of its own."""
    found = xt.linear_row_statistics(x, w, Y, bias=b, **o)
    return found.log_prob + 0.7 * found.entropy


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "loss": lambda x, w, b, **o: xt.linear_cross_entropy(x, w, Y, linear_bias=b, reduction="none", **o),
    "mean": lambda x, w, b, **o: xt.linear_cross_entropy(x, w, Y, linear_bias=b, z_loss=0.01, **o),
    "statistics": statistics,
    "forward": lambda x, w, b, **o: xt.linear_kl_divergence(
        x, w, X2.to(x.dtype), W2.to(x.dtype), bias=b, reduction="none", **o
    ),
    "reverse": lambda x, w, b, **o: xt.linear_kl_divergence(
        x, w, X2.to(x.dtype), W2.to(x.dtype), bias=b, direction="reverse", **o
    ),
    "top-k": lambda x, w, b, **o: xt.linear_topk_kl_divergence(
        x, w, ENTRIES, -1.5 - ENTRIES / K, bias=b, reduction="none", **o
    ),
    "top-k, reverse mean": lambda x, w, b, **o: xt.linear_topk_kl_divergence(
        x, w, ENTRIES, -1.5 - ENTRIES / K, bias=b, direction="reverse", **o
    ),
}


def operands(dtype: Any) -> list[Tensor]:
    return [t.to(dtype).requires_grad_() for t in (X, W, B)]


def widened(function: Callable[..., Tensor], dtype: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Value and gradients of the same operands in float64."""
    wide = [t.detach().to(dtype).double().requires_grad_() for t in (X, W, B)]
    value = function(*wide)
    return value.detach(), torch.autograd.grad(pulled(value), wide)


def pulled(value: Tensor) -> Tensor:
    """A sum whose cotangents are not 1."""
    return (value.double() * (UPSTREAM if value.ndim else 3.5)).sum()


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("chunk_bytes", [None, 7 * K * 6 * 6], ids=["one chunk", "chunks"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_are_those_of_float32_logits(name: str, chunk_bytes: int | None, dtype: Any) -> None:
    function = FUNCTIONS[name]
    expected, slopes = widened(function, dtype)
    x, w, b = operands(dtype)
    value = function(x, w, b, logits_dtype=torch.float32, chunk_bytes=chunk_bytes)
    assert value.dtype == torch.float32
    assert error(value, expected) < 2e-6
    if dtype == torch.bfloat16:
        assert error(function(x, w, b), expected) > 1e-4
    for found, slope in zip(torch.autograd.grad(pulled(value), (x, w, b)), slopes, strict=True):
        assert found.dtype == dtype
        assert error(found, slope) < 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_and_transformed(name: str) -> None:
    def loss(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return pulled(FUNCTIONS[name](x, w, b, logits_dtype=torch.float32))

    x, w, b = operands(torch.bfloat16)
    value, slopes = loss(x, w, b), torch.autograd.grad(loss(x, w, b), (x, w, b))
    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)(x, w, b)
    found = torch.autograd.grad(compiled, (x, w, b))
    by_func, transformed = torch.func.grad_and_value(loss, (0, 1, 2))(*(t.detach() for t in (x, w, b)))
    torch.testing.assert_close(compiled, value, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(transformed, value.detach(), rtol=1e-6, atol=1e-6)
    for a, c, g in zip(found, by_func, slopes, strict=True):
        assert error(a, g.double()) < 2.0**-7
        assert error(c, g.double()) < 2.0**-7


@pytest.mark.parametrize("name", FUNCTIONS)
def test_second_derivatives(name: str) -> None:
    def penalty(operands: Any, **o: Any) -> tuple[Tensor, ...]:
        value = pulled(FUNCTIONS[name](*operands, **o))
        slopes = torch.autograd.grad(value, operands, create_graph=True)
        return torch.autograd.grad(sum(s.double().pow(2).sum() for s in slopes), operands)

    half = operands(torch.bfloat16)
    wide = [t.detach().double().requires_grad_() for t in half]
    for found, expected in zip(penalty(half, logits_dtype=torch.float32), penalty(wide), strict=True):
        assert error(found, expected) < 0.05


def test_products_of_the_gradients_stay_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w, _ = operands(torch.bfloat16)
    dtypes = []
    for name in ("mm", "matmul", "addmm"):
        product = getattr(torch, name)

        def watched(*args: Any, product: Any = product, **o: Any) -> Any:
            dtypes.append(args[-1].dtype)
            return product(*args, **o)

        monkeypatch.setattr(torch, name, watched)
    xt.linear_cross_entropy(x, w, Y, logits_dtype=torch.float32)
    forward, *backward = [d for d in dtypes if d != torch.bfloat16], dtypes.count(torch.bfloat16)
    assert forward == [torch.float32]
    assert backward[0] >= 1  # the sum of the weight's gradient takes an operator, `a @ b`


def test_the_weight_is_not_converted_whole() -> None:
    w = torch.zeros(40_000, 64, dtype=torch.bfloat16)
    x = torch.zeros(4, 64, dtype=torch.bfloat16)
    projection = TensorProjection(x, w, None, None, Chunking(None, torch.float32))
    with torch.profiler.profile(profile_memory=True) as profile:
        projection.sweep(lambda logits, rows, dloss: ((logits.sum(-1),), None))
    sizes = [e.cpu_memory_usage for e in profile.events()]
    assert max(sizes) < w.numel() * 4 / 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64, "float32"], ids=str)
def test_a_dtype_that_logits_cannot_have(dtype: Any) -> None:
    x, w, b = operands(torch.bfloat16)
    for function in FUNCTIONS.values():
        with pytest.raises(ValueError, match=r"`logits_dtype` must be None or torch\.bfloat16 or torch\.fl"):
            function(x, w, b, logits_dtype=dtype)


def test_float32_and_float64_have_their_own() -> None:
    for dtype in (torch.float32, torch.float64):
        x, w, b = operands(dtype)
        same = xt.linear_cross_entropy(x, w, Y, linear_bias=b, logits_dtype=dtype)
        assert torch.equal(same, xt.linear_cross_entropy(x, w, Y, linear_bias=b))
