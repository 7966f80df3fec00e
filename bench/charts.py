"""Pictures and the short table of the documentation, from the committed results.

``python -m bench.charts`` draws docs/images/speed*.svg and memory.svg again and prints the table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from bench import machine
from xent.html.svg import Scale, element, number, text, width_of

IMAGES = machine.ROOT / "docs/images"
WIDTH, SIZE, BAR, LEFT = 460, 14, 15, 12
STYLE = """
text { font: 14px ui-sans-serif, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; fill: var(--ink); }
.case { font-weight: 600; }
.end { text-anchor: end; }
.soft { fill: var(--soft); }
.xent { fill: var(--accent); }
.other { fill: var(--second); fill-opacity: .75; }
"""  # noqa: E501


class Bar(NamedTuple):
    """Somebody's time or memory; ``more`` where it was stopped there."""

    who: str
    value: float
    more: bool = False


class Group(NamedTuple):
    """Bars of one case, xent's first."""

    case: str
    bars: Sequence[Bar]


def _cases(name: str) -> dict[str, Any]:
    cases: dict[str, Any] = json.loads((machine.RESULTS / f"{name}.json").read_text("utf-8"))["cases"]
    return cases


def shape(name: str) -> str:
    """``2048x512->128000`` as 2,048 × 512 → 128,000; what follows the numbers is left out."""
    shape = re.split(r" |-(?!>)", name)[0].replace("x", " × ").replace("->", " → ")
    return re.sub(r"\d+", lambda size: f"{int(size[0]):,}", shape)


def _beside(case: str, *others: Bar) -> Group:
    return Group(case, [Bar("xent", 1.0), *others])


def logits() -> list[Group]:
    """Loss and gradient of tensors, in the time of `xent.torch`."""
    return [
        _beside(
            f"{shape(name)} {case['dtype']}",
            Bar("PyTorch eager", case["eager / xent torch"]),
            Bar("PyTorch compiled", case["compile / xent torch"]),
        )
        for name, case in _cases("core").items()
    ]


def in_jax() -> list[Group]:
    """Loss and gradient of compiled JAX, in the time of `xent.jax`."""
    groups = []
    for name, case in _cases("jax").items():
        if "optax" in case["median_s"]:  # not a linear layer
            title = f"{shape(name)} {name.partition(' ')[2] or 'float32'}"
            others = {"optax": "optax", "log_softmax": "textbook"}
            bars = [Bar(who, machine.ratio(case, key, "xent")) for who, key in others.items()]
            groups.append(_beside(title, *bars))
    return groups


def fits(gap: str = "1e-6") -> list[Group]:
    """Whole fits within ``gap`` of the optimum, in the time of `SoftmaxRegression`."""
    groups = []
    for name, case in _cases("fits").items():
        ratio = case["ratios"][gap]
        fastest = (ratio["fastest"] or "").removeprefix("sklearn ")
        who = f"scikit-learn {fastest}".strip()
        rows, columns = case["shape"]
        title = f"{name.removesuffix('-float32')} {rows:,} × {columns:,} {case['dtype']}"
        groups.append(_beside(title, Bar(who, ratio["times"], more=not fastest)))
    return groups


def memory() -> list[Group]:
    """MiB beside operands and gradients that the loss of hidden states takes."""
    who = {"xent": "xent", "compile": "PyTorch compiled", "eager": "PyTorch eager"}
    return [
        Group(
            f"{shape(name)} {name.partition(' ')[2]}",
            [Bar(who[key], case[key]["mib"]) for key in who],
        )
        for name, case in _cases("linear").items()
    ]


def overview() -> list[Group]:
    """One or two cases of each, for the README."""
    tensors = {group.case: group.bars[1:] for group in logits()}
    heads = {group.case: group.bars for group in memory()}
    jax = {group.case: group.bars[1:] for group in in_jax()}
    regressions = {group.case: group.bars[1:] for group in fits()}
    xent, *others = heads["2,048 × 512 → 128,000 float32"]
    ratios = [Bar(bar.who, bar.value / xent.value) for bar in reversed(others)]
    large, few, tiny = "4,096 × 32,768 float32", "2,000,000 × 10 float32", "32 × 10 float32"
    text, dense = "text 20,000 × 100,000 float64", "gaussian 60,000 × 784 float64"
    return [
        _beside(f"Loss and gradient, {large}", *tensors[large], jax[large][0]),
        _beside(f"Loss and gradient, {few}", *tensors[few], jax[few][0]),
        _beside(f"Loss and gradient, {tiny}", *tensors[tiny], jax[tiny][0]),
        _beside("Memory of a head, 2,048 × 512 → 128,000", *ratios),
        _beside(f"Fit, {dense}", *regressions[dense]),
        _beside(f"Fit, {text}", *regressions[text]),
    ]


def words(bar: Bar, unit: str) -> str:
    """The value beside a bar."""
    digits = 0 if unit == "MiB" else 1 if bar.value >= 1 else 2
    return f"{'> ' if bar.more else ''}{bar.value:,.{digits}f} {unit}"


def table(groups: Iterable[Group]) -> str:
    """What others take in units of xent, in Markdown."""
    rows = [["case", "times as much as xent"]]
    for case, bars in groups:
        others = (f"{bar.who} {words(bar, '×')}" for bar in bars if bar.who != "xent")
        rows.append([case, ", ".join(others)])
    return "\n".join(machine.rows(rows))


def picture(title: str, groups: Sequence[Group], unit: str = "×") -> str:
    """An SVG file: a title, and below it bars for each case; light or dark as its page is."""
    everyone = [bar for group in groups for bar in group.bars]
    start = LEFT + max(width_of(bar.who, SIZE) for bar in everyone) * 0.9 + 8
    room = max(width_of(words(bar, unit), SIZE) for bar in everyone)
    scale = Scale(0, max(bar.value for bar in everyone), start, WIDTH - room)
    parts, y = [text(0, SIZE, title, "soft")], SIZE + 16.0
    for case, bars in groups:
        y += SIZE
        parts.append(text(0, y, case, "case"))
        y += 7
        for bar in bars:
            end = max(scale(bar.value), start + 1)
            parts.append(text(start - 8, y + BAR - 3, bar.who, "end soft"))
            kind = "xent" if bar.who == "xent" else "other"
            parts.append(element("rect", x=start, y=y, width=end - start, height=BAR, class_=kind))
            parts.append(text(end + 6, y + BAR - 3, words(bar, unit)))
            y += BAR + 4
        y += 10
    palette = (files("xent.html") / "templates/palette.css").read_text("utf-8")
    lines = [element("title", title), f"<style>\n{palette}{STYLE}</style>", *parts]
    height = number(y - 6)
    return element(
        "svg", "\n".join(lines), xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {WIDTH} {height}",
        width=str(WIDTH), height=height, role="img",
    ) + "\n"  # fmt: skip


def pictures() -> dict[str, str]:
    """The files of docs/images that this module draws."""
    return {
        "speed.svg": picture("Times as much as xent takes: 1 is xent", overview()),
        "speed_logits.svg": picture("Times as long as xent.torch: loss and gradient", logits()),
        "speed_jax.svg": picture("Times as long as xent.jax: loss and gradient, compiled", in_jax()),
        "speed_fits.svg": picture("Times as long as xent, to 1e-6 of the optimum", fits()),
        "memory_heads.svg": picture("MiB beside operands and gradients", memory(), "MiB"),
    }


def main(folder: Path = IMAGES) -> None:
    """Write the pictures, and print the table of the README."""
    machine.write(folder, pictures())
    print(table(overview()))


if __name__ == "__main__":
    main()
