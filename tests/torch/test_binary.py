"""The binary loss on tensors: exact at both ends, in little memory, by one node and by ordinary code."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import xent  # noqa: E402
import xent.torch as xt  # noqa: E402
from xent.engine import binary  # noqa: E402

F = torch.nn.functional
bce = xt.binary_cross_entropy_with_logits

# PyTorch warns of its own use of what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

ENDS = [-80.0, -30.0, -8.0, -1.0, -0.0, 0.0, 1e-3, 1.0, 8.0, 30.0, 80.0]
OPTIONS = [
    {},
    {"pos_weight": 2.5},
    {"label_smoothing": 0.1, "smoothing_over": "others"},
    {"z_loss": 0.1, "temperature": 0.5},
    {"softcap": 3.0, "pos_weight": 0.0},
    {"focal_gamma": 2.0, "pos_weight": 2.5},
]
each_options = pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "plain")


def with_tensors(options):
    return {k: torch.tensor(v) if k == "pos_weight" else v for k, v in options.items()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_both_ends_are_exact(dtype, label, way):
    """The loss is log1p(exp(-30)) where PyTorch's own is 0 in single precision, and so is the gradient."""
    z = torch.tensor(ENDS, dtype=dtype, requires_grad=True)
    exact = np.float64(z.detach().double().numpy()) * (1 - 2 * label)  # of the wrong class over the right
    loss = bce(z, torch.full((len(z),), label), reduction="none")
    (grad,) = torch.autograd.grad(loss.sum(), z)
    assert grad.dtype == dtype
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    np.testing.assert_allclose(loss.detach().numpy(), np.logaddexp(0.0, exact), rtol=4 * eps)
    p = np.exp(exact) / (1 + np.exp(exact)) * (1 - 2 * label)
    smallest = torch.finfo(dtype).smallest_normal
    np.testing.assert_allclose(grad.double().numpy(), p, rtol=4 * torch.finfo(dtype).eps, atol=smallest)


@each_options
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_one_element_is_a_row_of_two_classes(options, reduction, way):
    z = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randint(0, 2, (7, 3))
    weight = torch.rand(3, dtype=torch.float64)
    mine = with_tensors(options)
    loss = bce(z, y, weight, reduction=reduction, **mine)
    rows = torch.stack([torch.zeros_like(z), z], -1)
    pi = mine.pop("pos_weight", torch.tensor(1.0)).double()
    pair = torch.stack([torch.ones_like(pi), pi])
    expected = xent.cross_entropy(
        rows, y, class_weight=pair, sample_weight=weight.expand(7, 3), reduction="none", **mine
    )
    expected = {"mean": expected.mean(), "sum": expected.sum(), "none": expected}[reduction]
    upstream = torch.rand(loss.shape, dtype=torch.float64)
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=1e-15)
    found, truth = (torch.autograd.grad(x, z, upstream, create_graph=True)[0] for x in (loss, expected))
    torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-15)
    first, vector = truth.detach(), torch.randn_like(z)
    found, truth = (torch.autograd.grad(g, z, vector)[0] for g in (found, truth))
    torch.testing.assert_close(found, truth, rtol=1e-11, atol=1e-14)
    again = bce(z, y, weight, reduction=reduction, **with_tensors(options))  # without a graph of the gradient
    torch.testing.assert_close(torch.autograd.grad(again, z, upstream)[0], first, rtol=1e-12, atol=1e-15)


@each_options
def test_compiled(options):
    torch._dynamo.reset()
    z = torch.randn(40, requires_grad=True)
    y = torch.randint(0, 2, (40,))
    mine = with_tensors(options)
    f = torch.compile(lambda z, y: bce(z, y, **mine), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(f(z, y), bce(z, y, **mine))
    torch.testing.assert_close(
        torch.autograd.grad(f(z, y), z), torch.autograd.grad(bce(z, y, **mine), z), rtol=1e-5, atol=1e-8
    )


def test_an_ignored_element_is_not_read(way):
    z = torch.tensor([1.0, torch.nan, -2.0], requires_grad=True)
    y = torch.tensor([1, -100, 0])
    loss = xent.binary_cross_entropy(z, y)
    (grad,) = torch.autograd.grad(loss, z)
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(z[[0, 2]], y[[0, 2]].float()))
    assert grad[1] == 0
    assert grad.isfinite().all()


def sigmoid_focal_loss(z, q, alpha, gamma):
    """The losses of RetinaNet (Lin et al., 2017), from their definition."""
    p = torch.sigmoid(z)
    cross_entropy = F.binary_cross_entropy_with_logits(z, q, reduction="none")
    p_t, alpha_t = p * q + (1 - p) * (1 - q), alpha * q + (1 - alpha) * (1 - q)
    return alpha_t * cross_entropy * (1 - p_t) ** gamma


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_the_sigmoid_focal_loss(gamma, reduction, way):
    z = torch.randn(7, 3, dtype=torch.float64)
    q = torch.randint(0, 2, (7, 3)).double()
    z[2], q[2], q[4, 1] = torch.nan, -7.0, -7.0
    counts = q != -7
    kept = torch.where(counts, z, 0.0).requires_grad_()
    truth = torch.where(counts, sigmoid_focal_loss(kept, torch.where(counts, q, 0.0), 0.25, gamma), 0.0)
    truth = {"mean": truth.sum() / counts.sum(), "sum": truth.sum(), "none": truth}[reduction]
    z.requires_grad_()
    for target in (q, q.bfloat16(), q.long()):
        loss = bce(z, target, focal_gamma=gamma, alpha=0.25, ignore_index=-7, reduction=reduction)
        torch.testing.assert_close(loss, truth, rtol=1e-12, atol=1e-15)
        upstream = torch.rand(loss.shape, dtype=torch.float64)
        found, expected = (
            torch.autograd.grad(x, y, upstream, create_graph=True)[0] for x, y in ((loss, z), (truth, kept))
        )
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-15)
        assert not found[~counts].any()
        found, expected = (
            torch.autograd.grad(g, y, torch.ones_like(y), retain_graph=True)[0]
            for g, y in ((found, z), (expected, kept))
        )
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def test_ignored_elements_and_alpha_compiled():
    torch._dynamo.reset()
    z = torch.tensor([0.5, torch.nan, -1.0, 2.0], requires_grad=True)
    for q in (torch.tensor([1.0, -100.0, 0.0, 0.0]), torch.tensor([1, -100, 0, 0])):
        for options in ({}, {"focal_gamma": 2.0}):

            def f(z, q, options=options):
                return bce(z, q, alpha=0.25, ignore_index=-100, **options)

            loss = torch.compile(f, fullgraph=True, backend="aot_eager")(z, q)
            torch.testing.assert_close(loss, f(z, q))
            (found,), (expected,) = (torch.autograd.grad(x, z) for x in (loss, f(z, q)))
            torch.testing.assert_close(found, expected)
            assert found[1] == 0


def test_a_mean_over_no_element_is_0(way):
    z = torch.tensor([0.5, torch.nan], requires_grad=True)
    loss = bce(z, torch.full((2,), -1.0), ignore_index=-1, focal_gamma=2.0, alpha=0.25)
    assert loss == 0
    assert torch.autograd.grad(loss, z)[0].tolist() == [0.0, 0.0]


def test_values_between_the_labels(way):
    z = torch.zeros(3, requires_grad=True)
    for q in (torch.tensor([0.0, 1.0, 0.5]), torch.tensor([0, 1, 5])):
        with pytest.raises(ValueError, match=r"`target` must be (0 or 1|in \[0, 1\])[^;]*; got (0\.5|5\.0)"):
            bce(z, q, focal_gamma=2.0)
        losses = bce(z, q, focal_gamma=2.0, alpha=0.25, reduction="none", validate=False)
        assert losses.isnan().tolist() == [False, False, True]
    with pytest.raises(ValueError, match="`target` must not require a gradient where `focal_gamma`"):
        bce(z, torch.ones(3, requires_grad=True), focal_gamma=2.0)


def test_memory_is_that_of_the_gradient():
    z = np.zeros((1 << 11, 1 << 11), np.float32)
    tracemalloc.start()
    xent.binary_cross_entropy_with_grad(z, z, out=np.empty_like(z))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * z.nbytes  # `out` itself, and some blocks


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_a_compiled_graph_calls_the_kernel(reduction, dtype, monkeypatch):
    torch._dynamo.reset()
    calls = []
    run = binary.Fused.loss_sum
    monkeypatch.setattr(binary.Fused, "loss_sum", lambda *a: (calls.append(1), run(*a))[1])
    z = torch.randn(40, 5, dtype=dtype, requires_grad=True)
    q, weight, pi = torch.rand(40, 5), torch.rand(5), torch.rand(40, 1)
    options = {"reduction": reduction, "softcap": 3.0, "label_smoothing": 0.1}

    def f(z):
        return bce(z, q, weight, pos_weight=pi, **options)

    loss = torch.compile(f, fullgraph=True, backend="aot_eager")(z)
    upstream = torch.rand(loss.shape, dtype=loss.dtype)
    (grad,) = torch.autograd.grad(loss, z, upstream)
    assert len(calls) == 2
    assert loss.dtype == bce(z, q).dtype
    assert grad.dtype == dtype
    torch.testing.assert_close(loss, f(z))
    torch.testing.assert_close(grad, torch.autograd.grad(f(z), z, upstream)[0])


def test_a_compiled_graph_derives_its_weights_too():
    torch._dynamo.reset()
    z, q = torch.randn(6, dtype=torch.float64), torch.rand(6, dtype=torch.float64)
    weight = torch.rand(6, dtype=torch.float64)
    for place in range(3):
        operands = [x.clone().requires_grad_(i == place) for i, x in enumerate((z, q, weight))]
        found = torch.compile(bce, fullgraph=True, backend="aot_eager")(*operands)
        truth = F.binary_cross_entropy_with_logits(z, q, weight)
        torch.testing.assert_close(found, truth)
        eager = torch.autograd.grad(bce(*operands), operands[place])
        torch.testing.assert_close(torch.autograd.grad(found, operands[place]), eager)


def test_expanded_logits_have_the_gradient_that_was_promised():
    """PyTorch's layout of what is like an expanded tensor, which the code that inductor writes relies on."""
    torch._dynamo.reset()
    z, q, y = torch.randn(1, 4, requires_grad=True), torch.rand(3, 4), torch.tensor([0, 3, 1])

    def f(z):
        wide = z.expand(3, 4)
        return torch.stack([bce(wide, q), xt.cross_entropy(wide, y)])

    found, expected = torch.compile(f)(z), f(z)
    for loss, truth in zip(found, expected, strict=True):
        (grad,) = torch.autograd.grad(loss, z, retain_graph=True)
        torch.testing.assert_close(grad, torch.autograd.grad(truth, z, retain_graph=True)[0])


@pytest.mark.parametrize("size", [1e39, 1e-39, 1e-42, 1e-46])
def test_weights_that_float32_does_not_have(size):
    z, y = np.array([0.3, -1.0, 2.0], np.float32), np.array([0, 1, 1])
    expected, derivative = xent.binary_cross_entropy_with_grad(z, y)
    loss, grad = xent.binary_cross_entropy_with_grad(z, y, sample_weight=np.full(3, size))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(grad, derivative, rtol=1e-6)
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.full((3,), size, dtype=torch.float64)
        found = xent.binary_cross_entropy(torch.tensor(z, dtype=dtype), torch.tensor(y), sample_weight=weight)
        np.testing.assert_allclose(found, expected, rtol=1e-6 if dtype == torch.float32 else 1e-2)
    assert xent.binary_cross_entropy(np.zeros(2, np.float32), [0, 0], pos_weight=size) == np.float32(
        np.log(2)
    )


def test_an_upstream_gradient_with_the_negative_bit():
    z, q = torch.randn(4, requires_grad=True), torch.rand(4)
    loss = bce(z, q, reduction="none")
    (found,) = torch.autograd.grad(loss, z, torch._neg_view(torch.ones(4)), retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(loss, z, -torch.ones(4))[0])


def test_labels_that_are_none(way):
    for dtype in (torch.uint8, torch.int64):
        y = torch.tensor([0, 1, 2], dtype=dtype)
        losses = bce(torch.zeros(3, requires_grad=True), y, reduction="none", validate=False)
        assert losses.isnan().tolist() == [False, False, True]


ZEROS = torch.zeros(2)
REFUSED = {
    "`pos_weight` must be finite and >= 0; got -1": lambda: xent.binary_cross_entropy(
        ZEROS, ZEROS, pos_weight=-1
    ),
    "`pos_weight` must be a number, finite and >= 0; got 'a'": lambda: xent.binary_cross_entropy(
        ZEROS, ZEROS, pos_weight="a"
    ),
    "`pos_weight` must be finite and >= 0; got 1000": lambda: xent.binary_cross_entropy(
        [0.0], [1], pos_weight=10**400
    ),
    "`sample_weight` must be finite; got nan at row 1": lambda: xent.binary_cross_entropy(
        ZEROS, ZEROS, sample_weight=torch.tensor([1.0, torch.nan])
    ),
    r"`targets` must have the shape of the logits, \(2,\); got \(3,\)": lambda: xent.binary_cross_entropy(
        ZEROS, torch.tensor([0, -100, 1])
    ),
    "`target` must be booleans, integers, .*; got torch.complex64": lambda: bce(
        ZEROS, ZEROS.to(torch.complex64)
    ),
    "`target` must be booleans, integers, .*; got torch.float8_e5m2": lambda: bce(
        ZEROS, ZEROS.to(torch.float8_e5m2)
    ),
    "`weight` must be real numbers; got torch.complex64": lambda: bce(
        ZEROS, ZEROS, ZEROS.to(torch.complex64)
    ),
    '`denominator` must be None, "rows" or .*; got 1000': lambda: bce(ZEROS, ZEROS, denominator=10**400),
    "`logits` must be float64, .*; got torch.int64": lambda: xent.binary_cross_entropy(ZEROS.long(), ZEROS),
    "`sample_weight` must be real numbers; got torch.complex64": lambda: xent.binary_cross_entropy(
        ZEROS, ZEROS, sample_weight=ZEROS.to(torch.complex64)
    ),
    r"`targets` must be in \[0, 1\]; got 1.8": lambda: xent.binary_cross_entropy(
        ZEROS, torch.tensor([2**64 - 100, 1], dtype=torch.uint64)
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused(message):
    with pytest.raises((ValueError, TypeError), match=message):
        REFUSED[message]()
