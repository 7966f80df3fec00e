"""Write SVG: elements, scales with ticks, text of a known width."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterable
from html import escape
from typing import NamedTuple

# Widths of characters in units of the font size, in the widest common sans-serif fonts, Verdana and DejaVu
# Sans: text that fits in these fits in others.
WIDTHS = {
    c: width
    for characters, width in {
        "ijl|'": 0.36,
        'frtIJ.,:;!()[]{}/\\-" ': 0.46,
        "0123456789abcdeghknopqsuvxyz$?*_": 0.64,
        "ABCDEFGHKLNOPQRSTUVXYZ&": 0.79,
        "wM+=<>~^#−±": 0.87,
        "mW@%…": 1.08,
    }.items()
    for c in characters
}
OTHER, WIDE, EMOJI = 1.0, 1.1, 1.3
STRONG = 1.13  # width of bold, relative to regular
NARROWEST = 0.3  # less than the width of any character that is counted


def element(name: str, content: str = "", /, **attributes: str | float) -> str:
    """``<name ...>content</name>``; numbers are rounded to hundredths, ``class_`` is ``class``.

    >>> from xent.html.svg import element
    >>> element("line", x1=0.5, x2=10 / 3, class_="rule")
    '<line x1="0.5" x2="3.33" class="rule"/>'
    """
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value) if isinstance(value, str) else number(value)}"'
        for key, value in attributes.items()
    )
    return f"<{name}{words}>{content}</{name}>" if content else f"<{name}{words}/>"


def number(value: float) -> str:
    """The value with at most two decimals, without trailing zeros."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if round(value, 2) else "0"


def text(x: float, y: float, words: str, class_: str = "", **attributes: str | float) -> str:
    """Text at a point; ``class_`` may hold "middle" or "end", the part of the text that is at the point."""
    own = {"class_": class_} if class_ else {}
    return element("text", escape(words, quote=False), x=x, y=y, **own, **attributes)


def picture(width: float, height: float, parts: Iterable[str], label: str) -> str:
    """The svg element, which fits the width of the page; ``label`` describes it for screen readers."""
    return element(
        "svg", "\n".join(parts), viewBox=f"0 0 {number(width)} {number(height)}", role="img", aria_label=label
    )


class Scale(NamedTuple):
    """Maps values to coordinates: ``low`` to ``start``, ``high`` to ``end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The coordinate of ``value``."""
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


def width_of(words: str, size: float, strong: bool = False) -> float:
    """An upper estimate of the width for any font of size ``size``, in the same unit."""
    width = sum(WIDTHS.get(c) or _width(c) for c in words)
    return size * width * (STRONG if strong else 1.0)


def _width(c: str) -> float:
    if unicodedata.category(c) in ("Mn", "Me", "Cf"):
        return 0.0
    if unicodedata.east_asian_width(c) in "WF":
        return EMOJI if unicodedata.category(c) == "So" else WIDE
    return WIDTHS.get(unicodedata.normalize("NFD", c)[0], OTHER)


def shortened(words: str, room: float, size: float, strong: bool = False) -> str:
    """``words``, or if they are wider than ``room`` their beginning and end with "…" between."""
    if width_of(words, size, strong) <= room:
        return words
    most = min(len(words) - 1, int(room / (NARROWEST * size)))
    for kept in range(most, 0, -1):
        end = kept // 2 if kept > 3 else 0
        short = f"{words[: kept - end]}…{words[len(words) - end :]}" if end else words[:kept]
        if width_of(short, size, strong) <= room:
            return short
    return words[:1]


def distinct_names(names: list[str], room: float, size: float, strong: bool = False) -> list[str]:
    """Distinct short names: `shortened`, or the part in which equal ones differ, or else with their index.

    >>> from xent.html.svg import distinct_names
    >>> distinct_names(["delivery of apples to town", "delivery of pears to town", "praise"], 120, 15)
    ['…of apples…', '…y of pears…', 'praise']
    """
    short = [shortened(name, room, size, strong) for name in names]
    for words in {word for word in short if short.count(word) > 1}:
        members = [k for k, word in enumerate(short) if word == words]
        group = [names[k] for k in members]
        start = _alike(group)
        rest = [name[start:] for name in group]
        end = _alike([name[::-1] for name in rest])
        for k, name in zip(members, rest, strict=True):
            length = len(name) - end
            short[k] = _around(names[k], start, length, lambda each: width_of(each, size, strong) <= room)
            if not short[k]:
                short[k] = shortened(names[k][start : start + length], room, size, strong)
    for k, words in enumerate(short):
        if words in short[:k]:
            suffix = f"…{k}"
            short[k] = (
                shortened(words, max(0.0, room - width_of(suffix, size, strong)), size, strong) + suffix
            )
            if width_of(short[k], size, strong) > room:
                short[k] = str(k)
    return short


def _alike(names: list[str]) -> int:
    """Length of the common prefix, in whole words if there are any."""
    letters = enumerate(zip(*names, strict=False))
    most = next((k for k, each in letters if len(set(each)) > 1), min(map(len, names)))
    return names[0].rfind(" ", 0, most) + 1 or most


def _around(name: str, start: int, length: int, fits: Callable[[str], bool]) -> str:
    """``name[start : start + length]`` with as many characters before it as fit; "" if it does not fit."""
    after = "…" if start + length < len(name) else ""
    best = ""
    for first in range(start, -1, -1):
        words = f"{'…' if first > 0 else ''}{name[first : start + length].lstrip()}{after}"
        if not fits(words):
            break
        best = words
    return best
