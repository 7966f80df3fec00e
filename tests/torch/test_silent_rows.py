"""A row that does not count has loss 0 and gradient 0 whatever it holds: every loss, in every mode.

Each is compared with the loss without the row. A new mode is an entry of
`derivative_modes.MODES`, a new loss one of `LOSSES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch")

import xent  # noqa: E402
import xent.torch as xt  # noqa: E402
from tests.torch.derivative_modes import MODES, backward  # noqa: E402

# PyTorch's own forward mode loads torch.jit.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")

N, D, K = 4, 2, 3
HELD = {"NaN": torch.nan, "+inf": torch.inf, "-inf": -torch.inf}
Tensors = tuple[Any, ...]
Function = Callable[..., Any]


# Losses, of inputs that are derived, of which `rows` have one row for each target; of targets and weights.


class Loss(NamedTuple):
    call: Function  # (inputs, targets, sample weight or None, shift) -> a number
    inputs: Tensors
    rows: tuple[int, ...] = (0,)
    targets: str = "labels"
    ways: tuple[str, ...] = ("ignored", "weight 0", "learnt weight 0")


def random(*shape: int) -> Any:
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape)), dtype=torch.float64
    )


def dense(**options: Any) -> Loss:
    return Loss(lambda x, y, w, _: xt.cross_entropy(*x, y, sample_weight=w, **options), (2 * random(N, K),))


def soft(**options: Any) -> Loss:
    return dense(**options)._replace(targets="probabilities", ways=("weight 0", "learnt weight 0"))


def linear(**options: Any) -> Loss:
    return Loss(
        lambda x, y, w, shift: xt.linear_cross_entropy(
            x[0], x[1], y, linear_bias=x[2], sample_weight=w, shift=shift, chunk_bytes=48, **options
        ),
        (random(N, D), random(K, D), random(K)),
        ways=("ignored", "weight 0", "learnt weight 0", "shifted"),
    )


def linear_soft(**options: Any) -> Loss:
    ways = ("weight 0", "learnt weight 0", "shifted")
    return linear(**options)._replace(targets="probabilities", ways=ways)


def dense_by_row(**options: Any) -> Loss:
    return Loss(
        lambda x, y, w, _: xt.cross_entropy(x[0], y, sample_weight=w, temperature=x[1], **options),
        (2 * random(N, K), 0.5 + random(N).abs()),
        rows=(0, 1),
    )


def linear_by_row(**options: Any) -> Loss:
    return Loss(
        lambda x, y, w, shift: xt.linear_cross_entropy(
            x[0], x[1], y, linear_bias=x[2], sample_weight=w, temperature=x[3], shift=shift, chunk_bytes=48,
            **options,
        ),
        (random(N, D), random(K, D), random(K), 0.5 + random(N).abs()),
        rows=(0, 3),
        ways=("ignored", "weight 0", "learnt weight 0", "shifted"),
    )  # fmt: skip


def divergence(direction: str, **excluded: Any) -> Loss:
    return Loss(
        lambda x, y, w, _: xt.linear_kl_divergence(
            *x, direction=direction, labels=y, sample_weight=w, temperature=2.0, chunk_bytes=300, **excluded
        ),
        (random(N, D), random(K, D), 2 * random(N, D), random(K, D) + 0.5),
        rows=(0, 2),
        ways=("ignored", "weight 0", "learnt weight 0"),
    )


def topk(tail: str, direction: str) -> Loss:
    return Loss(
        lambda x, y, w, _: xt.linear_topk_kl_divergence(
            x[0], x[1], ENTRIES[: len(x[0])], x[2], bias=x[3], tail=tail, direction=direction, labels=y,
            sample_weight=w, temperature=0.7, chunk_bytes=48,
        ),
        (random(N, D), random(K, D), -1.0 - random(N, 2).abs(), random(K)),
        rows=(0, 2),
        ways=("ignored", "weight 0", "learnt weight 0"),
    )  # fmt: skip


def binary(**options: Any) -> Loss:
    return Loss(
        lambda x, y, w, _: xent.binary_cross_entropy(*x, y, sample_weight=w, **options),
        (2 * random(N),),
        targets="binary labels",
        ways=("ignored", "weight 0", "learnt weight 0"),
    )


STATISTICS = xent.RowStatistics._fields


def of_statistics(stats: Any) -> Any:
    products = stats.log_prob * stats.entropy + stats.log_sum_sq_probs * stats.mean_logits
    return (stats.lse**2 + products + stats.entropy.expm1()).sum()


def statistics(**options: Any) -> Loss:
    call = lambda x, y, w, _: of_statistics(xt.row_statistics(*x, y, want=STATISTICS, **options))  # noqa: E731
    return Loss(call, (2 * random(N, K),), ways=("ignored",))


def linear_statistics(**options: Any) -> Loss:
    return Loss(
        lambda x, y, w, shift: of_statistics(
            xt.linear_row_statistics(
                x[0], x[1], y, bias=x[2], shift=shift, chunk_bytes=300, want=STATISTICS, **options
            )
        ),
        (random(N, D), random(K, D), random(K)),
        ways=("ignored", "shifted"),
    )


ENTRIES = torch.tensor([[0, 2]] * N)
FACTORS = torch.tensor([0.5, 2.0, 0.0], dtype=torch.float64)  # the last class has weight 0
EXCLUDED = torch.tensor([0.0, 0.1, -torch.inf], dtype=torch.float64)
EVERY = {"z_loss": 0.1, "softcap": 5.0, "temperature": 0.7}

LOSSES = {
    "plain": dense(),
    "focal": dense(focal_gamma=2.0),
    "focal, a root": dense(focal_gamma=0.5, **EVERY),
    "z_loss": dense(z_loss=0.1),
    "smoothed": dense(label_smoothing=0.1, **EVERY),
    "class weights": dense(weight=FACTORS)._replace(
        ways=("ignored", "weight 0", "learnt weight 0", "class of weight 0")
    ),
    "smoothed class weights": dense(weight=FACTORS, label_smoothing=0.1, z_loss=0.1),
    "sum": dense(reduction="sum", focal_gamma=1.5),
    "soft": soft(),
    "soft, every option": soft(weight=FACTORS, label_smoothing=0.1, **EVERY),
    "linear": linear(),
    "linear, focal": linear(focal_gamma=2.0, **EVERY),
    "linear, smoothed": linear(label_smoothing=0.1, z_loss=0.1),
    "linear, class weights": linear(weight=FACTORS)._replace(
        ways=("ignored", "weight 0", "learnt weight 0", "shifted", "class of weight 0")
    ),
    "linear, soft": linear_soft(),
    "linear, soft, every option": linear_soft(weight=FACTORS, label_smoothing=0.1, **EVERY),
    "temperatures of rows": dense_by_row(softcap=5.0, z_loss=0.1),
    "linear, temperatures of rows": linear_by_row(softcap=5.0, z_loss=0.1),
    "linear, soft, temperatures of rows": linear_by_row(label_smoothing=0.1)._replace(
        targets="probabilities", ways=("weight 0", "learnt weight 0", "shifted")
    ),
    "forward divergence": divergence("forward"),
    "reverse divergence": divergence("reverse"),
    "reverse divergence, a class excluded": divergence("reverse", bias=EXCLUDED, teacher_bias=EXCLUDED),
    "top-k": topk("bin", "forward"),
    "reverse top-k": topk("bin", "reverse"),
    "reverse top-k, renormalised": topk("renormalise", "reverse"),
    "binary": binary(),
    "binary, focal": binary(focal_gamma=2.0, **EVERY),
    "binary, smoothed": binary(label_smoothing=0.1, pos_weight=2.0, z_loss=0.1),
    "row_statistics": statistics(),
    "row_statistics, softcap": statistics(softcap=5.0, temperature=0.7),
    "linear_row_statistics": linear_statistics(),
    "linear_row_statistics, softcap": linear_statistics(softcap=5.0, temperature=0.7),
}


def targets_of(kind: str) -> Any:
    if kind == "probabilities":
        return torch.softmax(random(N, K), -1)
    return torch.tensor([0, 1, 1, 0])


def keep(x: Any, kept: list[int]) -> Any:
    return None if x is None else x[kept]


@pytest.fixture(autouse=True)
def _no_graphs() -> None:
    torch._dynamo.reset()


# Of each kind of loss the one that reads most is tried in every mode, and each loss in a few.
FULLEST = (
    *("focal, a root", "class weights", "soft, every option", "linear, focal", "linear, soft, every option"),
    *(
        "reverse divergence, a class excluded",
        "reverse top-k",
        "binary, focal",
        "linear_row_statistics, softcap",
    ),
)
FEW = ("backward", "create_graph", "func.grad")


def is_quick(mode: str, name: str, way: str) -> bool:
    fullest = name in FULLEST and way != "learnt weight 0"
    return mode in FEW or (fullest and (mode != "compile of grad" or way == LOSSES[name].ways[0]))


CASES = [
    pytest.param(
        mode,
        loss,
        way,
        id=f"{mode}-{name}-{way}",
        marks=[] if is_quick(mode, name, way) else [pytest.mark.slow],
    )
    for name, loss in LOSSES.items()
    for way in loss.ways
    for mode in MODES
]


@pytest.mark.parametrize(("mode", "loss", "way"), CASES)
def test_a_row_that_does_not_count(mode: str, loss: Loss, way: str) -> None:
    bad = N - 1 if way == "shifted" else 1
    kept = [n for n in range(N) if n != bad]
    y, omega, inputs = targets_of(loss.targets), None, loss.inputs
    if way == "ignored":
        y[bad] = -100
    elif way == "class of weight 0":
        y[bad] = 2
    elif "weight 0" in way:
        omega = torch.tensor([0.5, 0.0, 2.0, 1.0], dtype=torch.float64)
    shift, later = int(way == "shifted"), [n + (way == "shifted") for n in kept]
    rows = loss.rows
    if way == "learnt weight 0":
        rows, inputs = (*rows, len(inputs)), (*inputs, omega)

    def whole(*x: Any) -> Any:
        w = x[-1] if way == "learnt weight 0" else omega
        return loss.call(x[: len(loss.inputs)], y, w, shift)

    def without(*x: Any) -> Any:
        w = x[-1] if way == "learnt weight 0" else keep(omega, later)
        return loss.call(x[: len(loss.inputs)], keep(y, later), w, 0)

    few = tuple(x[kept] if k in rows else x for k, x in enumerate(inputs))
    value, expected = backward(without, few) if "compile" in mode else MODES[mode](without, few)
    for held in HELD.values():
        full = tuple(x.clone() for x in inputs)
        for k in loss.rows:
            full[k][bad] = held
        found, gradients = MODES[mode](whole, full)
        close(found, value)
        assert isinstance(gradients, tuple) == isinstance(expected, tuple)
        pairs = (
            zip(gradients, expected, strict=True) if isinstance(expected, tuple) else [(gradients, expected)]
        )
        for k, (gradient, of_kept) in enumerate(pairs):
            if isinstance(expected, tuple) and k % len(inputs) in rows:
                axis = gradient.ndim - inputs[k % len(inputs)].ndim
                if way != "learnt weight 0" or k % len(inputs) in loss.rows:
                    assert not gradient.select(axis, bad).any()
                gradient = gradient.index_select(axis, torch.tensor(kept))
            close(gradient, of_kept)


def close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


# What is left of a row beside others.


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "batched"])
def test_an_impossible_label_has_a_finite_gradient(mode: str, gamma: float) -> None:
    z = torch.tensor([[1.0, -torch.inf, 2.0]], dtype=torch.float64)
    p = torch.softmax(z[0], -1)
    value, gradients = MODES[mode](lambda z: xt.cross_entropy(z, torch.tensor([1]), focal_gamma=gamma), (z,))
    if mode in ("backward", "func.grad", "checkpoint", "save_on_cpu", "compile", "compile of grad"):
        assert value == torch.inf
        close(gradients[0][0], p - torch.tensor([0.0, 1.0, 0.0]))
    else:
        assert all(g.isfinite().all() for g in (gradients if isinstance(gradients, tuple) else [gradients]))


def test_rows_that_a_caller_leaves_out_of_the_statistics() -> None:
    z = 2 * random(N, K)
    z[1] = torch.nan
    z.requires_grad_()
    stats = xt.row_statistics(z)
    (gradient,) = torch.autograd.grad(stats.lse[[0, 2, 3]].sum() + stats.entropy[0], z)
    assert gradient.isfinite().all()
    assert not gradient[1].any()
