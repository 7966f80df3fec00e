"""What could be wrong silently: it is an error, or PyTorch computes the layer."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

import xent.torch as xt  # noqa: E402
from tests.torch.fused.comparisons import B, D, K, T, case, events  # noqa: E402
from xent.torch.fused.guards import SAMPLES  # noqa: E402
from xent.torch.fused.logits import Logits  # noqa: E402

F = torch.nn.functional

# PyTorch warns of its own use of what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


def rows_loss(z, y):
    return F.cross_entropy(z.view(-1, z.shape[-1]), y.view(-1))


def step(layer, hidden):
    layer.weight.grad = torch.ones_like(layer.weight)
    torch.optim.SGD([layer.weight], 0.1).step()


def load(layer, hidden):
    layer.load_state_dict({k: v + 1 for k, v in layer.state_dict().items()})


def write_data(layer, hidden):
    layer.weight.data.add_(0.1)


def write_data_of_the_bias(layer, hidden):
    layer.bias.data.mul_(2.0)


def swap_data(layer, hidden):
    layer.weight.data = layer.weight.data + 0.1


def write_hidden(layer, hidden):
    with torch.no_grad():
        hidden.mul_(2)


@pytest.mark.parametrize("use", ["loss", "values", "loss of a view"])
@pytest.mark.parametrize(
    "write",
    [step, load, write_data, write_data_of_the_bias, swap_data, write_hidden],
    ids=lambda write: write.__name__,
)
def test_operands_that_were_written(write, use):
    layer, hidden, labels = case()
    logits = xt.fuse(layer)(hidden)
    rows = logits.view(-1, K)
    write(layer, hidden)
    with pytest.raises(RuntimeError, match="after its input or its weight was written"):
        {
            "loss": lambda: rows_loss(logits, labels),
            "values": lambda: logits.argmax(-1),
            "loss of a view": lambda: F.cross_entropy(rows, labels.view(-1)),
        }[use]()


def test_values_that_were_computed_before_stay():
    layer, hidden, _ = case()
    expected = layer(hidden)
    logits = xt.fuse(layer)(hidden)
    assert torch.equal(logits + 0, expected)
    step(layer, hidden)
    assert torch.equal(logits + 0, expected)


def test_a_single_element_of_data_is_not_seen():
    """Of a weight with more rows than are compared: the result is that of the weight as it is now."""
    layer = xt.fuse(torch.nn.Linear(2, 10 * SAMPLES))
    hidden = torch.randn(3, 2)
    logits = layer(hidden)
    layer.weight.data[1, 1] = 7.0
    assert torch.equal(logits + 0, F.linear(hidden, layer.weight, layer.bias))


def test_nan_in_a_weight_is_no_change():
    layer, hidden, labels = case()
    with torch.no_grad():
        layer.weight[0, 0] = float("nan")
    assert rows_loss(xt.fuse(layer)(hidden), labels).isnan()


def test_memory_that_was_freed():
    layer, hidden, labels = case()
    logits = xt.fuse(layer)(hidden)
    layer.weight.untyped_storage().resize_(0)
    for use in (lambda: rows_loss(logits, labels), lambda: logits.sum()):
        with pytest.raises(RuntimeError, match="the memory of its weight was freed"):
            use()


def test_a_weight_written_after_the_loss_is_noticed_in_the_backward():
    layer, hidden, labels = case()
    loss = rows_loss(xt.fuse(layer)(hidden.requires_grad_()), labels)
    step(layer, hidden)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


class SumOfSquares(torch.autograd.Function):
    """A loss by hand."""

    @staticmethod
    def forward(ctx, logits, other):
        ctx.save_for_backward(logits + 0, other)
        return logits.square().sum() + other.sum()

    @staticmethod
    def backward(ctx, upstream):
        logits, other = ctx.saved_tensors
        return 2 * upstream * logits, upstream.expand_as(other)


class EntropyOfItsOwn(torch.autograd.Function):
    """A loss that differentiates in its forward."""

    @staticmethod
    def forward(ctx, logits, other):
        with torch.enable_grad():
            loss = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))
        return loss.detach() + other.sum()

    @staticmethod
    def backward(ctx, upstream):
        return None, upstream.expand(B * T, D)


@pytest.mark.parametrize("function", [SumOfSquares, EntropyOfItsOwn])
def test_a_function_that_would_lose_the_gradient(function):
    layer, hidden, _ = case()
    rows = hidden.view(-1, D).requires_grad_()
    with pytest.raises(RuntimeError, match="cannot be an argument or a result"):
        function.apply(xt.fuse(layer)(rows * 1), rows)


def test_a_function_of_a_tensor_made_of_the_logits():
    layer, hidden, _ = case()
    found = []
    for each in (layer, xt.fuse(copy.deepcopy(layer))):
        x = hidden.clone().requires_grad_()
        result = SumOfSquares.apply(each(x * 1) + 0, x)
        found.append((result, *torch.autograd.grad(result, (x, each.weight))))
    for a, e in zip(*found, strict=True):
        assert torch.equal(a, e)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_layer_and_its_loss_within_a_checkpoint(use_reentrant):
    """Reentrant checkpoints are an `autograd.Function` that runs the layer in its forward."""
    layer, hidden, labels = case()
    found = []
    for each in (layer, xt.fuse(copy.deepcopy(layer))):

        def run(x, each=each):
            return rows_loss(each(x), labels)

        x = hidden.clone().requires_grad_()
        loss = torch.utils.checkpoint.checkpoint(run, x, use_reentrant=use_reentrant)
        loss.backward()
        found.append((loss, x.grad, each.weight.grad))
    assert set(events()) == {"fused"}
    for a, e in zip(*found, strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_checkpoint_of_logits(use_reentrant):
    layer, hidden, labels = case()
    logits = xt.fuse(layer)(hidden.requires_grad_() * 1)
    call = lambda: torch.utils.checkpoint.checkpoint(  # noqa: E731
        rows_loss, logits, labels, use_reentrant=use_reentrant
    )
    if use_reentrant:
        with pytest.raises(RuntimeError, match="cannot be an argument or a result"):
            call()
    else:
        call().backward()
        assert layer.weight.grad.any()


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_logits_out_of_a_checkpoint(use_reentrant):
    layer, hidden, labels = case()
    hidden.requires_grad_()
    logits = torch.utils.checkpoint.checkpoint(xt.fuse(layer), hidden, use_reentrant=use_reentrant)
    if use_reentrant:
        for use in (lambda: rows_loss(logits, labels) + hidden.sum(), lambda: logits.sum() + hidden.sum()):
            with pytest.raises(RuntimeError, match="cannot be an argument or a result"):
                use()
    else:
        rows_loss(logits, labels).backward()
        assert layer.weight.grad.any()


OF_THE_GRADIENT = {
    "retain_grad": lambda z, loss: z.retain_grad(),
    "register_hook": lambda z, loss: z.register_hook(lambda g: g),
    "grad": lambda z, loss: torch.autograd.grad(loss, [z], allow_unused=True),
    "backward": lambda z, loss: torch.autograd.backward(loss, inputs=[z]),
}


@pytest.mark.parametrize("name", OF_THE_GRADIENT)
def test_the_gradient_of_logits_after_their_loss(name):
    layer, hidden, labels = case()
    logits = xt.fuse(layer)(hidden)
    loss = rows_loss(logits, labels)
    with pytest.raises(
        RuntimeError, match=f"`{name}` of logits of a fused layer must come before their loss"
    ):
        OF_THE_GRADIENT[name](logits, loss)


@pytest.mark.parametrize("way", ["retain_grad", "register_hook", "grad"])
def test_the_gradient_of_logits_before_their_loss(way):
    layer, hidden, labels = case()
    found = []
    for each in (layer, xt.fuse(copy.deepcopy(layer))):
        logits, seen = each(hidden), []
        if way == "grad":
            logits = logits + 0
            seen = list(torch.autograd.grad(rows_loss(logits, labels), [logits]))
        else:
            getattr(logits, way)(*([seen.append] if way == "register_hook" else []))
            rows_loss(logits, labels).backward()
            seen = seen or [logits.grad]
        found.append(seen[0])
    assert torch.equal(*found)


def by_pytorch(layer, x, reason):
    logits = layer(x)
    assert type(logits) is not Logits
    assert events() == {f"by PyTorch: {reason}": 1}
    return logits


def test_eval_mode():
    layer, hidden, _ = case()
    expected = layer(hidden)
    assert torch.equal(by_pytorch(xt.fuse(layer).eval(), hidden, "eval mode"), expected)


def test_a_replica_of_data_parallel():
    """It has a copy of the attributes, and so the method of the layer that it was made from."""
    layer, hidden, _ = case()
    replica = xt.fuse(layer)._replicate_for_data_parallel()
    replica.weight, replica.bias = layer.weight + 1, layer.bias + 1
    found = by_pytorch(replica, hidden, "a replica of DataParallel")
    assert torch.equal(found, F.linear(hidden, replica.weight, replica.bias))


def test_a_forward_called_by_another_module():
    layer, hidden, _ = case()
    xt.fuse(layer)
    outer = torch.nn.Identity()
    outer.forward = layer.forward  # and outer has no weight
    assert torch.equal(outer(hidden) + 0, F.linear(hidden, layer.weight, layer.bias))


def test_inference_mode():
    layer, hidden, _ = case()
    with torch.inference_mode():
        by_pytorch(xt.fuse(layer), hidden, "inference mode")


def test_hooks_on_the_layer(counts):
    layer, hidden, _ = case()
    xt.fuse(layer)
    seen = []
    for register in (layer.register_forward_hook, layer.register_full_backward_hook):
        handle = register(lambda module, given, output: seen.append(output))
        by_pytorch(layer, hidden.clone().requires_grad_(), "a hook on the layer").sum().backward()
        handle.remove()
        counts.clear()
    assert len(seen) == 2
    assert type(layer(hidden)) is Logits


@pytest.mark.parametrize("kind", ["forward", "backward"])
def test_hooks_on_all_modules(kind):
    register = {
        "forward": torch.nn.modules.module.register_module_forward_hook,
        "backward": torch.nn.modules.module.register_module_full_backward_hook,
    }[kind]
    layer, hidden, _ = case()
    handle = register(lambda module, given, output: None)
    try:
        by_pytorch(xt.fuse(layer), hidden.requires_grad_(), "a hook on all modules")
    finally:
        handle.remove()


@pytest.mark.parametrize("mark", ["ds_id", "_hf_hook"])
def test_a_weight_that_comes_and_goes(mark):
    """DeepSpeed's ZeRO-3 and the hooks of accelerate load it for the time of the forward."""
    layer, hidden, _ = case()
    setattr(layer.weight if mark == "ds_id" else layer, mark, 0)
    by_pytorch(xt.fuse(layer), hidden, "a weight that is loaded for each call")


def test_a_weight_of_another_class():
    class Quantised(torch.Tensor):
        pass

    layer, hidden, _ = case()
    layer.weight = torch.nn.Parameter(layer.weight.detach().as_subclass(Quantised))
    by_pytorch(xt.fuse(layer), hidden, "a tensor of another class")


def test_a_device_without_kernels():
    layer = xt.fuse(torch.nn.Linear(D, K, device="meta"))
    by_pytorch(layer, torch.empty(B, D, device="meta"), "another device")


@pytest.mark.parametrize("wrong", [torch.ones(3, D + 1), torch.ones(3, D, dtype=torch.float64)], ids=str)
def test_errors_of_the_layer_are_pytorchs(wrong):
    layer, _, _ = case()
    with pytest.raises(RuntimeError) as expected:
        layer(wrong)
    with pytest.raises(RuntimeError) as found:
        xt.fuse(layer)(wrong)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("way", ["trace", "export", "forward mode"])
def test_graphs_and_forward_mode(way):
    layer, hidden, _ = case()
    expected = layer(hidden)
    xt.fuse(layer)
    if way == "trace":
        found = torch.jit.trace(layer, hidden)(hidden)
    elif way == "export":
        found = torch.export.export(layer, (hidden,)).module()(hidden)
    else:
        found, _ = torch.func.jvp(layer, (hidden,), (hidden,))
    assert torch.equal(found, expected)


def test_one_warning(counts):
    counts.clear()
    layer, hidden, _ = case()
    xt.fuse(layer)
    with pytest.warns(UserWarning, match="the logits of a fused layer were computed for `argmax`") as warned:
        layer(hidden).argmax(-1)
    assert "test_guards.py" in warned[0].filename
    layer(hidden).argmax(-1)  # a second warning would be an error
    assert events() == {"computed for argmax": 2}
