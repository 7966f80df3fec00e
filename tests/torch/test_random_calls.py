"""Random calls of every way to a loss, against its definition in float64: thousands of them with -m slow.

Options, targets, layouts, dtypes, reductions and modes are drawn by seed. The definition is written from the
text of the options, and shares no code with the closed forms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils.checkpoint import checkpoint  # noqa: E402

import xent  # noqa: E402

# PyTorch warns of its own use of what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

Tensor = torch.Tensor
DTYPES = [torch.float64, torch.float64, torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(), (1,), (5,), (2, 3), (0,), (3, 2, 2)]
CLASSES = [1, 2, 3, 10, 17, 130]


# The definition.


def definition(z: Tensor, targets: Tensor, o: dict[str, Any]) -> Tensor:
    """The loss of float64 ``z (..., K)``, each class and row written out."""
    num_classes = z.shape[-1]
    c = o.get("class_weight", torch.ones(num_classes)).double()
    omega = o.get("sample_weight", torch.ones(z.shape[:-1])).double()
    epsilon, gamma = o.get("label_smoothing", 0.0), o.get("focal_gamma", 0.0)
    if targets.is_floating_point():
        q, factor = targets.double(), torch.ones(z.shape[:-1]).double()
    else:
        omega = torch.where(targets == o.get("ignore_index", -100), 0.0, omega)
        y = torch.where(omega == 0, 0, targets.long())
        q = torch.nn.functional.one_hot(y, num_classes).double()
        factor = c[y]
    if o.get("smoothing_over", "all") == "all":
        q = (1 - epsilon) * q + epsilon / num_classes
    elif num_classes > 1:
        q = (1 - epsilon) * q + epsilon * (1 - q) / (num_classes - 1)
    z = torch.where((omega == 0)[..., None], 0.0, z)
    u = link(z, o)
    log_p = torch.log_softmax(u, -1)
    missed = -torch.expm1(log_p)
    focus = torch.where(missed == 0, 0.0, torch.where(missed == 0, 1.0, missed) ** gamma) if gamma else 1.0
    t = c * q
    terms = torch.where(t == 0, 0.0, t * torch.where(t == 0, 0.0, focus * log_p))
    losses = omega * (o.get("z_loss", 0.0) * torch.logsumexp(u, -1) ** 2 - terms.sum(-1))
    return reduced(losses, (omega * factor).sum(), (omega != 0).sum(), o)


def binary_definition(z: Tensor, q: Tensor, o: dict[str, Any]) -> Tensor:
    """The loss of float64 ``z (...)``: −π q log s(u) − (1−q) log s(−u)."""
    omega = o.get("sample_weight", torch.ones(z.shape)).double()
    if not q.is_floating_point():
        omega = torch.where(q == o.get("ignore_index", -100), 0.0, omega)
        q = torch.where(omega == 0, 0, q)
    q, epsilon, gamma = q.double(), o.get("label_smoothing", 0.0), o.get("focal_gamma", 0.0)
    q = torch.lerp(q, torch.full_like(q, 0.5) if o.get("smoothing_over", "all") == "all" else 1 - q, epsilon)
    u = link(torch.where(omega == 0, 0.0, z), o)
    on, off = torch.nn.functional.logsigmoid(u), torch.nn.functional.logsigmoid(-u)
    if gamma:
        on, off = on * off.exp() ** gamma, off * on.exp() ** gamma
    losses = -(o.get("pos_weight", 1.0) * q * on + (1 - q) * off)
    losses = omega * (losses + o.get("z_loss", 0.0) * torch.nn.functional.softplus(u) ** 2)
    return reduced(losses, omega.sum(), (omega != 0).sum(), o)


def link(z: Tensor, o: dict[str, Any]) -> Tensor:
    u = z / o.get("temperature", 1.0)
    cap = o.get("softcap")
    return u if cap is None else cap * torch.tanh(u / cap)


def reduced(losses: Tensor, total: Tensor, rows: Tensor, o: dict[str, Any]) -> Tensor:
    if o["reduction"] != "mean":
        return losses if o["reduction"] == "none" else losses.sum()
    divisor = o.get("denominator")
    divisor = total if divisor is None else rows if divisor == "rows" else torch.as_tensor(divisor)
    return losses.sum() / divisor if divisor else 0 * losses.sum()


# What is drawn.


class Draw:
    """One case: operands in float64, targets, options."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.dtype = self.one(DTYPES)
        self.shape, self.num_classes = self.one(SHAPES), self.one(CLASSES)
        self.scale = self.one([0.02, 1.0, 5.0])
        self.options: dict[str, Any] = {"reduction": self.one(["mean", "mean", "sum", "none"])}

    def one(self, choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def maybe(self, chance: float = 0.3) -> bool:
        return bool(self.rng.random() < chance)

    def floats(self, *shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
        return torch.tensor(self.rng.uniform(low, high, shape))

    def tensor(self, *shape: int) -> Tensor:
        """Of the dtype, in a layout."""
        x = (self.scale * torch.tensor(self.rng.normal(size=shape))).to(self.dtype)
        layout = self.one(["contiguous", "transposed", "strided", "offset"])
        if layout == "transposed" and x.ndim > 1:
            return x.transpose(0, -1).contiguous().transpose(0, -1)
        if layout == "strided" and x.ndim:
            return torch.repeat_interleave(x, 2, -1)[..., ::2]
        if layout == "offset" and x.numel():
            flat = torch.empty(x.numel() + 3, dtype=x.dtype)
            flat[3:] = x.reshape(-1)
            return flat[3:].view(x.shape)
        return x

    def weights(self, *shape: int) -> Tensor:
        kind = self.one(["positive", "zeros", "mask"])
        w = self.floats(*shape, low=0.2, high=2.0)
        if kind == "mask":
            return w > 0.8
        return (w * (w > 0.6) if kind == "zeros" else w).to(self.one([torch.float64, torch.float32]))

    def draw_options(self, soft: bool, rows: tuple[int, ...], classes: int | None) -> None:
        o = self.options
        if self.maybe(0.4):
            o["label_smoothing"] = self.one([0.1, 0.5, 0.95, 1.0])
            o["smoothing_over"] = self.one(["all", "others"])
        elif self.maybe() and not soft:
            o["focal_gamma"] = self.one([0.5, 1.0, 2.0])
        if self.maybe():
            o["z_loss"] = self.one([1e-4, 0.1])
        if self.maybe():
            o["softcap"] = self.one([2.0, 30.0])
        if self.maybe():
            o["temperature"] = self.one([0.5, 3.0])
        if self.maybe():
            o["sample_weight"] = self.weights(*rows)
        if self.maybe() and classes is not None:
            o["class_weight"] = self.weights(classes)
        if o["reduction"] == "mean" and self.maybe():
            o["denominator"] = self.one(["rows", 7, 2.5, torch.tensor(3.0)])

    def labels(self, rows: tuple[int, ...], classes: int) -> Tensor:
        y = torch.tensor(self.rng.integers(0, classes, rows)).long()
        if self.maybe(0.4):
            index = self.one([-100, 0, 255])
            self.options["ignore_index"] = index
            y = torch.where(torch.tensor(self.rng.random(rows) < 0.3), index, y)
        if self.maybe(0.2) and (not y.numel() or (int(y.min()) >= 0 and int(y.max()) < 128)):
            return y.to(self.one([torch.int32, torch.uint8, torch.int16]))
        return y


Loss = Callable[[Tensor], Tensor]


def eager(f: Loss, z: Tensor) -> tuple[Tensor, Tensor | None]:
    z = z.detach().requires_grad_()
    value = f(z)
    return value.detach(), torch.autograd.grad(value.sum(), z)[0]


def no_gradient(f: Loss, z: Tensor) -> tuple[Tensor, Tensor | None]:
    with torch.no_grad():
        return f(z), None


def twice_derived(f: Loss, z: Tensor) -> tuple[Tensor, Tensor | None]:
    z = z.detach().requires_grad_()
    value = f(z)
    return value.detach(), torch.autograd.grad(value.sum(), z, create_graph=True)[0].detach()


def checkpointed(f: Loss, z: Tensor) -> tuple[Tensor, Tensor | None]:
    return eager(lambda z: checkpoint(f, z, use_reentrant=False), z)


def func_grad(f: Loss, z: Tensor) -> tuple[Tensor, Tensor | None]:
    gradient, value = torch.func.grad_and_value(lambda z: f(z).sum())(z)
    return (value if f(z).ndim == 0 else f(z)), gradient


def jvp(f: Loss, z: Tensor) -> tuple[Tensor, Tensor | None]:
    """The slope along one direction takes the place of the gradient, as its product with that."""
    value, _ = torch.func.jvp(f, (z,), (torch.ones_like(z),))
    return value, None


def vmapped(f: Loss, z: Tensor) -> tuple[Tensor, Tensor | None]:
    values = torch.vmap(f)(torch.stack([z, z]))
    return values[1], None


def compiled(f: Loss, z: Tensor) -> tuple[Tensor, Tensor | None]:
    torch._dynamo.reset()
    return eager(torch.compile(f, backend="aot_eager"), z)


MODES = [eager, eager, no_gradient, twice_derived, checkpointed, func_grad, jvp, vmapped, compiled]


class Case(NamedTuple):
    """A loss of ``z``, its definition of the same in float64, and the targets of both."""

    loss: Loss
    exact: Loss
    z: Tensor
    targets: Tensor


def categorical(d: Draw) -> Case:
    soft = d.maybe(0.3)
    d.draw_options(soft, d.shape, d.num_classes)
    targets = (
        torch.tensor(d.rng.dirichlet(np.full(d.num_classes, 0.5), d.shape)).reshape(*d.shape, d.num_classes)
        if soft
        else d.labels(d.shape, d.num_classes)
    )
    o = d.options
    return Case(
        lambda z: xent.cross_entropy(z, targets, **o),
        lambda z: definition(z, targets, o),
        d.tensor(*d.shape, d.num_classes),
        targets,
    )


def projected(d: Draw) -> Case:
    _, exact, _, targets = categorical(d)
    size, chunk, o = d.one([1, 4, 9]), d.one([None, 1, 500]), d.options
    w, bias = d.tensor(d.num_classes, size), d.tensor(d.num_classes) if d.maybe() else None

    def exact_of(x: Tensor) -> Tensor:
        logits = x @ w.double().T
        return exact(logits if bias is None else logits + bias.double())

    return Case(
        lambda x: xent.linear_cross_entropy(x, w, targets, bias=bias, chunk_bytes=chunk, **o),
        exact_of,
        d.tensor(*d.shape, size),
        targets,
    )


def binary(d: Draw) -> Case:
    soft = d.maybe(0.5)
    d.draw_options(soft, d.shape, None)
    q = d.floats(*d.shape, low=0.0, high=1.0) if soft else d.labels(d.shape, 2)
    o = d.options
    if d.maybe():
        o["pos_weight"] = d.one([0.5, 3.0])
    return Case(
        lambda z: xent.binary_cross_entropy(z, q, **o),
        lambda z: binary_definition(z, q, o),
        d.tensor(*d.shape),
        q,
    )


def run(seed: int) -> None:
    d = Draw(seed)
    kind = d.one([categorical, categorical, projected, binary])
    loss, exact, z, targets = kind(d)
    mode = d.one(MODES)
    wide = z.detach().double().requires_grad_()
    expected = exact(wide)
    (slope,) = torch.autograd.grad(expected.sum(), wide, allow_unused=True)
    note = f"seed {seed}: {kind.__name__} {mode.__name__} {z.dtype} {tuple(z.shape)} {d.options}"
    value, gradient = mode(loss, z)
    compare(value, expected.detach(), z.dtype, kind is projected, note)
    if gradient is not None:
        assert gradient.dtype == z.dtype, note
        compare(
            gradient, torch.zeros_like(wide) if slope is None else slope, z.dtype, kind is projected, note
        )
    if kind is projected or z.dtype not in (torch.float64, torch.float32):
        return
    of_arrays = {
        categorical: xent.cross_entropy_with_grad,
        binary: xent.binary_cross_entropy_with_grad,
    }
    arrays = {k: v.numpy() if isinstance(v, Tensor) else v for k, v in d.options.items()}
    found = of_arrays[kind](z.numpy(), targets.numpy(), **arrays)
    for x, exactly in zip(found, (expected.detach(), slope), strict=True):
        compare(torch.as_tensor(x), exactly, z.dtype, False, f"arrays, {note}")


def compare(found: Tensor, exact: Tensor, dtype: Any, is_product: bool, note: str) -> None:
    """To the rounding of the dtype; a product of half precision rounds its logits too."""
    assert found.shape == exact.shape, note
    rtol = {torch.float64: 1e-9, torch.float32: 2e-4}.get(dtype, 2e-2)
    if is_product and dtype.itemsize == 2:
        rtol = 0.2
    size = float(exact.abs().max()) if exact.numel() else 0.0
    torch.testing.assert_close(
        found.double(), exact.double(), rtol=rtol, atol=rtol * max(size, 1e-3), msg=lambda m: f"{note}\n{m}"
    )


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, 3000, 100))
def test_random_calls(start: int) -> None:
    for seed in range(start, start + 100):
        run(seed)


def test_some_random_calls() -> None:
    """A few, in every run of the tests."""
    for seed in range(10_000, 10_020):
        run(seed)
