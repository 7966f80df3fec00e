"""The autograd contract: derivatives of every order and transform, graphs, saved tensors, memory."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.multiprocessing.reductions import StorageWeakRef  # noqa: E402

import xent  # noqa: E402
import xent.torch as xt  # noqa: E402
from tests.tables.variants import each_structure  # noqa: E402
from tests.torch.problems import TRANSFORMS, F, arguments_of, losses, plain  # noqa: E402
from xent.engine import memory  # noqa: E402
from xent.torch import dense  # noqa: E402

# PyTorch warns of its own use of what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


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
