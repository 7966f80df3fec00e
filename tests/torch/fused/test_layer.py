"""What `fuse` takes, what it refuses, and what `unfuse` leaves."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import xent.torch as xt  # noqa: E402
from tests.torch.fused.comparisons import D, K, case  # noqa: E402
from xent.torch.fused.logits import Logits  # noqa: E402


class Model(torch.nn.Module):
    def __init__(self, head):
        super().__init__()
        self.head = head

    def get_output_embeddings(self):
        return self.head


class Adapter(torch.nn.Module):
    """As those of peft: a layer around a layer."""

    def __init__(self, base):
        super().__init__()
        self.base = base

    def get_base_layer(self):
        return self.base

    def forward(self, x):
        return self.base(x) + x @ torch.ones(D, K)


class Quantised(torch.nn.Linear):
    def forward(self, input):
        return super().forward(input.round())


@pytest.mark.parametrize("kind", ["a layer", "a model", "an adapter", "a model with one"])
def test_taken(kind):
    layer, hidden, _ = case()
    given = {
        "a layer": lambda: layer,
        "a model": lambda: Model(layer),
        "an adapter": lambda: Adapter(layer),
        "a model with one": lambda: Model(Adapter(layer)),
    }[kind]()
    for _ in range(2):
        assert xt.fuse(given) is given
    assert type(layer(hidden)) is Logits
    for _ in range(2):
        assert xt.unfuse(given) is given
    assert type(layer(hidden)) is torch.Tensor
    assert "forward" not in vars(layer)


def replaced(layer):
    layer.forward = lambda x: torch.nn.Linear.forward(layer, x)
    return layer


REFUSED = {
    "no layer": (torch.nn.Embedding(K, D), TypeError, "got `Embedding`"),
    "no module": (torch.ones(3), TypeError, "got `Tensor`"),
    "a model without a head": (Model(None), ValueError, r"`get_output_embeddings\(\)` is `NoneType`"),
    "several heads": (Model(torch.nn.ModuleList()), ValueError, "is `ModuleList`"),
    "a forward of a class": (Quantised(D, K), ValueError, "got that of `Quantised`"),
    "a forward of an instance": (replaced(torch.nn.Linear(D, K)), ValueError, "which has replaced it"),
    "a model of such": (Model(Quantised(D, K)), ValueError, "the output layer of `model_or_linear`"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    given, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        xt.fuse(given)


def test_unfuse_leaves_what_others_have_replaced():
    layer = replaced(torch.nn.Linear(D, K))
    forward = layer.forward
    assert xt.unfuse(layer).forward is forward


def test_parametrised_weights():
    """The weight is computed at each call, and has its gradient."""
    layer, hidden, labels = case()
    torch.nn.utils.parametrizations.weight_norm(layer)
    found = []
    for prepare in (xt.unfuse, xt.fuse):
        logits = prepare(layer)(hidden)
        layer.zero_grad()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
        found.append([p.grad.clone() for p in layer.parameters()])
    assert type(logits) is Logits
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
