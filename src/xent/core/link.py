"""The link u = φ(z) from raw logits to the logits of the softmax, with its derivatives."""

from __future__ import annotations

from typing import Any, NamedTuple

Array = Any


class Link(NamedTuple):
    """``u = z/T``, or with a softcap ``u = C·tanh(z/(T·C))``, elementwise.

    Infinite logits pass through the cap, so that −inf still means "this class is excluded".
    """

    temperature: float = 1.0
    softcap: float | None = None

    def doubled(self) -> Link:
        """The link 2φ."""
        return Link(self.temperature / 2.0, None if self.softcap is None else 2.0 * self.softcap)

    def value(self, z: Array, xp: Any) -> Array:
        """φ(z)."""
        if self.softcap is None:
            return z / self.temperature
        capped = self.softcap * xp.tanh(z / (self.temperature * self.softcap))
        # A constant, whose derivative is 0, as `slope` is at −inf; that of z would be 1.
        return xp.where(z == -xp.inf, -xp.inf, xp.where(z == xp.inf, z, capped))

    def slope(self, z: Array, xp: Any) -> Array | float:
        """φ'(z)."""
        if self.softcap is None:
            return 1.0 / self.temperature
        tanh = xp.tanh(z / (self.temperature * self.softcap))
        return (1.0 - tanh * tanh) / self.temperature

    def curvature(self, z: Array, xp: Any) -> Array | float:
        """φ''(z)."""
        if self.softcap is None:
            return 0.0
        tanh = xp.tanh(z / (self.temperature * self.softcap))
        return -2.0 * tanh * (1.0 - tanh * tanh) / (self.temperature**2 * self.softcap)
