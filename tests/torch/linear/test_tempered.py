"""A temperature of each row of a linear layer's logits: against float64, its gradient, products, graphs."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

import xent  # noqa: E402
import xent.torch as xt  # noqa: E402
from tests.torch.problems import close  # noqa: E402

# PyTorch warns of its own use of what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

F = torch.nn.functional
ROWS, D, K = (3, 7), 5, 11
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "every": {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 4.0},
    "focal": {"focal_gamma": 2.0, "softcap": 4.0},
    "shift": {"shift": 2, "z_loss": 0.1},
}
each_options = pytest.mark.parametrize("name", OPTIONS)


def made(dtype: Any = torch.float64, rows: tuple[int, ...] = ROWS, width: int = D, classes: int = K) -> Any:
    """(input, weight, bias, temperature, target), of which one row is ignored."""
    generator = torch.Generator().manual_seed(1)
    x, w, b, t = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((*rows, width), (classes, width), (classes,), rows)
    )
    y = torch.randint(0, classes, rows, generator=generator)
    t = torch.exp(t / 2)
    y[0, 1] = -100
    return *(a.to(dtype).requires_grad_() for a in (x, w, b)), t.requires_grad_(), y


def of_logits(x: Any, w: Any, b: Any, t: Any, y: Any, **options: Any) -> Any:
    """The loss by way of the whole matrix of logits."""
    z = F.linear(x, w, b) / t[..., None]
    if shift := options.pop("shift", 0):
        z, y = z[:, :-shift], y[:, shift:]
    loss = xt.cross_entropy(z.reshape(-1, z.shape[-1]), y.reshape(-1), **options)
    return loss.reshape(y.shape) if options.get("reduction") == "none" else loss


@each_options
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_it_divides_the_logits(name: str, has_bias: bool, reduction: str) -> None:
    x, w, b, t, y = made()
    options = OPTIONS[name] | {"reduction": reduction}
    tensors = (x, w, b, t) if has_bias else (x, w, t)
    bias = b if has_bias else None
    expected = of_logits(x, w, bias, t, y, **options)
    upstream = torch.linspace(0.5, 2.0, expected.numel(), dtype=torch.float64).reshape(expected.shape)
    gradients = torch.autograd.grad(expected, tensors, upstream)
    for rows_at_a_time in (1, 4, 21):
        more = {"linear_bias": bias, "chunk_bytes": rows_at_a_time * K * 8, **options}
        loss = xt.linear_cross_entropy(x, w, y, temperature=t, **more)
        close(loss, expected)
        close(torch.autograd.grad(loss, tensors, upstream), gradients)
        constant = xt.linear_cross_entropy(x, w, y, temperature=t.detach(), **more)
        close(constant, expected)
        close(torch.autograd.grad(constant, tensors[:-1], upstream), gradients[:-1])


@pytest.mark.parametrize("name", ["focal", "shift", pytest.param("every", marks=pytest.mark.slow)])
def test_derivatives(name: str) -> None:
    x, w, b, t, y = made(rows=(1, 4), width=2, classes=3)

    def loss(x: Any, w: Any, b: Any, t: Any) -> Any:
        return xt.linear_cross_entropy(x, w, y, linear_bias=b, temperature=t, chunk_bytes=96, **OPTIONS[name])

    assert torch.autograd.gradcheck(loss, (x, w, b, t), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(loss, (x, w, b, t))
    assert torch.autograd.gradgradcheck(lambda *a: loss(*a, t.detach()), (x, w, b))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_equal_temperatures_are_the_number(dtype: Any) -> None:
    x, w, b, t, y = made(dtype)
    eps = torch.finfo(dtype).eps
    options = {"linear_bias": b, "label_smoothing": 0.1, "chunk_bytes": 500}
    t = torch.full(ROWS, 0.7, dtype=torch.float64)
    found, expected = (xt.linear_cross_entropy(x, w, y, temperature=a, **options) for a in (t, 0.7))
    assert found.dtype == expected.dtype
    close(found, expected, rtol=8 * eps)
    for g, e in zip(*(torch.autograd.grad(a, (x, w, b)) for a in (found, expected)), strict=True):
        assert g.dtype == dtype
        assert (g.double() - e.double()).abs().max() <= 8 * eps * e.double().abs().max()
    if dtype == torch.bfloat16:
        wide = options | {"logits_dtype": torch.float32}
        close(*(xt.linear_cross_entropy(x, w, y, temperature=a, **wide) for a in (t, 0.7)), rtol=1e-6)
    found = xent.linear_cross_entropy(x, w, y, bias=b, temperature=t, label_smoothing=0.1)
    close(found, expected, rtol=8 * eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_gradient_in_the_temperature(dtype: Any) -> None:
    x, w, b, t, y = made(dtype)
    wide = [a.detach().double().requires_grad_() for a in (x, w, b, t)]
    for bias, wide_bias in ((None, None), (b, wide[2])):
        loss = xt.linear_cross_entropy(x, w, y, linear_bias=bias, temperature=t, reduction="sum")
        (found,) = torch.autograd.grad(loss, t)
        truth = of_logits(wide[0], wide[1], wide_bias, wide[3], y, reduction="sum")
        (expected,) = torch.autograd.grad(truth, wide[3])
        rounding = 1e-5 if dtype == torch.float32 else 2.0**-5
        assert (found - expected).abs().max() < rounding * expected.abs().max()


def test_products(products: Any) -> None:
    x, w, _, t, y = made()
    xt.linear_cross_entropy(x, w, y, temperature=t.detach()).backward()
    assert products["products"] == 3
    xt.linear_cross_entropy(x, w, y, temperature=t).backward()
    assert products["products"] == 6
    with torch.no_grad():
        xt.linear_cross_entropy(x, w, y, temperature=t)
    assert products["products"] == 7


@pytest.mark.parametrize("derived", ["operands", "temperature", "probabilities"])
@pytest.mark.parametrize("reduction", ["mean", pytest.param("none", marks=pytest.mark.slow)])
def test_compiled_is_eager(derived: str, reduction: str) -> None:
    torch._dynamo.reset()
    x, w, b, t, y = made()
    y = y if derived != "probabilities" else torch.softmax(torch.randn(*ROWS, K).double(), -1)
    y.requires_grad_(derived == "probabilities")
    t.requires_grad_(derived != "operands")
    tensors = [a for a in (x, w, b, t, y) if a.requires_grad]

    def loss(x: Any, w: Any, b: Any, t: Any, y: Any) -> Any:
        options = {"reduction": reduction, "chunk_bytes": 300, "shift": 2, "z_loss": 0.1}
        return xt.linear_cross_entropy(x * 1.0, w, y, linear_bias=b, temperature=t, **options)

    expected = loss(x, w, b, t, y)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(x, w, b, t, y)
    close(compiled, expected)
    upstream = torch.linspace(0.5, 2.0, expected.numel()).double().reshape(expected.shape)
    close(*(torch.autograd.grad(a, tensors, upstream) for a in (compiled, expected)))


def test_a_weight_of_three_axes() -> None:
    x, w, b, t, y = (a[0] if a.shape[:2] == ROWS else a for a in made())
    both = {"temperature": torch.stack([t, 2 * t], -1), "linear_bias": b[:, None].expand(K, 2)}
    loss = xt.linear_cross_entropy(x, torch.stack([w, w.cos()], 1), torch.stack([y, y], -1), **both)
    one, two = of_logits(x, w, b, t, y), of_logits(x, w.cos(), b, 2 * t, y)
    close(loss, (one + two) / 2)
