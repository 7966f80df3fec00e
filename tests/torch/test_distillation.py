"""Divergences from a teacher, beside their definitions in float64."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

import xent.torch as xt  # noqa: E402
from tests.torch.problems import close  # noqa: E402

# PyTorch warns of its own use of what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

F = torch.nn.functional
ROWS, D, K = (3, 4), 5, 11
DIRECTIONS = ("forward", "reverse")


def random(*shape: int) -> Any:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def reduced(losses: Any, omega: Any, reduction: str, denominator: Any = None) -> Any:
    """Equation (4) of losses (...) for factors ω (...)."""
    losses = torch.where(omega == 0, 0.0, omega * losses)
    if reduction == "none":
        return losses
    rows = (omega != 0).sum() if denominator == "rows" else denominator
    divisor = 1.0 if reduction == "sum" else omega.sum() if rows is None else rows
    return losses.sum() / divisor


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("reduction", "denominator"), [("mean", None), ("mean", "rows"), ("sum", None), ("none", None)]
)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_ignored_rows(direction, reduction, denominator, weighted):
    x, w, b = (t.requires_grad_() for t in (random(*ROWS, D), random(K, D), random(K)))
    hidden, head = random(*ROWS, 3), random(K, 3)
    labels = torch.arange(12).reshape(ROWS) % K
    labels[0, 1] = labels[2, 3] = 7
    factors = (
        torch.linspace(0.5, 2.0, 12, dtype=torch.float64).reshape(ROWS) if weighted else torch.ones(ROWS)
    )
    omega = torch.where(labels == 7, 0.0, factors)
    p, q = (F.log_softmax(F.linear(*a) / 1.5, -1) for a in ((hidden, head), (x, w, b)))
    one, two = (q, p) if direction == "reverse" else (p, q)
    expected = reduced((one.exp() * (one - two)).sum(-1), omega, reduction, denominator)
    upstream = torch.linspace(0.5, 2.0, expected.numel(), dtype=torch.float64).reshape(expected.shape)
    slopes = torch.autograd.grad(expected, (x, w, b), upstream)
    held = [torch.where((labels == 7)[..., None], torch.nan, t.detach()) for t in (x, hidden)]
    options: Any = {"sample_weight": factors if weighted else None, "reduction": reduction}
    student, teacher = held[0].requires_grad_(), held[1]
    loss = xt.linear_kl_divergence(
        student, w, teacher, head, bias=b, labels=labels, ignore_index=7, temperature=1.5,
        direction=direction, denominator=denominator, chunk_bytes=1500, **options,
    )  # fmt: skip
    close(loss, expected)
    close(torch.autograd.grad(loss, (student, w, b), upstream), slopes)


def test_no_row_counts_and_the_graph_is_attached():
    x, w = random(2, D).requires_grad_(), random(K, D).requires_grad_()
    loss = xt.linear_kl_divergence(x, w, 2 * x, w, labels=torch.tensor([-100, -100]))
    assert loss.item() == 0
    assert not any(g.any() for g in torch.autograd.grad(loss, (x, w)))


# A teacher that is given by k entries of each row.

CASES = [(tail, direction) for tail in ("bin", "renormalise") for direction in DIRECTIONS]
each_case = pytest.mark.parametrize(("tail", "direction"), CASES)


def entries(rows: tuple[int, ...] = ROWS, num_classes: int = K, k: int = 4) -> tuple[Any, Any]:
    """(indices, log_probs) of k classes, not the largest and not in order."""
    log_p = F.log_softmax(2 * random(*rows, num_classes), -1)
    indices = random(*rows, num_classes + 1)[..., :num_classes].argsort(-1)[..., :k]
    return indices, log_p.gather(-1, indices)


def definition(logits: Any, indices: Any, log_probs: Any, tail: str, direction: str) -> Any:
    """The divergence (...) of ``logits`` at temperature 1, from probabilities."""
    p, q = log_probs.exp(), torch.softmax(logits, -1)
    q_s = q.gather(-1, indices)
    others = q.scatter(-1, indices, 0.0).sum(-1, keepdim=True)
    if tail == "bin":
        if indices.shape[-1] < logits.shape[-1]:
            p, q = torch.cat([p, 1 - p.sum(-1, keepdim=True)], -1), torch.cat([q_s, others], -1)
        else:
            q = q_s
    else:
        p = p / p.sum(-1, keepdim=True)
        q = q_s if direction == "forward" else q_s / q_s.sum(-1, keepdim=True)
    one, two = (p, q) if direction == "forward" else (q, p)
    return torch.where(one > 0, one * (one.log() - two.log()), 0.0).sum(-1)


def operands(dtype: Any = torch.float64, rows: tuple[int, ...] = ROWS, num_classes: int = K) -> Any:
    shapes = ((*rows, D), (num_classes, D), (num_classes,))
    return tuple(random(*shape).to(dtype).requires_grad_() for shape in shapes)


@pytest.mark.parametrize("k", [1, 4, K - 1, K])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@each_case
def test_top_k_is_its_definition(tail, direction, reduction, k):
    x, w, b = operands()
    indices, log_probs = entries(k=k)
    factors = torch.linspace(0.0, 2.0, 12, dtype=torch.float64).reshape(ROWS)
    labels = torch.arange(12).reshape(ROWS) % K
    omega = torch.where(labels == 5, 0.0, factors)
    log_probs.requires_grad_()
    losses = definition(F.linear(x, w, b) / 1.5, indices, log_probs, tail, direction)
    expected = reduced(losses, omega, reduction)
    upstream = torch.linspace(0.5, 2.0, expected.numel(), dtype=torch.float64).reshape(expected.shape)
    inputs = (x, w, b, log_probs)
    slopes = torch.autograd.grad(expected, inputs, upstream)
    for teacher in (log_probs.detach(), log_probs):  # by the kernels, and derivable in the teacher
        derived = inputs if teacher is log_probs else inputs[:3]
        for chunk_bytes in (300, None):
            loss = xt.linear_topk_kl_divergence(
                x, w, indices, teacher, bias=b, tail=tail, temperature=1.5, direction=direction,
                labels=labels, ignore_index=5, sample_weight=factors, reduction=reduction,
                chunk_bytes=chunk_bytes,
            )  # fmt: skip
            close(loss, expected)
            close(torch.autograd.grad(loss, derived, upstream), slopes[: len(derived)], rtol=1e-9)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("other_tail", ["the student's", "uniform"])
def test_top_k_is_the_dense_divergence_with_the_same_tail(direction, other_tail):
    """KL(p‖q) = KL of the bins + (mass of the rest) · KL of the distributions within it."""
    x, w, b = operands(rows=(12,))
    _, indices = (2 * random(12, K)).topk(3)
    log_q = F.log_softmax(F.linear(x, w, b), -1)
    log_probs = F.log_softmax(2 * random(12, K), -1).gather(-1, indices)
    is_rest = torch.ones(12, K, dtype=torch.bool).scatter(-1, indices, False)
    tail = log_q.detach() if other_tail == "the student's" else torch.zeros(12, K, dtype=torch.float64)
    tail = tail.masked_fill(~is_rest, -torch.inf).log_softmax(-1)
    rest = torch.log1p(-log_probs.exp().sum(-1, keepdim=True))
    log_p = (tail + rest).scatter(-1, indices, log_probs)
    options: Any = {"bias": b, "direction": direction, "reduction": "none"}
    dense = xt.linear_kl_divergence(x, w, torch.eye(12).double(), log_p.T.contiguous(), **options)
    ours = xt.linear_topk_kl_divergence(x, w, indices, log_probs, **options)
    within_q = log_q.masked_fill(~is_rest, -torch.inf).log_softmax(-1)
    pair = (tail, within_q) if direction == "forward" else (within_q, tail)
    within = torch.where(is_rest, pair[0].exp() * (pair[0] - pair[1]), 0.0).sum(-1)
    mass = rest.exp()[:, 0] if direction == "forward" else (log_q.exp() * is_rest).sum(-1)
    close(ours + mass * within, dense)
    if other_tail == "the student's":
        close(ours, dense)
    assert (ours <= dense + 1e-12).all()
    if direction == "forward" and other_tail == "the student's":
        slopes = (torch.autograd.grad(v.sum(), (x, w, b)) for v in (ours, dense))
        close(*slopes)


@each_case
def test_all_classes_are_the_dense_divergence(tail, direction):
    x, w, b = operands(rows=(12,))
    hidden, head = random(12, 3), random(K, 3)
    log_probs, indices = F.log_softmax(hidden @ head.T, -1).sort(-1)
    options: Any = {"bias": b, "direction": direction}
    ours = xt.linear_topk_kl_divergence(x, w, indices, log_probs, tail=tail, **options)
    dense = xt.linear_kl_divergence(x, w, hidden, head, **options)
    close(ours, dense)
    close(*(torch.autograd.grad(v, (x, w, b)) for v in (ours, dense)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@each_case
def test_top_k_in_lower_precision(tail, direction, dtype):
    x, w, b = operands(dtype, rows=(64,))
    indices, log_probs = entries((64,))
    wide = [t.detach().double().requires_grad_() for t in (x, w, b)]
    expected = definition(F.linear(*wide), indices, log_probs, tail, direction).mean()
    loss = xt.linear_topk_kl_divergence(
        x, w, indices.int(), log_probs.float(), bias=b, tail=tail, direction=direction, chunk_bytes=500
    )
    assert loss.dtype == torch.float32
    rounding = 2e-6 if dtype != torch.bfloat16 else 2.0**-8
    close(loss.double(), expected, rtol=4 * rounding, atol=0)
    slopes = torch.autograd.grad(expected, wide)
    for g, e in zip(torch.autograd.grad(loss, (x, w, b)), slopes, strict=True):
        assert g.dtype == dtype
        assert (g.double() - e).abs().max() < 4 * max(torch.finfo(dtype).eps, 1e-6) * e.abs().max()


@each_case
def test_derivatives_of_top_k(tail, direction):
    x, w, b = (
        t.detach()[:, :2].requires_grad_() if t.ndim > 1 else t for t in operands(rows=(3,), num_classes=4)
    )
    indices, log_probs = entries((3,), 4, 2)
    factors = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)

    def loss(x, w, b, log_probs=log_probs, factors=factors):
        return xt.linear_topk_kl_divergence(
            x, w, indices, log_probs, bias=b, tail=tail, direction=direction, sample_weight=factors,
            reduction="mean" if direction == "forward" else "none", chunk_bytes=64, validate=False,
        )  # fmt: skip

    assert torch.autograd.gradcheck(loss, (x, w, b), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(loss, (x, w, b))
    every = (x, w, b, log_probs.clone().requires_grad_(), factors.clone().requires_grad_())
    assert torch.autograd.gradcheck(loss, every)
    assert torch.autograd.gradgradcheck(loss, every)


@pytest.mark.parametrize("scale", [20.0, 300.0])
@each_case
def test_a_student_that_is_almost_certain_keeps_its_digits(tail, direction, scale):
    """In float32 1 − Σ q would be 0, and so would the gradient in the other classes."""
    logits = torch.tensor([[scale, 0.5, 0.0, -0.5]], requires_grad=True)
    indices, log_probs = torch.tensor([[0, 1]]), torch.log(torch.tensor([[0.6, 0.3]]))
    loss = xt.linear_topk_kl_divergence(
        torch.eye(1), logits.T, indices, log_probs, tail=tail, direction=direction
    )
    wide = logits.detach().double().requires_grad_()
    log_q = F.log_softmax(wide, -1)
    a = log_probs.double()
    bins = torch.cat([log_q[:, :2], log_q[:, 2:].logsumexp(-1, keepdim=True)], -1)
    if tail == "bin":
        p = torch.cat([a, torch.log1p(-a.exp().sum(-1, keepdim=True))], -1)
    else:
        a = a.log_softmax(-1)
        p, bins = (a, bins[:, :2].log_softmax(-1)) if direction == "reverse" else (a, bins[:, :2])
    one, two = (p, bins) if direction == "forward" else (bins, p)
    expected = (one.exp() * (one - two)).sum()
    (slope,), (found,) = torch.autograd.grad(expected, wide), torch.autograd.grad(loss, logits)
    close(loss.double(), expected, rtol=1e-6, atol=0)
    close(found.double(), slope, rtol=2e-6, atol=1e-25)


@pytest.mark.parametrize("pair", [(0.0, -200.0), (-0.28768, -1.38625)], ids=("1", "above 1 by rounding"))
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_teacher_without_a_tail(direction, pair):
    """Entries that leave no mass to the others: a student's rest costs no infinity."""
    x, w, b = operands(torch.float32, rows=(1,))
    log_probs = torch.tensor([pair]).requires_grad_()
    call = lambda a: xt.linear_topk_kl_divergence(  # noqa: E731
        x, w, torch.tensor([[2, 7]]), a, bias=b, direction=direction
    )
    loss = call(log_probs)
    wide = [t.detach().double().requires_grad_() for t in (x, w, b)]
    log_q = F.log_softmax(F.linear(*wide), -1)[0]
    q_s, rest = log_q[[2, 7]], torch.log1p(-log_q[[2, 7]].exp().sum())
    a, floor = log_probs.detach().double()[0], -23 * torch.log(torch.tensor(2.0, dtype=torch.float64))
    if direction == "forward":
        expected = (a.exp() * (a - q_s)).sum()
    else:
        expected = (q_s.exp() * (q_s - a)).sum() + rest.exp() * (rest - floor)
    close(loss.double(), expected, rtol=1e-6)
    assert torch.autograd.grad(loss, log_probs, retain_graph=True)[0].isfinite().all()
    slopes = torch.autograd.grad(expected, wide)
    for value in (loss, call(log_probs.detach())):
        for g, e in zip(torch.autograd.grad(value, (x, w, b)), slopes, strict=True):
            close(g.double(), e, rtol=1e-5, atol=1e-6 / 8)


EXCLUDED = [[0.0, -torch.inf, 1.0, 0.5], [0.0, 1.0, -torch.inf, 2.0], [0.0, 1.0, -torch.inf, -torch.inf]]


@pytest.mark.parametrize("row", range(3), ids=("an entry", "another class", "all other classes"))
@each_case
def test_excluded_classes(tail, direction, row):
    """A student's logit of −inf has no gradient and makes no NaN."""
    logits = torch.tensor(EXCLUDED[row], dtype=torch.float64).requires_grad_()
    indices, log_probs = torch.tensor([0, 1]), torch.tensor([0.5, 0.2], dtype=torch.float64).log()

    def loss(log_probs):
        x, w = torch.zeros(1, dtype=torch.float64), torch.zeros(4, 1, dtype=torch.float64)
        return xt.linear_topk_kl_divergence(
            x, w, indices, log_probs, bias=logits, tail=tail, direction=direction
        )

    expected = definition(logits, indices, log_probs, tail, direction)
    is_infinite = direction == "forward" and (row == 0 or (row == 2 and tail == "bin"))
    assert expected.isinf() == is_infinite
    for teacher in (log_probs, log_probs.clone().requires_grad_()):  # by the kernels, and derivable
        value = loss(teacher)
        close(value, expected)
        if not is_infinite or teacher is log_probs:
            (slope,) = torch.autograd.grad(value, logits)
            assert slope.isfinite().all()
            assert not slope[logits == -torch.inf].any() or is_infinite


def test_an_index_that_is_no_class_makes_its_row_nan():
    x, w, b = operands()
    indices, log_probs = entries()
    indices[1, 2, 3] = K
    losses = xt.linear_topk_kl_divergence(x, w, indices, log_probs, bias=b, reduction="none", validate=False)
    assert losses.isnan().nonzero().tolist() == [[1, 2]]
    (dx,) = torch.autograd.grad(losses.sum(), x)
    assert dx.isnan().all(-1).nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("indices", K, r"`indices` must be in \[0, 11\); got 11 at index \(1, 2, 3\)"),
        ("indices", -1, r"`indices` must be in \[0, 11\); got -1"),
        ("indices", "same", r"`indices` must be different classes in each row; got \d+ at index \(1, 2, 3\)"),
        ("log_probs", 0.5, r"`log_probs` must be .*at most 0; got 0.5 at index \(1, 2, 3\)"),
        ("log_probs", torch.nan, r"`log_probs` must be .* got nan at index"),
    ],
)
def test_wrong_entries_are_named_unless_their_row_is_left_out(place, value, words):
    x, w, b = operands()
    tensors = dict(zip(("indices", "log_probs"), entries(), strict=True))
    expected = xt.linear_topk_kl_divergence(x[:1], w, *(t[:1] for t in tensors.values()), bias=b)
    tensors[place][1, 2, 3] = tensors[place][1, 2, 0] if value == "same" else value
    with pytest.raises(ValueError, match=words):
        xt.linear_topk_kl_divergence(x, w, *tensors.values(), bias=b)
    labels = torch.full(ROWS, -100)
    labels[0] = 0
    loss = xt.linear_topk_kl_divergence(x, w, *tensors.values(), bias=b, labels=labels)
    close(loss, expected)


@pytest.mark.parametrize("shape", [(0,), (2, 0)], ids=str)
@each_case
def test_no_rows_and_a_single_class(tail, direction, shape):
    x, w, b = operands(rows=shape)
    loss = xt.linear_topk_kl_divergence(
        x, w, torch.zeros(*shape, 2, dtype=torch.long), torch.zeros(*shape, 2), bias=b, tail=tail,
        direction=direction,
    )  # fmt: skip
    assert loss.item() == 0
    assert [g.shape for g in torch.autograd.grad(loss, (x, w, b))] == [x.shape, w.shape, b.shape]
    x, w, b = operands(rows=(2,), num_classes=1)
    one = torch.zeros(2, 1, dtype=torch.long)
    loss = xt.linear_topk_kl_divergence(x, w, one, one.double(), bias=b, tail=tail, direction=direction)
    assert loss.item() == 0
    assert not any(g.any() for g in torch.autograd.grad(loss, (x, w, b)))


@pytest.mark.parametrize(("num_rows", "num_classes"), [(2, 5), (4, 6)])
def test_a_teacher_of_other_rows_or_classes_is_named(num_rows, num_classes):
    x, w = torch.ones(4, 3), torch.ones(5, 3)
    with pytest.raises(ValueError, match=r"`teacher_inputs` and `teacher_weight` must have the rows \(4,\)"):
        xt.linear_kl_divergence(x, w, torch.ones(num_rows, 3), torch.ones(num_classes, 3))
