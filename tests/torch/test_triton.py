"""`xent.torch` on the Triton kernels, interpreted where there is no GPU: values, derivatives, no waiting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.tables.variants import Kind, Variant, each_of_few, every_case

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

import xent  # noqa: E402
import xent.torch  # noqa: E402
from tests.kernels.triton.test_triton import DEVICE, tensor  # noqa: E402
from xent.core.link import Link  # noqa: E402
from xent.kernels import triton as kernels  # noqa: E402
from xent.torch import devices, modes  # noqa: E402

pytestmark = pytest.mark.usefixtures("interpreter")


@pytest.fixture(params=["one node", "ordinary code"])
def on_triton(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """`xent.torch` takes tensors of this device for those of a GPU; both ways to a loss."""
    monkeypatch.setitem(devices.KERNELS, "cpu", "triton")
    monkeypatch.setattr(modes, "looks_at", lambda x, validate: validate is True)
    if request.param == "ordinary code":
        monkeypatch.setattr(devices, "takes_tensors", lambda *tensors: False)


@pytest.mark.usefixtures("on_triton")
@every_case
def test_variants(variant: Variant, kind: Kind) -> None:
    """The front end on these kernels: losses, gradients and the gradient's derivative as xent's on arrays."""
    rng = np.random.default_rng(7)
    z = rng.normal(0, 2, (3, 5))
    target, options = variant.make(kind, (3,), 5, rng)
    options["denominator"] = variant.denominator
    expected, grad = xent.cross_entropy_with_grad(z, target, **options)
    product = xent.cross_entropy_hvp(z, target, np.ones_like(z) + z, **options)
    mine = {k: tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    x = tensor(z).requires_grad_()
    loss = xent.torch.cross_entropy(x, tensor(target), mine.pop("class_weight", None), **mine)
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (twice,) = torch.autograd.grad(loss, x, torch.full_like(loss, 2.0), retain_graph=True)
    (dx,) = torch.autograd.grad(loss, x, create_graph=True)
    (ddx,) = torch.autograd.grad(dx, x, tensor(np.ones_like(z) + z))
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-12, atol=1e-15)
    for g, factor in ((first, 1.0), (twice, 2.0), (dx, 1.0)):
        np.testing.assert_allclose(g.detach().cpu().numpy(), factor * grad, rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(ddx.cpu().numpy(), product, rtol=1e-9, atol=1e-14)


@pytest.mark.usefixtures("on_triton")
def test_layouts_and_labels_without_checks() -> None:
    """Classes on axis 1; a label that is no class is NaN in its row, found without reading it on the host."""
    z = torch.randn(2, 5, 3, dtype=torch.float64, device=DEVICE, requires_grad=True)
    y = torch.tensor([[0, 4, 5], [-100, -1, 2]], device=DEVICE)
    losses = xent.torch.cross_entropy(z, y, reduction="none")
    (grad,) = torch.autograd.grad(losses.sum(), z)
    assert losses.isnan().tolist() == [[False, False, True], [False, True, False]]
    assert torch.equal(grad.isnan().any(1), losses.isnan())
    kept = ~losses.isnan()
    exact = torch.nn.functional.cross_entropy(z, torch.where(kept, y, -100), reduction="none")
    torch.testing.assert_close(losses[kept], exact[kept])
    (expected,) = torch.autograd.grad(exact.sum(), z)
    torch.testing.assert_close(grad.movedim(1, -1)[kept], expected.movedim(1, -1)[kept])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("factor", [1.0, 4096.0])
@pytest.mark.usefixtures("on_triton")
def test_upstream_gradient(dtype: Any, factor: float) -> None:
    """Known on the device alone: a gradient that is there already is scaled by it, or it is computed then."""
    z = (8 * torch.randn(4, 40, dtype=dtype)).to(DEVICE).requires_grad_()
    y = torch.arange(4, device=DEVICE)
    exact = z.detach().double().requires_grad_()
    (xent.torch.cross_entropy(z, y, label_smoothing=1e-3) * factor).backward()
    (torch.nn.functional.cross_entropy(exact, y, label_smoothing=1e-3) * factor).backward()
    error = (z.grad.double() - exact.grad).abs()
    info = torch.finfo(dtype)
    assert (error <= 1.1 * info.eps * exact.grad.abs() + 2.0**-24 * (dtype == torch.float16)).all()


@pytest.mark.parametrize("validate", [None, True])
@pytest.mark.usefixtures("on_triton")
def test_validates_if_asked_to(validate: bool | None, request: pytest.FixtureRequest) -> None:
    z, y = torch.zeros(3, 5, device=DEVICE), torch.tensor([0, 7, 2], device=DEVICE)
    if validate and "one node" in request.node.name:
        with pytest.raises(ValueError, match="got 7 at row 1"):
            xent.torch.cross_entropy(z, y, validate=validate)
    else:
        assert xent.torch.cross_entropy(z, y, validate=None).isnan()


@pytest.mark.parametrize("device", ["meta"])
def test_other_devices_are_named(device: str) -> None:
    with pytest.raises(
        NotImplementedError, match="device of type cpu or cuda; there are no kernels for meta"
    ):
        devices.row_stats(torch.empty(2, 3, device=device), None, None, Link(), ("lse",))


@pytest.mark.parametrize("way", ["one node", "ordinary code"])
@each_of_few
def test_the_host_never_waits(
    variant: Variant, kind: Kind, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On tensors without values, where what asks for a value fails."""
    launched: list[str] = []

    def stub(name: str) -> Any:
        return type("Stub", (), {"__getitem__": lambda self, grid: lambda *a, **k: launched.append(name)})()

    for name in ("rows", "grad", "rescale"):
        monkeypatch.setattr(kernels.device, name, stub(name))
    monkeypatch.setitem(devices.KERNELS, "meta", "triton")
    if way == "ordinary code":
        monkeypatch.setattr(devices, "takes_tensors", lambda *tensors: False)
    target, options = variant.make(kind, (6,), 5, np.random.default_rng(0))
    mine = {
        k: torch.empty(v.shape, dtype=torch.float64, device="meta") if isinstance(v, np.ndarray) else v
        for k, v in options.items()
    }
    dtype = torch.int64 if kind == "labels" else torch.float32
    y = torch.empty(target.shape, dtype=dtype, device="meta")
    for reduction in ("mean", "none"):
        z = torch.empty(6, 5, device="meta", requires_grad=True)
        weight = mine.get("class_weight")
        rest = {k: v for k, v in mine.items() if k != "class_weight"}
        loss = xent.torch.cross_entropy(z, y, weight, reduction=reduction, **rest)
        loss.backward(torch.ones_like(loss))
        assert z.grad.shape == z.shape
        assert loss.is_meta
    assert bool(launched) == (way == "one node")


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "row_statistics": lambda z, y, q, x, w: sum(
        s.sum() for s in xent.torch.row_statistics(z, y, want=xent.RowStatistics._fields)
    ),
    "binary": lambda z, y, q, x, w: xent.torch.binary_cross_entropy_with_logits(z, q),
    "linear": lambda z, y, q, x, w: xent.torch.linear_cross_entropy(x, w, y, label_smoothing=0.1),
    "linear, not linear": lambda z, y, q, x, w: xent.linear_cross_entropy(x, w, y, z_loss=0.1),
    "classes last": lambda z, y, q, x, w: xent.cross_entropy(z, q, softcap=2.0),
    "top-k": lambda z, y, q, x, w: top_k(x, w, y),
    "top-k, reverse": lambda z, y, q, x, w: top_k(x, w, y, direction="reverse", temperature=2.0),
    "top-k, a class excluded": lambda z, y, q, x, w: top_k(
        x,
        w,
        y,
        bias=torch.where(torch.arange(7, device=x.device) < 4, 0.0, -torch.inf).double(),
        direction="reverse",
    ),
    "sigmoid focal": lambda z, y, q, x, w: xent.torch.binary_cross_entropy_with_logits(
        z, torch.where(q < 0.3, -1.0, q.round()), focal_gamma=2.0, alpha=0.25, ignore_index=-1
    ),
    "temperatures": lambda z, y, q, x, w: xent.torch.linear_cross_entropy(
        x, w, y, temperature=y.abs() + 1.0, z_loss=0.1
    ),
    "dense temperatures": lambda z, y, q, x, w: xent.torch.cross_entropy(z, y, temperature=y.abs() + 1.0),
    "values": lambda z, y, q, x, w: sum(
        xent.torch.linear_cross_entropy(x, w, y, want=("loss", "plain", "z_loss", "accuracy"), z_loss=0.1)[:4]
    ),
    "shifts": lambda z, y, q, x, w: xent.torch.linear_cross_entropy(
        x, w, y, shift=(0, 1, 3), shift_weight=(1.0, 0.5, 0.25), z_loss=0.1
    ),
}


def top_k(x: Any, w: Any, y: Any, **options: Any) -> Any:
    """From a teacher of 4 of 7 classes, which are the first ones for the first row."""
    entries = torch.tensor([[0, 1, 2, 3], [2, 0, 6, 4], [9, 9, 9, 9], [5, 1, 3, 2]], device=x.device)
    log_probs = torch.full((4, 4), -2.0, dtype=torch.float64, device=x.device)
    return xent.torch.linear_topk_kl_divergence(
        x, w, entries, log_probs, labels=y, chunk_bytes=150, **options
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What else goes by the kernels of a device: values and gradients as by the CPU's."""

    def run(device: str) -> list[Any]:
        random = torch.Generator().manual_seed(0)
        shapes = {"z": (4, 7), "q": (4, 7), "x": (4, 5), "w": (7, 5)}
        t = {n: torch.randn(s, generator=random, dtype=torch.float64) for n, s in shapes.items()}
        t["q"] = t["q"].sigmoid()
        t = {n: v.to(device).requires_grad_(n != "q") for n, v in t.items()}
        y = torch.tensor([1, 2, -100, 6], device=device)
        value = FUNCTIONS[name](t["z"], y, t["q"], t["x"], t["w"])
        grads = torch.autograd.grad(value, [t["z"], t["x"], t["w"]], allow_unused=True)
        return [value.detach().cpu(), *(g.cpu() for g in grads if g is not None)]

    expected = run("cpu")
    monkeypatch.setitem(devices.KERNELS, "cpu", "triton")
    monkeypatch.setattr(modes, "looks_at", lambda x, validate: validate is True)
    for actual, exact in zip(run(DEVICE), expected, strict=True):
        torch.testing.assert_close(actual, exact, rtol=1e-12, atol=1e-14)


def test_a_negated_view_is_read_with_its_sign() -> None:
    z, y = torch.randn(3, 5), torch.tensor([0, 1, 2])
    for x in (torch._neg_view(z), z):
        stats = kernels.row_stats(x, y, torch._neg_view(-torch.ones(5)), Link(), ("lse", "dense_log_prob"))
        torch.testing.assert_close(stats.lse.float(), torch.logsumexp(x, -1))
        torch.testing.assert_close(stats.dense_log_prob.float(), torch.log_softmax(x, -1).sum(-1))
