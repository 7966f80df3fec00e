"""Every layout of every tensor gives what one process gives, or an error on all ranks that names it."""

from __future__ import annotations

import itertools

import pytest

torch = pytest.importorskip("torch")


import xent.torch as xt  # noqa: E402
from tests.torch.distributed.dtensors.layouts import (  # noqa: E402
    LAYOUTS,
    D,
    K,
    N,
    assert_refused,
    case,
    compare,
    laid_out,
    whole,
)
from tests.torch.distributed.ranks import Checks, arrays, assert_passed  # noqa: E402

# PyTorch warns of its own use of what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

CHECKS = Checks()


def dense(tensors, **options):
    """`xt.cross_entropy` of the tensors by their names."""
    target = tensors.get("labels", tensors.get("probabilities"))
    given = {name: x for name, x in tensors.items() if name in ("sample_weight", "weight", "temperature")}
    return xt.cross_entropy(tensors["logits"], target, **given, **options)


def linear(tensors, **options):
    """`xt.linear_cross_entropy` likewise."""
    target = tensors.get("labels", tensors.get("probabilities"))
    names = ("linear_bias", "sample_weight", "weight", "temperature")
    given = {name: x for name, x in tensors.items() if name in names}
    return xt.linear_cross_entropy(tensors["input"], tensors["linear_weight"], target, **given, **options)


OTHERS = {  # than the operands: their layouts
    "labels": ("plain", "whole", "first axis", "partial sums"),
    "probabilities": LAYOUTS,
    "sample_weight": ("plain", "whole", "first axis", "partial sums"),
    "weight": ("plain", "whole", "first axis", "partial sums"),
    "temperature": ("plain", "whole", "first axis", "partial sums"),
}


def each(operands, base):
    """``operands`` (name → layout) beside one further tensor at a time, in each of its layouts."""
    for name, layouts in OTHERS.items():
        for layout in layouts:
            target = {} if name in ("labels", "probabilities") else {"labels": base}
            yield {**operands, **target, name: layout}


@CHECKS
def logits() -> None:
    for layout in LAYOUTS:
        is_split = layout == "last axis"
        for layouts in each({"logits": layout}, "plain"):
            others = {name: x for name, x in layouts.items() if name != "logits"}
            if layout in ("whole", "partial sums") and set(others.values()) != {"plain"}:
                continue
            mixed = [name for name, x in others.items() if layout == "plain" and x != "plain"]
            if refused := mixed or [name for name, x in others.items() if x == "partial sums"]:
                name = "target" if refused[0] in ("labels", "probabilities") else refused[0]
                assert_refused(lambda layouts=layouts: compare(case, dense, layouts, ["logits"]), f"`{name}`")
                continue
            derived = [] if is_split else [name for name in others if name != "labels"]
            compare(case, dense, layouts, ["logits", *derived], label_smoothing=0.1)
            if derived:
                compare(case, dense, layouts, derived)


@CHECKS
def operands() -> None:
    for inputs, weight in itertools.product(LAYOUTS, LAYOUTS):
        operands = {"input": inputs, "linear_weight": weight}
        if inputs == weight == "plain":
            continue
        by_rows = weight == "whole" and inputs != "plain"
        if not by_rows and weight != "first axis":
            call = lambda operands=operands: compare(case, linear, {**operands, "labels": "plain"}, ["input"])  # noqa: E731
            assert_refused(call, "`linear_weight` must be")
            continue
        for layout in ("plain", "whole", "first axis", "partial sums"):
            layouts = {**operands, "linear_bias": layout, "labels": "plain"}
            if layout == "partial sums" or (layout == "plain" and not by_rows):
                assert_refused(
                    lambda layouts=layouts: compare(case, linear, layouts, ["input"]), "`linear_bias` must be"
                )
            else:
                compare(case, linear, layouts, ["input", "linear_weight", "linear_bias"], shift=0)
        if inputs in ("plain", "first axis"):
            for layouts in each(operands, "plain"):
                if "partial sums" not in list(layouts.values())[2:]:
                    compare(case, linear, layouts, ["input", "linear_weight"])
            for reduction, layout in itertools.product(("sum", "none"), ("plain", "whole")):
                compare(
                    case,
                    linear,
                    {**operands, "labels": layout},
                    ["input", "linear_weight"],
                    reduction=reduction,
                )


@CHECKS
def float32_logits() -> None:
    tensors = case()
    x, w, y = tensors["input"].bfloat16(), tensors["linear_weight"].bfloat16(), tensors["labels"]
    expected = xt.linear_cross_entropy(x, w, y, logits_dtype=torch.float32)
    for layout in ("plain", "whole"):
        tensors = laid_out(x, layout), laid_out(w, "first axis"), laid_out(y, layout)
        found = xt.linear_cross_entropy(*tensors, logits_dtype=torch.float32)
        torch.testing.assert_close(whole(found), expected, rtol=1e-6, atol=0.0)
        assert abs(whole(xt.linear_cross_entropy(*tensors)) / expected - 1) > 1e-5


@CHECKS
def values_and_shifts() -> None:
    """Several values, and several shifts of sequences whose rows are sharded."""
    x, w, y = (torch.tensor(a) for a in arrays((N, 4, D), (K, D), (N, 4)))
    y = (10 * y).long() % K
    y[1, 2] = y[3] = -100
    c = torch.linspace(0, 2, K, dtype=torch.float64)
    want = ("loss", "plain", "z_loss", "accuracy")
    shifts = {"want": (*want, "by_shift"), "shift": (1, 2), "shift_weight": (1.0, 0.5)}
    options = [{"want": want}, {"want": want, "reduction": "none"}, shifts, {**shifts, "reduction": "sum"}]
    options += [{**shifts, "denominator": "rows"}, {**shifts, "denominator": 20.0}]
    pairs = [("plain", "first axis"), ("first axis", "whole"), ("whole", "whole"), ("whole", "first axis")]
    for (inputs, weight), more in itertools.product(pairs, options):
        found = []
        for lay in (laid_out, lambda a, layout: a.detach().clone()):
            operands = lay(x, inputs).requires_grad_(), lay(w, weight).requires_grad_()
            values = xt.linear_cross_entropy(*operands, y, weight=c, z_loss=0.1, **more)
            assert values._fields == ("loss", "plain", "z_loss", "accuracy", "by_shift")
            whole(values.loss).sum().backward()
            numbers = [None if v is None else whole(v).detach() for v in values]
            found.append([*numbers, *(whole(a.grad) for a in operands)])
        for one, other in zip(*found, strict=True):
            assert (one is None) == (other is None), more
            if one is not None:
                text = f"{inputs} {weight} {more}"
                torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-14, msg=lambda m, t=text: t + m)


@pytest.mark.parametrize("name", CHECKS)
def test_ranks(name):
    assert_passed(__name__, 2, name)
