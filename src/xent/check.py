"""Compare the loss, gradient and Hessian product of every variant with three independent computations.

These are central finite differences, the definition in mpmath at 50 digits, and the definition in PyTorch
under autograd, each on small and on large logits. The definition is −Σ_k c_k t_k log p_k with t the target
distribution. It is written from the description of the options and shares no code with the closed forms.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from xent.api.binary import binary_cross_entropy, binary_cross_entropy_with_grad
from xent.api.cross_entropy import cross_entropy, cross_entropy_hvp, cross_entropy_with_grad

Array = np.ndarray[Any, Any]

ROWS, CLASSES = 6, 4
SCALES = (0.02, 3.0)  # of the logits; with large logits a class too many in the sum is hard to see
WEIGHTS = {"class_weight": [0.5, 2.0, 1.0, 3.0]}
ROW_WEIGHTS = {"sample_weight": [1.0, 0.5, 2.0, 0.0, 3.0, 1.0]}
BINARY, BINARY_LABELS, POS_WEIGHT = {"targets": "binary"}, {"targets": "binary labels"}, {"pos_weight": 3.0}

# Name → options. "targets" is the kind of targets if they are not labels.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "class weights": WEIGHTS,
    "sample weights": ROW_WEIGHTS,
    "all weights": WEIGHTS | ROW_WEIGHTS,
    "ignore_index": {"ignore_index": 2},
    "smoothing all": {"label_smoothing": 0.1},
    "smoothing others": {"label_smoothing": 0.1, "smoothing_over": "others"},
    "smoothing + weights": {"label_smoothing": 0.1} | WEIGHTS | ROW_WEIGHTS,
    "others + weights": {"label_smoothing": 0.2, "smoothing_over": "others"} | WEIGHTS,
    "focal 0.5": {"focal_gamma": 0.5},
    "focal 2": {"focal_gamma": 2.0},
    "focal 2 + weights": {"focal_gamma": 2.0} | WEIGHTS | ROW_WEIGHTS,
    "poly-1": {"poly1_epsilon": 2.0} | WEIGHTS | ROW_WEIGHTS,
    "z-loss": {"z_loss": 0.01},
    "softcap": {"softcap": 5.0},
    "temperature": {"temperature": 1.7},
    "temperature + softcap": {"temperature": 0.6, "softcap": 5.0},
    "focal + z-loss + cap": {"focal_gamma": 2.0, "z_loss": 0.1, "softcap": 5.0} | WEIGHTS,
    "smoothing + z-loss": {"label_smoothing": 0.1, "z_loss": 0.1, "temperature": 1.7} | WEIGHTS,
    "soft targets": {"targets": "probabilities"},
    "soft + weights": {"targets": "probabilities"} | WEIGHTS | ROW_WEIGHTS,
    "soft + smoothing": {"targets": "probabilities", "label_smoothing": 0.1} | WEIGHTS,
    "soft + others": {
        "targets": "probabilities",
        "label_smoothing": 0.1,
        "smoothing_over": "others",
    },
    "soft + z-loss + cap": {"targets": "probabilities", "z_loss": 0.1, "softcap": 5.0},
    "binary": BINARY,
    "binary + pos_weight": BINARY | POS_WEIGHT | ROW_WEIGHTS,
    "binary smoothing": BINARY | {"label_smoothing": 0.1} | POS_WEIGHT | ROW_WEIGHTS,
    "binary others": BINARY | {"label_smoothing": 0.2, "smoothing_over": "others"} | POS_WEIGHT,
    "binary z-loss": BINARY | {"z_loss": 0.1},
    "binary softcap": BINARY | {"softcap": 5.0},
    "binary temperature": BINARY | {"temperature": 1.7},
    "binary labels": BINARY_LABELS | {"ignore_index": 0} | POS_WEIGHT,
    "binary poly-1": BINARY_LABELS | {"poly1_epsilon": -0.5, "z_loss": 0.1} | POS_WEIGHT,
    "binary focal 2": BINARY_LABELS | {"focal_gamma": 2.0},
    "binary focal + cap": BINARY_LABELS | {"focal_gamma": 0.5, "softcap": 5.0} | POS_WEIGHT | ROW_WEIGHTS,
    "binary focal + z-loss": BINARY_LABELS | {"focal_gamma": 2.0, "z_loss": 0.1, "temperature": 0.6},
}

# Largest accepted error, relative to the largest entry. Finite differences in float64 reach 1e-10 at best;
# the two others differ from a right closed form only by rounding.
TOLERANCE = {"differences": 1e-7, "mpmath": 1e-13, "torch": 1e-13}


class Row(NamedTuple):
    """Relative errors of one variant; None if a library is not installed."""

    variant: str
    loss_mpmath: float | None
    loss_torch: float | None
    grad_differences: float
    grad_mpmath: float | None
    grad_torch: float | None
    hvp_differences: float
    hvp_mpmath: float | None
    hvp_torch: float | None

    @property
    def failures(self) -> tuple[str, ...]:
        """The columns whose error exceeds its tolerance, or is NaN."""
        return tuple(
            column
            for column, error in self._asdict().items()
            if column != "variant" and error is not None and not error <= TOLERANCE[column.partition("_")[2]]
        )


class Derivatives(NamedTuple):
    """The loss from each function that returns it; gradient and Hessian product, (N, K) or, binary, (N,)."""

    loss: Array
    grad: Array
    hvp: Array


class Case(NamedTuple):
    """One variant with its arrays, the input of the definitions and the closed forms."""

    logits: Array  # (N, K), or (N,) for binary
    targets: Array
    vector: Array
    options: dict[str, Any]
    binary: bool

    @property
    def has_labels(self) -> bool:
        """Whether the targets are labels, not probabilities."""
        return bool(self.targets.dtype.kind == "i")


def run(seed: int = 0, on_row: Callable[[Row], None] | None = None) -> list[Row]:
    """Compare every variant on random logits; a library that is not installed gives None.

    >>> from xent import check
    >>> all(not row.failures for row in check.run())
    True
    """
    rng = np.random.default_rng(seed)
    rows = []
    for name, options in VARIANTS.items():
        scaled = (compare(name, _case(options, scale, rng))[1:] for scale in SCALES)
        rows.append(Row(name, *map(_worst, zip(*scaled, strict=True))))
        if on_row is not None:
            on_row(rows[-1])
    return rows


def missing_libraries() -> list[str]:
    """Those of the libraries mpmath and torch that are not installed; their columns stay empty."""
    return [name for name in ("mpmath", "torch") if find_spec(name) is None]


def compare(name: str, case: Case) -> Row:
    """The relative errors of one variant."""
    ours = _closed_form(case, case.logits)
    differences = _finite_differences(case)
    missing = missing_libraries()
    precise = None if "mpmath" in missing else _mpmath(case)
    autograd = None if "torch" in missing else _torch(case)

    def error(field: str, other: Derivatives | None) -> float | None:
        return None if other is None else _relative(getattr(ours, field), getattr(other, field))

    return Row(
        name,
        error("loss", precise),
        error("loss", autograd),
        _relative(ours.grad, differences.grad),
        error("grad", precise),
        error("grad", autograd),
        _relative(ours.hvp, differences.hvp),
        error("hvp", precise),
        error("hvp", autograd),
    )


class GradientCheck(NamedTuple):
    """The largest relative error of a gradient, over ``checked`` of ``total`` parameters."""

    error: float
    checked: int
    total: int
    rows: int | None = None  # number of rows in the loss, if known

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance of finite differences."""
        return self.error <= TOLERANCE["differences"]


def gradient_check(
    objective: Callable[[Array], tuple[float, Array]], at: Array, most: int, seed: int
) -> GradientCheck:
    """The gradient of ``objective`` at ``at (P,)`` against central differences in ``most`` coordinates.

    The error is the largest difference over the largest partial derivative checked; the coordinates
    are drawn by ``seed``.
    """
    chosen = np.random.default_rng(seed).permutation(len(at))[:most]
    grad = objective(at)[1][chosen]
    numeric = np.empty_like(grad)
    moved = at.copy()
    for i, j in enumerate(chosen):
        step = 1e-5 * max(1.0, abs(at[j]))
        values = []
        for coordinate in (at[j] + step, at[j] - step):
            moved[j] = coordinate
            values.append(objective(moved)[0])
        moved[j] = at[j]
        numeric[i] = (values[0] - values[1]) / ((at[j] + step) - (at[j] - step))
    return GradientCheck(_relative(grad, numeric), len(chosen), len(at))


def _case(options: dict[str, Any], scale: float, rng: np.random.Generator) -> Case:
    options = dict(options)
    kind = options.pop("targets", "labels")
    binary = kind.startswith("binary")
    shape = (ROWS,) if binary else (ROWS, CLASSES)
    logits, vector = scale * rng.standard_normal(shape), rng.standard_normal(shape)
    targets: Array = np.arange(ROWS) % (2 if binary else CLASSES)
    if kind == "probabilities":
        targets = rng.dirichlet(np.ones(CLASSES), ROWS)
    elif kind == "binary":
        targets = rng.random(ROWS)
    return Case(logits, targets, vector, options, binary)


def _worst(errors: tuple[Any, ...]) -> Any:
    return None if None in errors else float(np.max(errors))  # NaN if one of them is NaN


def _closed_form(case: Case, logits: Array) -> Derivatives:
    """The results of xent, by equations (1) to (4)."""
    if not case.binary:
        loss, grad = cross_entropy_with_grad(logits, case.targets, **case.options)
        separate = cross_entropy(logits, case.targets, **case.options)
        hvp = cross_entropy_hvp(logits, case.targets, case.vector, **case.options)
        return Derivatives(np.array([loss, separate]), grad, hvp)
    separate = binary_cross_entropy(logits, case.targets, **case.options)
    loss, grad = binary_cross_entropy_with_grad(logits, case.targets, **case.options)
    options = dict(case.options)
    pos_weight = options.pop("pos_weight", 1.0)
    zero = np.zeros_like(logits)
    counts = np.ones(ROWS)
    targets: Array = np.stack([1 - case.targets, case.targets], -1)
    if case.has_labels:
        targets, counts = case.targets, case.targets != options.get("ignore_index", -100)
    hvp = cross_entropy_hvp(
        np.stack([zero, logits], -1),
        targets,
        np.stack([zero, case.vector], -1),
        class_weight=[1.0, pos_weight],
        denominator=(counts * options.get("sample_weight", 1.0)).sum(),
        **options,
    )
    return Derivatives(np.array([loss, separate]), grad, hvp[:, 1])


def _finite_differences(case: Case) -> Derivatives:
    """Gradient from the losses, Hessian product from the gradients, both central."""
    step = 1e-5
    grad = np.empty_like(case.logits)
    for index in np.ndindex(case.logits.shape):
        nudge = np.zeros_like(case.logits)
        nudge[index] = step
        up, down = (_closed_form(case, case.logits + sign * nudge).loss[0] for sign in (1, -1))
        grad[index] = (up - down) / (2 * step)
    up, down = (_closed_form(case, case.logits + sign * step * case.vector).grad for sign in (1, -1))
    return Derivatives(np.array([np.nan]), grad, (up - down) / (2 * step))


def _mpmath(case: Case) -> Derivatives:
    """The definition at 50 digits, differentiated by differences that keep about 25 of them."""
    import mpmath

    with mpmath.workdps(50):
        step = mpmath.mpf(10) ** -12
        rows = [_precise_row(case, row) for row in range(ROWS)]
        total = sum(weight for _, weight in rows)
        grad, hvp = np.zeros(case.logits.shape), np.zeros(case.logits.shape)
        value = mpmath.mpf(0)
        for row, (loss, _) in enumerate(rows):
            z = [mpmath.mpf(x) for x in np.atleast_1d(case.logits[row])]
            r = [mpmath.mpf(x) for x in np.atleast_1d(case.vector[row])]
            value += loss(z)
            for k in range(len(z)):
                index = row if case.binary else (row, k)
                up, down = (_nudged(z, k, sign * step) for sign in (1, -1))
                grad[index] = (loss(up) - loss(down)) / (2 * step) / total
                mixed = _along(loss, up, r, step) - _along(loss, down, r, step)
                hvp[index] = mixed / (2 * step) / total
        return Derivatives(np.array([float(value / total)]), grad, hvp)


def _nudged(z: list[Any], k: int, step: Any) -> list[Any]:
    return [x + step * (j == k) for j, x in enumerate(z)]


def _along(loss: Callable[[list[Any]], Any], z: list[Any], r: list[Any], step: Any) -> Any:
    """The central difference of ``loss`` at ``z`` in direction ``r``."""
    up, down = ([x + sign * step * d for x, d in zip(z, r, strict=True)] for sign in (1, -1))
    return (loss(up) - loss(down)) / (2 * step)


def _precise_row(case: Case, row: int) -> tuple[Callable[[list[Any]], Any], Any]:
    """(the loss of one row as a function of its logits, the row's share of the mean's divisor)."""
    import mpmath
    from mpmath import mpf

    o = case.options
    outer = mpf(o.get("sample_weight", np.ones(ROWS))[row])
    if case.has_labels and case.targets[row] == o.get("ignore_index", -100):
        outer = mpf(0)
    smoothing, others = mpf(o.get("label_smoothing", 0.0)), o.get("smoothing_over") == "others"
    gamma, poly1, z_loss = (mpf(o.get(name, 0.0)) for name in ("focal_gamma", "poly1_epsilon", "z_loss"))
    temperature, cap = mpf(o.get("temperature", 1.0)), o.get("softcap")

    def link(z: Any) -> Any:
        return z / temperature if cap is None else cap * mpmath.tanh(z / temperature / cap)

    if case.binary:
        q, pos_weight = mpf(float(case.targets[row])), mpf(o.get("pos_weight", 1.0))
        q = q * (1 - smoothing) + smoothing * ((1 - q) if others else mpf(0.5))

        def binary(z: list[Any]) -> Any:
            positive = 1 / (1 + mpmath.exp(-link(z[0])))
            negative = 1 - positive
            ones = pos_weight * q * (negative**gamma * mpmath.log(positive) - poly1 * negative)
            zeros = (1 - q) * (positive**gamma * mpmath.log(negative) - poly1 * positive)
            return outer * (z_loss * mpmath.log(negative) ** 2 - ones - zeros)

        return binary, outer

    c = [mpf(x) for x in o.get("class_weight", np.ones(CLASSES))]
    share = outer
    if case.has_labels:
        label = int(case.targets[row])
        t = [mpf(k == label) for k in range(CLASSES)]
        share = outer * c[label]
    else:
        t = [mpf(x) for x in case.targets[row]]
    mass = sum(t)
    if others:
        t = [(1 - smoothing) * x + smoothing * (mass - x) / (CLASSES - 1) for x in t]
    else:
        t = [(1 - smoothing) * x + smoothing / CLASSES for x in t]

    def categorical(z: list[Any]) -> Any:
        u = [link(x) for x in z]
        norm = sum(mpmath.exp(x) for x in u)
        p = [mpmath.exp(x) / norm for x in u]
        f = [poly1 * (1 - pk) - (1 - pk) ** gamma * mpmath.log(pk) for pk in p]
        return outer * (mpmath.fdot(map(mpmath.fmul, c, t), f) + z_loss * mpmath.log(norm) ** 2)

    return categorical, share


def _torch(case: Case) -> Derivatives:
    """The definition in float64 torch operations; autograd once and twice."""
    import torch

    z = torch.tensor(case.logits, dtype=torch.float64, requires_grad=True)
    loss = _torch_loss(case, z, torch)
    (grad,) = torch.autograd.grad(loss, z, create_graph=True)
    (hvp,) = torch.autograd.grad(grad, z, torch.tensor(case.vector))
    return Derivatives(loss.detach().numpy()[None], grad.detach().numpy(), hvp.numpy())


def _torch_loss(case: Case, z: Any, torch: Any) -> Any:
    o = case.options
    outer = torch.tensor(o.get("sample_weight", np.ones(ROWS)), dtype=torch.float64)
    targets = torch.tensor(case.targets)
    if case.has_labels:
        outer = outer * (targets != o.get("ignore_index", -100))
    smoothing, others = o.get("label_smoothing", 0.0), o.get("smoothing_over") == "others"
    gamma, poly1, z_loss = (o.get(name, 0.0) for name in ("focal_gamma", "poly1_epsilon", "z_loss"))
    u = z / o.get("temperature", 1.0)
    if "softcap" in o:
        u = o["softcap"] * torch.tanh(u / o["softcap"])
    if case.binary:
        pos_weight = torch.tensor(o.get("pos_weight", 1.0), dtype=torch.float64)
        q = targets.double()
        q = torch.lerp(q, 1 - q if others else torch.full_like(q, 0.5), smoothing)
        losses = torch.nn.functional.binary_cross_entropy_with_logits(
            u, q, pos_weight=pos_weight, reduction="none"
        )
        missed = (q - torch.sigmoid(u)).abs()  # 1 − p of the label
        losses = losses * missed**gamma + z_loss * torch.logaddexp(u, torch.zeros_like(u)) ** 2
        losses = losses + poly1 * missed * torch.where(q == 1, pos_weight, 1.0)
        return (outer * losses).sum() / outer.sum()
    c = torch.tensor(o.get("class_weight", np.ones(CLASSES)), dtype=torch.float64)
    if case.has_labels:
        t = torch.nn.functional.one_hot(targets, CLASSES).double()
        total = (outer * c[targets]).sum()
    else:
        t, total = targets, outer.sum()
    rest = (t.sum(-1, keepdim=True) - t) / (CLASSES - 1)
    spread = rest if others else torch.full_like(t, 1 / CLASSES)
    t = (1 - smoothing) * t + smoothing * spread
    log_p = torch.log_softmax(u, -1)
    missed = 1 - log_p.exp()
    losses = (c * t * (poly1 * missed - missed**gamma * log_p)).sum(-1) + z_loss * torch.logsumexp(u, -1) ** 2
    return (outer * losses).sum() / total


def _relative(ours: Any, other: Any) -> float:
    """Largest difference over the largest entry of ``other``; NaN if either holds one."""
    difference = np.abs(np.asarray(ours) - np.asarray(other)).max()
    return float(difference / max(np.abs(np.asarray(other)).max(), np.finfo(np.float64).tiny))
