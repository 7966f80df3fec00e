"""The equations of docs/maths.md, symbolically: (1) differentiated by SymPy is (2) and (3), for K = 3."""

from __future__ import annotations

import functools
import math

import mpmath
import numpy as np
import pytest
import sympy as sp

from xent.core import head
from xent.core.contract import RowStats
from xent.core.link import Link
from xent.core.spec import LossSpec
from xent.core.target import Target
from xent.kernels import reference

K, Y = 3, 1
z = sp.symbols(f"z:{K}", real=True)
r = sp.symbols(f"r:{K}", real=True)
v = sp.symbols(f"v:{K}", positive=True)
alpha, beta, lam, omega, gamma, T, C = sp.symbols("alpha beta lambda omega gamma T C", positive=True)
epsilon = sp.Symbol("epsilon", positive=True)
x_ = sp.Symbol("x", negative=True)

F = {
    "cross-entropy": -x_,
    "focal": -((1 - sp.exp(x_)) ** gamma) * x_,
    "poly-1": -x_ + epsilon * (1 - sp.exp(x_)),
}
LINKS = {
    "identity": lambda t: t,
    "temperature": lambda t: t / T,
    "softcap": lambda t: C * sp.tanh(t / (T * C)),
}
VALUES = {
    **dict(zip(z, (sp.Rational(3, 10), sp.Rational(-7, 5), sp.Rational(11, 10)), strict=True)),
    **dict(zip(r, (sp.Rational(1, 2), sp.Rational(-6, 5), sp.Rational(4, 5)), strict=True)),
    **dict(zip(v, (sp.Rational(1, 5), sp.Rational(7, 10), sp.Rational(3, 10)), strict=True)),
    alpha: sp.Rational(9, 10),
    beta: sp.Rational(2, 5),
    lam: sp.Rational(1, 7),
    omega: sp.Rational(13, 10),
    gamma: sp.Rational(5, 2),
    epsilon: sp.Rational(7, 4),
    T: sp.Rational(8, 5),
    C: sp.Rational(3, 2),
}


def evaluate(*expressions: sp.Expr) -> list[mpmath.mpf]:
    """To 60 digits at a point where no two symbols are alike."""
    with mpmath.workdps(60):
        point = [mpmath.mpf(value.p) / value.q for value in VALUES.values()]
        return list(sp.lambdify(list(VALUES), expressions, "mpmath", cse=True)(*point))


def same(a: sp.Expr, b: sp.Expr) -> bool:
    left, right = evaluate(a, b)
    return bool(abs(left - right) < mpmath.mpf("1e-40") and left != 0)


class Row:
    """The symbols of the equations for one link and one f."""

    def __init__(self, link: str, label_function: str) -> None:
        phi, f = LINKS[link], F[label_function]
        t = sp.Symbol("t", real=True)
        self.u = [phi(zk) for zk in z]
        self.slope = [sp.diff(phi(t), t).subs(t, zk) for zk in z]
        self.curvature = [sp.diff(phi(t), t, 2).subs(t, zk) for zk in z]
        self.l = sp.log(sum(sp.exp(u) for u in self.u))
        self.p = [sp.exp(u - self.l) for u in self.u]
        self.x = self.u[Y] - self.l
        self.mass = sum(v)
        self.sigma = sum(vk * uk for vk, uk in zip(v, self.u, strict=True)) - self.mass * self.l
        self.f, self.f1, self.f2 = (sp.diff(f, x_, n).subs(x_, self.x) for n in (0, 1, 2))
        # (1)
        self.loss = omega * (alpha * self.f - beta * self.sigma + lam * self.l**2)

    def gradient(self) -> list[sp.Expr]:
        """(2)."""
        return [omega * d * g for d, g in zip(self.slope, self.bracket(), strict=True)]

    def bracket(self) -> list[sp.Expr]:
        s = beta * self.mass + 2 * lam * self.l
        b = alpha * self.f1
        return [
            s * p + b * (int(k == Y) - p) - beta * vk for k, (p, vk) in enumerate(zip(self.p, v, strict=True))
        ]

    def hessian_product(self) -> list[sp.Expr]:
        """(3)."""
        s, b = beta * self.mass + 2 * lam * self.l, alpha * self.f1
        tilde = [d * rk for d, rk in zip(self.slope, r, strict=True)]
        rho = sum(p * t for p, t in zip(self.p, tilde, strict=True))
        kappa = alpha * self.f2 * (tilde[Y] - rho)
        return [
            omega
            * (d * ((s - b) * p * (t - rho) + kappa * (int(k == Y) - p) + 2 * lam * rho * p) + c * rk * g)
            for k, (d, c, p, t, rk, g) in enumerate(
                zip(self.slope, self.curvature, self.p, tilde, r, self.bracket(), strict=True)
            )
        ]


row = functools.cache(Row)


@pytest.mark.parametrize("label_function", F)
@pytest.mark.parametrize("link", LINKS)
def test_equation_2_is_the_derivative_of_1(link: str, label_function: str) -> None:
    equations = row(link, label_function)
    for k in range(K):
        assert same(sp.diff(equations.loss, z[k]), equations.gradient()[k])


@pytest.mark.parametrize("label_function", F)
@pytest.mark.parametrize("link", LINKS)
def test_equation_3_is_the_derivative_of_2(link: str, label_function: str) -> None:
    equations = row(link, label_function)
    gradient = equations.gradient()
    for k in range(K):
        along_r = sum(rj * sp.diff(gradient[k], zj) for rj, zj in zip(r, z, strict=True))
        assert same(along_r, equations.hessian_product()[k])


def test_plain_cross_entropy_is_predicted_minus_true() -> None:
    """Symbolically, not at a point: α = 1, β = 0, λ = 0, f = −x."""
    equations = row("identity", "cross-entropy")
    plain = {alpha: 1, beta: 0, lam: 0, omega: 1}
    for k in range(K):
        derivative = sp.diff(equations.loss.subs(plain), z[k])
        assert sp.simplify(derivative - (equations.p[k] - int(k == Y))) == 0


def test_gradient_sums_to_twice_lambda_l() -> None:
    """Symbolically: Σ_k of the bracket of (2) is 2λl, whatever the target."""
    t = sp.symbols(f"p:{K}", positive=True)
    s, b, l = sp.symbols("s b l", real=True)  # noqa: E741
    total = sum(s * t[k] + b * (int(k == Y) - t[k]) - beta * v[k] for k in range(K))
    total = total.subs(t[0], 1 - t[1] - t[2]).subs(s, beta * sum(v) + 2 * lam * l)
    assert sp.simplify(total - 2 * lam * l) == 0


@pytest.mark.parametrize("label_function", F)
@pytest.mark.parametrize("link", LINKS)
def test_code_is_the_equations(link: str, label_function: str) -> None:
    """head.py and softmax.py, by the reference, at the same point: the signs and factors of the code."""
    equations = row(link, label_function)
    number = {symbol: float(value) for symbol, value in VALUES.items()}
    options = {"focal": {"focal_gamma": number[gamma]}, "poly-1": {"poly1_epsilon": number[epsilon]}}
    spec = LossSpec(z_loss=number[lam], **options.get(label_function, {}))
    phi = Link(
        temperature=1.0 if link == "identity" else number[T],
        softcap=number[C] if link == "softcap" else None,
    )
    labels, logits = np.array([Y]), np.array([[number[zk] for zk in z]])
    dense, vector = np.array([number[vk] for vk in v]), np.array([[number[rk] for rk in r]])
    target = Target(labels, number[alpha], dense, number[beta], np.array([number[omega]]), 1.0, 1)

    stats = reference.row_stats(logits, labels, dense, phi, RowStats._fields)
    cotangents = head.cotangents(stats, target, spec, 1.0, np)
    curvatures = head.curvatures(stats, target, spec, 1.0, np)
    grad = reference.row_grad(logits, labels, dense, phi, stats, cotangents)[0]
    product = reference.row_hvp(logits, labels, dense, phi, cotangents, curvatures, vector)[0]

    def values(expressions: list[sp.Expr]) -> list[float]:
        return [float(x) for x in evaluate(*expressions)]

    loss = head.row_losses(stats, target, spec, np)
    np.testing.assert_allclose(loss, values([equations.loss]), rtol=1e-13)
    np.testing.assert_allclose(grad, values(equations.gradient()), rtol=1e-13)
    np.testing.assert_allclose(product, values(equations.hessian_product()), rtol=1e-12)
    # s of (2) is dl − V·dσ, b is dx: the kernels' cotangents and the page's letters.
    mass = math.fsum(dense)
    s = omega * (beta * equations.mass + 2 * lam * equations.l)
    b = omega * alpha * equations.f1
    dl, dx, ds = (float(np.asarray(c)[0]) for c in cotangents)
    np.testing.assert_allclose([dl - mass * ds, dx], values([s, b]), rtol=1e-13)
