"""Graphs (compiled, traced, exported): memory, their number, and what they hold for."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402

import xent  # noqa: E402
import xent.torch as xt  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

N, T, D, K = 2, 5, 4, 7


@pytest.fixture(autouse=True)
def _no_graphs() -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()


def compiled(f: Any, **options: Any) -> tuple[Any, CompileCounterWithBackend]:
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(f, backend=counter, fullgraph=True, **options), counter


def leaves(*shapes: tuple[int, ...], dtype: Any = torch.float64) -> list[Any]:
    return [torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in shapes]


def kept(node: Any, seen: set[Any]) -> int:
    """The bytes that a graph of autograd keeps."""
    if node is None or node in seen:
        return 0
    seen.add(node)
    own = sum(t.nbytes for t in getattr(node, "saved_tensors", ()) if t is not None)
    return own + sum(kept(n, seen) for n, _ in node.next_functions)


LARGE = 500
HEAD = torch.randn(LARGE, 4)
VALUES = ("loss", "plain", "z_loss", "accuracy")
OF_ANY_ROWS = {
    "statistics": lambda x, w, y: xt.linear_row_statistics(x, w, y, chunk_bytes=1 << 18).log_prob.sum(),
    "all statistics": lambda x, w, y: joined(
        xt.linear_row_statistics(x, w, y, chunk_bytes=1 << 18, softcap=3.0, want=STATISTICS)
    ).sum(),
    "divergence": lambda x, w, y: xt.linear_kl_divergence(x, w, 2 * x, HEAD, labels=y, chunk_bytes=1 << 20),
    "top-k": lambda x, w, y: xt.linear_topk_kl_divergence(
        x, w, y[:, None], -(x[:, :1] ** 2), labels=y, ignore_index=0, chunk_bytes=1 << 18
    ),
    "top-k, constant": lambda x, w, y: xt.linear_topk_kl_divergence(
        x, w, y[:, None], -(y[:, None] / LARGE), tail="renormalise", chunk_bytes=1 << 18
    ),
    "derived weights": lambda x, w, y: xt.linear_cross_entropy(
        x, w, y, weight=w[:, 0].exp(), sample_weight=x[:, 0].exp(), chunk_bytes=1 << 18
    ),
    "loss of each row": lambda x, w, y: xt.linear_cross_entropy(x, w, y, reduction="none").sum(),
    "values": lambda x, w, y: sum(
        xt.linear_cross_entropy(x, w, y, z_loss=0.1, chunk_bytes=1 << 18, want=VALUES)[:4]
    ),
    "shifts": lambda x, w, y: xt.linear_cross_entropy(
        x, w, y, shift=(0, 2), shift_weight=(1.0, 0.3), chunk_bytes=1 << 18
    ),
    "temperatures": lambda x, w, y: xt.linear_cross_entropy(
        x, w, y, temperature=1.0 + y / LARGE, chunk_bytes=1 << 18
    ),
    "float32 logits": lambda x, w, y: xt.linear_cross_entropy(
        x.bfloat16(), w.bfloat16(), y, logits_dtype=torch.float32, chunk_bytes=1 << 18
    ),
}


@pytest.mark.parametrize("function", OF_ANY_ROWS.values(), ids=OF_ANY_ROWS)
def test_compiled_keeps_no_logits_and_takes_any_number_of_rows(function: Any) -> None:
    (w,) = leaves((LARGE, 4), dtype=torch.float32)
    f, counter = compiled(function)
    for n in (1000, 50, 51, 52):
        (x,) = leaves((n, 4), dtype=torch.float32)
        y = torch.randint(0, LARGE, (n,))
        loss, expected = f(x, w, y), function(x, w, y)
        assert n < 1000 or kept(loss.grad_fn, set()) < n * LARGE * 4 / 10
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
        for a, b in zip(*(torch.autograd.grad(v, (x, w)) for v in (loss, expected)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 2  # of one number of rows, and of any


Y = torch.randint(0, K, (N, T))
Y[1, 2] = -100
FACTOR = torch.rand(N, T, dtype=torch.float64)
FACTOR[0, 1] = 0


STATISTICS = xent.RowStatistics._fields


def joined(stats: Any) -> Any:
    return torch.cat([c.reshape(-1).double() for c in stats if c is not None])


DERIVED = {
    "statistics": (
        lambda x, w, b: joined(xt.linear_row_statistics(x, w, Y, bias=b, softcap=3.0, chunk_bytes=200)),
        "xwb",
    ),
    "statistics, shifted": (
        lambda x, w: joined(xt.linear_row_statistics(x, w, shift=1, temperature=0.7, chunk_bytes=200)),
        "xw",
    ),
    "all statistics": (
        lambda x, w, b: joined(
            xt.linear_row_statistics(x, w, Y, bias=b, softcap=3.0, shift=1, chunk_bytes=200, want=STATISTICS)
        ),
        "xwb",
    ),
    "some statistics": (
        lambda x, w: joined(xt.linear_row_statistics(x, w, want=("mean_logits", "log_sum_sq_probs"))),
        "xw",
    ),
    "labels": (
        lambda x, w, b, s, c: xt.linear_cross_entropy(
            x, w, Y, linear_bias=b, sample_weight=s, weight=c, label_smoothing=0.1, chunk_bytes=200
        ),
        "xwbsc",
    ),
    "labels, shifted, focal": (
        lambda w, s: xt.linear_cross_entropy(
            HIDDEN, w, Y, sample_weight=s, focal_gamma=2.0, shift=1, reduction="none", chunk_bytes=200
        ),
        "ws",
    ),
    "probabilities, shifted": (
        lambda x, w, s, c, q: xt.linear_cross_entropy(
            x, w, q.softmax(-1), sample_weight=s, weight=c, shift=1, z_loss=0.1, chunk_bytes=200
        ),
        "xwscq",
    ),
    "divergence": (
        lambda x, w, b, X, W, s: xt.linear_kl_divergence(
            x, w, X, W, bias=b, sample_weight=s, temperature=1.3, chunk_bytes=800
        ),
        "xwbXWs",
    ),
    "reverse divergence": (
        lambda x, w, X, W, B: xt.linear_kl_divergence(
            x, w, X, W, teacher_bias=B, direction="reverse", reduction="none", chunk_bytes=800
        ),
        "xwXWB",
    ),
    "top-k": (
        lambda x, w, b, t, s: xt.linear_topk_kl_divergence(
            x, w, TOP, t, bias=b, labels=Y, sample_weight=s, temperature=1.3, chunk_bytes=100
        ),
        "xwbts",
    ),
    "reverse top-k, renormalised": (
        lambda x, w, t: xt.linear_topk_kl_divergence(
            x, w, TOP, t, tail="renormalise", direction="reverse", reduction="none", chunk_bytes=100
        ),
        "xwt",
    ),
    "divergence from a constant": (
        lambda x, w: xt.linear_kl_divergence(x, w, 2 * HIDDEN, W2, sample_weight=FACTOR),
        "xw",
    ),
}
TOP = torch.stack([torch.randperm(K)[:2] for _ in range(N * T)]).reshape(N, T, 2)
HIDDEN, W2 = torch.randn(N, T, D, dtype=torch.float64), torch.randn(K, D, dtype=torch.float64)


@pytest.mark.parametrize(("function", "names"), DERIVED.values(), ids=DERIVED)
def test_compiled_derivatives_are_complete(function: Any, names: str) -> None:
    shapes = {"x": (N, T, D), "w": (K, D), "b": (K,), "q": (N, T, K), "X": (N, T, 3), "W": (K, 3), "B": (K,)}
    tensors = {name: leaves(shape)[0] for name, shape in shapes.items()}
    tensors["t"] = (-1.0 - torch.rand(N, T, 2)).double().requires_grad_()
    tensors |= {"s": FACTOR.clone().requires_grad_(), "c": torch.rand(K).double().requires_grad_()}
    inputs = [tensors[name] for name in names]
    loss, expected = compiled(function)[0](*inputs), function(*inputs)
    upstream = torch.rand(expected.shape, dtype=expected.dtype)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    found, truth = (torch.autograd.grad(v, inputs, upstream) for v in (loss, expected))
    torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-11)


# Numbers that change.

Z, Q = torch.randn(4, 5), torch.rand(4, 5)
LABELS, W = torch.arange(4), torch.randn(6, 5)
COUNTS, FRACTIONS = (70, 80, 90), (0.3, 0.4, 0.5)
CHANGING = {
    "denominator": (lambda z, n: xt.cross_entropy(z, LABELS, denominator=n), COUNTS),
    "denominator, projected": (lambda z, n: xt.linear_cross_entropy(z, W, LABELS, denominator=n), COUNTS),
    "denominator, divergence": (lambda z, n: xt.linear_kl_divergence(z, W, Z, W, denominator=n), COUNTS),
    "denominator, binary": (lambda z, n: xent.binary_cross_entropy(z, Q, denominator=n), COUNTS),
    "chunk_bytes": (lambda z, n: xt.linear_cross_entropy(z, W, LABELS, chunk_bytes=n), COUNTS),
    "ignore_index": (lambda z, n: xt.linear_cross_entropy(z, W, LABELS, ignore_index=n), (1, 2, 3)),
    "link": (lambda z, n: xt.cross_entropy(z, LABELS, temperature=n, softcap=n), FRACTIONS),
    "smoothing": (lambda z, n: xt.cross_entropy(z, LABELS, label_smoothing=n, z_loss=n), FRACTIONS),
    "entropy": (lambda z, n: xt.row_statistics(z, LABELS, temperature=n).entropy.sum(), FRACTIONS),
    "options, projected": (
        lambda z, n: xt.linear_cross_entropy(z, W, LABELS, softcap=n, z_loss=n, focal_gamma=n),
        FRACTIONS,
    ),
    "temperature, divergence": (
        lambda z, n: xt.linear_kl_divergence(z, W, Z, W, temperature=n, reduction="none").sum(),
        FRACTIONS,
    ),
    "temperature, top-k": (
        lambda z, n: xt.linear_topk_kl_divergence(z, W, LABELS[:, None], -Q[:, :1], temperature=n),
        FRACTIONS,
    ),
    "options, binary": (
        lambda z, n: xt.binary_cross_entropy_with_logits(z, Q, label_smoothing=n, temperature=n),
        FRACTIONS,
    ),
}


@pytest.mark.parametrize(("function", "values"), CHANGING.values(), ids=CHANGING)
def test_a_number_that_changes_is_no_new_graph(function: Any, values: Any) -> None:
    f, counter = compiled(function)
    z = torch.randn(4, 5, requires_grad=True)
    for value in values:
        loss, expected = f(z, value), function(z, value)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(*(torch.autograd.grad(v, z)[0] for v in (loss, expected)))
    assert counter.frame_count == 2


@pytest.mark.parametrize("value", [7.0, 7])
def test_a_denominator_that_is_dynamic_from_the_first_call(value: Any) -> None:
    loss = xt.CrossEntropyLoss(denominator=value)
    f, _ = compiled(lambda z, n: loss(z, LABELS) + xt.cross_entropy(z, LABELS, denominator=n), dynamic=True)
    expected = xt.cross_entropy(Z, LABELS, reduction="sum") * 2 / 7
    torch.testing.assert_close(f(Z, value), expected)


# Traces and exports hold for other values and sizes.

BINARY = xt.BCEWithLogitsLoss(pos_weight=torch.tensor(2.0))
EACH = {
    "rows": (lambda z, y: xt.cross_entropy(z, y, label_smoothing=0.1), "zy"),
    "loss of each row": (lambda z, y: xt.cross_entropy(z, y, reduction="none").sum(), "zy"),
    "classes last": (lambda z, y: xent.cross_entropy(z, y), "zy"),
    "sequences": (lambda z, y: xt.cross_entropy(z[..., None], y[:, None]), "zy"),
    "probabilities": (lambda z, y: xt.cross_entropy(z, z.softmax(-1)), "zy"),
    "module": (xt.CrossEntropyLoss(z_loss=0.1), "zy"),
    "statistics": (lambda z, y: joined(xt.row_statistics(z, y, want=STATISTICS)).sum(), "zy"),
    "projected": (lambda x, y, w: xt.linear_cross_entropy(x, w, y), "xyw"),
    "projected, weights": (
        lambda x, y, w: xt.linear_cross_entropy(x, w, y, sample_weight=x[:, 0], weight=w[:, 0] ** 2),
        "xyw",
    ),
    "projected, classes last": (lambda x, y, w: xent.linear_cross_entropy(x, w, y), "xyw"),
    "projected module": (xt.LinearCrossEntropyLoss(D, K, bias=True), "xy"),
    "projected statistics": (lambda x, y, w: xt.linear_row_statistics(x, w, y).log_prob.sum(), "xyw"),
    "divergence": (lambda x, y, w: xt.linear_kl_divergence(x, w, 2 * x, w, labels=y, ignore_index=0), "xyw"),
    "top-k": (
        lambda x, y, w: xt.linear_topk_kl_divergence(x, w, y[:, None], -(y[:, None] + 1.0)),
        "xyw",
    ),
    "binary": (lambda z, y: xt.binary_cross_entropy_with_logits(z, z.sigmoid()), "zy"),
    "binary, classes last": (lambda z, y: xent.binary_cross_entropy(z, (z > 0).long()), "zy"),
    "binary module": (lambda z, y: BINARY(z, z.sigmoid()), "zy"),
}


def sample(names: str, rows: int) -> tuple[Any, ...]:
    tensors = {"z": torch.randn(rows, K), "x": torch.randn(rows, D), "y": torch.randint(0, K, (rows,))}
    return tuple((tensors | {"w": torch.randn(K, D)})[name] for name in names)


@pytest.mark.parametrize(("function", "names"), EACH.values(), ids=EACH)
def test_a_trace_holds_for_other_inputs(function: Any, names: str) -> None:
    traced = torch.jit.trace(function, sample(names, 3))
    for rows in (3, 8):
        first, *others = sample(names, rows)
        first.requires_grad_()
        loss, expected = traced(first, *others), function(first, *others)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(*(torch.autograd.grad(v, first)[0] for v in (loss, expected)))


class Module(torch.nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any) -> Any:
        return self.function(*inputs)


# A strict export differs in how Python is read: of each kind of front door once.
STRICT = ("rows", "classes last", "module", "projected", "projected module", "binary")
EXPORTS = [
    pytest.param(*call, strict, id=f"{name}-{strict}")
    for name, call in EACH.items()
    for strict in (False, True)[: 1 + (name in STRICT)]
]


@pytest.mark.parametrize(("function", "names", "strict"), EXPORTS)
def test_an_export_takes_any_number_of_rows(function: Any, names: str, strict: bool) -> None:
    rows = torch.export.Dim("rows", min=2, max=512)
    sizes = tuple(None if name == "w" else {0: rows} for name in names)
    exported = torch.export.export(
        Module(function), sample(names, 3), dynamic_shapes=(sizes,), strict=strict
    ).module()
    more = sample(names, 11)
    torch.testing.assert_close(exported(*more), function(*more))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("soft", [False, True])
def test_an_export_takes_images_of_any_size(soft: bool, strict: bool) -> None:
    n, h, w = (torch.export.Dim(name, min=3, max=512) for name in "nhw")
    z, y = torch.randn(3, K, 5, 6), torch.randint(0, K, (3, 5, 6))
    by_class, by_row = {0: n, 2: h, 3: w}, {0: n, 1: h, 2: w}
    loss = xt.CrossEntropyLoss(reduction="none")
    target, sizes = (z.softmax(1), by_class) if soft else (y, by_row)
    exported = torch.export.export(
        loss, (z, target), dynamic_shapes=(by_class, sizes), strict=strict
    ).module()
    larger = [torch.cat([x, x], -1) for x in (z, target)]
    torch.testing.assert_close(exported(*larger), loss(*larger))


# Targets are checked.

BAD = torch.tensor([0, 7])
CHECKED = {
    "rows": lambda z, y, **o: xt.cross_entropy(z, y, **o),
    "projected": lambda z, y, **o: xt.linear_cross_entropy(z, torch.ones(3, 3), y, **o),
    "entries": lambda z, y, **o: xt.linear_topk_kl_divergence(
        z, torch.ones(3, 3), y[:, None], torch.zeros(2, 1), **o
    ),
    "probabilities": lambda z, y, **o: xt.cross_entropy(
        z, torch.where(y[:, None] == 7, -1.0, 0.3 + 0 * z), **o
    ),
    "binary": lambda z, y, **o: xt.binary_cross_entropy_with_logits(z, y[:, None].expand_as(z).float(), **o),
}
MODES = {
    "compiled": lambda f: torch.compile(f, backend="aot_eager", fullgraph=True),
    "mapped": lambda f: lambda z, y: torch.vmap(f)(z[None], y[None]),
    "gradient": lambda f: lambda z, y: torch.func.grad(lambda z: f(z, y).sum())(z),
    "compiled gradient": lambda f: torch.compile(
        lambda z, y: torch.func.grad(lambda z: f(z, y).sum())(z), backend="aot_eager", fullgraph=True
    ),
}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("function", CHECKED.values(), ids=CHECKED)
def test_targets_are_checked_in_every_mode_or_not_at_all(function: Any, mode: Any) -> None:
    z = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"got (7|-1)\.?0? at "):
        mode(lambda z, y: function(z, y, validate=True))(z, BAD)
    mode(lambda z, y: function(z, y, validate=False))(z, BAD)


def test_a_compiled_call_on_the_cpu_is_checked_as_an_eager_one() -> None:
    z = torch.zeros(2, 3)
    for f in (
        lambda z, y: xt.cross_entropy(z, y),
        lambda z, y: xt.row_statistics(z, y).log_prob,
        lambda z, y: xt.linear_row_statistics(z, torch.ones(3, 3), y).lse,
    ):
        with pytest.raises(
            ValueError, match=r"must be in \[0, 3\) or equal ignore_index=-100; got 7 at row 1"
        ):
            compiled(f)[0](z, BAD)
