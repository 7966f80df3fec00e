"""A temperature of each row in the divergences from a teacher, by its logits or by its entries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import xent.torch as xt  # noqa: E402
from tests.torch.problems import close  # noqa: E402
from tests.torch.test_distillation import ROWS, K, definition, entries, random, reduced  # noqa: E402

# PyTorch warns of its own use of what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

F = torch.nn.functional
INDICES, LOG_PROBS = entries()


def kl(x: Any, w: Any, b: Any, y: Any, v: Any, c: Any, **options: Any) -> Any:
    return xt.linear_kl_divergence(x, w, y, v, bias=b, teacher_bias=c, chunk_bytes=1500, **options)


def topk(x: Any, w: Any, b: Any, log_probs: Any, indices: Any = INDICES, **options: Any) -> Any:
    return xt.linear_topk_kl_divergence(x, w, indices, log_probs, bias=b, chunk_bytes=700, **options)


def kl_of_row(z: Any, tensors: Any, row: Any, t: Any, direction: str) -> Any:
    """The divergence of a row alone, from its logits ``z (K,)`` over the number T."""
    y, v, c = tensors
    log_p, log_q = F.log_softmax(F.linear(y[row], v, c) / t, -1), F.log_softmax(z, -1)
    one, two = (log_q, log_p) if direction == "reverse" else (log_p, log_q)
    return (one.exp() * (one - two)).sum()


def topk_of_row(z: Any, tensors: Any, row: Any, t: Any, direction: str, tail: str) -> Any:
    return definition(z[None], INDICES[row][None], tensors[0][row][None], tail, direction)[0]


CASES: dict[str, tuple[Callable[..., Any], Callable[..., Any], dict[str, Any]]] = {
    "forward": (kl, kl_of_row, {"direction": "forward"}),
    "reverse": (kl, kl_of_row, {"direction": "reverse"}),
    "bin": (topk, topk_of_row, {"direction": "forward", "tail": "bin"}),
    "reverse bin": (topk, topk_of_row, {"direction": "reverse", "tail": "bin"}),
    "renormalise": (topk, topk_of_row, {"direction": "forward", "tail": "renormalise"}),
    "reverse renormalise": (topk, topk_of_row, {"direction": "reverse", "tail": "renormalise"}),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def made(case: Any, dtype: Any = torch.float64) -> Any:
    """(x, w, b, the tensors of the teacher), temperatures, labels and factors of which a row has none."""
    student = random(*ROWS, 5), random(K, 5), random(K)
    teacher = (random(*ROWS, 3), random(K, 3), random(K, 1)[:, 0]) if case[0] is kl else (LOG_PROBS.clone(),)
    tensors = [a.to(dtype).requires_grad_() for a in (*student, *teacher)]
    t = torch.linspace(0.4, 2.5, 12, dtype=torch.float64).reshape(ROWS)
    labels = torch.arange(12).reshape(ROWS) % K
    omega = torch.linspace(0.5, 2, 12, dtype=torch.float64).reshape(ROWS)
    labels[0, 1], omega[2, 3] = -100, 0.0
    t[0, 1] = t[2, 3] = torch.nan
    return tensors, t.requires_grad_(), labels, omega


def by_row(case: Any, tensors: Any, t: Any, labels: Any, omega: Any, reduction: str) -> Any:
    """Equation (4) of the divergences of each row alone, at its number T."""
    (x, w, b), teacher = tensors[:3], tensors[3:]
    losses = []
    for row in torch.cartesian_prod(*map(torch.arange, ROWS)).tolist():
        row = tuple(row)
        is_read = labels[row] >= 0 and omega[row] != 0
        number = t[row] if is_read else 1.0
        losses.append(case[1](F.linear(x[row], w, b) / number, teacher, row, number, **case[2]))
    return reduced(torch.stack(losses).reshape(ROWS), torch.where(labels < 0, 0.0, omega), reduction)


def slopes(loss: Any, derived: Any) -> Any:
    """The gradients for cotangents that are not 1."""
    upstream = torch.linspace(0.5, 2.0, loss.numel()).to(loss.dtype).reshape(loss.shape)
    return torch.autograd.grad(loss, derived, upstream, retain_graph=True)


@each_case
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_each_row_has_its_own(case: Any, reduction: str) -> None:
    tensors, t, labels, omega = made(case)
    expected = by_row(case, tensors, t, labels, omega, reduction)
    exact = slopes(expected, (*tensors, t))
    more = {"labels": labels, "sample_weight": omega, "reduction": reduction, **case[2]}
    for rows in (tensors[0], tensors[3]):  # what is left out may hold anything
        rows.data[t.isnan()] = torch.nan
    for count in (3, len(tensors)):  # a frozen teacher, a derived one
        held = [a if k < count else a.detach() for k, a in enumerate(tensors)]
        for given in (t, t.detach()):
            loss = case[0](*held, temperature=given, **more)
            close(loss, expected)
            found = slopes(loss, (*held[:count], t) if given.requires_grad else held[:count])
            close(found, (*exact[:count], exact[-1])[: len(found)])


@each_case
@pytest.mark.parametrize("logits_dtype", [None, torch.float32], ids=str)
def test_half_precision(case: Any, logits_dtype: Any) -> None:
    tensors, t, labels, omega = made(case, torch.bfloat16)
    wide = [a.detach().double().requires_grad_() for a in tensors]
    if case[0] is topk:
        tensors[3] = LOG_PROBS.clone()
        wide[3] = LOG_PROBS.clone().requires_grad_()
    expected = by_row(case, wide, t, labels, omega, "sum")
    exact = slopes(expected, (*wide[:3], t))
    more = {"labels": labels, "sample_weight": omega, "reduction": "sum", "logits_dtype": logits_dtype}
    for given in (t, t.detach()):
        loss = case[0](*tensors, temperature=given, **more, **case[2])
        assert loss.dtype == torch.float32
        close(loss, expected, rtol=2e-2 if logits_dtype is None else 1e-5)
        derived = (*tensors[:3], t) if given.requires_grad else tensors[:3]
        for g, a, e in zip(slopes(loss, derived), derived, exact, strict=False):
            assert g.dtype == a.dtype
            assert (g.double() - e.double()).abs().max() < 3e-2 * e.double().abs().max()


@pytest.mark.parametrize("case", [CASES["reverse"], CASES["bin"]], ids=["reverse", "bin"])
def test_derivatives(case: Any) -> None:
    tensors, t, _, _ = made(case)
    x, w, b, *teacher = tensors
    x, w, b = (a.detach().requires_grad_() for a in (x[:1, 2:4, :2], w[:4, :2], b[:4]))
    if case[0] is kl:
        teacher = [teacher[0][:1, 2:4, :2], teacher[1][:4, :2], teacher[2][:4]]
    else:
        teacher = [torch.tensor([[[-1.0, -2.0], [-0.5, -3.0]]]).double()]
        more = {"indices": torch.tensor([[[3, 1], [0, 2]]])}
    teacher, t = [a.detach() for a in teacher], t[:1, 2:4].detach().requires_grad_()
    more = case[2] | ({} if case[0] is kl else more)

    def loss(x: Any, w: Any, b: Any, t: Any) -> Any:
        return case[0](x, w, b, *teacher, temperature=t, **more)

    assert torch.autograd.gradcheck(loss, (x, w, b, t), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(loss, (x, w, b, t))
    assert torch.autograd.gradgradcheck(lambda *a: loss(*a, t.detach()), (x, w, b))


@pytest.mark.parametrize("case", [CASES["reverse"], CASES["bin"]], ids=["reverse", "bin"])
@pytest.mark.parametrize(
    "derived", [pytest.param("operands", marks=pytest.mark.slow), "temperature", "teacher"]
)
@pytest.mark.parametrize("reduction", ["mean", pytest.param("none", marks=pytest.mark.slow)])
def test_compiled_is_eager(case: Any, derived: str, reduction: str) -> None:
    torch._dynamo.reset()
    tensors, t, labels, omega = made(case)
    tensors = [a if k < 3 or derived == "teacher" else a.detach() for k, a in enumerate(tensors)]
    t = t.detach().requires_grad_(derived == "temperature")
    more = {"labels": labels, "sample_weight": omega, "reduction": reduction, **case[2]}

    def loss(x: Any, t: Any, *others: Any) -> Any:
        return case[0](x * 1.0, *others, temperature=t, **more)

    expected = loss(tensors[0], t, *tensors[1:])
    found = torch.compile(loss, fullgraph=True, backend="aot_eager")(tensors[0], t, *tensors[1:])
    close(found, expected)
    leaves = [a for a in (*tensors, t) if a.requires_grad]
    close(*(slopes(a, leaves) for a in (found, expected)))


@pytest.mark.parametrize("case", [CASES["forward"], CASES["bin"]], ids=["logits", "entries"])
def test_out_of_range(case: Any) -> None:
    tensors, t, labels, _ = made(case)
    t = t.detach()
    t[2, 3] = 1.0
    more = {"labels": labels, "reduction": "none", **case[2]}
    assert case[0](*tensors, temperature=t, **more).isfinite().all()
    for wrong in (0.0, -1.0, torch.inf, torch.nan):
        t[1, 2] = wrong
        with pytest.raises(ValueError, match=r"`temperature` must be finite and > 0 .* row 1, column 2"):
            case[0](*tensors, temperature=t, **more)
        loss = case[0](*tensors, temperature=t, validate=False, **more)
        assert loss[1, 2].isnan()
        assert loss.isnan().sum() == 1
    with pytest.raises(ValueError, match=r"`temperature` must be a number, or .* of the shape of the rows"):
        case[0](*tensors, temperature=t[:, :3], **more)


def test_no_rows() -> None:
    (x, w, _, y, v, _), t, _, _ = made(CASES["forward"])
    assert xt.linear_kl_divergence(x[:0], w, y[:0], v, temperature=t[:0]) == 0
    given = INDICES[:0], LOG_PROBS[:0]
    loss = xt.linear_topk_kl_divergence(x[:0], w, *given, temperature=t[:0], reduction="none")
    assert loss.shape == (0, 4)
