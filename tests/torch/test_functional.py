"""The PyTorch front end: every variant against the NumPy one, every mode of autograd, what may go wrong."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.multiprocessing.reductions import StorageWeakRef  # noqa: E402

import xent  # noqa: E402
import xent.torch as xt  # noqa: E402
from tests.tables.variants import each_structure, every_case  # noqa: E402
from xent.core.spec import LossSpec  # noqa: E402
from xent.engine import memory  # noqa: E402
from xent.torch import dense, devices  # noqa: E402
from xent.torch.arguments import Call  # noqa: E402

# PyTorch warns of its own use of what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

F = torch.nn.functional
REDUCTIONS = ("mean", "sum", "none")


def arguments_of(variant, kind, rows=(6,), num_classes=5, dtype=torch.float64):
    """(logits, target, keywords) for `xt.cross_entropy`, and the same for `xent.cross_entropy`."""
    rng = np.random.default_rng(7)
    z = rng.normal(0, 2, (*rows, num_classes))
    target, options = variant.make(kind, rows, num_classes, rng)
    options["denominator"] = variant.denominator
    mine = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    mine["weight"] = mine.pop("class_weight", None)
    return torch.tensor(z, dtype=dtype), torch.tensor(target), mine, (z, target, options)


@pytest.fixture(params=["one node", "ordinary code"])
def way(request, monkeypatch):
    """Both ways to a loss: the single autograd node of a plain call, and the code around statistics."""
    if request.param == "ordinary code":
        monkeypatch.setattr(devices, "are_arrays", lambda *tensors: False)
    return request.param


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


@each_structure
def test_derivatives(variant, kind):
    """Of one loss a row, whose means and sums test_variants has; of the mean where it is another."""
    z, target, options, _ = arguments_of(variant, kind, rows=(3,), num_classes=4)
    reduction = "none" if variant.denominator is None else "mean"

    def f(z):
        return xt.cross_entropy(z, target, reduction=reduction, **options)

    assert torch.autograd.gradcheck(
        f, z.requires_grad_(), check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )
    assert torch.autograd.gradgradcheck(f, z, check_fwd_over_rev=True, check_rev_over_rev=True)


def plain(seed=0, rows=(6,), num_classes=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(*rows, num_classes, generator=generator, dtype=dtype)
    return z, torch.randint(0, num_classes, rows, generator=generator)


def losses(y, **options):
    """Ours and PyTorch's as functions of the logits."""
    return (
        lambda z: xt.cross_entropy(z, y, **options),
        lambda z: F.cross_entropy(z, y, **options),
    )


TRANSFORMS = {
    "grad": lambda f: torch.func.grad(f),
    "hessian": lambda f: torch.func.hessian(f),
    "jacrev of jacrev": lambda f: torch.func.jacrev(torch.func.jacrev(f)),
    "jacfwd of jacfwd": lambda f: torch.func.jacfwd(torch.func.jacfwd(f)),
    "third": lambda f: torch.func.jacfwd(torch.func.hessian(f)),
    "jvp": lambda f: lambda z: torch.func.jvp(f, (z,), (torch.cos(z),)),
    "vmap of grad": lambda f: lambda z: torch.func.vmap(torch.func.grad(f))(torch.stack([z, 2 * z])),
    "grad of vmap": lambda f: torch.func.grad(
        lambda z: torch.func.vmap(f, in_dims=2)(torch.stack([z, -z], 2)).sum()
    ),
    "functional_call": lambda f: torch.func.vjp(f, torch.zeros(6, 5, dtype=torch.float64))[1],
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(name):
    z, y = plain()
    ours, theirs = losses(y, label_smoothing=0.1)
    if name == "functional_call":
        z = torch.tensor(2.0, dtype=torch.float64)
    torch.testing.assert_close(TRANSFORMS[name](ours)(z), TRANSFORMS[name](theirs)(z), rtol=1e-10, atol=1e-13)


def test_gradients_of_each_sample():
    z, y = plain()
    each = torch.func.vmap(torch.func.grad(lambda z, y: xt.cross_entropy(z, y)))(z, y)
    torch.testing.assert_close(each, z.softmax(-1) - F.one_hot(y, 5))


def test_vmap_over_probabilities_and_weights():
    z, y = plain()
    q = torch.softmax(plain(1)[0], -1)
    c = torch.rand(3, 5, dtype=torch.float64)
    torch.testing.assert_close(
        torch.func.vmap(lambda c: xt.cross_entropy(z, y, c))(c),
        torch.stack([F.cross_entropy(z, y, w) for w in c]),
    )
    torch.testing.assert_close(
        torch.func.vmap(lambda q, c: xt.cross_entropy(z, q, c, label_smoothing=0.2))(q.expand(3, 6, 5), c),
        torch.stack([F.cross_entropy(z, q, w, label_smoothing=0.2) for w in c]),
    )


def test_memory_of_a_gradient_is_used_again(monkeypatch):
    monkeypatch.setattr(memory, "_kept", [])
    z = torch.randn(1, 3, 512, 1024, requires_grad=True)
    y = torch.randint(0, 3, (1, 512, 1024))
    gradients = [torch.autograd.grad(xt.cross_entropy(z, y), z)[0] for _ in range(4)]
    assert len({g.data_ptr() for g in gradients}) == 4
    places = {g.data_ptr() for g in gradients}
    first = gradients[0].clone()
    assert first.stride() == gradients[0].stride() == z.stride()
    view = gradients[0][0, 1]
    del gradients
    assert len(memory._kept) == memory.BLOCKS
    free = places - {view.data_ptr() - 512 * 1024 * 4}
    again = [torch.autograd.grad(xt.cross_entropy(z, y), z)[0] for _ in range(3)]
    assert len({g.data_ptr() for g in again}) == 3
    assert len({g.data_ptr() for g in again} & free) >= memory.BLOCKS  # the system may give a third back
    assert all(torch.equal(g, first) for g in again)
    assert torch.equal(view, first[0, 1])
    del again
    assert memory._take(1) is None  # the blocks are too large for this


def test_graphs_are_kept_and_made(way):
    z, y = plain()
    z.requires_grad_()
    loss = xt.cross_entropy(z, y)
    first = torch.autograd.grad(loss, z, retain_graph=True)[0]
    kept = first.clone()
    first.add_(1.0)  # what was given away is the caller's
    assert torch.equal(torch.autograd.grad(loss, z, retain_graph=True)[0], kept)
    (grad,) = torch.autograd.grad(loss, z, create_graph=True)
    torch.testing.assert_close(grad, kept, rtol=1e-14, atol=1e-16)
    (hvp,) = torch.autograd.grad(grad, z, kept)
    expected = xent.cross_entropy_hvp(z.detach().numpy(), y.numpy(), kept.numpy())
    np.testing.assert_allclose(hvp.numpy(), expected, rtol=1e-12, atol=1e-16)


def test_a_leaf_owns_its_gradient(way):
    z, y = plain()
    z.requires_grad_()
    for count in (1, 2):
        xt.cross_entropy(z, y).backward()
        torch.testing.assert_close(z.grad, count * (z.softmax(-1) - F.one_hot(y, 5)).detach() / 6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_short_way_has_the_same_bits(dtype, monkeypatch):
    """Not near them: `dense._mean_loss_and_grad` calls the same kernel as `Problem`."""
    results = []
    for _ in range(2):
        z, y = plain(rows=(301,), num_classes=11, dtype=dtype)
        z.requires_grad_()
        loss = xt.cross_entropy(z, y)
        results.append((loss, *torch.autograd.grad(loss, z)))
        monkeypatch.setattr(dense, "_mean_loss_and_grad", lambda *tensors: None)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_a_loss_that_is_kept_keeps_no_logits(way):
    leaf, y = plain()
    logits = leaf.requires_grad_() * 1
    memory = StorageWeakRef(logits.untyped_storage())
    loss = xt.cross_entropy(logits, y)
    loss.backward()
    del logits
    assert memory.expired()
    assert loss.requires_grad


def test_hooks_on_saved_tensors_see_all_that_is_kept():
    """A checkpoint saves memory only so: nothing of the logits' size stays that was not packed."""
    packed, leaf = [], plain()[0].requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: packed.append(x.shape), lambda x: x):
        logits = leaf * 1
        memory = StorageWeakRef(logits.untyped_storage())
        loss = xt.cross_entropy(logits, plain()[1])
        del logits
    assert memory.expired()
    assert leaf.shape in packed
    assert not hasattr(loss.grad_fn, "gradient")
    assert hasattr(xt.cross_entropy(leaf, plain()[1]).grad_fn, "gradient")  # made beforehand, without hooks
    assert loss.requires_grad


def test_checkpoint_and_modes():
    z, y = plain()
    z.requires_grad_()
    again = torch.utils.checkpoint.checkpoint(xt.cross_entropy, z, y, use_reentrant=False)
    (grad,) = torch.autograd.grad(again, z)
    torch.testing.assert_close(grad, (z.softmax(-1) - F.one_hot(y, 5)) / 6)
    with torch.inference_mode():
        assert not xt.cross_entropy(z, y).requires_grad
    with torch.no_grad():
        assert not xt.cross_entropy(z, y).requires_grad
    assert not xt.cross_entropy(z.detach(), y).requires_grad


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


def test_input_is_never_written(way):
    z, y = plain(dtype=torch.float32)
    before = z.clone()
    z.requires_grad_()
    xt.cross_entropy(z, y, label_smoothing=0.1).backward()
    assert torch.equal(z, before)
    assert z._version == 0


def test_input_changed_before_backward_is_noticed(way):
    z, y = plain()
    z.requires_grad_()
    copy = z * 1
    loss = xt.cross_entropy(copy, y)
    copy.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_labels_changed_before_backward_are_noticed_or_had_been_copied(way):
    z, y = plain()
    z.requires_grad_()
    expected = (z.softmax(-1) - F.one_hot(y, 5)) / 6
    loss = xt.cross_entropy(z, y)
    y.zero_()
    if way == "one node":
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
    else:
        torch.testing.assert_close(torch.autograd.grad(loss, z)[0], expected)


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
