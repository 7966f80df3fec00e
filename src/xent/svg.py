"""A few words of SVG: elements, scales with their ticks, text of a known width."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape
from typing import NamedTuple

CHARACTER = 7.2  # width of one, at the size of 12.5 that the page sets; wide fonts and narrow screens fit


def element(name: str, content: str = "", /, **attributes: str | float) -> str:
    """``<name ...>content</name>``; numbers are rounded to hundredths, ``class_`` is ``class``.

    >>> from xent.svg import element
    >>> element("line", x1=0.5, x2=10 / 3, class_="rule")
    '<line x1="0.5" x2="3.33" class="rule"/>'
    """
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value) if isinstance(value, str) else number(value)}"'
        for key, value in attributes.items()
    )
    return f"<{name}{words}>{content}</{name}>" if content else f"<{name}{words}/>"


def number(value: float) -> str:
    """Hundredths at most, and no zeros at the end."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if round(value, 2) else "0"


def text(x: float, y: float, words: str, class_: str = "", **attributes: str | float) -> str:
    """Words at a point; ``class_`` may hold "middle" or "end" for where the point is in them."""
    own = {"class_": class_} if class_ else {}
    return element("text", escape(words, quote=False), x=x, y=y, **own, **attributes)


def picture(width: float, height: float, parts: Iterable[str], label: str) -> str:
    """The whole, as wide as the page lets it be; ``label`` says in words what it shows."""
    return element(
        "svg", "\n".join(parts), viewBox=f"0 0 {number(width)} {number(height)}", role="img", aria_label=label
    )


class Scale(NamedTuple):
    """From values to places: ``low`` is drawn at ``start``, ``high`` at ``end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Where ``value`` is drawn."""
        low, high, value = (math.log(v) for v in (self.low, self.high, value)) if self.log else (
            self.low, self.high, value
        )  # fmt: skip
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        """At most about ``most`` round values in the range."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            for steps in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1, 3), (1,)):
                values = [s * 10.0**e for e in range(first, last + 1) for s in steps]
                values = [v for v in values if self.low <= v <= self.high]
                if len(values) <= most:
                    break
            return values
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / most))
        step *= next(m for m in (1, 2, 5, 10, 20) if (self.high - self.low) / (m * step) <= most)
        first = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def width_of(words: str) -> float:
    """An upper estimate."""
    return CHARACTER * len(words)


def shortened(words: str, most: int) -> str:
    """The beginning and the end of what is longer than ``most`` characters."""
    if len(words) <= most:
        return words
    end = (most - 1) // 2
    return f"{words[: most - 1 - end]}…{words[len(words) - end :]}" if most > 4 else words[:most]


def told_apart(names: list[str], most: int) -> list[str]:
    """`shortened` names; those that would be alike by where they differ, or by their places if that is long.

    >>> from xent.svg import told_apart
    >>> told_apart(["delivery of apples to town", "delivery of pears to town", "praise"], 12)
    ['…of apples…', '…y of pears…', 'praise']
    """
    short = [shortened(name, most) for name in names]
    for words in {word for word in short if short.count(word) > 1}:
        places = [k for k, word in enumerate(short) if word == words]
        group = [names[k] for k in places]
        start = _alike(group)
        rest = [name[start:] for name in group]
        end = _alike([name[::-1] for name in rest])
        for k, name in zip(places, rest, strict=True):
            short[k] = _around(names[k], start, len(name) - end, most)
    for k, words in enumerate(short):
        if words in short[:k]:
            short[k] = f"{words[: max(0, most - len(str(k)) - 1)]}…{k}"[-most:]
    return short


def _alike(names: list[str]) -> int:
    """How many characters all begin with, whole words if there are any."""
    letters = enumerate(zip(*names, strict=False))
    most = next((k for k, each in letters if len(set(each)) > 1), min(map(len, names)))
    return names[0].rfind(" ", 0, most) + 1 or most


def _around(name: str, start: int, length: int, most: int) -> str:
    """``name[start : start + length]``, with what fits of the words before it."""
    after = "…" if start + length < len(name) else ""
    room = most - 1 - len(after)
    if length > room or room < 3:
        return shortened(name[start : start + length], most)
    first = start - (room - length)
    return f"{'…' if first > 0 else ''}{name[max(0, first) : start + length].lstrip()}{after}"
