"""The PyTorch front end: every variant against the NumPy one, dtypes and layouts, what may go wrong."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")


import xent  # noqa: E402
import xent.torch as xt  # noqa: E402
from tests.tables.variants import every_case  # noqa: E402
from tests.torch.problems import F, arguments_of, plain  # noqa: E402
from xent.core.spec import LossSpec  # noqa: E402
from xent.torch import dense  # noqa: E402
from xent.torch.arguments import Call  # noqa: E402

# PyTorch warns of its own use of what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

REDUCTIONS = ("mean", "sum", "none")


@every_case
def test_variants(variant, kind, way):
    z, target, options, (array, targets, numpy_options) = arguments_of(variant, kind)
    loss = xt.cross_entropy(z.requires_grad_(), target, **options)
    loss.backward()
    expected, grad = xent.cross_entropy_with_grad(array, targets, **numpy_options)
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(z.grad.numpy(), grad, rtol=1e-11, atol=1e-15)
    (dz,) = torch.autograd.grad(xt.cross_entropy(z, target, **options), z, create_graph=True)
    (product,) = torch.autograd.grad(dz, z, torch.cos(z.detach()))
    expected = xent.cross_entropy_hvp(array, targets, np.cos(array), **numpy_options)
    np.testing.assert_allclose(product.numpy(), expected, rtol=1e-10, atol=1e-14)
    if variant.denominator is None:
        upstream = torch.linspace(-1, 2, 6, dtype=torch.float64)
        rows = xt.cross_entropy(z, target, reduction="none", **options)
        (grad,) = torch.autograd.grad(rows, z, upstream)
        f = xent.CrossEntropyLoss(reduction="none", **numpy_options)
        np.testing.assert_allclose(rows.detach().numpy(), f(array, targets), rtol=1e-13, atol=1e-15)
        np.testing.assert_allclose(grad.numpy(), f.backward(upstream.numpy()), rtol=1e-11, atol=1e-15)


def test_autocast():
    model, x, y = torch.nn.Linear(4, 3), torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
        loss = xt.cross_entropy(logits, y)
    loss.backward()
    assert logits.dtype == torch.bfloat16
    assert loss.dtype == model.weight.grad.dtype == torch.float32


def test_all_rows_ignored_leave_the_graph(way):
    """Data parallelism waits for a gradient from every process, also from one with nothing to learn from."""
    model = torch.nn.Linear(4, 3)
    loss = xt.cross_entropy(model(torch.randn(5, 4)), torch.full((5,), -100))
    loss.backward()
    assert loss.item() == 0
    assert model.weight.grad.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_single(dtype):
    z, y = plain(rows=(300,), num_classes=50, dtype=torch.float64)
    z = (3 * z).to(dtype).requires_grad_()
    loss = xt.cross_entropy(z, y)
    loss.backward()
    exact = z.detach().double().requires_grad_()
    truth = F.cross_entropy(exact, y)
    truth.backward()
    assert loss.dtype == torch.float32
    assert z.grad.dtype == dtype
    assert abs(loss.item() - truth.item()) < 1e-6
    rounding = (exact.grad.to(dtype).double() - exact.grad).abs()
    ulp = (
        torch.finfo(dtype).eps * exact.grad.abs()
        + torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    )
    assert ((z.grad.double() - exact.grad).abs() <= torch.maximum(3 * rounding, 0.51 * ulp)).all()


def test_bfloat16_near_certainty():
    """PyTorch's own loss is 0 here, and so is its gradient: p of the label is 0.9992."""
    z = torch.tensor([[7.125, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    loss = xt.cross_entropy(z, torch.tensor([0]))
    loss.backward()
    assert loss.item() == pytest.approx(np.log1p(np.exp(-7.125)), rel=1e-6)
    assert z.grad[0, 1].item() == pytest.approx(1 / (1 + np.exp(7.125)), rel=4e-3)


def test_float16_gradients_are_scaled_before_they_are_rounded():
    """As a loss scaler wants it: entries below 6e-8 must not be lost before the factor of 65536."""
    z = torch.zeros(4096, 1000, dtype=torch.float16, requires_grad=True)
    y = torch.zeros(4096, dtype=torch.long)
    (65536.0 * xt.cross_entropy(z, y)).backward()
    assert z.grad[0, 1].item() == pytest.approx(65536 / 4096 / 1000, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_labels_of_any_integer_dtype(dtype):
    z, y = plain()
    assert torch.equal(xt.cross_entropy(z, y.to(dtype)), xt.cross_entropy(z, y))


def test_classes_on_axis_1_without_a_copy():
    z, _ = plain(rows=(2, 5, 3), num_classes=4)  # (N, C=5, 3, 4)
    y = torch.randint(0, 5, (2, 3, 4))
    z.requires_grad_()
    loss = xt.cross_entropy(z, y)
    loss.backward()
    torch.testing.assert_close(z.grad, torch.autograd.grad(F.cross_entropy(z, y), z)[0])
    assert z.grad.is_contiguous()
    strided = torch.empty(5, 12)[:, ::2].t().requires_grad_()  # (6, 5)
    assert torch.autograd.grad(xt.cross_entropy(strided, torch.zeros(6, dtype=torch.long)), strided)


def test_one_row_without_a_batch():
    z, y = plain()
    torch.testing.assert_close(xt.cross_entropy(z[0], y[0]), F.cross_entropy(z[0], y[0]))
    torch.testing.assert_close(
        xt.cross_entropy(z[0], z[1].softmax(-1)), F.cross_entropy(z[0], z[1].softmax(-1))
    )


def test_labels_out_of_range():
    z, y = plain()
    y[3] = 5
    with pytest.raises(IndexError, match=r"`target` must be in \[0, 5\) .* got 5 at row 3") as caught:
        xt.cross_entropy(z, y)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(ValueError, match=r"`targets` must be in \[0, 5\) .* got 5 at row 3"):
        xent.cross_entropy(z, y)
    rows = xt.cross_entropy(z, y, reduction="none", validate=False)
    assert rows.isnan().tolist() == [False, False, False, True, False, False]
    again = dense.derivable(z, Call(y, None, None, LossSpec(), "none", None, None))
    assert again.isnan().tolist() == rows.isnan().tolist()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda z, y: xt.cross_entropy(z.numpy(), y), TypeError, "`input` must be a torch.Tensor"),
        (lambda z, y: xt.cross_entropy(z.long(), y), ValueError, "`input` must be float64, float32"),
        (lambda z, y: xt.cross_entropy(z, y[:4]), ValueError, "batch_size"),
        (lambda z, y: xt.cross_entropy(z, y, torch.ones(4)), RuntimeError, "all 5 classes"),
        (
            lambda z, y: xt.cross_entropy(z, y, sample_weight=torch.ones(5)),
            ValueError,
            r"`sample_weight` .* \(6,\); got \(5,\)",
        ),
        (lambda z, y: xt.cross_entropy(z, z.softmax(-1), focal_gamma=1.0), ValueError, "`focal_gamma` and"),
        (lambda z, y: xt.cross_entropy(z, -z.abs()), ValueError, "`target` must be not negative"),
        (lambda z, y: xt.cross_entropy(z, y, reduction="max"), ValueError, "`reduction` must be one of"),
        (lambda z, y: xt.cross_entropy(z, y, temperature=0.0), ValueError, "`temperature` must be"),
        (lambda z, y: xt.row_statistics(z, z), ValueError, "`labels` must have an integer dtype"),
        (
            lambda z, y: xt.binary_cross_entropy_with_logits(z, z.exp() + 1),
            ValueError,
            r"`target` must be in \[0, 1\]",
        ),
    ],
    ids=lambda x: getattr(x, "__name__", "")[:20],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(*plain())


@every_case
def test_classes_last(variant, kind):
    """`xent.cross_entropy` of tensors is that of arrays."""
    _, target, _, (array, targets, options) = arguments_of(variant, kind, rows=(2, 3))
    z = torch.tensor(array, requires_grad=True)
    mine = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    loss = xent.cross_entropy(z, target, **mine)
    expected, grad = xent.cross_entropy_with_grad(array, targets, **options)
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(torch.autograd.grad(loss, z)[0].numpy(), grad, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_binary_and_linear_with_classes_last(reduction):
    rng = np.random.default_rng(0)
    z, q, w = rng.normal(size=(4, 3)), rng.random((4, 3)), rng.random((4, 3)) * (rng.random((4, 3)) > 0.3)
    y = np.where(rng.random((4, 3)) > 0.8, -100, q > 0.5)
    for target, options in (
        (q, {"pos_weight": 2.0}),
        (q, {"sample_weight": w, "label_smoothing": 0.1}),
        (y, {"sample_weight": w, "pos_weight": 0.5}),
        (y, {"focal_gamma": 2.0, "temperature": 0.5}),
    ):
        options = {"reduction": reduction} | options
        tensors = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
        logits = torch.tensor(z, requires_grad=True)
        loss = xent.binary_cross_entropy(logits, torch.tensor(target), **tensors)
        expected, grad = xent.binary_cross_entropy_with_grad(z, target, **options)
        np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=1e-13, atol=1e-15)
        loss.sum().backward()
        np.testing.assert_allclose(logits.grad.numpy(), grad, rtol=1e-11, atol=1e-15)
    weight, bias, labels = rng.normal(size=(5, 3)), rng.normal(size=5), rng.integers(0, 5, 4)
    tensors = [torch.tensor(x, requires_grad=True) for x in (z, weight, bias)]
    loss = xent.linear_cross_entropy(
        *tensors[:2], torch.tensor(labels), bias=tensors[2], reduction=reduction, z_loss=0.1
    )
    expected, grads = xent.linear_cross_entropy_with_grad(
        z, weight, labels, bias=bias, reduction=reduction, z_loss=0.1
    )
    np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=1e-13)
    for mine, theirs in zip(torch.autograd.grad(loss.sum(), tensors), grads, strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs, rtol=1e-11, atol=1e-14)


def test_row_statistics():
    z, y = plain()
    y[2] = -100
    z.requires_grad_()
    stats = xt.row_statistics(z, y)
    expected = xent.row_statistics(z.detach().numpy(), y.numpy())
    for mine, theirs in zip(stats[:4], expected[:4], strict=True):
        np.testing.assert_allclose(mine.detach().numpy(), theirs, rtol=1e-14)
    assert stats[4:] == expected[4:] == (None, None, None)

    def f(z):
        return xt.row_statistics(z, y, softcap=3.0, temperature=0.7)[:3]

    assert torch.autograd.gradcheck(f, z, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f, z, check_fwd_over_rev=True)
    policy = (stats.log_prob.exp() * 2.0 + 0.1 * stats.entropy).sum()  # as reinforcement learning uses it
    log_p = z.log_softmax(-1)
    kept = (y >= 0).double()
    again = (log_p.gather(-1, y.clamp(0)[:, None])[:, 0].exp() * 2.0) * kept + 2.0 * (1 - kept)
    again = (again - 0.1 * kept * (log_p.exp() * log_p).sum(-1)).sum()
    torch.testing.assert_close(policy, again)
    torch.testing.assert_close(
        torch.autograd.grad(policy, z, retain_graph=True), torch.autograd.grad(again, z, retain_graph=True)
    )


def test_binary_options_are_those_of_two_classes():
    z = torch.randn(7, dtype=torch.float64, requires_grad=True)
    q = torch.tensor([0, 1, 1, 0, 1, 0, 1])
    rows = torch.stack([torch.zeros_like(z), z], -1)
    for options in ({"focal_gamma": 2.0}, {"label_smoothing": 0.2}, {"z_loss": 0.1, "softcap": 2.0}):
        loss = xt.binary_cross_entropy_with_logits(z, q, **options)
        torch.testing.assert_close(loss, xt.cross_entropy(rows, q, **options))
        assert torch.autograd.gradcheck(
            lambda z, o=options: xt.binary_cross_entropy_with_logits(z, q, **o), z, check_forward_ad=True
        )
