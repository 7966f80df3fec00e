"""Ranks that do not agree, or of which one is mistaken: the same error on all of them, and none waits."""

from __future__ import annotations

import functools
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402

import xent  # noqa: E402
import xent.torch as xt  # noqa: E402
from tests.torch.distributed.dtensors.layouts import assert_refused, case, in_step, laid_out, mesh, whole  # noqa: E402
from tests.torch.distributed.ranks import Checks, arrays, assert_passed  # noqa: E402
from xent.torch.distributed.handshake import checksum  # noqa: E402
from xent.torch.distributed.loss import (  # noqa: E402
    vocab_parallel_cross_entropy,
    vocab_parallel_linear_cross_entropy,
)

# PyTorch warns of its own use of what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

CHECKS = Checks()

K = 7


def is_first() -> bool:
    return dist.get_rank() == 0


def mine(x, axis=0):
    """This rank's classes of ``x``; all of what is none of K classes."""
    if x.shape[axis] != K:
        return x
    return x.narrow(axis, 0, 4) if is_first() else x.narrow(axis, 4, 3)


def ways():
    """name → (a loss of the tensors of `case`, the tensors that it takes whole), for each way over ranks."""

    def dense(layout):
        return lambda logits, labels, **more: xt.cross_entropy(laid_out(logits, layout), labels, **more)

    def dense_xent(logits, labels, weight=None, **more):
        return xent.cross_entropy(laid_out(logits, "first axis"), labels, class_weight=weight, **more)

    def linear(inputs, weight, bias):
        def loss(input, linear_weight, linear_bias, labels, **more):
            operands = (
                input if inputs == "plain" else laid_out(input, inputs),
                laid_out(linear_weight, weight),
            )
            return xt.linear_cross_entropy(*operands, labels, linear_bias=laid_out(linear_bias, bias), **more)

        return loss

    def linear_xent(input, linear_weight, linear_bias, labels, weight=None, **more):
        return xent.linear_cross_entropy(
            input,
            laid_out(linear_weight, "first axis"),
            labels,
            bias=laid_out(linear_bias, "first axis"),
            class_weight=weight,
            **more,
        )

    def shards(logits, labels, weight=None, **more):
        weight = None if weight is None else mine(weight)
        return vocab_parallel_cross_entropy(mine(logits, 1), labels, group=None, weight=weight, **more)

    def linear_shards(input, linear_weight, linear_bias, labels, weight=None, **more):
        weight = None if weight is None else mine(weight)
        return vocab_parallel_linear_cross_entropy(
            input, mine(linear_weight), labels, bias=mine(linear_bias), group=None, weight=weight, **more
        )

    logits, operands = ("logits", "labels"), ("input", "linear_weight", "linear_bias", "labels")
    return {
        "rows of logits": (dense("first axis"), logits, {"labels": "target", "weight": "weight"}),
        "rows of logits, xent": (dense_xent, logits, {"labels": "targets", "weight": "class_weight"}),
        "classes of logits": (dense("last axis"), logits, {"labels": "target", "weight": "weight"}),
        "rows of a layer": (
            linear("first axis", "whole", "plain"),
            operands,
            {"labels": "target", "weight": "weight", "linear_bias": "linear_bias"},
        ),
        "classes of a layer": (
            linear("plain", "first axis", "first axis"),
            operands,
            {"labels": "target", "weight": "weight", "input": "input"},
        ),
        "classes of a layer, xent": (
            linear_xent,
            operands,
            {"labels": "targets", "weight": "class_weight", "input": "inputs"},
        ),
        "shards of logits": (shards, logits, {"labels": "labels"}),
        "shards of a layer": (linear_shards, operands, {"labels": "labels", "input": "hidden"}),
    }


def way(check):
    """A check of every way."""
    for name in ways():
        CHECKS[f"{check.__name__}: {name}"] = functools.partial(check, name)


@way
def other_values(name) -> None:
    """What a way takes whole must be the same on every rank."""
    loss, takes, shared = ways()[name]
    tensors = {n: x for n, x in case().items() if n in takes}
    for argument, said in {**shared, "sample_weight": "sample_weight", "denominator": "denominator"}.items():
        x = torch.tensor(3.0, requires_grad=True) if argument == "denominator" else case()[argument]
        other = x + 1 if x.is_floating_point() else x.flip(0)
        given = {**tensors, argument: x if is_first() else other}
        assert_refused(lambda given=given: loss(**given), f"`{said}` must be the same on every rank")
    if "input" in shared:  # equal labels do not make rows equal
        x = tensors["input"].clone()
        x[2, 1] += 0.0 if is_first() else 1e-9
        assert_refused(lambda: loss(**{**tensors, "input": x}), f"`{shared['input']}` must be the same")


@way
def other_options(name) -> None:
    """Options differ, or one rank's are wrong."""
    loss, takes, _ = ways()[name]
    tensors = {n: x for n, x in case().items() if n in takes}
    tensors["labels"] = torch.tensor([0, 6, 3, 1, 2])
    more = [("shift", 1), ("chunk_bytes", 400)] if "input" in takes and "rows" not in name else []
    for option, value in (
        ("reduction", "sum"),
        ("denominator", "rows"),
        ("denominator", 3.0),
        ("validate", False),
        ("ignore_index", 3),
        ("label_smoothing", 0.1),
        ("z_loss", 0.1),
        ("softcap", 3.0),
        ("temperature", 2.0),
        ("sample_weight", torch.ones(5)),
        *more,
    ):
        given = {option: value} if is_first() else {}
        assert_refused(
            lambda given=given: loss(**tensors, **given), "must give the same options", f"`{option}`"
        )
    for option, value in (
        ("reduction", "batchmean"),
        ("denominator", -3),
        ("denominator", float("nan")),
        ("label_smoothing", 2.0),
        ("label_smoothing", "none"),
        ("weight", torch.ones(3)),
        ("sample_weight", torch.ones(4)),
        *[(n, -1) for n, _ in more],
    ):
        given = {option: value} if is_first() else {}
        words = f"{option}" if is_first() else "rank 0 of "
        assert_refused(lambda given=given: loss(**tensors, **given), words, option)
    y = tensors["labels"]
    for wrong in (y[:4], y.float(), torch.stack([y, y]), torch.where(y == 6, K, y)):
        given = {**tensors, "labels": wrong if is_first() else y}
        assert_refused(lambda given=given: loss(**given))
        assert_refused(lambda wrong=wrong: loss(**{**tensors, "labels": wrong}))
    fewer = {n: x[:4] if is_first() and n in ("logits", "input", "labels") else x for n, x in tensors.items()}
    assert_refused(lambda: loss(**fewer))


@way
def as_one_process(name) -> None:
    """Reductions, denominators and lengths give the value, or the error, of one process."""
    loss, takes, shared = ways()[name]
    tensors = {n: x for n, x in case().items() if n in takes}
    if "input" in takes:
        names = {"linear_weight": "weight", "linear_bias": "bias", "labels": "targets", "input": "inputs"}
        single = xent.linear_cross_entropy if "targets" in shared.values() else xt.linear_cross_entropy
        names = names if "targets" in shared.values() else {"labels": "target"}
    else:
        names = {"labels": "targets" if "targets" in shared.values() else "target", "logits": "input"}
        single = xt.cross_entropy
        if "targets" in shared.values():
            single, names["logits"] = xent.cross_entropy, "logits"
    for options in (
        {},
        {"reduction": "sum"},
        {"reduction": "none"},
        {"denominator": "rows"},
        {"denominator": 3},
        {"denominator": 0},
        {"denominator": torch.tensor(3.0)},
        {"reduction": "batchmean"},
        {"reduction": None},
        {"reduction": "sum", "denominator": 3},
        {"reduction": "none", "denominator": torch.tensor(3.0)},
        {"denominator": -3},
        {"denominator": float("nan")},
        {"denominator": float("inf")},
        {"denominator": "tokens"},
        {"sample_weight": torch.ones(6)},
        {"sample_weight": torch.ones(4)},
        {"sample_weight": torch.ones(5, 1)},
        {"weight": torch.ones(9)},
        {"weight": torch.ones(6)},
        {"sample_weight": torch.tensor([0.0, 0.0, 1.0, 1.0, 2.0]), "denominator": "rows"},
    ):
        plain = {names.get(n, n): x for n, x in tensors.items()}
        plain |= {
            "class_weight" if n == "weight" and "targets" in plain else n: x for n, x in options.items()
        }
        try:
            expected = single(**plain)
        except (ValueError, TypeError) as error:
            is_shard = "weight" in options and "shards" in name
            assert_refused(lambda options=options: loss(**tensors, **options), *[str(error)][is_shard:])
            continue
        torch.testing.assert_close(whole(loss(**tensors, **options)), expected, rtol=1e-13, atol=0)


@way
def rows_that_do_not_count(name) -> None:
    """What a row holds that is ignored, of weight 0 or left out by a shift does not matter, on any rank."""
    loss, takes, _ = ways()[name]
    tensors = {n: x for n, x in case().items() if n in takes}
    first = "input" if "input" in takes else "logits"
    omega = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0])
    shift = {"shift": 1} if first == "input" and "rows" not in name else {}
    for value in (float("nan"), float("inf"), -float("inf")):
        x = tensors[first].clone()
        expected = loss(**{**tensors, "sample_weight": omega}, **shift)
        if dist.get_rank() == 1:  # where the ranks share the rows, the other one has numbers there
            out = (2, 4) if shift else (0, 3)
            for row in out:
                x[row] = value
        if "rows" in name:
            dist.broadcast(x, 1)
        x.requires_grad_()
        found = loss(**{**tensors, first: x, "sample_weight": omega}, **shift)
        assert torch.equal(whole(found), whole(expected))
        if "layer" in name and "rows" not in name:
            whole(found).backward()
            out = [2, 4] if shift else [0, 3]
            assert not x.grad[out].any()
            assert x.grad.isfinite().all()
    in_step()


del way


@CHECKS
def data_parallel_head() -> None:
    """A head in shards beside each rank's own rows is refused, and the error says how to go on.

    `fully_shard` leaves such weights outside of a module's forward; to import it takes seconds.
    """
    from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor, init_device_mesh

    x, w = (torch.tensor(a) for a in arrays((2, 6, 5), (K, 5)))
    y = torch.arange(12).reshape(2, 6) % K
    rank = dist.get_rank()
    expected = w.clone().requires_grad_()
    xt.linear_cross_entropy(x.flatten(0, 1), expected, y.flatten()).backward()
    for head_mesh in (mesh(), init_device_mesh("cpu", (1, 2))):
        placements = [Replicate(), Shard(0)][-head_mesh.ndim :]
        weight = distribute_tensor(w, head_mesh, placements).requires_grad_()
        words = "`linear_weight`", "full_tensor(grad_placements=", '[Partial("avg")])'
        assert_refused(lambda weight=weight: xt.linear_cross_entropy(x[rank], weight, y[rank]), *words)
        ignored = torch.full((6,), -100)
        if head_mesh.ndim == 1:  # nothing counts
            assert xt.linear_cross_entropy(x[rank], weight, ignored).full_tensor() == 0
        for rows, labels in ((x[rank], y[0]), (x[0], y[rank])):  # one of them is the same
            call = functools.partial(xt.linear_cross_entropy, rows, weight, labels)
            assert_refused(call, *words)
        whole_weight = weight.full_tensor(grad_placements=head_mesh.ndim * [Partial("avg")])
        xt.linear_cross_entropy(x[rank], whole_weight, y[rank]).backward()
        torch.testing.assert_close(weight.grad.full_tensor(), expected.grad)
        assert_refused(
            lambda weight=weight: vocab_parallel_linear_cross_entropy(x[0], weight, y[0], group=None),
            "`weight_shard` must be a tensor of this rank; got a DTensor",
        )


@CHECKS
def logits_that_do_not_count() -> None:
    tensors = case()
    for layout, value in itertools.product(("first axis", "last axis"), (float("nan"), float("inf"))):
        found = []
        for filling in (value, 0.0):
            z = tensors["logits"].clone()
            z[3] = filling
            z = laid_out(z, layout).requires_grad_()
            loss = xt.cross_entropy(z, tensors["labels"], z_loss=0.1)
            loss.backward()
            found.append((whole(loss), whole(z.grad)))
        assert torch.equal(found[0][0], found[1][0])
        assert torch.equal(found[0][1], found[1][1])
        assert not found[0][1][3].any()


@CHECKS
def meshes() -> None:
    """Of two dimensions, or two of them: an error that names the tensor."""
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh

    x, w, z = (torch.tensor(a) for a in arrays((6, 5), (K, 5), (6, K)))
    y = torch.arange(6)
    two = init_device_mesh("cpu", (1, 2), mesh_dim_names=("data", "classes"))
    for placements in ([Replicate(), Shard(0)], [Replicate(), Replicate()], [Shard(0), Replicate()]):
        lay = functools.partial(distribute_tensor, device_mesh=two, placements=placements)
        for call, name in (
            (lambda lay=lay: xt.cross_entropy(lay(z), lay(y)), "input"),
            (lambda lay=lay: xt.cross_entropy(laid_out(z, "whole"), lay(y)), "target"),
            (lambda lay=lay: xt.linear_cross_entropy(x, lay(w), y), "linear_weight"),
            (lambda lay=lay: xt.linear_cross_entropy(lay(x), laid_out(w, "whole"), lay(y)), "input"),
        ):
            assert_refused(call, f"`{name}`")
    one = two["classes"]
    other = DTensor.from_local(torch.ones(6), two["data"], [Replicate()], run_check=False)
    logits = DTensor.from_local(z, one, [Replicate()], run_check=False)
    assert_refused(
        lambda: xt.cross_entropy(logits, y, sample_weight=other), "`sample_weight` must be on the mesh"
    )


@CHECKS
def one_rank_of_labels_is_wrong() -> None:
    """Labels of which each rank has its own: out of range on one of them."""
    tensors = case()
    y = torch.where(tensors["labels"] == 2, K, tensors["labels"])
    for layout in ("plain", "first axis"):
        words = (
            f"must be in [0, {K})" if layout == "plain" or not is_first() else "rank 1 of the mesh refused"
        )
        call = lambda layout=layout: xt.cross_entropy(  # noqa: E731
            laid_out(tensors["logits"], "first axis"), laid_out(y, layout)
        )
        assert_refused(call, "`target`", words)
    for factor in (float("nan"), float("inf")):  # on one rank
        omega = laid_out(torch.tensor([1.0, 1.0, 1.0, 1.0, factor]), "first axis")
        call = functools.partial(
            xt.cross_entropy,
            laid_out(tensors["logits"], "first axis"),
            tensors["labels"],
            sample_weight=omega,
        )
        assert_refused(call, "`sample_weight` must be")
    for target in (y, torch.full((5, K), -1.0)):
        with pytest.raises(ValueError, match="`target` must be"):
            xt.cross_entropy(laid_out(tensors["logits"], "last axis"), target)
    in_step()


def test_checksums_tell_bits_apart():
    x = torch.randn(6, 9)
    for other in (x.flip(0), x.flip(1), -x, x.roll(1, 0), x.roll(1, 1), torch.nextafter(x, x + 1)):
        assert (checksum(checksum(x)) != checksum(checksum(other))).item()
    assert torch.equal(checksum(x), checksum(x.T.contiguous().T))
    assert torch.equal(checksum(x.half()[1:]), checksum(x.half())[1:])
    large = torch.arange(1 << 22).reshape(2, -1)
    assert torch.equal(checksum(large), torch.stack([checksum(row) for row in large]))


def test_distributed_is_an_attribute_that_loads_when_it_is_asked_for():
    code = (
        "import sys, xent.torch\n"
        "print(sorted({'xent.torch.distributed', 'torch.distributed.tensor'} & set(sys.modules)))\n"
        "print(xent.torch.distributed.vocab_parallel_cross_entropy.__name__)\n"
        "print(hasattr(xent.torch, 'anything'))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(xent.__file__).parents[1])}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.stdout.split("\n")[:3] == ["[]", "vocab_parallel_cross_entropy", "False"], result.stderr


@pytest.mark.parametrize("name", CHECKS)
def test_ranks(name):
    assert_passed(__name__, 2, name)
