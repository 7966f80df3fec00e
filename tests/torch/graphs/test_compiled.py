"""The PyTorch front end under torch.compile and torch.export, and its operators."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import xent.torch as xt  # noqa: E402
from tests.tables.variants import each_structure  # noqa: E402
from tests.torch.problems import TRANSFORMS, F, arguments_of, losses, plain  # noqa: E402
from xent.torch import devices  # noqa: E402
from xent.torch.statistics import ahead  # noqa: E402

# PyTorch warns of its own use of what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


def compiled(f):
    torch._dynamo.reset()
    return torch.compile(f, fullgraph=True, backend="aot_eager")


@each_structure
def test_compiled_is_eager(variant, kind):
    """The mean of rows, and each row's projected loss, to the bit; their gradients to a rounding."""
    z, target, options, _ = arguments_of(variant, kind, dtype=torch.float32)
    inputs = (z, torch.randn(6, 4), torch.randn(5, 4))
    reduction = "none" if variant.denominator is None else "mean"

    def f(z, x, w):
        mean = xt.cross_entropy(z, target, **options)
        rows = xt.linear_cross_entropy(x, w, target, reduction=reduction, chunk_bytes=60, **options)
        return torch.cat([mean.reshape(1), rows.reshape(-1)])

    inputs = [x.requires_grad_() for x in inputs]
    found, expected = compiled(f)(*inputs), f(*inputs)
    assert torch.equal(found, expected)
    upstream = torch.linspace(0.5, 2.0, len(found))
    gradients = (torch.autograd.grad(losses, inputs, upstream) for losses in (found, expected))
    torch.testing.assert_close(*gradients, rtol=2e-6, atol=1e-6)


def test_compiled_reads_the_logits_once(monkeypatch):
    calls = []
    kernel = devices.row_stats_and_grad
    monkeypatch.setattr(devices, "row_stats_and_grad", lambda *a: (calls.append(1), kernel(*a))[1])
    z, y = plain(dtype=torch.float16)
    z.requires_grad_()
    f = compiled(lambda z: xt.cross_entropy(z, y))
    eager_loss = xt.cross_entropy(z, y)
    for upstream, count in ((1.0, 1), (0.25, 2)):
        calls.clear()
        loss = f(z)
        assert len(ahead._ahead.stored) == 1
        for _ in range(2):  # the second backward finds nothing made
            (grad,) = torch.autograd.grad(upstream * loss, z, retain_graph=True)
            assert torch.equal(grad, torch.autograd.grad(upstream * eager_loss, z, retain_graph=True)[0])
        assert len(calls) == count + 1
        assert not ahead._ahead.stored
    loss = f(z)
    assert ahead._ahead.stored
    del loss  # without a backward
    assert not ahead._ahead.stored
    with torch.no_grad():
        assert torch.equal(f(z), eager_loss)
    assert not ahead._ahead.stored


@pytest.mark.parametrize("name", ["grad", "hessian", "jvp", "vmap of grad", "grad of vmap"])
def test_compiled_transforms(name):
    z, y = plain()
    ours, theirs = losses(y, label_smoothing=0.1)
    found = compiled(TRANSFORMS[name](ours))(z)
    torch.testing.assert_close(found, TRANSFORMS[name](theirs)(z), rtol=1e-10, atol=1e-13)


def test_export():
    z, y = plain(dtype=torch.float32)

    class Model(torch.nn.Module):
        def forward(self, z, y):
            return xt.cross_entropy(z, y, label_smoothing=0.1)

    program = torch.export.export(Model(), (z.requires_grad_(), y))
    assert "row_stats_ahead" not in str(program)  # nothing will ask for a gradient
    torch.testing.assert_close(program.module()(z, y), F.cross_entropy(z, y, label_smoothing=0.1))
