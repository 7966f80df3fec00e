"""A temperature that asks for a gradient gets it, in every mode; another option that does is an error."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402

import xent  # noqa: E402
import xent.torch as xt  # noqa: E402
from tests.torch.derivative_modes import MODES  # noqa: E402
from tests.torch.test_silent_rows import random  # noqa: E402

# PyTorch's own forward mode loads torch.jit.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")

N, D, K = 4, 2, 3
Y = torch.tensor([0, -100, 1, 2])
ENTRIES = torch.tensor([[0, 2], [1, 0], [2, 1], [0, 1]])
Z, X, W, B, TEACHER = 2 * random(N, K), random(N, D), random(K, D), random(K), 2 * random(N, D)
Q, BINARY = torch.softmax(random(N, K), -1), torch.tensor([[0, 1, 1]] * N)
OPTIONS = {"z_loss": 0.1, "softcap": 5.0}


STATISTICS = xent.RowStatistics._fields


def of_statistics(stats: Any) -> Any:
    products = stats.log_prob * stats.entropy + stats.log_sum_sq_probs * stats.mean_logits
    return (stats.lse**2 + products).sum()


# Each of (what the logits are linear in, the rest, a temperature): the logits of x / T have temperature 1.
LOSSES = {
    "cross_entropy": ((Z,), lambda z, t: xt.cross_entropy(z, Y, temperature=t)),
    "every option": ((Z,), lambda z, t: xt.cross_entropy(z, Y, focal_gamma=2.0, temperature=t, **OPTIONS)),
    "soft, one loss a row": (
        (Z,),
        lambda z, t: (xt.cross_entropy(z, Q, reduction="none", temperature=t, **OPTIONS) ** 2).sum(),
    ),
    "sequences": ((Z,), lambda z, t: xt.cross_entropy(z.T[None], Y[None], reduction="sum", temperature=t)),
    "a module": ((Z,), lambda z, t: xt.CrossEntropyLoss(temperature=t)(z, Y)),
    "classes last": ((Z,), lambda z, t: xent.cross_entropy(z, Y, label_smoothing=0.1, temperature=t)),
    "row_statistics": (
        (Z,),
        lambda z, t: of_statistics(xt.row_statistics(z, Y, softcap=5.0, temperature=t, want=STATISTICS)),
    ),
    "linear": (
        (X, B),
        lambda x, b, t: xt.linear_cross_entropy(x, W, Y, linear_bias=b, shift=1, temperature=t, **OPTIONS),
    ),
    "linear, one loss a row": (
        (X,),
        lambda x, t: (xt.linear_cross_entropy(x, W, Q, reduction="none", temperature=t) ** 2).sum(),
    ),
    "a weight of three axes": (
        (X, B),
        lambda x, b, t: xt.linear_cross_entropy(
            x, W[:, None], Y[:, None], linear_bias=b[:, None], temperature=t
        ),
    ),
    "linear, classes last": (
        (X, B),
        lambda x, b, t: xent.linear_cross_entropy(x, W, Y, bias=b, chunk_bytes=48, temperature=t),
    ),
    "linear_row_statistics": (
        (X, B),
        lambda x, b, t: of_statistics(
            xt.linear_row_statistics(x, W, Y, bias=b, softcap=5.0, temperature=t, want=STATISTICS)
        ),
    ),
    "divergence": (
        (X, B, TEACHER),
        lambda x, b, y, t: xt.linear_kl_divergence(x, W, y, W + 0.5, bias=b, temperature=t),
    ),
    "top-k": (
        (X, B),
        lambda x, b, t: xt.linear_topk_kl_divergence(
            x, W, ENTRIES, ENTRIES - 3.0, bias=b, labels=Y, temperature=t
        ),
    ),
    "binary": (
        (Z,),
        lambda z, t: xt.binary_cross_entropy_with_logits(z, BINARY, pos_weight=B.exp(), temperature=t),
    ),
    "binary, classes last": (
        (Z,),
        lambda z, t: xent.binary_cross_entropy(z, BINARY, focal_gamma=2.0, temperature=t, **OPTIONS),
    ),
}


@pytest.fixture(autouse=True)
def _no_graphs() -> None:
    torch._dynamo.reset()


def close(a: Any, b: Any, **tolerance: float) -> None:
    torch.testing.assert_close(a, b, **(tolerance or {"rtol": 1e-9, "atol": 1e-12}))


CASES = [
    pytest.param(mode, *loss, id=f"{mode}-{name}")
    for name, loss in LOSSES.items()
    for mode in (MODES if name in ("every option", "linear", "divergence") else ["backward", "create_graph"])
]


@pytest.mark.parametrize(("mode", "parts", "loss"), CASES)
def test_a_temperature_gets_its_gradient(mode: str, parts: Any, loss: Any) -> None:
    inputs = (*parts, torch.tensor(0.7, dtype=torch.float64))

    def expected(*x: Any) -> Any:
        return loss(*(part / x[-1] for part in x[:-1]), 1.0)

    by_hand = "backward" if "compile" in mode else mode
    close(MODES[mode](loss, inputs), MODES[by_hand](expected, inputs))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_value_is_that_of_the_number(loss: str) -> None:
    parts, f = LOSSES[loss]
    number = f(*parts, 0.7)
    assert torch.equal(f(*parts, torch.tensor(0.7, dtype=torch.float64, requires_grad=True)), number)
    assert torch.equal(f(*parts, torch.tensor([0.7], dtype=torch.float64)), number)


def test_many_temperatures_at_once() -> None:
    several = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    each = torch.stack([xt.cross_entropy(Z, Y, temperature=t.item()) for t in several])
    close(torch.vmap(lambda t: xt.cross_entropy(Z, Y, temperature=t))(several), each)


def test_a_temperature_that_changes_is_one_graph() -> None:
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda t: xt.linear_cross_entropy(X, W, Y, temperature=t), backend=graphs)
    counts = []
    for t in (0.5, 0.7, 1.0, 1.5):
        found = compiled(torch.tensor(t, dtype=torch.float64))
        close(found, xt.linear_cross_entropy(X, W, Y, temperature=t))
        counts.append(graphs.frame_count)
    assert len(set(counts)) == 1


def test_a_tensor_that_was_written_to_is_read_again() -> None:
    t = torch.tensor(1.0)
    before = xt.cross_entropy(Z, Y, temperature=t)
    t.fill_(2.0)
    assert torch.equal(xt.cross_entropy(Z, Y, temperature=t), xt.cross_entropy(Z, Y, temperature=2.0))
    assert not torch.equal(xt.cross_entropy(Z, Y, temperature=t), before)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_the_gradient_of_a_module_has_the_shape_of_its_parameter(shape: Any) -> None:
    t = torch.nn.Parameter(torch.full(shape, 0.7))
    for module, z in (
        (xt.CrossEntropyLoss(temperature=t), Z),
        (xt.LinearCrossEntropyLoss(D, K, temperature=t, dtype=torch.float64), X),
    ):
        assert any(p is t for p in module.parameters())
        assert "temperature" in repr(module)
        t.grad = None
        module(z, Y).backward()
        assert t.grad.shape == shape
        assert t.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_has_the_gradient_of_its_own_logits(dtype: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    z = (3 * torch.randn(200, 50, generator=generator)).to(dtype)
    y = torch.randint(0, 50, (200,), generator=generator)

    def slopes(f: Any, t: Any) -> Any:
        leaves = [z.clone().requires_grad_(), t.requires_grad_()]
        return torch.autograd.grad(f(*leaves), leaves)

    dz, dt = slopes(lambda z, t: xt.cross_entropy(z, y, temperature=t), torch.tensor(0.7))
    wide = lambda z, t: torch.nn.functional.cross_entropy(z.double() / t, y)  # noqa: E731
    expected = slopes(wide, torch.tensor(0.7, dtype=torch.float64))
    close(dt.double(), expected[1], rtol=1e-5, atol=0)
    close(dz, expected[0].to(dtype), rtol=1e-2, atol=1e-6)
    w = torch.eye(50).to(dtype)
    (dt,) = torch.autograd.grad(xt.linear_cross_entropy(z, w, y, temperature=(t := leaf(0.7))), t)
    close(dt.double(), expected[1], rtol=2e-3, atol=0)


def leaf(value: float) -> Any:
    return torch.tensor(value, requires_grad=True)


def test_excluded_classes_and_rows_that_do_not_count_have_no_part() -> None:
    z = Z.clone()
    z[1] = torch.nan  # ignored
    z[0, 2] = -torch.inf
    (dt,) = torch.autograd.grad(xt.cross_entropy(z, Y, temperature=(t := leaf(0.7))), t)
    step = 1e-5
    difference = xt.cross_entropy(z, Y, temperature=0.7 + step) - xt.cross_entropy(
        z, Y, temperature=0.7 - step
    )
    close(dt.double(), difference / (2 * step), rtol=1e-5, atol=0)


@pytest.mark.parametrize("value", [0.0, -1.0, torch.nan, torch.inf, 1e-31])
def test_a_value_out_of_range(value: float) -> None:
    for t in (torch.tensor(value), leaf(value)):
        with pytest.raises(ValueError, match="`temperature` must be finite and > 0"):
            xt.cross_entropy(Z, Y, temperature=t)
    # Where it cannot be read the loss is no number.
    assert torch.compile(lambda t: xt.cross_entropy(Z, Y, temperature=t), backend="eager")(
        leaf(value)
    ).isnan()


@pytest.mark.parametrize("bad", [torch.ones(2), torch.ones(2, requires_grad=True), torch.ones(0)], ids=str)
def test_not_one_number(bad: Any) -> None:
    with pytest.raises(TypeError, match="`temperature` must be a number"):
        xt.binary_cross_entropy_with_logits(Z, BINARY, temperature=bad)
    with pytest.raises(ValueError, match="`temperature` must be a number, or a tensor of one number or of"):
        xt.cross_entropy(Z, Y, temperature=bad)


OTHERS = ("z_loss", "softcap", "label_smoothing", "focal_gamma")
ARRAYS = [x.numpy() for x in (Z, Y, BINARY, X, W)]
NUMPY = {
    "cross_entropy": lambda **o: xent.cross_entropy(ARRAYS[0], ARRAYS[1], **o),
    "with_grad": lambda **o: xent.cross_entropy_with_grad(ARRAYS[0], ARRAYS[1], **o),
    "object": lambda **o: xent.CrossEntropyLoss(**o),
    "linear": lambda **o: xent.linear_cross_entropy(ARRAYS[3], ARRAYS[4], ARRAYS[1], **o),
    "binary": lambda **o: xent.binary_cross_entropy(ARRAYS[0], ARRAYS[2], **o),
}
TENSORS = {
    "cross_entropy": lambda **o: xt.cross_entropy(Z, Y, **o),
    "module": lambda **o: xt.CrossEntropyLoss(**o)(Z, Y),
    "linear": lambda **o: xt.linear_cross_entropy(X, W, Y, **o),
    "binary": lambda **o: xt.binary_cross_entropy_with_logits(Z, BINARY, **o),
    "classes last": lambda **o: xent.cross_entropy(Z, Y, **o),
    "binary, classes last": lambda **o: xent.binary_cross_entropy(Z, BINARY, **o),
    "linear, classes last": lambda **o: xent.linear_cross_entropy(X, W, Y, **o),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("call", TENSORS.values(), ids=TENSORS)
def test_other_options_have_no_gradient(call: Any, name: str) -> None:
    message = f"`{name}` must be a number here; got a `Tensor` that asks for a gradient"
    call(**{name: torch.tensor(0.5)})  # which asks for none
    with pytest.raises(TypeError, match=message):
        call(**{name: leaf(0.5)})
    with pytest.raises(TypeError, match=message):
        torch.func.grad(lambda p: call(**{name: p}))(torch.tensor(0.5))
    with pytest.raises(TypeError, match=message):
        torch.func.jvp(lambda p: call(**{name: p}), (torch.tensor(0.5),), (torch.tensor(1.0),))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(TypeError, match=message):
        call(**{name: torch.autograd.forward_ad.make_dual(torch.tensor(0.5), torch.tensor(1.0))})


def test_other_options_have_no_gradient_in_graphs() -> None:
    def loss(z: Any, p: Any) -> Any:
        return xt.cross_entropy(z, Y, z_loss=p)

    with pytest.raises(TypeError, match="`z_loss` must be a number here"):
        torch.compile(loss, backend="eager")(Z, leaf(0.5))
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="must be a number here"):
        torch.compile(loss, backend="eager", fullgraph=True)(Z, leaf(0.5))


@pytest.mark.parametrize("name", ["temperature", *OTHERS])
@pytest.mark.parametrize("call", NUMPY.values(), ids=NUMPY)
def test_options_of_arrays_are_numbers(call: Any, name: str) -> None:
    call(**{name: torch.tensor(0.5)})
    with pytest.raises(TypeError, match=f"`{name}` must be a number here; got a `Parameter`"):
        call(**{name: torch.nn.Parameter(torch.tensor(0.5))})
    with pytest.raises(TypeError, match=f"`{name}` must be a number here; got a `Tensor`"):
        torch.func.grad(lambda p: call(**{name: p}))(torch.tensor(0.5))


def test_a_positive_weight_of_arrays_is_a_number() -> None:
    with pytest.raises(TypeError, match="`pos_weight` must be a number here; got a `Tensor`"):
        xent.binary_cross_entropy(ARRAYS[0], ARRAYS[2], pos_weight=leaf(2.0))
