"""Several values of one pass over a linear layer's logits: against their definitions, in every mode."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

import xent.torch as xt  # noqa: E402
from tests.torch.problems import close  # noqa: E402

# PyTorch warns of its own use of what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

F = torch.nn.functional
ROWS, D, K = (3, 7), 5, 6
WANT = ("loss", "plain", "z_loss", "accuracy")
CLASS_WEIGHT = torch.tensor([0.5, 2.0, 0.0, 1.0, 1.5, 0.3], dtype=torch.float64)
OMEGA = torch.linspace(0.5, 2.0, 21, dtype=torch.float64).reshape(ROWS)
OMEGA[2, 3] = 0
OPTIONS: dict[str, dict[str, Any]] = {
    "no options": {},
    "every": {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 4.0, "temperature": 0.7},
    "focal, weights": {"focal_gamma": 2.0, "weight": CLASS_WEIGHT, "sample_weight": OMEGA},
    "weights": {"weight": CLASS_WEIGHT, "sample_weight": OMEGA, "z_loss": 0.1, "label_smoothing": 0.1},
    "tokens": {"denominator": 100.0, "sample_weight": OMEGA, "shift": 1},
    "rows": {"denominator": "rows", "sample_weight": OMEGA},
    "temperatures": {"temperature": OMEGA + 0.1, "z_loss": 0.1},
}
COMPILED = [("every", "none"), ("weights", "mean"), ("tokens", "mean")]  # in the quick tests


def made(dtype: Any = torch.float64) -> Any:
    generator = torch.Generator().manual_seed(3)
    x, w, b = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in ((*ROWS, D), (K, D), (K,))
    )
    y = torch.randint(0, K, ROWS, generator=generator)
    y[0, 1] = -100
    return x, w, b, y


def expected_values(x: Any, w: Any, b: Any, y: Any, reduction: str, options: Any) -> Any:
    """(plain, z-loss, accuracy) from the whole matrix of logits."""
    options = dict(options)
    z = F.linear(x, w, b).detach()
    omega = options.get("sample_weight", torch.ones(ROWS, dtype=torch.float64))
    t = options.get("temperature", 1.0)
    u = z / (t[..., None] if isinstance(t, torch.Tensor) else t)
    if c := options.get("softcap"):
        u = c * torch.tanh(u / c)
    if shift := options.get("shift"):
        u, y, omega = u[:, :-shift], y[:, shift:], omega[:, shift:]
    is_label = y != -100
    index = torch.where(is_label, y, 0)
    factor = options.get("weight", torch.ones(K, dtype=torch.float64))[index]
    counts = is_label & (omega != 0) & (factor != 0)
    log_prob = torch.log_softmax(u, -1).gather(-1, index[..., None])[..., 0]
    plain = torch.where(counts, -log_prob * omega, 0.0)
    z_loss = torch.where(is_label, options.get("z_loss", 0.0) * u.logsumexp(-1) ** 2 * omega, 0.0)
    hits = (counts & (u.argmax(-1) == y)).double()
    if reduction == "none":
        return plain, z_loss, hits
    if reduction == "sum":
        return plain.sum(), z_loss.sum(), hits.sum()
    each = [(omega * counts).sum(), (omega * factor * is_label).sum(), counts.sum()]
    denominator = options.get("denominator")
    if denominator == "rows":
        each = [counts.sum(), (is_label & (omega != 0)).sum(), counts.sum()]
    elif denominator is not None:
        each = [denominator] * 3
    return tuple(x.sum() / d for x, d in zip((plain, z_loss, hits), each, strict=True))


CASES = [
    pytest.param(
        name,
        reduction,
        mode,
        id=f"{mode}-{reduction}-{name}",
        marks=[pytest.mark.slow] if mode == "compile" and (name, reduction) not in COMPILED else [],
    )
    for mode in ("eager", "saved tensor hooks", "ordinary code", "compile")
    for reduction in ("mean", "sum", "none")
    for name in OPTIONS
]


@pytest.mark.parametrize(("name", "reduction", "mode"), CASES)
def test_from_their_definitions(name: str, reduction: str, mode: str) -> None:
    torch._dynamo.reset()
    x, w, b, y = made()
    options = OPTIONS[name] | {"reduction": reduction}
    if reduction != "mean":
        options.pop("denominator", None)
    given = {"linear_bias": b, "chunk_bytes": 4 * K * 8, **options}

    def f(x: Any, w: Any, b: Any) -> Any:
        return xt.linear_cross_entropy(x, w, y, want=WANT, **given | {"linear_bias": b})

    loss = xt.linear_cross_entropy(x, w, y, **given)
    upstream = torch.linspace(0.5, 2.0, loss.numel()).double().reshape(loss.shape)
    gradients = torch.autograd.grad(loss, (x, w, b), upstream)
    if mode == "saved tensor hooks":
        with torch.autograd.graph.save_on_cpu():
            values = f(x, w, b)
    elif mode == "ordinary code":
        leaf = torch.ones((), dtype=torch.float64, requires_grad=True)
        given["sample_weight"] = leaf * given.get("sample_weight", torch.ones(ROWS, dtype=torch.float64))
        values = f(x, w, b)
    else:
        values = (torch.compile(f, backend="aot_eager", fullgraph=True) if mode == "compile" else f)(x, w, b)
    close(values.loss, loss)
    close(torch.autograd.grad(values.loss, (x, w, b), upstream), gradients)
    close(values[1:4], expected_values(x, w, b, y, reduction, options))
    assert values.by_shift is None
    assert all(not v.requires_grad and v.dtype == loss.dtype for v in values[1:4])
    if reduction == "mean" and name == "every":
        assert values.accuracy > 0
        plain = xt.linear_cross_entropy(x, w, y, linear_bias=b, softcap=4.0, temperature=0.7)
        close(values.plain, plain.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_precision(dtype: Any) -> None:
    x, w, b, y = made(dtype)
    wide = [t.detach().double() for t in (x, w, b)]
    values = xt.linear_cross_entropy(
        x, w, y, linear_bias=b, want=WANT, logits_dtype=torch.float32, z_loss=0.1
    )
    expected = expected_values(*wide, y, "mean", {"z_loss": 0.1})
    assert {v.dtype for v in values[:4]} == {torch.float32}
    close(values[1:4], expected, rtol=1e-5)


def test_products(products: Any) -> None:
    x, w, b, y = made()
    values = xt.linear_cross_entropy(x, w, y, linear_bias=b, want=WANT, z_loss=0.1, chunk_bytes=1 << 20)
    values.loss.backward()
    assert products["products"] == 3
    values = xt.linear_cross_entropy(x, w, y, want=("plain", "accuracy"))
    assert values.loss is values.z_loss is None
    assert products["products"] == 4
    assert not values.plain.requires_grad


def test_each_alone_and_in_any_order() -> None:
    x, w, b, y = made()
    given = {"linear_bias": b, "z_loss": 0.1, "reduction": "none"}
    every = xt.linear_cross_entropy(x, w, y, want=WANT, **given)
    for want in (*((name,) for name in WANT), WANT[::-1], ["accuracy", "loss"]):
        values = xt.linear_cross_entropy(x, w, y, want=want, **given)
        for name, value, expected in zip(values._fields, values, every, strict=True):
            assert torch.equal(value, expected) if name in want else value is None


def test_rows_that_do_not_count_hold_anything() -> None:
    x, w, b, y = made()
    given = {"linear_bias": b, "want": WANT, "weight": CLASS_WEIGHT, "sample_weight": OMEGA}
    expected = xt.linear_cross_entropy(x, w, y, **given)
    held = x.detach().clone()
    held[0, 1], held[2, 3] = torch.nan, torch.inf
    held[(y == 2)] = torch.nan
    found = xt.linear_cross_entropy(held.requires_grad_(), w, y, **given)
    close(found[:4], expected[:4])
    close(torch.autograd.grad(found.loss, (w, b)), torch.autograd.grad(expected.loss, (w, b)))


def test_no_row_counts() -> None:
    x, w, _, y = made()
    for target in (torch.full_like(y, -100), y[:0]):
        values = xt.linear_cross_entropy(x[: target.shape[0]], w, target, want=WANT, z_loss=0.1)
        assert [v.item() for v in values[:4]] == [0.0] * 4


def test_a_label_out_of_range_is_nan() -> None:
    x, w, _, y = made()
    y[0, 0] = K
    values = xt.linear_cross_entropy(x, w, y, want=WANT, validate=False, reduction="none")
    assert values.plain[0, 0].isnan()
    assert not values.accuracy[0, 0]
    assert values.plain.isnan().sum() == 1


def test_probabilities() -> None:
    x, w, _, y = made()
    q = torch.softmax(torch.randn(*ROWS, K, dtype=torch.float64), -1)
    values = xt.linear_cross_entropy(x, w, q, want=("loss", "z_loss"), z_loss=0.1)
    close(values.loss, xt.linear_cross_entropy(x, w, q, z_loss=0.1))
    close(values.z_loss, (0.1 * (x @ w.T).logsumexp(-1) ** 2).mean().detach())
    for name in ("plain", "accuracy"):
        with pytest.raises(ValueError, match=f'"{name}" in `want` needs labels'):
            xt.linear_cross_entropy(x, w, q, want=(name,))
    with pytest.raises(ValueError, match=r"`want` must be None or a sequence of .*; got \('los',\)"):
        xt.linear_cross_entropy(x, w, y, want=("los",))
    with pytest.raises(ValueError, match='"by_shift" in `want` needs a sequence'):
        xt.linear_cross_entropy(x, w, y, want=("by_shift",))


def test_learnt_weights_and_second_order() -> None:
    x, w, _, y = made()

    def values(*tensors: Any, **more: Any) -> Any:
        x, w, c = tensors
        return xt.linear_cross_entropy(x, w, y, weight=c, chunk_bytes=300, **more)

    inputs = (x, w, CLASS_WEIGHT.clone().requires_grad_())
    for f in (values, torch.compile(values, backend="aot_eager", fullgraph=True)):
        found, expected = f(*inputs, want=WANT), values(*inputs)
        close(found.loss, expected)
        close(found[1:4], values(x, w, CLASS_WEIGHT, want=WANT)[1:4])
        close(torch.autograd.grad(found.loss, inputs), torch.autograd.grad(expected, inputs))
    found, expected = values(*inputs, want=WANT).loss, values(*inputs)
    slopes = [torch.autograd.grad(v, w, create_graph=True)[0].square().sum() for v in (found, expected)]
    close(*(torch.autograd.grad(s, (x, w)) for s in slopes))
    gradients = [
        torch.func.grad(lambda x, f=f: f(x))(x.detach())
        for f in (lambda x: values(x, *inputs[1:], want=WANT).loss, lambda x: values(x, *inputs[1:]))
    ]
    close(*gradients)
