"""One row of logits, step by step: each number of equations (1) and (2) beside its formula."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

import numpy as np

from xent.core import head
from xent.core.spec import Options
from xent.engine.batch_loss import Problem

Array = np.ndarray[Any, Any]


class Column(NamedTuple):
    """One number for each class."""

    name: str
    formula: str
    values: Array


class Line(NamedTuple):
    """One number of the row."""

    name: str
    formula: str
    numbers: str  # the formula with the numbers in it
    value: float


class Explanation(NamedTuple):
    """The result of `explain`."""

    columns: list[Column]
    lines: list[Line]
    label: int
    gradient: str  # the form that equation (2) takes under these options


def parse_numbers(text: str, name: str) -> Array:
    """Numbers separated by spaces, commas or semicolons; ValueError for another word, or +inf."""
    text = text.strip().strip("[]()").strip()
    decimal = re.search(r"\S*\d,\d\S*", text)
    if decimal and re.search(r"[\s;]", text):  # "0,5 1,5" would be four numbers
        raise ValueError(
            f"`{name}` must be numbers such as 0.5, separated by spaces or by commas, not by both; got "
            f"{decimal[0]!r}"
        )
    words = re.split(r"[\s,;]+", text)
    numbers = []
    for index, word in enumerate(words, 1):
        try:
            numbers.append(float(word))
        except ValueError:
            numbers.append(math.nan)
        if not numbers[-1] < math.inf:
            raise ValueError(
                f'`{name}` must be numbers separated by spaces, such as "2 3 4"; got {word!r}, number {index}'
            )
    return np.array(numbers)


def explain(logits: Any, label: int, options: Options) -> Explanation:
    """Statistics, loss and gradient of one row ``logits (K,)`` with ``label``, each with its formula.

    ``options`` are those of `xent.cross_entropy`, and so are the errors.

    >>> from xent.explain.steps import explain
    >>> [round(float(g), 4) for g in explain([2.0, 3.0, 4.0], 1, {}).columns[-1].values]
    [0.09, -0.7553, 0.6652]
    """
    z = np.asarray(logits, np.float64)[None]
    problem = Problem.from_arguments(z, np.array([label]), "sum", None, True, options)
    stats = problem.stats("lse", "log_prob")
    lse, log_prob = float(stats.lse[0]), float(stats.log_prob[0])
    loss, grad = problem.loss_and_grad(np.empty_like(z))
    spec, target = problem.spec, problem.target
    u = problem.link.value(z, np)[0]
    alpha = float(np.broadcast_to(target.alpha, 1)[0])
    one_hot = (np.arange(z.size) == label).astype(np.float64)
    dense = None if target.dense is None else np.broadcast_to(target.dense, z.shape)[0]
    target_row = alpha * one_hot + (0.0 if dense is None else target.beta * dense)

    columns = [Column("logit", "z", z[0])]
    name = "z"  # the argument of the softmax
    if spec.softcap is not None or spec.temperature != 1:
        columns.append(Column("after the link", f"u = {_link(spec)}", u))
        name = "u"
    target_formula = "t = α e_y" if dense is None else "t = α e_y + β v"
    columns += [
        Column("probability", f"p = exp({name} − l)", np.exp(u - lse)),
        Column("target", target_formula, target_row),
        Column("gradient", "∂ℓ/∂z (2)", grad[0]),
    ]

    terms = " + ".join(f"e^{_short(x)}" for x in u[:6]) + (" + …" if len(u) > 6 else "")
    lines = [
        Line("log-sum-exp", f"l = log Σ exp {name}", f"log({terms})", lse),
        Line("log p of the label", f"x = {name}_y − l", f"{_short(u[label])} − {_short(lse)}", log_prob),
    ]
    if dense is not None:
        sigma = float(stats.dense_log_prob[0])
        lines.append(Line("log p under v", "σ = Σ v log p", "", sigma))
    lines.append(Line("loss, nats", *_loss_formula(problem, alpha, lse, log_prob, stats), float(loss)))
    lines.append(Line("loss, bits", "ℓ / ln 2", f"{_short(float(loss))} / 0.6931", float(loss) / math.log(2)))
    slopes = head.cotangents(stats, target, spec, 1.0, np)
    b = float(np.broadcast_to(slopes.log_prob, 1)[0])
    s = float(np.broadcast_to(slopes.lse, 1)[0]) + (0.0 if dense is None else target.beta * dense.sum())
    link = "" if len(columns) == 4 else "φ' ∘ "
    gradient = "∂ℓ/∂z = p − t: predicted minus true (2)"
    if (s, b, len(columns)) != (0.0, -1.0, 4):
        gradient = f"∂ℓ/∂z = {link}[s p + b (e_y − p) − β v] (2)"
        mass = 0.0 if dense is None else float(dense.sum())
        weights = [f"{_short(target.beta)}·{_short(mass)}"] if dense is not None else []
        weights += [f"2·{_short(spec.z_loss)}·{_short(lse)}"] if spec.z_loss else []
        lines.append(Line("weight of p (2)", "s = βV + 2λl", " + ".join(weights), s))
        lines.append(Line("weight of e_y − p (2)", "b = α f'(x)", "", b))
    gradient_sum = float(grad.sum())
    if abs(gradient_sum) <= z.size * np.finfo(float).eps * float(np.abs(grad).max()):
        gradient_sum = 0.0  # the rest is rounding
    lines.append(Line("sum of the gradient", "Σ ∂ℓ/∂z", "", gradient_sum))
    return Explanation(columns, lines, label, gradient)


def _loss_formula(problem: Problem, alpha: float, lse: float, log_prob: float, stats: Any) -> tuple[str, str]:
    """(equation (1) with the terms that these options have, the same with numbers in it)."""
    spec, target = problem.spec, problem.target
    symbol = "" if alpha == 1 else "α "
    factor = "" if alpha == 1 else f"{_short(alpha)}·"
    formula = f"−{symbol}x"
    numbers = f"−{factor}({_short(log_prob)})"
    if spec.focal_gamma:
        formula = f"−{symbol}(1−eˣ)^γ x"
        numbers = f"−{factor}(1−{_short(math.exp(log_prob))})^{_short(spec.focal_gamma)}·({_short(log_prob)})"
    if spec.poly1_epsilon:
        formula += f" + {symbol}ε(1−eˣ)"
        numbers += f" + {factor}{_short(spec.poly1_epsilon)}·(1−{_short(math.exp(log_prob))})"
    if target.dense is not None:
        formula += " − βσ"
        numbers += f" − {_short(target.beta)}·({_short(float(stats.dense_log_prob[0]))})"
    if spec.z_loss:
        formula += " + λl²"
        numbers += f" + {_short(spec.z_loss)}·{_short(lse)}²"
    return f"ℓ = {formula} (1)", numbers


def _link(spec: Any) -> str:
    scaled = "z" if spec.temperature == 1 else "z/T"
    return scaled if spec.softcap is None else f"C tanh({scaled}/C)"


def _short(x: float) -> str:
    return f"{x:.4g}".replace("-", "−")


def number(x: float) -> str:
    """Six decimals, or an exponent for very small and very large numbers."""
    plain = x == 0 or 1e-4 <= abs(x) < 1e6 or not math.isfinite(x)
    return (f"{x:.6f}" if plain else f"{x:.4e}").replace("-", "−")
