"""What charts are drawn with: texts, lines and dots as SVG strings, axes with round ticks, the frame around a chart.

Colors come from the page, so that light, dark and print need no second drawing: text is `currentColor`, and
`--c1` ... `--c6`, `--muted`, `--rule`, `--paper`, `--bad` are what their names say. Text stays text, with a
title and a description for a screen reader. Words may be a pair (English, Korean): two texts in one place, of
class `en` and `ko`, of which the page shows one.
"""

import math
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape as escape_html
from typing import Any

from .figures import tick_text

Words = str | tuple[str, str]
Form = Callable[[float], str]

DASHES = ("none", "7 3", "2 3", "9 3 2 3", "4 2", "1 2")  # not everybody can tell colors apart
MUTED, RULE, BAD = "var(--muted, #667)", "var(--rule, #ddd)", "var(--bad, #b3402f)"
FONT, LINE = 12, 17  # font size and line height in SVG units


def color(index: int) -> str:
    """The color of series `index`, as the page defines it."""
    return f"var(--c{index % len(DASHES) + 1}, #2b6591)"


def escape(words: Any) -> str:
    """Text that is safe in HTML and in XML: control characters become spaces."""
    return escape_html("".join(letter if letter.isprintable() else " " for letter in str(words)))


def plain(words: Words) -> str:
    """Both languages in one line, for a title."""
    return words if isinstance(words, str) else " / ".join(words)


def text_width(words: Words) -> float:
    """About the width of a text: only a browser knows its fonts, so this errs on the wide side."""
    if not isinstance(words, str):
        return max(map(text_width, words))
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in words)
    narrow = sum(letter in " .,:;'|!ijl\u00a0" for letter in words)
    return FONT * (wide + 0.34 * narrow + 0.65 * (len(words) - wide - narrow))


def text(x: float, y: float, words: Words, anchor: str = "start", tint: str = "currentColor", marks: str = "") -> str:
    """One line of text with its baseline at y."""
    if isinstance(words, str):
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="fill:{tint}"{marks}>{escape(words)}</text>'
    return "".join(
        text(x, y, word, anchor, tint, f' class="{lang}" lang="{lang}"') for lang, word in zip(("en", "ko"), words)
    )


def named(x: float, y: float, name: str, figure: str) -> str:
    """A name and, quieter, its figure."""
    aside = f'<tspan dx="6" font-weight="400" style="fill:{MUTED}">{escape(figure)}</tspan></text>'
    return text(x, y, name, marks=' font-weight="600"').removesuffix("</text>") + aside


def path(places: Iterable[tuple[float, float]], style: str, title: str = "") -> str:
    """A line through places; `title` shows when it is pointed at."""
    way = " ".join(f"{x:.1f} {y:.1f}" for x, y in places)
    words = f"<title>{escape(title)}</title>" * bool(title)
    return f'<path d="M{way}" style="fill:none;{style}">{words}</path>'


def dot(x: float, y: float, radius: float, style: str, title: str = "") -> str:
    """A round mark; `title` shows when it is pointed at."""
    words = f"<title>{escape(title)}</title>" * bool(title)
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" style="{style}">{words}</circle>'


def svg(width: float, height: float, title: str, body: str, about: str = "") -> str:
    """The whole drawing, with its name and description for those who do not see it."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" fill="currentColor" '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-size="{FONT}">'
        f"<title>{escape(title)}</title><desc>{escape(about)}</desc>{body}</svg>"
    )


def note(title: str, width: float) -> str:
    """What stands in the place of a chart that has nothing to show."""
    return svg(width, 36, title, text(0, 22, ("nothing to draw", "그릴 값이 없음"), tint=MUTED))


@dataclass(frozen=True)
class Axis:
    """The values `low` to `high` laid on the pixels `start` to `end`; `form` writes its ticks."""

    low: float
    high: float
    start: float
    end: float
    log: bool
    ticks: list[float]
    form: Form

    def at(self, value: float) -> float:
        """The pixel of a value."""
        bend = math.log10 if self.log else float
        share = (bend(value) - bend(self.low)) / (bend(self.high) - bend(self.low))
        return self.start + share * (self.end - self.start)


def axis(
    values: list[float],
    start: float,
    end: float,
    log: bool = False,
    form: Form = tick_text,
    whole: bool = False,
    pad: float = 0.05,
    apart: float = 52,
) -> Axis:
    """An axis that holds all `values` with air (the share `pad`; equal values get a range around them)."""
    low, high, count = min(values), max(values), max(2, int(abs(end - start) / apart))
    if log:
        factor = (high / low) ** pad if high / low > 1.001 else 2.0
        low, high = low / factor, high * factor
        return Axis(low, high, start, end, log, log_ticks(low, high, count), form)
    air = (high - low) * pad if high - low > 1e-9 * abs(high) else abs(high) * 0.1 or 1.0
    low, high = low - air, high + air
    return Axis(low, high, start, end, log, even_ticks(low, high, count, whole), form)


def even_ticks(low: float, high: float, count: int = 5, whole: bool = False) -> list[float]:
    """About `count` round values (steps of 1, 2, 2.5 or 5) between low and high."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= rough * 0.999)
    step = max(1.0, round(step)) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def log_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round values between low and high for a logarithmic axis: 1-2-5, decades, or every n-th decade."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for sizes in ((1, 2, 5), (1, 3), (1,)):
        found = [tick for power in powers for size in sizes if low <= (tick := size * 10.0**power) <= high]
        if len(found) <= count:
            return found if len(found) > 1 else even_ticks(low, high, 3)
    return found[:: math.ceil(len(found) / count)]


def grid(across: Axis, up: Axis, x: Words, y: Words, top: float) -> str:
    """Level lines, tick labels and the names of both axes; no box, no upright lines."""
    parts = [text(0, top, y, tint=MUTED), text(across.end, up.start + 2 * LINE + 3, x, "end", MUTED)]
    for tick in up.ticks:
        level = up.at(tick)
        parts.append(path([(across.start, level), (across.end, level)], f"stroke:{RULE}"))
        parts.append(text(across.start - 8, level + 4, up.form(tick), "end", MUTED))
    return "".join(
        parts
        + [text(across.at(tick), up.start + LINE + 2, across.form(tick), "middle", MUTED) for tick in across.ticks]
    )


def gutter(up: Axis) -> float:
    """The space that the labels of the upright axis need."""
    return max((text_width(up.form(tick)) for tick in up.ticks), default=0) + 10


def legend(names: list[Words], width: float) -> tuple[str, int]:
    """The names of the series beside a piece of their line, in as many rows as they need: (drawing, rows)."""
    parts, x, row = [], 0.0, 0
    for index, words in enumerate(names):
        need = 40 + text_width(words)
        x, row = (0.0, row + 1) if x and x + need > width else (x, row)
        y = row * LINE + 12
        style = f"stroke:{color(index)};stroke-width:2;stroke-dasharray:{DASHES[index % 6]}"
        parts += [path([(x, y - 4), (x + 20, y - 4)], style), text(x + 26, y, words)]
        x += need
    return "".join(parts), row + 1
