"""The operators of graphs: what they say of their results is so, in every layout."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

import xent.torch as xt  # noqa: E402
from xent.core.spec import LossSpec  # noqa: E402
from xent.engine.row_columns import COLUMNS  # noqa: E402

# PyTorch warns of its own use of what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


@pytest.fixture(autouse=True)
def _no_graphs() -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()


LAYOUTS = {
    "contiguous": lambda *shape: torch.randn(shape),
    "transposed": lambda *shape: torch.randn(shape[::-1]).t(),
    "sliced": lambda *shape: torch.randn(shape[0], 2 * shape[1])[:, ::2],
    "expanded": lambda *shape: torch.randn(1, shape[1]).expand(shape),
}
SIZES = [(3, 5), (0, 5), (3, 1)]


def operator_calls(z: Any, make: Any) -> dict[str, Any]:
    """Each operator with arguments for logits, or hidden states, and such other matrices."""
    n, k = z.shape
    y, v = torch.zeros(n, dtype=torch.int64), make(n, k).softmax(-1)
    columns = [torch.rand(n, dtype=torch.float64) for _ in range(3)]
    link, dynamic = [2.0, 3.0], torch.tensor([2.0, 3.0], dtype=torch.float64)
    given = (z, y, v, link, None)
    x, w, b = z, make(4, k).to(z.dtype), torch.randn(4, dtype=z.dtype)
    tensors = (y, None, None, torch.ones(n, dtype=torch.float64))
    shifts = ([0, 1], torch.tensor([1.0, 0.5], dtype=torch.float64), "plain,accuracy")
    loss = (*tensors, -100, LossSpec(label_smoothing=0.1).to_numbers(), None, *shifts, 40, None)
    teacher = (x, w, b, torch.ones(n, dtype=torch.float64), columns[0], [1.0], None, False, 100, None)
    statistics = (torch.rand(4), y, None, columns[0], 0, [1.0], dynamic, " ".join(COLUMNS), 40, None)
    entries, log_probs = torch.tensor([[0, 2]]).expand(n, 2), torch.full((n, 2), -1.0)
    bins = (entries, torch.ones(n, dtype=torch.bool), columns[0], [2.0], None, True, 40, None)
    topk = (entries, log_probs, columns[0], columns[0], [0.0], dynamic[:1], False, True, 40, None)
    some = [torch.rand(n, dtype=torch.float64) for _ in range(6)] + [y]
    binary = (z, z.sigmoid(), None, None, LossSpec(label_smoothing=0.1, temperature=2.0).to_numbers(), None)
    return {
        "row_stats": (*given, True, True),
        "row_grad": (*given, *columns, *columns),
        "row_hvp": (z, y, v, link, dynamic, *columns, z),
        "row_stats_ahead": (*given, *columns[:2]),
        "row_grad_ahead": (*given, columns[2], *columns[:2]),
        "binary_losses": (*binary, True),
        "binary_grad": (*binary, torch.tensor(2.0)),
        "linear_losses": (x, w, b, *loss, 5),
        "linear_losses_grad": (columns[0], x, w, b, *loss, [True] * 3),
        "linear_losses_total": (x, w, b, *loss, 5, [True, True, False]),
        "linear_divergences": (x, w, b, *teacher),
        "linear_divergences_grad": (columns[0], x, w, b, *teacher, [True] * 6),
        "linear_divergences_total": (x, w, b, *teacher, 1, [True] * 3),
        "linear_bins": (x, w, b, *bins),
        "linear_bins_grad": (torch.rand(n, 3, dtype=torch.float64), x, w, b, *bins, [True] * 3),
        "linear_topk_divergences_total": (x, w, b, *topk, 1, [True, True, False]),
        "linear_statistics": (x, w, b, *statistics),
        "linear_statistics_grad": (some, x, w, b, *statistics, [True] * 4),
        "check_targets": (y, 1, -100, "labels"),
        "check_binary_targets": (z.sigmoid(), "", "targets"),
        "check_indices": (entries, 4),
        "check_log_probs": (log_probs,),
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_operators_give_what_they_say(layout: str, dtype: Any) -> None:
    make = LAYOUTS[layout]
    for size in SIZES:
        calls = operator_calls(make(*size).to(dtype) if dtype.itemsize < 8 else make(*size).double(), make)
        for name, call in calls.items():
            operator = getattr(torch.ops.xent, name).default
            torch.library.opcheck(operator, call, test_utils=("test_schema", "test_faketensor"))


def test_each_operator_is_in_the_table() -> None:
    names = {
        n.removeprefix("xent::").partition(".")[0]
        for n in torch._C._dispatch_get_all_op_names()
        if n.startswith("xent::")
    }
    assert names == operator_calls(torch.randn(4, 5), LAYOUTS["contiguous"]).keys()


@pytest.mark.parametrize("name", ["row_stats", "row_stats_ahead", "linear_losses", "linear_statistics"])
def test_operators_are_derived_in_graphs(name: str) -> None:
    z = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    call = operator_calls(z, LAYOUTS["contiguous"])[name]
    torch.library.opcheck(getattr(torch.ops.xent, name).default, call)


@pytest.mark.parametrize("kind", ["input", "weight"])
def test_a_transposed_operand_has_the_gradient_that_was_promised(kind: str) -> None:
    """The code that inductor writes relies on the strides."""
    x = torch.randn(3, 4).t() if kind == "input" else torch.randn(4, 3)
    w = torch.randn(3, 6).t() if kind == "weight" else torch.randn(6, 3)
    x, w = x.requires_grad_(), w.requires_grad_()
    f = lambda x, w: xt.linear_cross_entropy(x, w, torch.arange(4), reduction="none").sum()  # noqa: E731
    found, expected = (torch.autograd.grad(g(x, w), (x, w)) for g in (torch.compile(f), f))
    torch.testing.assert_close(found, expected)
