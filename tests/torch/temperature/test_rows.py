"""A temperature of each row of logits: equation (28), its gradient, its errors, in every dtype."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

import xent  # noqa: E402
import xent.torch as xt  # noqa: E402
from tests.tables.variants import each_of_some_options  # noqa: E402
from tests.torch.problems import close  # noqa: E402

# PyTorch warns of its own use of what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

N, K = 6, 5
GENERATOR = torch.Generator().manual_seed(0)
Z = torch.randn(N, K, dtype=torch.float64, generator=GENERATOR)
T = torch.tensor([0.5, 1.0, 2.0, 0.7, 3.0, 0.1], dtype=torch.float64)
Y = torch.tensor([0, 4, 2, -100, 1, 3])


def as_torch(options: dict[str, Any]) -> dict[str, Any]:
    return {
        "weight" if k == "class_weight" else k: torch.tensor(v) if k == "class_weight" else v
        for k, v in options.items()
        if k != "temperature"
    }


@pytest.mark.parametrize("reduction", ["mean", "none"])
@each_of_some_options
def test_it_divides_the_logits(options: dict[str, Any], reduction: str) -> None:
    options = as_torch(options) | {"reduction": reduction}
    z, t = Z.clone().requires_grad_(), T.clone().requires_grad_()
    loss = xt.cross_entropy(z, Y, temperature=t, **options)
    expected = xt.cross_entropy(z / t[:, None], Y, **options)
    upstream = torch.linspace(1, 2, loss.numel(), dtype=torch.float64).reshape(loss.shape)
    close(loss, expected)
    first = [torch.autograd.grad(x, (z, t), upstream, create_graph=True) for x in (loss, expected)]
    close(*first)
    close(*(torch.autograd.grad((g[0].cos().sum() + g[1].sin().sum()), (z, t)) for g in first))
    constant = xt.cross_entropy(z, Y, temperature=T, **options)
    close(torch.autograd.grad(constant, z, upstream)[0], first[0][0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_equal_temperatures_are_the_number(dtype: Any) -> None:
    z = (3 * Z).to(dtype).requires_grad_()
    rtol = 1e-12 if dtype == torch.float64 else 1e-6
    for shape, target in (((N,), Y), ((1, N), Y[None])):
        logits = z if len(shape) == 1 else z.T[None]
        loss = xt.cross_entropy(logits, target, temperature=torch.full(shape, 0.7, dtype=torch.float32))
        number = xt.cross_entropy(logits, target, temperature=torch.tensor(0.7, dtype=torch.float32).item())
        assert loss.dtype == number.dtype
        close(loss, number, rtol)
        found, expected = (torch.autograd.grad(x, z)[0] for x in (loss, number))
        assert found.dtype == dtype
        close(found, expected, max(rtol, torch.finfo(dtype).eps))
    found = xent.cross_entropy(z, Y, temperature=torch.full((N,), 0.7, dtype=torch.float64))
    close(found, xent.cross_entropy(z, Y, temperature=0.7), rtol)


def test_excluded_classes_and_a_learnt_temperature() -> None:
    z, t = Z.clone(), T.clone().requires_grad_()
    z[:, 1] = -torch.inf
    y = torch.tensor([0, 4, 2, -100, 2, 3])
    (found,) = torch.autograd.grad(xt.cross_entropy(z, y, temperature=t), t)
    rest = z[:, [0, 2, 3, 4]] / t[:, None]
    kept = torch.where(y > 1, y - 1, y)
    (expected,) = torch.autograd.grad(torch.nn.functional.cross_entropy(rest, kept), t)
    close(found, expected)


LINEAR = {"input": Z, "linear_weight": torch.eye(K, dtype=torch.float64)}


def dense_loss(t: Any, target: Any = Y, **options: Any) -> Any:
    return xt.cross_entropy(Z, target, temperature=t, **options)


def linear_loss(t: Any, target: Any = Y, **options: Any) -> Any:
    return xt.linear_cross_entropy(**LINEAR, target=target, temperature=t, **options)


each_loss = pytest.mark.parametrize("loss", [dense_loss, linear_loss])


@each_loss
@pytest.mark.parametrize("value", [0.0, -1.0, torch.inf, torch.nan, 1e31, 1e-31], ids=str)
def test_values_out_of_range(loss: Any, value: float) -> None:
    t = T.clone()
    t[4] = value
    with pytest.raises(ValueError, match=r"`temperature` must be finite and > 0 .* at row 4"):
        loss(t)
    with pytest.raises(RuntimeError, match="row 4"):
        loss(t, torch.softmax(Z, -1))
    compiled = [torch.compile(loss, backend="aot_eager", fullgraph=True)] if value == 0 else []
    for f in (loss, *compiled):
        losses = f(t, reduction="none", validate=False)
        assert losses.isnan().tolist() == [n == 4 for n in range(N)]
    counts = torch.arange(N) != 4
    close(loss(t, sample_weight=counts), loss(T, sample_weight=counts))
    target = torch.where(counts, Y, -100)
    close(loss(t, target), loss(T, target))


@each_loss
def test_what_it_cannot_be(loss: Any) -> None:
    with pytest.raises(
        ValueError, match=r"`temperature` must be .* the shape of the rows, \(6,\); got \(5,\)"
    ):
        loss(T[:5])
    with pytest.raises(ValueError, match=r"`temperature` must be real numbers; got torch\.complex128"):
        loss(T + 0j)
    with pytest.raises(TypeError, match="`temperature`"):
        xt.binary_cross_entropy_with_logits(Z[:, 0], Z[:, 0].sigmoid(), temperature=T)


def test_an_empty_batch() -> None:
    z, t = torch.zeros(0, K, requires_grad=True), torch.zeros(0, requires_grad=True)
    loss = xt.cross_entropy(z, torch.zeros(0, dtype=torch.long), temperature=t)
    assert loss == 0
    assert [g.shape for g in torch.autograd.grad(loss, (z, t))] == [(0, K), (0,)]
