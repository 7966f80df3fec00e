"""Several shifts of one hidden state in one call: the weighted sum of single calls, in three products."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

import xent.torch as xt  # noqa: E402
from tests.torch.problems import close  # noqa: E402

# PyTorch warns of its own use of what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

ROWS, D, K = (3, 8), 5, 6
OMEGA = torch.linspace(0.5, 2.0, 24, dtype=torch.float64).reshape(ROWS)
OMEGA[2, 3] = 0
OPTIONS: dict[str, dict[str, Any]] = {
    "no options": {},
    "every": {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 4.0, "sample_weight": OMEGA},
    "focal": {"focal_gamma": 2.0, "temperature": 0.7, "weight": torch.tensor([0.5, 2.0, 0.0, 1.0, 1.5, 0.3])},
    "smoothed over others": {"label_smoothing": 0.9, "smoothing_over": "others"},
    "class weights": {"weight": torch.tensor([0.5, 2.0, 0.0, 1.0, 1.5, 0.3]), "sample_weight": OMEGA},
    "another index": {"ignore_index": 255},
    "temperatures": {"temperature": OMEGA + 0.1, "z_loss": 0.1},
    "tokens": {"denominator": 100.0},
    "rows": {"denominator": "rows", "sample_weight": OMEGA},
}
SHIFTS = {"two": ((1, 3), (1.0, 0.3)), "four": ((0, 1, 2, 7), (0.1, 1.0, 0.0, 2.0)), "one": ((2,), (0.5,))}
WANT = ("loss", "plain", "z_loss", "accuracy", "by_shift")


def made(dtype: Any = torch.float64) -> Any:
    generator = torch.Generator().manual_seed(5)
    x, w, b = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in ((*ROWS, D), (K, D), (K,))
    )
    y = torch.randint(0, K, ROWS, generator=generator)
    y[0, 1:3] = y[1] = -100
    return x, w, b, y


def singles(x: Any, w: Any, y: Any, shift: Any, **options: Any) -> list[Any]:
    """The values of a call for each shift."""
    want = [name for name in options.pop("want", WANT) if name != "by_shift"]
    return [xt.linear_cross_entropy(x, w, y, shift=s, want=want, **options) for s in shift]


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("shifts", SHIFTS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_it_is_the_sum_of_single_calls(name: str, shifts: str, reduction: str) -> None:
    x, w, b, y = made()
    shift, weights = SHIFTS[shifts]
    options = {"linear_bias": b, "reduction": reduction, **OPTIONS[name]}
    if reduction == "sum":
        options.pop("denominator", None)
    y = torch.where(y == -100, options.get("ignore_index", -100), y)
    each = singles(x, w, y, shift, **options)
    expected = sum(c * v.loss for c, v in zip(weights, each, strict=True))
    upstream = torch.tensor(3.0, dtype=torch.float64)
    gradients = torch.autograd.grad(expected, (x, w, b), upstream)
    for rows_at_a_time in (1, 5, 24):
        more = {"shift": list(shift), "shift_weight": weights, "chunk_bytes": rows_at_a_time * K * 8 * 3}
        loss = xt.linear_cross_entropy(x, w, y, **more, **options)
        close(loss, expected)
        close(torch.autograd.grad(loss, (x, w, b), upstream), gradients)
    values = xt.linear_cross_entropy(x, w, y, want=WANT, **more, **options)
    assert torch.equal(values.loss, loss)
    for field in ("plain", "z_loss", "accuracy"):
        close(getattr(values, field), torch.stack([getattr(v, field) for v in each]))
    close(values.by_shift, torch.stack([v.loss.detach() for v in each]))
    assert all(v.shape == (len(shift),) and not v.requires_grad for v in values[1:])
    with torch.no_grad():
        close(xt.linear_cross_entropy(x, w, y, **more, **options), expected)


MODES = ("saved tensor hooks", "second order", "transform", "compile", "learnt")
CASES = [
    pytest.param(name, mode, id=f"{mode}-{name}", marks=[pytest.mark.slow] if is_slow else [])
    for name in ("every", "focal", "temperatures")
    for mode in MODES
    for is_slow in [(mode, name) in (("compile", "every"), ("learnt", "every"), ("learnt", "focal"))]
]


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_modes(name: str, mode: str) -> None:
    torch._dynamo.reset()
    x, w, b, y = made()
    shift, weights = SHIFTS["two"]
    options = {"chunk_bytes": 900, **OPTIONS[name]}
    inputs: Any = (x, w, b)
    if mode == "learnt":
        inputs = (*inputs, torch.rand(ROWS, dtype=torch.float64, requires_grad=True))
        options.pop("sample_weight", None)

    def several(x: Any, w: Any, b: Any, omega: Any = None) -> Any:
        more = {} if omega is None else {"sample_weight": omega}
        given = options | more | {"linear_bias": b, "shift": shift, "shift_weight": weights}
        return xt.linear_cross_entropy(x, w, y, want=WANT, **given)

    def one_by_one(x: Any, w: Any, b: Any, omega: Any = None) -> Any:
        more = {} if omega is None else {"sample_weight": omega}
        each = singles(x, w, y, shift, **options | more | {"linear_bias": b})
        return sum(c * v.loss for c, v in zip(weights, each, strict=True))

    expected = one_by_one(*inputs)
    gradients = torch.autograd.grad(expected, inputs, create_graph=True)
    if mode == "transform":
        found = torch.func.grad(lambda *a: several(*a).loss, argnums=(0, 1, 2))(*(a.detach() for a in inputs))
        close(found, gradients)
        return
    if mode == "saved tensor hooks":
        with torch.autograd.graph.save_on_cpu():
            values = several(*inputs)
    else:
        values = several(*inputs)
    if mode in ("compile", "learnt"):
        compiled = torch.compile(several, backend="aot_eager", fullgraph=True)(*inputs)
        close(compiled[1:], values[1:])
        close(compiled.loss, expected)
        close(torch.autograd.grad(compiled.loss, inputs), gradients)
    close(values.loss, expected)
    found = torch.autograd.grad(values.loss, inputs, create_graph=mode == "second order")
    close(found, gradients)
    if mode == "second order":
        pair = [sum(g.square().sum() for g in slopes) for slopes in (found, gradients)]
        close(*(torch.autograd.grad(p, inputs) for p in pair))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("wide", [False, True])
def test_precision(dtype: Any, wide: bool) -> None:
    x, w, b, y = made(dtype)
    shift, weights = SHIFTS["four"]
    exact = [a.detach().double().requires_grad_() for a in (x, w, b)]
    expected = sum(
        c * v.loss for c, v in zip(weights, singles(*exact[:2], y, shift, linear_bias=exact[2]), strict=True)
    )
    more = {"logits_dtype": torch.float32} if wide else {}
    loss = xt.linear_cross_entropy(x, w, y, linear_bias=b, shift=shift, shift_weight=weights, **more)
    assert loss.dtype == torch.float32
    eps = torch.finfo(dtype).eps
    close(loss.double(), expected.detach(), rtol=1e-5 if wide or dtype != torch.bfloat16 else 4 * eps)
    found, gradients = torch.autograd.grad(loss, (x, w, b)), torch.autograd.grad(expected, exact)
    for g, e in zip(found, gradients, strict=True):
        assert g.dtype == dtype
        assert (g.double() - e).abs().max() < 4 * eps * e.abs().max()


def test_products_and_rows(products: Any) -> None:
    x, w, b, y = made()
    xt.linear_cross_entropy(x, w, y, linear_bias=b, shift=(1, 2, 3), chunk_bytes=1 << 20).backward()
    assert products["products"] == 3
    # A row that no shift needs is not read.
    held = x.detach().clone()
    held[:, -1] = held[1] = held[0, 0] = torch.nan
    loss = xt.linear_cross_entropy(held.requires_grad_(), w, y, shift=(1, 2))
    expected = xt.linear_cross_entropy(x, w, y, shift=(1, 2))
    close(loss, expected)
    found, gradients = torch.autograd.grad(loss, (held, w)), torch.autograd.grad(expected, (x, w))
    close(found, gradients)
    assert not found[0][held.isnan()].any()


@pytest.mark.parametrize(("shift", "copies"), [((1,), 1), ((1, 2), 2), ((0, 1, 2, 3), 3)])
def test_the_budget_is_that_of_all_matrices(shift: Any, copies: int, products: Any) -> None:
    x, w, _, _ = made()
    y, rows = torch.zeros(ROWS, dtype=torch.long), 3 * (8 - min(shift))
    for less, chunks in ((0, 1), (1, 2)):
        products.clear()
        budget = rows * copies * K * 8 - less
        xt.linear_cross_entropy(x, w, y, shift=shift, chunk_bytes=budget).backward()
        assert products["products"] == 3 * chunks


def test_no_row_counts() -> None:
    x, w, b, y = made()
    for shift, target in (((1, 2), torch.full_like(y, -100)), ((8, 9), y), ((0, 1), y[:0])):
        inputs = x[: target.shape[0]]
        loss = xt.linear_cross_entropy(inputs, w, target, linear_bias=b, shift=shift)
        assert loss.item() == 0
        assert not any(g.any() for g in torch.autograd.grad(loss, (inputs, w, b)))


def test_what_it_cannot_be() -> None:
    x, w, _, y = made()
    q = torch.softmax(torch.randn(*ROWS, K, dtype=torch.float64), -1)
    for words, call in {
        '`reduction` must be "mean" or "sum" for several': {"reduction": "none", "shift": (1, 2)},
        "`shift` must be integers >= 0": {"shift": (1, -2)},
        "`shift_weight` must be a sequence of 2 numbers": {"shift": (1, 2), "shift_weight": (1.0,)},
        "`shift_weight` must be finite and >= 0; got -1": {"shift": (1, 2), "shift_weight": (1.0, -1)},
        "`shift_weight` needs a sequence": {"shift": 1, "shift_weight": (1.0,)},
        "several of `shift` need labels": {"shift": (1, 2), "target": q},
    }.items():
        with pytest.raises(ValueError, match=words):
            xt.linear_cross_entropy(x, w, **{"target": y, **call})
