"""The row statistics of logits and of a linear layer: definitions, derivatives, and what is computed."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
F = torch.nn.functional

import xent.torch as xt  # noqa: E402
from tests.torch.graphs.test_graphs import kept  # noqa: E402
from xent.core import softmax  # noqa: E402
from xent.core.contract import RowStatistics  # noqa: E402
from xent.torch import devices  # noqa: E402
from xent.torch.linear import row_stats  # noqa: E402

# PyTorch warns of its own use of what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

ROWS, D, K = (3, 7), 5, 11
ALL = RowStatistics._fields
DERIVED = ("lse", "log_prob", "entropy", "log_sum_sq_probs", "mean_logits")
LINKS = {"no link": {}, "softcap": {"softcap": 3.0, "temperature": 0.8}, "temperature": {"temperature": 2.0}}
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def definitions(z: Any, y: Any, softcap: Any = None, temperature: float = 1.0) -> RowStatistics:
    """In float64, from the textbook; 0 in rows that are ignored."""
    u = z.double() / temperature
    u = u if softcap is None else softcap * torch.tanh(u / softcap)
    log_p = u.log_softmax(-1)
    p = log_p.exp()
    read = torch.ones(z.shape[:-1], dtype=torch.bool) if y is None else y >= 0
    of_labels: dict[str, Any] = {"log_prob": None, "is_top1": None}
    if y is not None:
        of_labels["log_prob"] = log_p.gather(-1, y.clamp(0)[..., None])[..., 0]
        of_labels["is_top1"] = u.argmax(-1) == y
    every = RowStatistics(
        lse=u.logsumexp(-1),
        entropy=-(p * log_p).sum(-1),
        argmax=u.argmax(-1),
        log_sum_sq_probs=p.square().sum(-1).log(),
        mean_logits=u.mean(-1),
        **of_labels,
    )
    return RowStatistics(*(None if x is None else torch.where(read, x, 0).to(x.dtype) for x in every))


def operands(dtype: Any = torch.float64, rows: tuple[int, ...] = ROWS) -> list[Any]:
    shapes = (*rows, D), (K, D), (K,)
    return [torch.randn(*shape, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def labels(ignore_index: int = -100) -> Any:
    y = torch.arange(21).reshape(ROWS) % K
    y[1, 2], y[2, 6] = ignore_index, ignore_index
    return y


def of_layer(x: Any, w: Any, b: Any, y: Any = None, **options: Any) -> RowStatistics:
    return xt.linear_row_statistics(x, w, y, bias=b, **{"chunk_bytes": 700, **options})


def of_logits(x: Any, w: Any, b: Any, y: Any = None, **options: Any) -> RowStatistics:
    return xt.row_statistics(F.linear(x, w, b), y, **options)


WAYS = {"layer": of_layer, "logits": of_logits}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def close(found: Any, expected: Any, tolerance: float) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=tolerance, atol=tolerance)


@ways
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", LINKS.values(), ids=LINKS)
def test_they_are_their_definitions(way: Any, dtype: Any, options: Any) -> None:
    x, w, b = (a.detach() for a in operands(dtype))
    z, y = F.linear(x, w, b), labels()
    x[1, 2] = torch.nan
    stats = way(x, w, b, y, want=ALL, **options)
    # A layer in chunks may round its logits otherwise.
    tolerance = {torch.float64: 1e-13, torch.float32: 3e-6}.get(dtype, 2e-2)
    for name, value, expected in zip(ALL, stats, definitions(z, y, **options), strict=True):
        if name in ("argmax", "is_top1"):
            assert value.dtype == {"argmax": torch.int64, "is_top1": torch.bool}[name]
            assert torch.equal(value, expected)
        else:
            assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            close(value, expected, tolerance)
    without = way(x, w, b, want=[name for name in ALL if name not in ("log_prob", "is_top1")], **options)
    assert without.log_prob is None
    assert without.is_top1 is None
    read = y >= 0
    for name in ("lse", "entropy", "argmax", "log_sum_sq_probs", "mean_logits"):
        close(getattr(without, name)[read], getattr(stats, name)[read], tolerance)


@ways
@pytest.mark.parametrize(
    ("want", "dtype"),
    [*(((name,), torch.float64) for name in DERIVED), *((ALL[::-1], dtype) for dtype in DTYPES)],
    ids=str,
)
@pytest.mark.parametrize("options", [LINKS["no link"], LINKS["softcap"]], ids=str)
def test_gradients(way: Any, want: Any, dtype: Any, options: Any) -> None:
    inputs, y = operands(dtype), labels()
    upstream = dict(zip(DERIVED, torch.randn(5, *ROWS, dtype=torch.float64), strict=True))
    wide = [a.detach().double().requires_grad_() for a in inputs]
    stats, expected = way(*inputs, y, want=want, **options), definitions(F.linear(*wide), y, **options)
    assert [name for name in ALL if getattr(stats, name) is not None] == sorted(want, key=ALL.index)
    sums = (
        sum((getattr(s, name).double() * upstream[name]).sum() for name in DERIVED if name in want)
        for s in (stats, expected)
    )
    found, exact = (torch.autograd.grad(s, i) for s, i in zip(sums, (inputs, wide), strict=True))
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 1e-1)
    for a, e in zip(found, exact, strict=True):
        assert a.dtype == dtype
        close(a, e, tolerance * e.abs().max())


@ways
def test_derivatives_of_every_order(way: Any) -> None:
    x, w, b = operands(rows=(2, 2))
    x, w, b = (a.detach()[..., :2].clone().requires_grad_() for a in (x, w, b[:K]))
    w, b = w.detach()[:4].clone().requires_grad_(), torch.randn(4, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[0, -100], [3, 1]])
    options = {"chunk_bytes": 96} if way is of_layer else {}

    def statistics(x: Any, w: Any, b: Any) -> Any:
        stats = way(x, w, b, y, want=("log_sum_sq_probs", "mean_logits"), softcap=3.0, **options)
        return stats.log_sum_sq_probs, stats.mean_logits

    assert torch.autograd.gradcheck(statistics, (x, w, b), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(statistics, (x, w, b))


def test_transforms() -> None:
    z = torch.randn(3, 4, dtype=torch.float64)

    def function(z: Any) -> Any:
        return xt.row_statistics(z, want=("log_sum_sq_probs",)).log_sum_sq_probs.sum()

    def expected(z: Any) -> Any:
        return z.softmax(-1).square().sum(-1).log().sum()

    for transform in (torch.func.grad, torch.func.hessian, lambda f: torch.func.vmap(torch.func.grad(f))):
        torch.testing.assert_close(transform(function)(z), transform(expected)(z))


@ways
@pytest.mark.parametrize("ignore_index", [0, -100])
@pytest.mark.parametrize("shift", [0, 2, 9])
def test_shift_and_ignored_rows(way: Any, ignore_index: int, shift: int) -> None:
    inputs, y = operands(), labels(ignore_index)
    options = {"want": ALL, "ignore_index": ignore_index}
    if way is of_layer:
        stats = of_layer(*inputs, y, shift=shift, **options)
    else:
        x, w, b = inputs
        stats = of_logits(x[:, : max(0, 7 - shift)], w, b, y[:, shift:], **options)
    z = F.linear(*inputs)[:, : max(0, 7 - shift)]
    expected = definitions(z, torch.where(y == ignore_index, -1, y)[:, shift:])
    for value, e in zip(stats, expected, strict=True):
        torch.testing.assert_close(value, e)
    if z.numel():
        (dx,) = torch.autograd.grad(sum(getattr(stats, name).sum() for name in DERIVED), inputs[0])
        ignored = (y == ignore_index)[:, shift:]
        assert not dx[:, : 7 - shift][ignored].any()
        assert not dx[:, 7 - shift :].any()


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_near_certainty_they_keep_their_digits(dtype: Any) -> None:
    """log Σ p² is log1p(R₂) − 2 log1p(R), with R the other classes' part; its gradient at the
    largest is 2 (p²/Σp² − p)."""
    gap = torch.tensor([20.0, 5.0, 0.5], dtype=torch.float64)
    z = torch.stack([0 * gap, gap, 0 * gap - 1], -1)
    r = torch.exp(-gap), torch.exp(-gap - 1)
    one, two = sum(r), sum(a * a for a in r)
    expected = torch.log1p(two) - 2 * torch.log1p(one)
    slope = 2 * (one - two) / ((1 + one) * (1 + two))
    inputs = z.to(dtype).requires_grad_(), torch.eye(3, dtype=dtype)
    for stats in (
        xt.linear_row_statistics(*inputs, torch.zeros(3).long(), want=("log_sum_sq_probs",)),
        xt.row_statistics(inputs[0], want=("log_sum_sq_probs",)),
    ):
        (column,) = (x for x in stats if x is not None)
        rtol = 1e-14 if dtype == torch.float64 else 1e-6
        torch.testing.assert_close(column.double(), expected, rtol=rtol, atol=0)
        (dz,) = torch.autograd.grad(column.sum(), inputs[0])
        torch.testing.assert_close(dz[:, 1].double(), slope, rtol=10 * rtol, atol=0)


@ways
@pytest.mark.parametrize("options", LINKS.values(), ids=LINKS)
def test_excluded_classes(way: Any, options: Any) -> None:
    """A logit of −inf: the mean is −inf, and what is left is that of the other classes."""
    x, w, b = (a.detach() for a in operands())
    b[3] = -torch.inf
    x.requires_grad_()
    stats = way(x, w, b, want=("log_sum_sq_probs", "mean_logits", "entropy"), **options)
    assert (stats.mean_logits == -torch.inf).all()
    keep = [k for k in range(K) if k != 3]
    expected = definitions(F.linear(x, w[keep], b[keep]), None, **options)
    torch.testing.assert_close(stats.log_sum_sq_probs, expected.log_sum_sq_probs)
    found, exact = (
        torch.autograd.grad(s.log_sum_sq_probs.sum() + s.entropy.sum(), x) for s in (stats, expected)
    )
    torch.testing.assert_close(found, exact)


def test_rows_without_a_softmax_are_nan_and_no_others() -> None:
    z = torch.zeros(5, 4, dtype=torch.float64)
    z[1, 2], z[2, 1], z[3] = torch.nan, torch.inf, -torch.inf
    y = torch.tensor([1, 1, 1, 1, 4])
    stats = xt.row_statistics(z, y, want=ALL, validate=False)
    assert stats.log_sum_sq_probs.isnan().tolist() == [False, True, True, True, True]
    assert stats.mean_logits.tolist()[0] == 0
    assert stats.mean_logits.isnan().tolist() == [False, True, False, False, True]
    assert stats.is_top1.tolist() == [False, False, True, False, False]


def test_the_first_of_equal_logits_is_the_top() -> None:
    z = torch.tensor([[1.0, 2.0, 2.0]]).expand(3, 3)
    assert xt.row_statistics(z, torch.arange(3), want=("is_top1",)).is_top1.tolist() == [False, True, False]


@ways
def test_no_rows_and_one_class(way: Any) -> None:
    x, w, b = operands()
    stats = way(x[:0], w, b, torch.zeros(0, 7, dtype=torch.long), want=ALL)
    assert all(value.shape == (0, 7) for value in stats)
    sum(getattr(stats, name).sum() for name in DERIVED).backward()
    assert not w.grad.any()
    stats = way(x, w[:1], b[:1], torch.zeros(ROWS, dtype=torch.long), want=ALL)
    assert not stats.log_sum_sq_probs.any()
    assert stats.is_top1.all()
    assert torch.equal(stats.mean_logits, stats.lse)


class Spy:
    """Records what the kernels are asked for."""

    def __init__(self, monkeypatch: Any) -> None:
        self.wanted: list[tuple[str, ...]] = []
        self.others: list[str] = []
        kernel = devices.row_stats

        def row_stats_of(logits: Any, labels: Any, dense: Any, link: Any, want: Any) -> Any:
            self.wanted.append(tuple(want))
            return kernel(logits, labels, dense, link, want)

        monkeypatch.setattr(devices, "row_stats", row_stats_of)
        for module, name in ((softmax, "mean_logits"), (softmax, "mean_logits_grad")):
            monkeypatch.setattr(module, name, self._noted(name, getattr(module, name)))
        for name, function in row_stats.OF_OTHERS.items():
            monkeypatch.setitem(row_stats.OF_OTHERS, name, self._noted(f"{name}'s gradient", function))

    def _noted(self, name: str, function: Any) -> Any:
        def noted(*inputs: Any) -> Any:
            self.others.append(name)
            return function(*inputs)

        return noted


def test_what_is_not_wanted_is_not_computed(monkeypatch: Any) -> None:
    spy, (x, w, b), y = Spy(monkeypatch), operands(), labels()
    one_chunk = {"chunk_bytes": None}
    for want, asked in {
        ("lse",): [("lse",)],
        ("log_prob",): [("log_prob",)],
        ("entropy", "log_prob"): [("log_prob", "entropy")],
        ("is_top1",): [("argmax",)],
        ("mean_logits",): [],
        ("log_sum_sq_probs",): [("argmax",), ("log_prob",), ("log_prob",)],
        ("lse", "log_prob", "entropy", "argmax"): [("lse", "log_prob", "entropy", "argmax")],
    }.items():
        spy.wanted.clear(), spy.others.clear()
        stats = of_layer(x, w, b, y, want=want, **one_chunk)
        assert spy.wanted == asked
        assert spy.others == ["mean_logits"] * ("mean_logits" in want)
        if want == ("is_top1",):
            assert not stats.is_top1.requires_grad
            continue
        spy.wanted.clear(), spy.others.clear()
        sum(getattr(stats, name).sum() for name in want if name in DERIVED).backward()
        assert set(spy.others) <= {f"{name}'s gradient" for name in want} | {"mean_logits_grad"}
        assert spy.wanted[-1] == ("lse", "log_prob")
        assert len(spy.wanted) == (4 if want == ("log_sum_sq_probs",) else 1 + ("entropy" in want))
        assert ("entropy" in want) == any("entropy" in names for names in spy.wanted)
    spy.wanted.clear()
    xt.row_statistics(F.linear(x, w, b), y, want=("log_prob",)).log_prob.sum().backward()
    assert spy.wanted == [("lse", "log_prob")]


def test_no_logits_are_kept_and_they_exist_by_chunks(monkeypatch: Any) -> None:
    rows, kernel = [], devices.row_stats
    monkeypatch.setattr(devices, "row_stats", lambda z, *rest: (rows.append(len(z)), kernel(z, *rest))[1])
    x = torch.randn(1000, 4, requires_grad=True)
    w = torch.randn(500, 4, requires_grad=True)
    stats = xt.linear_row_statistics(x, w, torch.zeros(1000, dtype=torch.long), want=ALL, chunk_bytes=1 << 18)
    assert kept(stats.log_sum_sq_probs.grad_fn, set()) < 1000 * 500 * 4 / 10
    sum(getattr(stats, name).sum() for name in DERIVED).backward()
    assert max(rows) <= (1 << 18) / (500 * 4)


@ways
@pytest.mark.parametrize(
    ("want", "words", "kind"),
    [
        (("entropi",), "`want` must have names out of lse, .*, is_top1; got 'entropi'", ValueError),
        ((), "`want` must have at least one name", ValueError),
        ("entropy", "`want` must be a sequence of names", TypeError),
        (None, "`want` must be a sequence of names", TypeError),
        (
            ("lse", "is_top1"),
            "`labels` must be given where `want` has 'is_top1'; got labels=None",
            ValueError,
        ),
        (("log_prob",), "`labels` must be given where `want` has 'log_prob'", ValueError),
    ],
    ids=str,
)
def test_errors(way: Any, want: Any, words: str, kind: Any) -> None:
    with pytest.raises(kind, match=words):
        way(*operands(), want=want)
