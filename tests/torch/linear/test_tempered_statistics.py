"""A temperature of each row in the row statistics, of logits and of a linear layer."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

import xent  # noqa: E402
import xent.torch as xt  # noqa: E402
from tests.torch.linear.test_row_stats import (  # noqa: E402
    ALL,
    DERIVED,
    ROWS,
    K,
    close,
    definitions,
    labels,
    operands,
    ways,
)

# PyTorch warns of its own use of what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

F = torch.nn.functional
SOFTCAPS = pytest.mark.parametrize("softcap", [None, 3.0])


def temperatures() -> Any:
    """(3, 7), from 0.4 to 2.5, with NaN in a row that is ignored."""
    t = torch.linspace(0.4, 2.5, 21, dtype=torch.float64).reshape(ROWS)
    t[1, 2] = torch.nan
    return t.requires_grad_()


def by_row(z: Any, y: Any, t: Any, softcap: float | None) -> xt.RowStatistics:
    """The definitions of each row alone, at its number T."""
    rows = []
    for z_n, y_n, t_n in zip(z.reshape(-1, K), y.reshape(-1), t.reshape(-1), strict=True):
        number = 1.0 if y_n < 0 else t_n
        rows.append(definitions(z_n[None], y_n[None], softcap, number))
    return xt.RowStatistics(*(torch.cat(column).reshape(y.shape) for column in zip(*rows, strict=True)))


def weighted(stats: Any) -> Any:
    """A sum with another factor for each row and statistic."""
    columns = [getattr(stats, name).double() for name in DERIVED]
    factors = [torch.linspace(-1, 2 + k, c.numel()).double().reshape(c.shape) for k, c in enumerate(columns)]
    return sum((c * f).sum() for c, f in zip(columns, factors, strict=True))


def assert_equal(found: Any, expected: Any, tolerance: float) -> None:
    for name, a, e in zip(ALL, found, expected, strict=True):
        if name in ("argmax", "is_top1"):
            assert torch.equal(a, e)
        else:
            close(a, e, tolerance)


@ways
@SOFTCAPS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_each_row_has_its_own(way: Any, softcap: Any, dtype: Any) -> None:
    tensors, y, t = operands(dtype), labels(), temperatures()
    z = F.linear(*tensors)
    if dtype == torch.bfloat16 and way.__name__ == "of_layer":
        z = F.linear(*(a.float() for a in tensors))
    expected = by_row(z, y, t, softcap)
    exact = torch.autograd.grad(weighted(expected), (*tensors, t))
    more = {"softcap": softcap, "want": ALL}
    if dtype == torch.bfloat16 and way.__name__ == "of_layer":
        more["logits_dtype"] = torch.float32
    tolerance = {torch.float64: 1e-12, torch.float32: 3e-6}.get(dtype, 1e-5)
    of_gradients = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 2e-2)
    if way.__name__ == "of_layer":
        tensors[0].data[1, 2] = torch.nan  # of the row that is ignored
    for given in (t, t.detach()):
        found = way(*tensors, y, temperature=given, **more)
        assert found.lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_equal(found, expected, tolerance)
        gradients = torch.autograd.grad(weighted(found), (*tensors, t)[: 3 + given.requires_grad])
        for a, e in zip(gradients, exact, strict=False):
            assert a.isfinite().all()
            assert (a.double() - e.double()).abs().max() < of_gradients * e.double().abs().max()
    assert not gradients[0][1, 2].any()


@pytest.mark.parametrize("has_labels", [False, True])
def test_a_shift(has_labels: bool) -> None:
    x, w, b = operands()
    y, t = labels() if has_labels else None, temperatures().detach()
    t[1, 2], t[:, -2:] = 1.5, torch.nan  # of rows that have no target
    t.requires_grad_()
    more = {"bias": b, "want": None if has_labels else [n for n in ALL if n not in ("log_prob", "is_top1")]}
    more["want"] = more["want"] or ALL
    found = xt.linear_row_statistics(x, w, y, temperature=t, shift=2, chunk_bytes=400, **more)
    cut = x[:, :-2], w, None if y is None else y[:, 2:]
    expected = xt.linear_row_statistics(*cut, temperature=t[:, :-2], **more)
    for a, e in zip(found, expected, strict=True):
        assert (a is None) == (e is None)
        if a is not None:
            close(a, e, 1e-13)
    both = (torch.autograd.grad((s.entropy * s.lse).sum(), (x, w, b, t)) for s in (found, expected))
    for a, e in zip(*both, strict=True):
        close(a, e, 1e-12)


@ways
def test_derivatives(way: Any) -> None:
    tensors = [torch.randn(*shape).double().requires_grad_() for shape in ((1, 3, 2), (3, 2), (3,))]
    y, t = torch.tensor([[1, -100, 2]]), torch.tensor([[0.7, 1.3, 2.0]]).double().requires_grad_()

    def total(*tensors: Any) -> Any:
        more = {"want": DERIVED[1:3], "softcap": 3.0, "temperature": tensors[3]}
        stats = way(*tensors[:3], y, **more)
        return torch.stack((stats.log_prob, 2 * stats.entropy))

    assert torch.autograd.gradcheck(total, (*tensors, t), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(total, (*tensors, t))


@pytest.mark.parametrize(
    ("options", "is_learnt"),
    [
        ({"softcap": 3.0}, False),
        ({"shift": 2}, True),
        pytest.param({"softcap": 3.0}, True, marks=pytest.mark.slow),
        pytest.param({"shift": 2}, False, marks=pytest.mark.slow),
        (None, True),  # of logits
    ],
    ids=str,
)
def test_compiled_is_eager(is_learnt: bool, options: Any) -> None:
    torch._dynamo.reset()
    tensors, y, t = operands(), labels(), temperatures().detach().requires_grad_(is_learnt)

    def statistics(x: Any, w: Any, b: Any, y: Any, t: Any) -> Any:
        if options is None:
            return xt.row_statistics(F.linear(x, w, b), y, temperature=t, want=ALL)
        more = {"chunk_bytes": 400, "want": ALL, **options}
        return xt.linear_row_statistics(x * 1.0, w, y, bias=b, temperature=t, **more)

    if options == {"shift": 2}:
        t = torch.where(t.isnan(), 1.0, t.detach()).requires_grad_(is_learnt)
    derived = (*tensors, t)[: 3 + is_learnt]
    compiled = torch.compile(statistics, fullgraph=True, backend="aot_eager")
    found, expected = (f(*tensors, y, t) for f in (compiled, statistics))
    assert_equal(found, expected, 1e-12)
    for a, e in zip(*(torch.autograd.grad(weighted(s), derived) for s in (found, expected)), strict=True):
        close(a, e, 1e-12)


def test_out_of_range() -> None:
    x, w, _ = operands()
    y, t = labels(), temperatures().detach()
    calls = (
        lambda **more: xt.linear_row_statistics(x, w, y, temperature=t, **more),
        lambda **more: xt.row_statistics(x @ w.T, y, temperature=t, **more),
    )
    for wrong in (0.0, -1.0, torch.inf, torch.nan):
        t[2, 1] = wrong
        for call in calls:
            with pytest.raises(ValueError, match=r"`temperature` must be finite and > 0 .* row 2, column 1"):
                call()
            lse = call(validate=False).lse
            assert lse[2, 1].isnan()
            assert lse.isnan().sum() == 1
    with pytest.raises(ValueError, match=r"`temperature` must be a number, or .* of the shape of the rows"):
        xt.linear_row_statistics(x, w, y, temperature=t[:, :3])
    with pytest.raises(ValueError, match=r"`temperature` must be a number, or .* of the shape of the rows"):
        xt.row_statistics(x @ w.T, y, temperature=t[0])


def test_through_the_functions_of_arrays_and_without_rows() -> None:
    x, w, _ = operands()
    y, t = labels(), temperatures()
    close(
        xent.linear_row_statistics(x, w, y, temperature=t).lse,
        xent.row_statistics(x @ w.T, y, temperature=t).lse,
        1e-13,
    )
    none = xt.linear_row_statistics(x[:0], w, y[:0], temperature=t[:0])
    assert none.lse.shape == (0, 7)
    assert xt.row_statistics(x[:0] @ w.T, y[:0], temperature=t[:0]).lse.shape == (0, 7)
