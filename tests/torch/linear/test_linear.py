"""The projected loss on tensors: equations (19) to (21), derivatives of every order, memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")


import xent.torch as xt  # noqa: E402
from tests.tables.variants import each_of_few, every_case  # noqa: E402
from tests.torch.problems import close  # noqa: E402

# PyTorch warns of its own use of what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

F = torch.nn.functional
ROWS, D, K = (3, 7), 5, 11
HALF = [torch.bfloat16, torch.float16]


def operands(
    dtype: Any = torch.float64, rows: tuple[int, ...] = ROWS, width: int = D, num_classes: int = K
) -> Any:
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in ((*rows, width), (num_classes, width), (num_classes,))
    )


def made(
    variant: Any, kind: str, rows: tuple[int, ...] = ROWS, num_classes: int = K
) -> tuple[Any, dict[str, Any]]:
    """Target and options as tensors, under PyTorch's names."""
    targets, options = variant.make(kind, rows, num_classes, np.random.default_rng(0))
    options = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    if "class_weight" in options:
        options["weight"] = options.pop("class_weight")
    return torch.tensor(targets), options


def of_logits(x: Any, w: Any, b: Any, target: Any, **options: Any) -> Any:
    """The loss by way of the whole matrix of logits."""
    rows = target.shape[: x.ndim - 1]
    flat = target.reshape(-1, K) if target.is_floating_point() else target.reshape(-1)
    if "sample_weight" in options:
        options["sample_weight"] = options["sample_weight"].reshape(-1)
    loss = xt.cross_entropy(F.linear(x, w, b).reshape(-1, K), flat, **options)
    return loss.reshape(rows) if options.get("reduction") == "none" else loss


@pytest.mark.parametrize("reduction", ["mean", "none"])
@every_case
def test_variants(variant, kind, reduction):
    x, w, b = operands()
    target, options = made(variant, kind)
    options["reduction"] = reduction
    if reduction == "mean":
        options["denominator"] = variant.denominator
    upstream = torch.linspace(0.5, 2.0, 21, dtype=torch.float64).reshape(ROWS)
    upstream = upstream if reduction == "none" else torch.tensor(3.0, dtype=torch.float64)
    expected = of_logits(x, w, b, target, **options)
    gradients = torch.autograd.grad(expected, (x, w, b), upstream)
    for rows_at_a_time in (1, 4, 21):
        chunk_bytes = rows_at_a_time * K * 8
        loss = xt.linear_cross_entropy(x, w, target, linear_bias=b, chunk_bytes=chunk_bytes, **options)
        close(loss, expected)
        close(torch.autograd.grad(loss, (x, w, b), upstream), gradients)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@each_of_few
def test_derivatives(variant, kind, reduction):
    x, w, b = operands(rows=(2, 2), width=2, num_classes=4)
    target, options = made(variant, kind, (2, 2), num_classes=4)

    def loss(x, w, b):
        return xt.linear_cross_entropy(
            x, w, target, linear_bias=b, reduction=reduction, chunk_bytes=96, **options
        )

    assert torch.autograd.gradcheck(loss, (x, w, b), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(loss, (x, w, b))


@pytest.mark.parametrize("name", ["grad", "jvp", "hessian", "vmap", "vmap_grad"])
def test_transforms(name):
    x, w, b = (t.detach() for t in operands(rows=(4, 6)))
    target = torch.arange(24).reshape(4, 6) % K

    def ours(x, w, y):
        return xt.linear_cross_entropy(x, w, y, linear_bias=b, z_loss=0.1, chunk_bytes=300)

    def theirs(x, w, y):
        logits = F.linear(x, w, b)
        return F.cross_entropy(logits, y) + 0.1 * logits.logsumexp(-1).square().mean()

    def found(f):
        if name == "grad":
            return torch.func.grad(f, argnums=(0, 1))(x[0], w, target[0])
        if name == "jvp":
            return torch.func.jvp(lambda x, w: f(x, w, target[0]), (x[0], w), (x[1], w.cos()))
        if name == "hessian":
            return torch.func.hessian(f)(x[0], w, target[0])
        mapped = torch.func.grad(f, argnums=1) if name == "vmap_grad" else f
        return torch.vmap(mapped, in_dims=(0, None, 0))(x, w, target)

    close(found(ours), found(theirs), rtol=1e-9)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiled_and_shifted_is_eager(reduction):
    x, w, b = operands(torch.float32)
    target = torch.arange(21).reshape(ROWS) % K
    target[0, 3] = -100

    def loss(x, w, b):
        return xt.linear_cross_entropy(
            x * 1.0, w, target, linear_bias=b, reduction=reduction, chunk_bytes=300, shift=2
        )

    expected = loss(x, w, b)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(x, w, b)
    assert torch.equal(compiled, expected)
    upstream = torch.linspace(0.5, 2.0, expected.numel()).reshape(expected.shape)
    gradients = torch.autograd.grad(expected, (x, w, b), upstream)
    close(torch.autograd.grad(compiled, (x, w, b), upstream), gradients, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("frozen", ["x", "w", "b", "xb", "wb", "xw"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_what_is_frozen_costs_no_product(frozen, reduction, products):
    tensors = dict(zip("xwb", operands(), strict=True))
    expected = of_logits(*tensors.values(), torch.zeros(ROWS, dtype=torch.long), reduction="sum")
    gradients = dict(zip("xwb", torch.autograd.grad(expected, tuple(tensors.values())), strict=True))
    asked = {k: t.detach().requires_grad_(k not in frozen) for k, t in tensors.items()}
    loss = xt.linear_cross_entropy(
        asked["x"], asked["w"], torch.zeros(ROWS, dtype=torch.long), linear_bias=asked["b"],
        reduction="sum" if reduction == "mean" else "none",
    )  # fmt: skip
    loss.sum().backward()
    assert products["products"] == (2 if reduction == "none" else 1) + ("x" not in frozen) + (
        "w" not in frozen
    )
    for k, t in asked.items():
        if k in frozen:
            assert t.grad is None
        else:
            close(t.grad, gradients[k])


def test_no_gradient_is_one_product(products):
    x, w, _ = (t.detach() for t in operands())
    xt.linear_cross_entropy(x, w, torch.zeros(ROWS, dtype=torch.long))
    assert products["products"] == 1


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision(dtype):
    x, w, b = operands(dtype, rows=(64,))
    target = torch.arange(64) % K
    wide = [t.detach().double().requires_grad_() for t in (x, w, b)]
    expected = F.cross_entropy(F.linear(*wide), target)
    loss = xt.linear_cross_entropy(x, w, target, linear_bias=b, chunk_bytes=10 * K * 2)
    assert loss.dtype == torch.float32
    # Where products are rounded to the dtype, so are the logits; float16 is multiplied in float32.
    rounding = 2e-6 if dtype == torch.float16 else 2.0**-8
    close(loss.double(), expected, rtol=4 * rounding)
    found = torch.autograd.grad(loss, (x, w, b))
    for g, e in zip(found, torch.autograd.grad(expected, wide), strict=True):
        assert g.dtype == dtype
        assert (g.double() - e).abs().max() < 3 * torch.finfo(dtype).eps * e.abs().max()


def test_float16_gradients_are_scaled_before_they_are_rounded():
    x, w, _ = operands(torch.float16, rows=(8,))
    target = torch.arange(8)
    scale = 2.0**20  # a loss scaler's, beside a mean over very many tokens
    loss = xt.linear_cross_entropy(x, w, target, denominator=1e6) * scale
    wide = [t.detach().double().requires_grad_() for t in (x, w)]
    expected = F.cross_entropy(F.linear(*wide), target, reduction="sum") / 1e6 * scale
    for g, e in zip(torch.autograd.grad(loss, (x, w)), torch.autograd.grad(expected, wide), strict=True):
        assert (g.double() - e).abs().max() < 2e-3 * e.abs().max()


def test_autocast_multiplies_in_its_dtype():
    x, w, b = operands(torch.float32)
    target = torch.zeros(ROWS, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16):
        loss = xt.linear_cross_entropy(x, w, target, linear_bias=b)
    expected = xt.linear_cross_entropy(x.bfloat16(), w.bfloat16(), target, linear_bias=b.bfloat16())
    assert torch.equal(loss, expected)
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(loss, (x, w, b)))


def test_checkpoint_a_second_backward_and_a_tied_weight():
    x, w, _ = operands()
    target = torch.arange(21).reshape(ROWS) % K
    loss = xt.linear_cross_entropy(x, w * 2, target)
    first = torch.autograd.grad(loss, (x, w), retain_graph=True)
    close(torch.autograd.grad(loss, (x, w)), first)
    again = torch.utils.checkpoint.checkpoint(
        lambda x, w: xt.linear_cross_entropy(x, w * 2, target), x, w, use_reentrant=False
    )
    close(torch.autograd.grad(again, (x, w)), first)
    embedded = F.embedding(target, w)  # the same weight embeds and projects
    (dw,) = torch.autograd.grad(xt.linear_cross_entropy(embedded, w, target), w)
    (expected,) = torch.autograd.grad(of_logits(F.embedding(target, w), w, None, target), w)
    close(dw, expected)


def test_what_was_changed_before_the_backward_is_noticed():
    x, w, _ = operands()
    loss = xt.linear_cross_entropy(x, w, torch.zeros(ROWS, dtype=torch.long), reduction="none")
    with torch.no_grad():
        w.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.sum().backward()


@pytest.mark.parametrize("shift", [1, 3])
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_shift_is_slicing(kind, shift, reduction):
    x, w, b = operands()
    target = torch.arange(21).reshape(ROWS) % K
    if kind == "probabilities":
        target = torch.softmax(torch.randn(*ROWS, K, dtype=torch.float64), -1)
    weight = torch.arange(21.0).reshape(ROWS)
    loss = xt.linear_cross_entropy(
        x, w, target, linear_bias=b, shift=shift, reduction=reduction, sample_weight=weight
    )
    expected = of_logits(
        x[:, :-shift], w, b, target[:, shift:], reduction=reduction, sample_weight=weight[:, shift:]
    )
    close(loss, expected)
    close(torch.autograd.grad(loss.sum(), (x, w, b)), torch.autograd.grad(expected.sum(), (x, w, b)))


@pytest.mark.parametrize("target", [torch.full(ROWS, -100), torch.zeros(0, 7, dtype=torch.long)], ids=str)
def test_no_row_counts_and_the_graph_is_attached(target):
    x, w, b = operands(rows=target.shape)
    loss = xt.linear_cross_entropy(x, w, target, linear_bias=b)
    assert loss.item() == 0
    assert not any(g.any() for g in torch.autograd.grad(loss, (x, w, b)))


def test_gradients_flow_into_probabilities_and_weights():
    x, w, b = operands()
    q = torch.softmax(torch.randn(*ROWS, K, dtype=torch.float64), -1).requires_grad_()
    c = torch.rand(K, dtype=torch.float64, requires_grad=True)
    inputs = (x, w, b, q, c)
    loss = xt.linear_cross_entropy(x, w, q, linear_bias=b, weight=c, label_smoothing=0.1, chunk_bytes=300)
    expected = of_logits(x, w, b, q, weight=c, label_smoothing=0.1)
    close(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs))


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("chunk_bytes", [300, None])
def test_row_statistics(labels, chunk_bytes):
    x, w, b = operands()
    y = torch.arange(21).reshape(ROWS) % K if labels else None
    if labels:
        y[1, 2] = -100
    options = {"softcap": 3.0, "temperature": 0.8}
    found = xt.linear_row_statistics(x, w, y, bias=b, chunk_bytes=chunk_bytes, **options)
    expected = xt.row_statistics(F.linear(x, w, b), y, **options)
    upstream = torch.rand(3, *ROWS, dtype=torch.float64)
    sums = []
    for stats in (found, expected):
        parts = [stats.lse, stats.entropy, *([stats.log_prob] if labels else [])]
        sums.append(sum((p * u).sum() for p, u in zip(parts, upstream, strict=False)))
    for a, e in zip(found, expected, strict=True):
        assert (a is None) == (e is None)
        if a is not None:
            close(a, e)
    close(*(torch.autograd.grad(s, (x, w, b)) for s in sums))


def test_derivatives_of_row_statistics():
    x, w, b = operands(rows=(2, 2), width=2, num_classes=4)
    y = torch.tensor([[0, -100], [3, 1]])

    def statistics(x, w, b):
        return xt.linear_row_statistics(x, w, y, bias=b, chunk_bytes=96)[:3]

    assert torch.autograd.gradcheck(statistics, (x, w, b), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(statistics, (x, w, b))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_divergence_of_two_models(direction, reduction):
    x, w, b = operands()
    hidden = torch.randn(*ROWS, 4, dtype=torch.float64, requires_grad=True)
    head = torch.randn(K, 4, dtype=torch.float64)
    weight = torch.arange(21.0, dtype=torch.float64).reshape(ROWS)

    def expected():
        p, q = (F.log_softmax(F.linear(*a) / 2.0, -1) for a in ((hidden, head), (x, w, b)))
        pair = (q, p) if direction == "forward" else (p, q)
        losses = F.kl_div(*pair, reduction="none", log_target=True).sum(-1) * weight
        return {"none": losses, "sum": losses.sum(), "mean": losses.sum() / weight.sum()}[reduction]

    for teacher in (hidden.detach(), hidden):  # by the kernels, and derivable in the teacher
        loss = xt.linear_kl_divergence(
            x, w, teacher, head, bias=b, temperature=2.0, direction=direction,
            sample_weight=weight, reduction=reduction, chunk_bytes=3000,
        )  # fmt: skip
        inputs = (x, w, b) if teacher is not hidden else (x, w, b, hidden)
        close(loss, expected())
        close(*(torch.autograd.grad(v.sum(), inputs) for v in (loss, expected())))
    same = xt.linear_kl_divergence(x, w, x, w, direction=direction)
    assert abs(same.item()) < 1e-14


@pytest.mark.slow
def test_more_logits_than_32_bits_count():
    num_rows, num_classes = 65600, 32800  # 2.15e9 logits: 8.6 GB, were they ever there
    x = torch.randn(num_rows, 4)
    w = torch.randn(num_classes, 4, requires_grad=True)
    y = torch.arange(num_rows) % num_classes
    status = Path("/proc/self/status")
    mib = lambda name: int(status.read_text().partition(name)[2].split()[0]) >> 10  # noqa: E731
    before = mib("VmRSS:") if status.exists() else 0
    if before:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    loss = xt.linear_cross_entropy(x, w, y)
    loss.backward()
    assert not before or mib("VmHWM:") - before < 256
    rows = torch.tensor([0, 40000, num_rows - 1])
    each = xt.linear_cross_entropy(x[rows], w, y[rows], reduction="none")
    close(each, F.cross_entropy(F.linear(x[rows], w), y[rows], reduction="none"), rtol=1e-5)
    assert 0 < loss.item() < 100
    # Σ_k ∂ℓ/∂z = 0, so the rows of dW sum to 0.
    assert w.grad.sum(0).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"w": torch.ones(K, D + 1)}, "`linear_weight` must have shape"),
        ({"w": torch.ones(K, D, dtype=torch.float64)}, "`linear_weight` must have the dtype"),
        ({"linear_bias": torch.ones(K + 1)}, "`linear_bias` must have shape"),
        ({"y": torch.zeros(5, dtype=torch.long)}, "`target` of torch.int64 must have shape"),
        ({"y": torch.full(ROWS, K)}, "`target` must be in"),
        ({"y": torch.full((*ROWS, K), -1.0)}, "`target` must be not negative"),
        ({"y": torch.ones(*ROWS, K), "focal_gamma": 1.0}, "`focal_gamma` and probability"),
        ({"chunk_bytes": -1}, "`chunk_bytes`"),
        ({"shift": -1}, "`shift`"),
        ({"reduction": "max"}, "`reduction`"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_errors(change, words):
    options = {"x": torch.ones(*ROWS, D), "w": torch.ones(K, D), "y": torch.zeros(ROWS, dtype=torch.long)}
    options |= change
    x, w, y = (options.pop(name) for name in "xwy")
    with pytest.raises(ValueError, match=words):
        xt.linear_cross_entropy(x, w, y, **options)


def test_a_label_that_is_no_class_is_an_error_of_the_statistics():
    x, w = torch.ones(2, D), torch.ones(K, D)
    for call in (lambda y: xt.linear_row_statistics(x, w, y), lambda y: xt.row_statistics(x @ w.T, y)):
        with pytest.raises(ValueError, match=rf"`labels` must be in \[0, {K}\) .* got {K} at row 1"):
            call(torch.tensor([0, K]))
