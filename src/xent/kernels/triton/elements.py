"""Elementwise device code: the link φ with its derivatives, and expm1 and log1p, which Triton lacks."""

# mypy cannot check these types. An `if` on a compile-time value compiles one branch, and needs its `else`.
# mypy: ignore-errors
# ruff: noqa: RET505
import triton
import triton.language as tl


@triton.jit
def expm1(x, TERMS: tl.constexpr):
    """eˣ − 1 for x ≤ 0, by a Taylor sum near 0, where the difference would cancel."""
    series = x * 0.0 + 1.0
    for i in tl.static_range(TERMS):
        series = 1.0 + series * (x * (1.0 / (TERMS + 1 - i)))
    return tl.where(x > -0.7, series * x, tl.exp(x) - 1.0)


@triton.jit
def log1p(x):
    """log(1 + x) for x ≥ 0; the factor x / ((1 + x) − 1) corrects the rounding of 1 + x."""
    y = 1.0 + x
    return tl.where(y == 1.0, x, tl.log(y) * (x / tl.where(y == 1.0, 1.0, y - 1.0)))


@triton.jit
def value(z, scale, cap, HAS_CAP: tl.constexpr, TERMS: tl.constexpr):
    """w: the logit, or C·tanh(z/(TC)), which leaves infinities unchanged."""
    if HAS_CAP:
        t = z * (scale / cap)
        e = expm1(-2.0 * tl.abs(t), TERMS)
        w = cap * (-e / (2.0 + e))
        return tl.where(tl.abs(z) == float("inf"), z, tl.where(t < 0.0, -w, w))
    else:
        return z


@triton.jit
def slope(z, scale, cap, HAS_CAP: tl.constexpr, TERMS: tl.constexpr):
    """φ'; 1 − tanh² is computed from exponentials, without cancellation."""
    if HAS_CAP:
        e = expm1(-2.0 * tl.abs(z * (scale / cap)), TERMS)
        half = 2.0 / (2.0 + e)
        return scale * ((1.0 + e) * half * half)
    else:
        return scale


@triton.jit
def bent(r, z, scale, cap, HAS_CAP: tl.constexpr, TERMS: tl.constexpr):
    """φ'·r, or None without a vector."""
    if r is None:
        return None
    else:
        return r * slope(z, scale, cap, HAS_CAP, TERMS)


@triton.jit
def curvature(z, scale, cap, TERMS: tl.constexpr):
    """φ'' of a softcap."""
    t = z * (scale / cap)
    e = expm1(-2.0 * tl.abs(t), TERMS)
    half = 2.0 / (2.0 + e)
    tanh = -e / (2.0 + e)
    return (-2.0 * scale * scale / cap) * tl.where(t < 0.0, -tanh, tanh) * ((1.0 + e) * half * half)
