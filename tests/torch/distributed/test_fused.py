"""A fused layer under DistributedDataParallel and FSDP: the gradients of each rank are as without `fuse`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

import xent.torch as xt  # noqa: E402
from tests.torch.distributed.ranks import Checks, assert_passed  # noqa: E402
from xent.torch import fused  # noqa: E402

F = torch.nn.functional

CHECKS = Checks()
K, D = 23, 8


class Model(torch.nn.Module):
    """The parts of a language model; the loss if there are labels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(K, D)
        self.body = torch.nn.Linear(D, D)
        self.head = torch.nn.Linear(D, K, bias=False)

    def get_output_embeddings(self) -> Any:
        return self.head

    def forward(self, tokens, labels=None):
        logits = self.head(self.body(self.embedding(tokens)).tanh())
        return logits if labels is None else {"loss": rows_loss(logits, labels), "logits": logits}


def rows_loss(logits, labels):
    return F.cross_entropy(logits.float().view(-1, K), labels.view(-1))


def inside(model, tokens, labels):
    return model(tokens, labels)["loss"]


def outside(model, tokens, labels):
    return rows_loss(model(tokens), labels)


def steps(prepare: Callable[[Any], Any], use: Any, fuse: str = "") -> list[Any]:
    """The gradients of three steps on this rank's tokens; ``fuse`` before or after ``prepare``, or not."""
    model = Model()
    if fuse == "before":
        xt.fuse(model)
    wrapped = prepare(model)
    if fuse == "after":
        xt.fuse(model)
    fused.counts.clear()
    fused.counts["computed for nothing"] = 0
    generator = torch.Generator().manual_seed(dist.get_rank())
    optimizer = torch.optim.SGD(wrapped.parameters(), 1.0)
    found = []
    for _ in range(3):
        tokens, labels = torch.randint(0, K, (2, 2, 5), generator=generator)
        optimizer.zero_grad()
        use(wrapped, tokens, labels).backward()
        found.append([whole(p.grad) for p in wrapped.parameters()])
        optimizer.step()
    return found


def whole(x):
    return x.full_tensor() if hasattr(x, "full_tensor") else x.clone()


def compare(
    prepare: Any, expected: dict[Any, str], tolerance: float = 1e-6, orders: Any = ("before",)
) -> None:
    """For each use of the model: the same gradients, and all steps counted as ``expected``."""
    for use, event in expected.items():
        plain = steps(prepare, use)
        for order in orders:
            for found, e in zip(steps(prepare, use, order), plain, strict=True):
                for a, b in zip(found, e, strict=True):
                    assert (a - b).abs().max() <= tolerance * b.abs().max()
            assert {k: v for k, v in fused.counts.items() if v} == {event: 3}, use


@CHECKS
def data_parallel() -> None:
    compare(DistributedDataParallel, {inside: "fused", outside: "fused"})


@CHECKS
def data_parallel_that_looks_into_the_output() -> None:
    for option in ("find_unused_parameters", "static_graph"):
        compare(
            lambda model, option=option: DistributedDataParallel(model, **{option: True}),
            {inside: "fused", outside: "computed for the output of Model"},
        )


@CHECKS
def a_bare_layer_in_such_a_model() -> None:
    """Its model has no hook that could compute the logits."""

    def prepare(model):
        xt.unfuse(model)
        xt.fuse(model.head)
        return DistributedDataParallel(model, static_graph=True)

    reason = "by PyTorch: DistributedDataParallel around a module without hooks"
    plain = steps(lambda model: DistributedDataParallel(model, static_graph=True), outside)
    for found, e in zip(steps(prepare, outside), plain, strict=True):
        for a, b in zip(found, e, strict=True):
            assert torch.equal(a, b)
    assert {k: v for k, v in fused.counts.items() if v} == {reason: 3}


@CHECKS
def shards_of_the_whole_model() -> None:
    for reshard in (None, True):
        compare(
            lambda model, reshard=reshard: fully_shard(model, reshard_after_forward=reshard),
            {inside: "fused", outside: "computed for the output of FSDPModel"},
            orders=("before", "after"),
        )


@CHECKS
def shards_in_half_precision() -> None:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.float32)
    compare(lambda model: fully_shard(model, mp_policy=policy), {inside: "fused"}, tolerance=0.05)


@CHECKS
def shards_of_parts() -> None:
    def prepare(model):
        fully_shard(model.body)
        return fully_shard(model)

    compare(prepare, {inside: "fused", outside: "computed for the output of FSDPModel"})


@CHECKS
def shards_of_the_layer() -> None:
    def prepare(model):
        fully_shard(model.head)
        return fully_shard(model)

    compare(prepare, dict.fromkeys((inside, outside), "by PyTorch: a hook on the layer"), tolerance=0)


@CHECKS
def a_gradient_that_the_shards_would_miss() -> None:
    model = fully_shard(xt.fuse(Model()))
    tokens, labels = torch.zeros(2, 2, 5, dtype=torch.long)
    output = model(tokens, labels)
    other = rows_loss(output["logits"], labels)  # beside the loss, which the shards have seen
    assert torch.isfinite(other)
    with pytest.raises(RuntimeError, match="have a gradient outside of a module that prepares"):
        other.backward()


@CHECKS
def logits_of_an_earlier_pass() -> None:
    """Their weight was freed; then others are in the same memory, without another version."""
    model = fully_shard(xt.fuse(Model()))
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    tokens, labels = torch.zeros(2, 2, 5, dtype=torch.long)
    output = model(tokens, labels)
    output["loss"].backward()
    with pytest.raises(RuntimeError, match="the memory of its weight was freed"):
        output["logits"].argmax(-1)
    optimizer.step()
    model(tokens, labels)
    with pytest.raises(RuntimeError, match="logits of a fused layer were asked for after"):
        output["logits"].argmax(-1)


@CHECKS
def the_older_shards() -> None:
    compare(
        lambda model: FullyShardedDataParallel(model, device_id=torch.device("cpu")),
        dict.fromkeys((inside, outside), "by PyTorch: FullyShardedDataParallel"),
        tolerance=0,
    )


@CHECKS
def compiled() -> None:
    """What is around a compiled layer is not seen from within it: the wrappers are asked instead."""
    for wrap in (
        lambda model: DistributedDataParallel(model, static_graph=True),
        lambda model: fully_shard(model),
    ):

        def prepare(model, wrap=wrap):
            torch._dynamo.reset()
            return torch.compile(wrap(model), backend="eager")

        for use in (inside, outside):
            plain = steps(wrap, use)
            for found, e in zip(steps(prepare, use, "before"), plain, strict=True):
                for a, b in zip(found, e, strict=True):
                    assert (a - b).abs().max() <= 1e-6 * b.abs().max()


@pytest.mark.parametrize("name", CHECKS)
def test_ranks(name):
    assert_passed(__name__, 2, name)
