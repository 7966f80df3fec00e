"""Classes or rows split over processes: rows that do not count, and temperatures that ask for a gradient."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh  # noqa: E402

import xent.torch as xt  # noqa: E402
from tests.torch.distributed.ranks import Checks, assert_passed, mine  # noqa: E402
from xent.torch.distributed import vocab_parallel_cross_entropy as sharded  # noqa: E402
from xent.torch.distributed import vocab_parallel_linear_cross_entropy as sharded_linear  # noqa: E402

# PyTorch warns of its own use of what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

CHECKS = Checks()

N, D, K = 4, 3, 11
KEPT = [0, 2, 3]
Y = torch.tensor([0, 9, 4, 7])
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"focal_gamma": 2.0, "softcap": 5.0},
    {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 5.0},
)
CASES = list(itertools.product(("ignored", "weight 0"), OPTIONS, (torch.nan, torch.inf, -torch.inf)))


def random(*shape: int) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def silent(way: str, held: float, inputs: Any) -> tuple[Any, Any, Any]:
    """(inputs, labels, weights), of which row 1 does not count."""
    inputs, y, omega = inputs.clone(), Y.clone(), torch.tensor([0.5, 1.0, 2.0, 1.0])
    inputs[1] = held
    if way == "ignored":
        y[1] = -100
    else:
        omega[1] = 0.0
    return inputs, y, omega


def expected(inputs: Any, head: Any, options: dict[str, Any]) -> Any:
    """(loss, gradients) of the rows that count, on one process."""
    leaves = inputs[KEPT].clone().requires_grad_(), head.clone().requires_grad_()
    omega = torch.tensor([0.5, 2.0, 1.0])
    loss = xt.cross_entropy(leaves[0] @ leaves[1].T, Y[KEPT], sample_weight=omega, **options)
    return loss.detach(), torch.autograd.grad(loss, leaves)


def close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@CHECKS
def classes_in_shards() -> None:
    inputs, head, eye = random(N, D), random(K, D), torch.eye(K, dtype=torch.float64)
    for way, options, held in CASES:
        z, y, omega = silent(way, held, inputs @ head.T)
        loss, (of_logits, _) = expected(inputs @ head.T, eye, options)
        shard = z[:, mine()].clone().requires_grad_()
        value = sharded(shard, y, group=None, sample_weight=omega, **options)
        (gradient,) = torch.autograd.grad(value, shard)
        close(value.detach(), loss)
        close(gradient[KEPT], of_logits[:, mine()])
        assert not gradient[1].any()
        x, y, omega = silent(way, held, inputs)
        loss, (of_inputs, of_head) = expected(inputs, head, options)
        leaves = x.requires_grad_(), head[mine()].clone().requires_grad_()
        value = sharded_linear(*leaves, y, group=None, sample_weight=omega, **options)
        gradients = torch.autograd.grad(value, leaves)
        close((value.detach(), gradients[0][KEPT], gradients[1]), (loss, of_inputs, of_head[mine()]))
        assert not gradients[0][1].any()


@CHECKS
def rows_in_shards() -> None:
    mesh = init_device_mesh("cpu", (2,))
    inputs, head = random(N, D), random(K, D)
    for way, options, held in CASES:
        x, y, omega = silent(way, held, inputs)
        loss, (of_inputs, of_head) = expected(inputs, head, options)
        leaves = (
            distribute_tensor(x, mesh, [Shard(0)]).requires_grad_(),
            distribute_tensor(head, mesh, [Replicate()]).requires_grad_(),
        )
        value = xt.linear_cross_entropy(*leaves, y, sample_weight=omega, **options)
        value.backward()
        gradients = [leaf.grad.full_tensor() for leaf in leaves]
        close(value.full_tensor().detach(), loss)
        close((gradients[0][KEPT], gradients[1]), (of_inputs, of_head))
        assert not gradients[0][1].any()


@CHECKS
def temperatures() -> None:
    t = torch.nn.Parameter(torch.tensor(0.7))
    inputs, head = random(N, D), random(K, D)
    logits = distribute_tensor(inputs @ head.T, init_device_mesh("cpu", (2,)), [Shard(1)])
    for call in (
        lambda: sharded((inputs @ head.T)[:, mine()], Y, group=None, temperature=t),
        lambda: sharded_linear(inputs, head[mine()], Y, group=None, temperature=t),
        lambda: xt.cross_entropy(logits, Y, temperature=t),
    ):
        with pytest.raises(
            TypeError, match=r"`temperature` must be a number .*: divide by it what the logits"
        ):
            call()
    # As the error says.
    loss = sharded_linear(inputs / t, head[mine()], Y, group=None)
    (found,) = torch.autograd.grad(loss, t)
    (of_one,) = torch.autograd.grad(xt.cross_entropy(inputs @ head.T, Y, temperature=t), t)
    torch.testing.assert_close(found, of_one)


@pytest.mark.parametrize("name", CHECKS)
def test_ranks(name: str) -> None:
    assert_passed(__name__, 2, name)
