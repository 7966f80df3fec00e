"""The PyTorch front end under torch.compile and torch.export, and its operators."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import xent.torch as xt  # noqa: E402
from tests.torch.test_functional import TRANSFORMS, F, losses, plain  # noqa: E402
from xent.torch import devices, operators  # noqa: E402

# PyTorch warns of its own use of what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

COMPILED = [
    {},
    {"label_smoothing": 0.1},
    {
        "label_smoothing": 0.1,
        "smoothing_over": "others",
        "softcap": 3.0,
        "temperature": 0.5,
        "reduction": "sum",
    },
    {"weight": torch.linspace(0.0, 2.0, 5), "denominator": "rows"},
    {"sample_weight": torch.linspace(0.0, 2.0, 6)},
    {"reduction": "none"},
    {"focal_gamma": 2.0, "z_loss": 0.1},
]


def compiled(f):
    torch._dynamo.reset()
    return torch.compile(f, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize(
    ("options", "soft"),
    [(options, False) for options in COMPILED] + [(options, True) for options in COMPILED[:-1]],
    ids=lambda x: "+".join(x) if isinstance(x, dict) else "probabilities" if x else "labels",
)
def test_compiled_is_eager(options, soft):
    z, y = plain(dtype=torch.float32)
    y[2] = -100
    target = plain(1)[0].softmax(-1).float() if soft else y
    z.requires_grad_()

    def f(z, target):
        return xt.cross_entropy(z, target, **options)

    if "focal_gamma" in options or "reduction" in options:  # by statistics and their gradient: other bits
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(devices, "are_arrays", lambda *tensors: "sum" in options.values())
            expected = f(z, target)
    else:
        expected = f(z, target)
    (grad,) = torch.autograd.grad(expected.sum(), z)
    loss = compiled(f)(z, target)
    assert torch.equal(loss, expected)
    assert torch.equal(torch.autograd.grad(loss.sum(), z)[0], grad)


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
        assert len(operators._ahead.made) == 1
        for _ in range(2):  # the second backward finds nothing made
            (grad,) = torch.autograd.grad(upstream * loss, z, retain_graph=True)
            assert torch.equal(grad, torch.autograd.grad(upstream * eager_loss, z, retain_graph=True)[0])
        assert len(calls) == count + 1
        assert not operators._ahead.made
    loss = f(z)
    assert operators._ahead.made
    del loss  # without a backward
    assert not operators._ahead.made
    with torch.no_grad():
        assert torch.equal(f(z), eager_loss)
    assert not operators._ahead.made


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
