"""Each operation on the logits of a fused layer: fused or computed as before, with the same gradients."""

from __future__ import annotations

import re

import pytest

torch = pytest.importorskip("torch")

import xent.torch as xt  # noqa: E402
from tests.torch.fused.comparisons import B, D, K, T, assert_close, events, twins  # noqa: E402

F = torch.nn.functional


def ce(z, y, **options):
    """Of each row; ``y (B, T)`` or of as many rows as ``z`` has."""
    return F.cross_entropy(z.reshape(-1, z.shape[-1]), y.reshape(-1), **options)


def masked(z, y):
    return F.cross_entropy(z[y >= 0], y[y >= 0])


def two_uses(z, y):
    return ce(z, y) + ce(z[:, 1:], y[:, 1:])


FUSED = {
    "plain": ce,
    "view": lambda z, y: F.cross_entropy(z.view(-1, K), y.view(-1)),
    "view of a size": lambda z, y: F.cross_entropy(z.view(torch.Size((B * T, K))), y.flatten()),
    "flatten": lambda z, y: F.cross_entropy(z.flatten(0, 1), y.flatten()),
    "torch.flatten": lambda z, y: F.cross_entropy(torch.flatten(z, end_dim=1), y.flatten()),
    "other leading axes": lambda z, y: F.cross_entropy(z.view(T, B, K).view(-1, K), y.flatten()),
    "shift": lambda z, y: ce(z[..., :-1, :].contiguous(), y[..., 1:]),
    "shift of two axes": lambda z, y: ce(z[:, :-1], y[:, 1:]),
    "every second row": lambda z, y: ce(z[:, ::2], y[:, ::2]),
    "one batch": lambda z, y: F.cross_entropy(z[1], y[1]),
    "last position": lambda z, y: F.cross_entropy(z[:, -2], y[:, -2]),
    "mask": masked,
    "mask of a batch": lambda z, y: ce(z[torch.tensor([True, False])], y[:1]),
    "first classes": lambda z, y: ce(z[..., :9], y % 9),
    "first classes of rows": lambda z, y: ce(z[:, 1:, :9], y[:, 1:] % 9),
    "float": lambda z, y: ce(z.float(), y),
    "to a dtype": lambda z, y: ce(z.to(torch.float32), y),
    "to a dtype by name": lambda z, y: ce(z.to(dtype=torch.float32), y),
    "to its device": lambda z, y: ce(z.to("cpu").to(device=torch.device("cpu")), y),
    "divided": lambda z, y: ce(z / 8.0, y),
    "torch.div": lambda z, y: ce(torch.div(z, 8), y),
    "times": lambda z, y: ce(z * 0.3, y),
    "times, from the left": lambda z, y: ce(3 * z, y),
    "torch.mul": lambda z, y: ce(torch.mul(z, 0.3), y),
    "softcap": lambda z, y: ce(2.0 * torch.tanh(z / 2.0), y),
    "softcap by its method": lambda z, y: ce((z / 2.0).tanh() * 2.0, y),
    "softcap of F": lambda z, y: ce(F.tanh(z * 0.7) * 1.5 / 3, y),
    "tanh": lambda z, y: ce(z.tanh(), y),
    "vector added": lambda z, y: ce(z + torch.linspace(0, 1, K), y),
    "row added": lambda z, y: ce(z + torch.linspace(0, 1, K)[None], y),
    "logits by name": lambda z, y: F.cross_entropy(input=z.view(-1, K), target=y.view(-1)),
    "sum": lambda z, y: ce(z, y, reduction="sum"),
    "none": lambda z, y: ce(z, y, reduction="none"),
    "smoothing": lambda z, y: ce(z, y, label_smoothing=0.1),
    "class weights": lambda z, y: ce(z, y, weight=torch.linspace(0.5, 2, K), label_smoothing=0.1),
    "ignore_index": lambda z, y: ce(z, y.clamp_min(0), ignore_index=3),
    "a module": lambda z, y: torch.nn.CrossEntropyLoss(label_smoothing=0.1)(z.view(-1, K), y.view(-1)),
    "xent's loss": lambda z, y: xt.cross_entropy(z.view(-1, K), y.view(-1), z_loss=0.1, softcap=2.0),
    "xent's loss of a scale": lambda z, y: xt.cross_entropy(
        (z / 2).view(-1, K),
        y.view(-1),
        z_loss=0.1,
        sample_weight=torch.linspace(0, 1, B * T),
        denominator=3.0,
    ),
    "xent's module": lambda z, y: xt.CrossEntropyLoss(focal_gamma=2.0)(z.view(-1, K), y.view(-1)),
    "all of it": lambda z, y: ce(
        (0.5 * (z + torch.ones(K)).float()[:, :-1, :8] / 1.5).tanh() * 3, y[:, 1:] % 8, reduction="none"
    ),
    "a loss of each batch": lambda z, y: F.cross_entropy(z[0], y[0]) + F.cross_entropy(z[1], y[1]),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", FUSED)
def test_fused(name, bias):
    expected, found = twins(FUSED[name], bias=bias)
    assert_close(found, expected)
    assert set(events()) == {"fused"}


def test_two_losses_of_the_same_logits():
    expected, found = twins(two_uses)
    assert_close(found, expected)
    assert events() == {"fused": 2}


@pytest.mark.parametrize(
    "name", ["plain", "float", "to a dtype", "softcap", "divided", "shift", "class weights"]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype, name):
    use = FUSED[name]
    if name == "class weights":
        use = lambda z, y: ce(z, y, weight=torch.linspace(0.5, 2, K).to(z.dtype))  # noqa: E731
    expected, found = twins(use, dtype=dtype)
    if dtype == torch.float64 and name in ("float", "to a dtype"):
        assert set(events()) == {f"computed for {'float' if name == 'float' else 'to'}"}
        assert_close(found, expected, 0)
        return
    assert found[0].dtype == expected[0].dtype
    tolerance = 1e-12 if dtype == torch.float64 else 3 * torch.finfo(dtype).eps
    for f, e in zip((found[0], *found[1]), (expected[0], *expected[1]), strict=True):
        assert (f.double() - e.double()).abs().max() <= tolerance * e.double().abs().max()


CLASS_LABELS = torch.arange(B * T) % K
EVEN = torch.full((B * T, K), 1 / K)
COMPUTED = {
    "a negative factor": (lambda z, y: ce(z * -1.0, y), "mul"),
    "a factor of 0": (lambda z, y: ce(0 * z, y), "mul"),
    "a factor that is infinite": (lambda z, y: (z * float("inf")).isinf().float() * z, "mul"),
    "a factor that is a tensor": (lambda z, y: ce(z * torch.tensor(2.0), y), "mul"),
    "a product with itself": (lambda z, y: ce(z * z, y), "mul"),
    "a divisor of 0": (lambda z, y: (z / 0).isinf().float() * z, "div"),
    "division that rounds": (lambda z, y: torch.div(z, 2, rounding_mode="floor") + z, "div"),
    "two caps": (lambda z, y: ce(z.tanh().tanh(), y), "tanh"),
    "a vector after a scale": (lambda z, y: ce(2 * z + torch.ones(K), y), "add"),
    "a vector with a factor": (lambda z, y: ce(torch.add(z, torch.ones(K), alpha=2), y), "add"),
    "a number added": (lambda z, y: ce(z + 1, y), "add"),
    "a matrix added": (lambda z, y: ce(z + torch.ones(B, T, K), y), "add"),
    "a column added": (lambda z, y: ce(z + torch.arange(T, dtype=z.dtype)[:, None], y), "add"),
    "classes before positions": (lambda z, y: F.cross_entropy(z.transpose(1, 2), y), "transpose"),
    "permuted": (lambda z, y: F.cross_entropy(z.permute(0, 2, 1), y), "permute"),
    "axes of other lengths": (lambda z, y: z.view(B, K, T).log_softmax(1), "view"),
    "to float64": (lambda z, y: ce(z.double(), y), "double"),
    "to bfloat16": (lambda z, y: ce(z.bfloat16(), y), "bfloat16"),
    "to with a copy": (lambda z, y: ce(z.to(torch.float32, copy=True), y), "to"),
    "bits": (lambda z, y: z.view(torch.int32).float() * z, "view"),
    "some classes": (lambda z, y: ce(z[..., 2:], (y - 2).clamp_min(0)), "getitem"),
    "a class": (lambda z, y: z[..., 3], "getitem"),
    "rows by numbers": (lambda z, y: ce(z[torch.tensor([1, 0, 1])], y[[1, 0, 1]]), "getitem"),
    "a mask of given elements": (lambda z, y: z[torch.ones(B, T, K, dtype=torch.bool)], "getitem"),
    "a mask of nothing": (lambda z, y: z[torch.tensor(True)], "getitem"),
    "a mask of elements": (lambda z, y: z[z > 0], "gt"),
    "a new axis": (lambda z, y: z[None], "getitem"),
    "probabilities": (lambda z, y: F.cross_entropy(z.view(-1, K), EVEN), "cross_entropy"),
    "xent's link of a scale": (lambda z, y: xt.cross_entropy((z / 2)[0], y[0], softcap=2.0), "cross_entropy"),
    "xent's loss of probabilities": (lambda z, y: xt.cross_entropy(z.view(-1, K), EVEN), "cross_entropy"),
    "an old reduction": (lambda z, y: ce(z, y, reduce=True), "cross_entropy"),
    "labels of 8 bits": (lambda z, y: ce(z, CLASS_LABELS.byte()), "cross_entropy"),
    "log_softmax and gather": (lambda z, y: z.log_softmax(-1).gather(-1, y[..., None] % K), "log_softmax"),
    "in a list": (lambda z, y: ce(torch.cat([z[:1], z[1:]]), y), "cat"),
    "einsum": (lambda z, y: torch.einsum("btk,btk->bt", z, z), "einsum"),
    "detached": (lambda z, y: ce(z, y) + z.detach().sum() * 0, "detach"),
    "a property": (lambda z, y: z.T.mean() if z.ndim == 2 else z.mT, "mT"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:size_average and reduce args:UserWarning")
@pytest.mark.filterwarnings("ignore:The use of `x.T`:UserWarning")
@pytest.mark.parametrize("name", COMPUTED)
def test_computed(name):
    """To the bit, and one matrix of logits is computed."""
    use, operation = COMPUTED[name]
    expected, found = twins(use)
    counted = events()
    tolerance = 2e-6 if counted.pop("fused", 0) else 0
    ((event, number),) = counted.items()
    assert re.fullmatch(f"computed for (__r?(true)?)?{operation}(__)?", event)
    assert number == 1
    assert_close(found, expected, tolerance)


ERRORS = {
    "a wrong shape": lambda z, y: z.view(3, K),
    "a wrong index": lambda z, y: z[:, 9],
    "too many indices": lambda z, y: z[0, 0, 0, 0],
    "labels of other rows": lambda z, y: F.cross_entropy(z.view(-1, K), y.view(-1)[1:]),
    "a reduction that is none": lambda z, y: ce(z, y, reduction="avg"),
    "class weights of another dtype": lambda z, y: ce(z, y, weight=torch.ones(K, dtype=torch.float64)),
    "class weights of another length": lambda z, y: ce(z, y, weight=torch.ones(K - 1)),
    "class weights with a gradient": lambda z, y: ce(z, y, weight=torch.ones(K, requires_grad=True)),
    "no such attribute": lambda z, y: z.no_such_attribute,
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_pytorchs(name):
    (expected, _), (found, _) = twins(ERRORS[name])
    assert isinstance(expected, Exception)
    assert type(found) is type(expected)
    if name != "no such attribute":
        assert str(found) == str(expected)


def test_a_label_out_of_range_is_both_errors():
    (expected, _), (found, _) = twins(lambda z, y: ce(z, y + K))
    assert isinstance(expected, IndexError)
    assert isinstance(found, IndexError)
    assert isinstance(found, ValueError)


def test_no_row_counts():
    expected, found = twins(lambda z, y: ce(z, torch.full_like(y, -100)))
    assert expected[0].isnan()
    assert found[0] == 0
    assert not any(g.any() for g in found[1])


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
def test_no_class():
    logits = xt.fuse(torch.nn.Linear(D, 0))(torch.ones(2, 3, D))
    assert logits.view(7, 0).shape == (7, 0)


def test_no_row_at_all():
    expected, found = twins(lambda z, y: ce(z[:0], y[:0], reduction="sum"))
    assert_close(found, expected)
    assert D
