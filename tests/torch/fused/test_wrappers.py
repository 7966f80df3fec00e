"""Modules around a fused layer whose hooks look at the output: they see what they saw."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

import xent.torch as xt  # noqa: E402
from tests.torch.fused.comparisons import B, D, K, T, events  # noqa: E402
from xent.torch.fused.logits import Logits  # noqa: E402

F = torch.nn.functional


class Model(torch.nn.Module):
    """Embeddings, a layer, and the loss if there are labels."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(K, D)
        self.head = torch.nn.Linear(D, K)

    def get_output_embeddings(self):
        return self.head

    def forward(self, tokens, labels=None):
        logits = self.head(self.embedding(tokens).tanh())
        return logits if labels is None else (rows_loss(logits, labels), logits)


class Around(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return {"logits": [self.model(tokens)]}


def rows_loss(z, y):
    return F.cross_entropy(z.view(-1, K), y.view(-1))


def batch():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, K, (B, T), generator=generator) for _ in range(2)]


def models():
    model = Model()
    return model, xt.fuse(copy.deepcopy(model))


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters()}


def assert_same(found, expected, tolerance=1e-6):
    for f, e in zip(found, expected, strict=True):
        assert (f is None) == (e is None)
        if f is not None:
            torch.testing.assert_close(f, e, rtol=tolerance, atol=tolerance)


HOOKS = ["register_full_backward_hook", "register_full_backward_pre_hook", "register_backward_hook"]


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.filterwarnings("ignore:Using non-full backward hooks:FutureWarning")
@pytest.mark.filterwarnings("ignore:Using a non-full backward hook:FutureWarning")
@pytest.mark.parametrize("register", HOOKS)
@pytest.mark.parametrize("inside", [True, False], ids=["loss inside", "loss outside"])
def test_backward_hooks(inside, register):
    tokens, labels = batch()
    found = []
    for model in models():
        seen = []
        getattr(model, register)(lambda module, *given, seen=seen: seen.append(given[-1]))
        loss = model(tokens, labels)[0] if inside else rows_loss(model(tokens), labels)
        (2 * loss).backward()
        found.append(([*seen[0], *gradients(model).values()], len(seen)))
    (f, count), (e, expected_count) = found[1], found[0]
    assert count == expected_count == 1
    assert_same(f, e)
    assert events() == ({"fused": 1, "computed for the output of Model": 1} if inside else
                        {"computed for the output of Model": 1})  # fmt: skip


@pytest.mark.parametrize("inside", [True, False], ids=["loss inside", "loss outside"])
def test_forward_hooks_see_tensors(inside):
    tokens, labels = batch()
    found = []
    for model in models():
        seen = []
        model.register_forward_hook(lambda module, given, output, seen=seen: seen.append(output))
        loss = model(tokens, labels)[0] if inside else rows_loss(model(tokens), labels)
        loss.backward()
        (output,) = seen
        assert isinstance(output[0] if inside else output, torch.Tensor)
        found.append([loss, *gradients(model).values()])
    assert_same(found[1], found[0], 1e-6 if inside else 0)
    assert events() == ({"fused": 1} if inside else {"computed for the output of Model": 1})


def test_a_hook_that_is_to_run_first_sees_tensors_too():
    tokens, _ = batch()
    _, model = models()
    seen = []
    model.register_forward_hook(lambda module, given, output: seen.append(output), prepend=True)
    for _ in range(2):
        model(tokens)
    assert [type(x) for x in seen] == [torch.Tensor, torch.Tensor]


class WithHidden(Model):
    def forward(self, tokens, labels=None):
        hidden = self.embedding(tokens).tanh()
        return {"hidden": hidden, "logits": self.head(hidden)}


def test_other_tensors_in_the_output_are_no_loss():
    tokens, labels = batch()
    found = []
    for is_fused in (False, True):
        model = WithHidden()
        if is_fused:
            xt.fuse(model)
        model.register_forward_hook(lambda module, given, output: None)
        rows_loss(model(tokens)["logits"], labels).backward()
        found.append(gradients(model).values())
    assert_same(found[1], found[0], 0)
    assert events() == {"computed for the output of WithHidden": 1}


def test_hooks_on_a_module_further_out():
    tokens, labels = batch()
    found = []
    for model in models():
        around = Around(model)
        seen = []
        around.register_forward_hook(lambda module, given, output, seen=seen: seen.append(output))
        loss = rows_loss(around(tokens)["logits"][0], labels)
        loss.backward()
        assert type(seen[0]["logits"][0]) is torch.Tensor
        found.append([loss, *gradients(model).values()])
    assert_same(found[1], found[0], 0)
    assert events() == {"computed for the output of Around": 1}


def test_logits_beside_a_loss_have_values_and_no_other_gradient():
    """A hook may prepare the backward of what it saw; another loss of the logits would go without it."""
    tokens, labels = batch()
    _, model = models()
    model.register_forward_hook(lambda module, given, output: None)
    loss, logits = model(tokens, labels)
    expected, _ = models()
    assert torch.equal(logits.argmax(-1), expected(tokens).argmax(-1))
    loss.backward()
    for other in (rows_loss(model(tokens, labels)[1], labels), logits.square().sum()):
        with pytest.raises(RuntimeError, match="have a gradient outside of a module that prepares"):
            other.backward()


def test_without_hooks_another_loss_outside_is_right():
    tokens, labels = batch()
    found = []
    for model in models():
        loss, logits = model(tokens, labels)
        (loss + 2 * rows_loss(logits.float(), labels.flip(0))).backward()
        found.append(gradients(model).values())
    assert_same(found[1], found[0])
    assert events() == {"fused": 2}


def test_unfuse_leaves_nothing():
    model = Model()
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    hooks = dict(model._forward_hooks)
    xt.unfuse(xt.fuse(xt.fuse(model)))
    assert dict(model._forward_hooks) == hooks == {}
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == before
    tokens, _ = batch()
    assert type(model(tokens)) is torch.Tensor
    assert type(xt.fuse(model)(tokens)) is Logits
