"""Logits as a tensor: what is known without computing them, what is shared, what is pinned; random chains."""

from __future__ import annotations

import copy
import pickle
import random

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import xent.torch as xt  # noqa: E402
from tests.torch.fused.comparisons import (  # noqa: E402
    B,
    D,
    K,
    T,
    assert_close,
    case,
    events,
    outcome,
    twins,
)

F = torch.nn.functional


def rows_loss(z, y, **options):
    return F.cross_entropy(z.reshape(-1, K), y.reshape(-1), **options)


@pytest.fixture
def logits():
    layer, hidden, _ = case()
    return xt.fuse(layer)(hidden.requires_grad_() * 1.0)


def test_known_without_an_element(logits):
    whole = torch.empty(B, T, K)
    for name in ("shape", "dtype", "device", "ndim", "layout", "itemsize", "nbytes", "is_sparse"):
        assert getattr(logits, name) == getattr(whole, name)
    for name in ("size", "dim", "numel", "stride", "is_contiguous", "is_floating_point", "element_size"):
        assert getattr(logits, name)() == getattr(whole, name)()
    assert (logits.size(-1), len(logits), logits.requires_grad) == (K, B, True)
    assert logits.is_cpu
    assert "Logits(shape=(2, 5, 11), dtype=torch.float32" in repr(logits)
    assert not isinstance(logits, torch.Tensor)
    assert {logits: 1}[logits] == 1
    assert not events()


SURFACE = {
    "numpy": lambda z: z.detach().numpy(),
    "np.asarray": lambda z: np.asarray(z.detach()),
    "array times logits": lambda z: torch.as_tensor(np.float32(2.0)) * z,
    "iteration": lambda z: torch.stack(list(z)),
    "contains": lambda z: torch.tensor(1e9 in z),
    "format": lambda z: f"{z.sum().detach():.3f}",
    "comparison": lambda z: z == z,
    "truth": lambda z: torch.tensor(bool((z > -1e9).all())),
    "float": lambda z: float(z.detach().sum()),
    "power": lambda z: 2**z,
    "from the right": lambda z: 1 - z,
    "matrix product": lambda z: z @ torch.ones(K, 2),
    "max": lambda z: z.max(-1).values,
    "topk": lambda z: torch.topk(z, 3).indices,
    "where": lambda z: torch.where(z > 0, z, 0.0),
    "softmax": lambda z: torch.softmax(z, dim=-1),
    "tolist": lambda z: z.tolist(),
    "grad_fn": lambda z: z.grad_fn is not None,
    "is_leaf": lambda z: z.is_leaf,
    "data": lambda z: z.data.sum(),
    "type": lambda z: z.type(),
    "new_zeros": lambda z: z.new_zeros(3),
    "dictionary": lambda z: torch.utils._pytree.tree_map(lambda x: x + 1, {"a": z}),
    "isfinite": lambda z: torch.isfinite(z).all(),
    "pickle": lambda z: pickle.loads(pickle.dumps(z.detach())),
    "out": lambda z: torch.add(z.detach(), 1, out=torch.empty(B, T, K)),
}


@pytest.mark.parametrize("name", SURFACE)
def test_surface(name):
    """What is no loss is what it was."""
    layer, hidden, _ = case()
    found, expected = (SURFACE[name](each(hidden)) for each in (xt.fuse(copy.deepcopy(layer)), layer))
    if isinstance(expected, np.ndarray):
        assert np.array_equal(found, expected)
    elif isinstance(expected, dict):
        assert torch.equal(found["a"], expected["a"])
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected


def test_a_copy_is_refused_as_of_any_result(logits):
    with pytest.raises(RuntimeError, match="Only Tensors created explicitly by the user"):
        copy.deepcopy(logits)


def test_metrics_before_the_loss_keep_its_gradient():
    def use(z, y):
        with torch.no_grad():
            assert not (z.argmax(-1) == y).requires_grad
        return rows_loss(z, y)

    expected, found = twins(use)
    assert_close(found, expected, 0)
    assert events() == {"computed for argmax": 1}


def test_without_gradients_there_is_none():
    layer, hidden, labels = case()
    xt.fuse(layer)
    with torch.no_grad():
        logits = layer(hidden)
    assert not logits.requires_grad
    assert not rows_loss(logits, labels).requires_grad
    assert not logits.sum().requires_grad
    with torch.no_grad():
        loss = rows_loss(layer(hidden), labels)
    assert not loss.requires_grad
    assert events() == {"fused": 2, "computed for sum": 1}


def test_a_loss_without_gradients_of_logits_with_them():
    def use(z, y):
        with torch.no_grad():
            value = rows_loss(z, y)
        assert not value.requires_grad
        return rows_loss(z, y) + value

    expected, found = twins(use)
    assert_close(found, expected, 0)


def in_place(z, y):
    z[..., 3] = -5.0
    return rows_loss(z, y)


def in_place_of_a_view(z, y):
    rows = z.view(-1, K)
    rows[2:5] *= 3
    return rows_loss(z, y) + rows_loss(rows, y)


def in_place_beside_a_view(z, y):
    rows, shifted = z.view(-1, K), z[:, 1:]
    z.clamp_(max=0.5)
    return rows_loss(rows, y) + rows_loss(shifted, y[:, 1:])


def in_place_beside_a_copy(z, y):
    scaled, picked = z * 2, z[:, :-1].contiguous()
    z.zero_()
    return rows_loss(z, y) + rows_loss(scaled, y) + rows_loss(picked, y[:, :-1])


def in_place_of_a_vector(z, y):
    vector = torch.linspace(0, 1, K)
    moved = z + vector
    vector.zero_()
    return rows_loss(moved, y) + moved.sigmoid().sum()


def in_place_by_data(z, y):
    rows, scaled = z.view(-1, K), z * 2
    z.data.mul_(3.0)
    return rows_loss(rows, y) + rows_loss(scaled, y)


def in_place_by_setting_data(z, y):
    z.data = z.data * 2
    return rows_loss(z, y)


def in_place_of_a_result_of_contiguous(z, y):
    same = z.contiguous()  # no copy
    same.mul_(2.0)
    return rows_loss(z, y)


def in_place_after_the_loss(z, y):
    loss = rows_loss(z, y)
    z.zero_()
    return loss + rows_loss(z, y)


def augmented(z, y):
    z /= 4.0
    return rows_loss(z, y)


@pytest.mark.parametrize(
    "use",
    [
        *(in_place, in_place_of_a_view, in_place_beside_a_view, in_place_beside_a_copy, in_place_by_data),
        *(in_place_of_a_vector, in_place_by_setting_data, in_place_of_a_result_of_contiguous),
        *(in_place_after_the_loss, augmented),
    ],
    ids=lambda use: use.__name__,
)
def test_written_in_place(use):
    """Views see what is written, copies do not."""
    expected, found = twins(use)
    assert_close(found, expected)


def test_second_order():
    layer, hidden, labels = case(torch.float64)
    twin = xt.fuse(copy.deepcopy(layer))
    found = []
    for each in (layer, twin):
        x = hidden.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(rows_loss(3 * (each(x) / 3).tanh(), labels), x, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), (x, each.weight)))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)
    assert events() == {"fused": 1}


def test_transforms():
    layer, hidden, labels = case(torch.float64)
    twin = xt.fuse(copy.deepcopy(layer))

    def gradient(each):
        def loss(parameters, x):
            return rows_loss(torch.func.functional_call(each, parameters, (x,)), labels)

        return torch.func.grad(loss)(dict(each.named_parameters()), hidden)

    found, expected = gradient(twin), gradient(layer)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-12)
    assert events() == {"fused": 1}


def test_per_example_gradients():
    layer, hidden, labels = case(torch.float64)
    twin = xt.fuse(copy.deepcopy(layer))

    def gradients(each):
        def loss(parameters, x, y):
            return F.cross_entropy(torch.func.functional_call(each, parameters, (x,)), y)

        parameters = dict(each.named_parameters())
        return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, hidden, labels)

    found, expected = gradients(twin), gradients(layer)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-12)


LOSSES = {
    "inside": (True, lambda z, y: rows_loss(z, y)),
    "of float32, inside": (True, lambda z, y: rows_loss(z.float(), y)),
    "outside": (False, lambda z, y: rows_loss(z, y)),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LOSSES)
def test_autocast(dtype, name):
    layer, hidden, labels = case()
    twin = xt.fuse(copy.deepcopy(layer))
    is_inside, use = LOSSES[name]

    def run(each):
        x = hidden.clone().requires_grad_()
        with torch.autocast("cpu", dtype):
            z = each(x)
            assert z.dtype == dtype
            loss = use(z, labels) if is_inside else None
        loss = use(z, labels) if loss is None else loss
        return loss, torch.autograd.grad(loss, (x, *each.parameters()))

    (loss, found), (expected_loss, expected) = run(twin), run(layer)
    assert events() == {"fused": 1}
    assert loss.dtype == expected_loss.dtype
    tolerance = torch.finfo(dtype).eps
    assert abs(loss.item() - expected_loss.item()) < 2 * tolerance * expected_loss.item()
    for f, e in zip(found, expected, strict=True):
        assert f.dtype == e.dtype
        assert (f - e).abs().max() < 4 * tolerance * e.abs().max()


@pytest.mark.parametrize("inside", [True, False])
def test_autocast_where_logits_are_computed(inside):
    layer, hidden, _ = case()
    found = []
    for each in (layer, xt.fuse(copy.deepcopy(layer))):
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            logits = each(hidden)
        with torch.autocast("cpu", torch.bfloat16, enabled=not inside):
            found.append(logits.sigmoid())
    assert torch.equal(*found)


# Random chains: an operation takes (logits, labels of its rows) and returns the next pair.


def shifted(z, y):
    return (z[..., :-1, :], y[..., 1:]) if z.ndim > 2 and z.shape[-2] > 1 else (z, y)


def written(z, y):
    z[..., 0] = 0.25
    return z, y


def written_elsewhere(z, y):
    other = z.view_as(z)
    other.mul_(1.5)
    return z, y


def mask_rows(z, y):
    mask = (torch.arange(y.numel()).reshape(y.shape) % 3) > 0
    return z[mask], y[mask]


STEPS = [
    shifted,
    mask_rows,
    written,
    written_elsewhere,
    lambda z, y: (z / 3.0, y),
    lambda z, y: (0.5 * z, y),
    lambda z, y: (z * 2, y),
    lambda z, y: (z * -0.5, y),
    lambda z, y: (z.tanh(), y),
    lambda z, y: (4.0 * torch.tanh(z / 4.0), y),
    lambda z, y: (z.float(), y),
    lambda z, y: (z.double(), y),
    lambda z, y: (z.to(z.dtype), y),
    lambda z, y: (z.contiguous(), y),
    lambda z, y: (z.reshape(-1, z.shape[-1]), y.reshape(-1)),
    lambda z, y: (z.flatten(0, -2), y.flatten()),
    lambda z, y: (z.reshape(1, -1, z.shape[-1]), y.reshape(1, -1)),
    lambda z, y: (z[:1], y[:1]),
    lambda z, y: (z[..., :7], y % 7),
    lambda z, y: (z + torch.linspace(-1, 1, z.shape[-1], dtype=z.dtype), y),
    lambda z, y: (z + 1.0, y),
    lambda z, y: (z - z.mean(), y),
    lambda z, y: (torch.cat([z, z]), torch.cat([y, y])),
    lambda z, y: (z.sigmoid(), y),
    lambda z, y: (z.clone(), y),
    lambda z, y: (z.transpose(0, 1), y.transpose(0, 1)) if z.ndim == 3 else (z, y),
]


def chain(seed):
    """A use of logits: some of `STEPS`, and two losses of two of their results."""

    def use(z, y):
        choice = random.Random(seed)
        results = [(z, y)]
        for _ in range(choice.randrange(5)):
            results.append(choice.choice(STEPS)(*choice.choice(results[-2:])))
            if choice.random() < 0.1:
                with torch.no_grad():
                    choice.choice(results)[0].argmax(-1)
        losses = []
        for z, y in (results[-1], choice.choice(results)):
            options = {"reduction": choice.choice(["mean", "sum", "none"])}
            if choice.random() < 0.3:
                options["label_smoothing"] = 0.1
            if choice.random() < 0.3:
                options["weight"] = torch.linspace(0.5, 2, z.shape[-1], dtype=z.dtype)
            losses.append(F.cross_entropy(z.reshape(-1, z.shape[-1]), y.reshape(-1), **options).sum())
        return sum(losses)

    return use


def test_random_chains():
    fused = compared = 0
    for seed in range(400):
        layer, hidden, labels = case(torch.float64, bias=seed % 2 == 0)
        twin = xt.fuse(copy.deepcopy(layer))
        labels = labels.clamp_min(0)
        expected, found = (outcome(chain(seed), each, hidden, labels) for each in (layer, twin))
        if isinstance(expected[0], Exception):
            assert type(found[0]) is type(expected[0]), seed
            continue
        assert_close(found, expected, 1e-11)
        compared += 1
    fused = events()["fused"]
    assert compared > 350
    assert 150 < fused < 700
    assert D
