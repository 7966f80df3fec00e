"""Divergences of DTensors, their classes or rows in shards, are those of one process."""

from __future__ import annotations

import itertools

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402

import xent.torch as xt  # noqa: E402
from tests.torch.distributed.dtensors.layouts import (  # noqa: E402
    LAYOUTS,
    D,
    K,
    N,
    assert_refused,
    in_step,
    laid_out,
)
from tests.torch.distributed.dtensors.layouts import compare as compare_losses  # noqa: E402
from tests.torch.distributed.ranks import Checks, arrays, assert_passed  # noqa: E402

# PyTorch warns of its own use of what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

CHECKS = Checks()
DENSE = ("teacher_inputs", "teacher_weight", "teacher_bias")
ENTRIES = ("indices", "log_probs")


def case():
    """The tensors of a call by their names, as one process has them."""
    names = ("inputs", "weight", "bias", *DENSE)
    shapes = ((N, D), (K, D), (K,), (N, 3), (K, 3), (K,))
    tensors = {name: torch.tensor(a) for name, a in zip(names, arrays(*shapes), strict=True)}
    log_probs, indices = torch.log_softmax(tensors["teacher_inputs"] @ tensors["teacher_weight"].T, -1).topk(
        3
    )
    factors = {
        "labels": torch.tensor([0, 6, -100, 3, 2]),
        "sample_weight": torch.tensor([0.5, 0.0, 1, 2, 1]).double(),
        "temperature": torch.tensor([0.5, torch.nan, torch.nan, 0.9, 2.0]).double(),
    }
    return {**tensors, "indices": indices, "log_probs": log_probs, **factors}


def divergence(tensors, **options):
    """The divergence from the teacher whose tensors are given."""
    given = dict(tensors)
    operands = [given.pop(name) for name in ("inputs", "weight")]
    if "indices" in given:
        return xt.linear_topk_kl_divergence(*operands, *(given.pop(n) for n in ENTRIES), **given, **options)
    return xt.linear_kl_divergence(*operands, *(given.pop(n) for n in DENSE[:2]), **given, **options)


def compare(layouts, derived=("inputs", "weight", "bias"), **options):
    """`layouts.compare` of `divergence`."""
    compare_losses(case, divergence, layouts, derived, **options)


def teachers(rows, classes):
    """The layouts of each kind of teacher."""
    yield dict(zip(DENSE, (rows, classes, classes), strict=True))
    yield dict.fromkeys(ENTRIES, rows)


CLASSES = {"weight": "first axis", "bias": "first axis"}
ROWS = {"weight": "whole", "bias": "whole"}


@CHECKS
def classes_in_shards() -> None:
    for inputs, rows in (
        *itertools.product(LAYOUTS, ("plain",)),
        ("plain", "whole"),
        ("whole", "first axis"),
    ):
        for teacher in teachers(rows, "first axis"):
            compare({"inputs": inputs, **CLASSES, **teacher}, temperature=1.5)
    for factors, (direction, reduction), teacher in itertools.product(
        ("plain", "whole", "first axis"),
        (("forward", "none"), ("reverse", "mean")),
        teachers("plain", "whole"),
    ):
        layouts = {"inputs": "first axis", **CLASSES, **teacher, "labels": factors, "sample_weight": factors}
        more = {"tail": "renormalise"} if "indices" in teacher else {}
        compare(layouts, direction=direction, reduction=reduction, chunk_bytes=300, **more)


@CHECKS
def rows_in_shards() -> None:
    options = (
        {},
        {"direction": "reverse", "denominator": "rows"},
        {"reduction": "sum"},
        {"reduction": "none"},
        {"denominator": 4.0},
    )
    each = itertools.product(LAYOUTS[1:], ("plain", "first axis"), (0, 1))
    for (inputs, rows, teacher), given in zip(each, itertools.cycle(options), strict=False):
        layouts = {"inputs": inputs, **ROWS, **list(teachers(rows, "whole"))[teacher]}
        compare({**layouts, "labels": rows, "sample_weight": "plain"}, **given)
    for given in options:
        layouts = {"inputs": "first axis", **ROWS, **dict.fromkeys(ENTRIES, "first axis")}
        compare({**layouts, "sample_weight": "first axis"}, **given)
    for teacher in teachers("first axis", "plain"):
        name = "log_probs" if "indices" in teacher else "teacher_inputs"
        derived = ("inputs", "weight", "sample_weight", name)
        compare(
            {"inputs": "first axis", "weight": "whole", **teacher, "sample_weight": "first axis"}, derived
        )


@CHECKS
def temperatures_of_rows() -> None:
    factors, leaves = ("labels", "sample_weight", "temperature"), ("inputs", "weight", "bias")
    layouts = {"inputs": "first axis", **dict.fromkeys(factors, "first axis")}
    for operands, reduction in itertools.product((CLASSES, ROWS), ("none", "mean")):
        for teacher in teachers("first axis", operands["weight"]):
            is_derived = operands is ROWS or "indices" in teacher
            derived = (*leaves, "temperature") if is_derived else leaves
            compare({**layouts, **operands, **teacher}, derived, reduction=reduction, chunk_bytes=300)
    for teacher in teachers("plain", "first axis"):
        tensors = {name: laid_out(case()[name], layout) for name, layout in {**CLASSES, **teacher}.items()}
        tensors["inputs"], t = case()["inputs"], case()["temperature"]
        with pytest.raises(ValueError, match=r"`temperature` must be finite and > 0 .* at row 1"):
            divergence(tensors, temperature=t)
        with pytest.raises(ValueError, match=r"`temperature` must be .* of the shape of the rows"):
            divergence(tensors, temperature=t[:3])
    teacher = {name: laid_out(case()[name], "first axis") for name in DENSE}
    student = {"inputs": case()["inputs"], "weight": laid_out(case()["weight"], "first axis")}
    learnt = torch.ones(N).double().requires_grad_()
    with pytest.raises(NotImplementedError, match="a `temperature` of each row, must not require gradients"):
        divergence({**student, "teacher_inputs": case()["teacher_inputs"], **teacher}, temperature=learnt)


@CHECKS
def what_is_refused() -> None:
    is_first = dist.get_rank() == 0
    dense, topk = teachers("plain", "first axis")
    for layouts, changes, words in (
        ({"inputs": "plain", "weight": "last axis", **topk}, {}, "`weight` must be a DTensor"),
        (
            {"inputs": "plain", **CLASSES, "bias": "plain", **topk},
            {},
            "`bias` must be a DTensor with Shard(0)",
        ),
        (
            {"inputs": "plain", **CLASSES, **dense, "teacher_weight": "plain"},
            {},
            "`teacher_weight` must be a",
        ),
        (
            {"inputs": "plain", **CLASSES, **dense},
            {"inputs": lambda x: x + is_first},
            "`inputs` must be the same",
        ),
        (
            {"inputs": "plain", **CLASSES, **dense},
            {"teacher_inputs": lambda x: x + is_first},
            "`teacher_inputs` must be the same",
        ),
        (
            {"inputs": "plain", **CLASSES, **topk},
            {"log_probs": lambda x: x - int(is_first)},
            "`log_probs` must",
        ),
        ({"inputs": "plain", **CLASSES, **topk}, {"indices": lambda x: x + K}, "`indices` must be in [0, 7)"),
        ({"inputs": "plain", **CLASSES, **topk}, {"direction": "up"}, "`direction` must be"),
        (
            {"inputs": "first axis", **ROWS, **topk},
            {"indices": lambda x: x + K * is_first},
            "`indices` must be",
        ),
        (
            {"inputs": "first axis", **ROWS, "indices": "first axis", "log_probs": "first axis"},
            {"indices": lambda x: torch.where(torch.arange(N)[:, None] == N - 1, 0, x)},
            "`indices` must be different classes",  # of a row that one rank has
        ),
        (
            {"inputs": "first axis", **ROWS, **dict.fromkeys(DENSE, "whole"), "labels": "first axis"},
            {"labels": lambda x: torch.where(x == 2, K, x)},
            "`labels` must be in [0, 7)",
        ),
        (
            {"inputs": "first axis", **ROWS, **topk},
            {"reduction": "avg" if is_first else "sum"},
            "`reduction`",
        ),
    ):
        options = {name: x for name, x in changes.items() if not callable(x)}
        tensors = case() | {
            name: change(case()[name]) for name, change in changes.items() if callable(change)
        }
        laid = {name: laid_out(tensors[name], layout) for name, layout in layouts.items()}
        assert_refused(lambda laid=laid, options=options: divergence(laid, **options), words)
    tensors = {name: laid_out(case()[name], x) for name, x in {"inputs": "plain", **CLASSES, **dense}.items()}
    tensors["teacher_inputs"].requires_grad_()
    assert_refused(lambda: divergence(tensors), "must not require gradients")
    in_step()


@pytest.mark.parametrize("name", CHECKS)
def test_ranks(name):
    assert_passed(__name__, 2, name)
