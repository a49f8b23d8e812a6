"""Charts by hand: each function returns one SVG string (or an `<img>`) for an HTML page; no plotting library.

Colors come from the page, so that light, dark and print need no second drawing: text is `currentColor`, and
`--c1` ... `--c6`, `--muted`, `--rule`, `--paper`, `--bad` are what their names say. Text stays text, with a
title and a description for a screen reader. A figure that is missing or not finite is never drawn as a value:
a gap, a cross or a note says so. Words may be a pair (English, Korean): two texts in one place, of class `en`
and `ko`, of which the page shows one.
"""

import base64
import io
import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape as escape_html
from itertools import islice, pairwise
from typing import Any

import numpy as np
from PIL import Image

Words = str | tuple[str, str]
Form = Callable[[float], str]
Point = tuple[float, float | None]  # None: a value that is not a finite number
Box = tuple[float, float, float, float]  # left, top, right, bottom

DASHES = ("none", "7 3", "2 3", "9 3 2 3", "4 2", "1 2")  # not everybody can tell colors apart
MUTED, RULE, BAD = "var(--muted, #667)", "var(--rule, #ddd)", "var(--bad, #b3402f)"
THOUSANDS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
FONT, LINE = 12, 17  # font size and line height in SVG units


def finite(value: Any) -> float | None:
    """`value` as a float, or None when it cannot be drawn (above 1e100 an axis would overflow)."""
    if value is None or isinstance(value, (bool, str)):
        return None
    value = float(value)
    return value if math.isfinite(value) and abs(value) < 1e100 else None


def tick_text(value: float) -> str:
    """0.25, 1500, 20k, 2e-05."""
    return thousands(value) if abs(value) >= 1e4 else f"{value:.6g}"


def byte_text(value: float) -> str:
    """10 kB, 500 kB, 2 MB: decimal prefixes, as disks and downloads count."""
    return thousands(value, "\u00a0") + "B"


def thousands(value: float, space: str = "") -> str:
    """20000 -> 20k."""
    size, letter = next((pair for pair in THOUSANDS if abs(value) >= pair[0]), (1, ""))
    return f"{value / size:.6g}{space}{letter}"


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


def curves(
    series: Mapping[Any, Sequence], x: Words, y: Words, log_y: bool = False, width: float = 440, height: float = 250
) -> str:
    """Lines over shared axes, {words: [(step, value), ...]}, as of training. A value that is not finite (or
    not positive, when `log_y`) is a gap with a cross above it: a run that broke must look broken."""
    points = {name: kept for name, values in series.items() if (kept := usable(values, log_y))}
    steps = [step for kept in points.values() for step, _ in kept]
    seen = [value for kept in points.values() for _, value in kept if value is not None]
    if not seen:
        return note(f"{plain(y)} - {plain(x)}", width)
    key, rows = legend(list(points), width) if len(points) > 1 else ("", 0)
    up = axis(seen, height - 2 * LINE - 6, (rows + 1) * LINE + 10, log_y, apart=34)
    across = axis(steps, gutter(up), width - 14, whole=all(step == int(step) for step in steps), pad=0.0)
    drawn = "".join(curve(values, across, up, index) for index, values in enumerate(points.values()))
    about = "; ".join(f"{plain(name)}: {kept[-1][1]}" for name, kept in points.items())
    body = key + grid(across, up, x, y, rows * LINE + 12) + drawn
    return svg(width, height, f"{plain(y)} - {plain(x)}", body, about)


def usable(values: Iterable[Sequence[Any]], log: bool) -> list[Point]:
    """(step, value) pairs in order; a value that cannot be drawn is None."""
    pairs = [(finite(step), finite(value)) for step, value in values]
    kept = [(step, None if log and (value or 0) <= 0 else value) for step, value in pairs if step is not None]
    return thin(sorted(kept, key=lambda point: point[0]))


def thin(points: list[Point], most: int = 600) -> list[Point]:
    """About `most` points: the lowest, highest and first broken one of each stretch: spikes survive."""
    if len(points) <= most:
        return points
    size, kept = math.ceil(len(points) * 2 / most), set(points[-1:])
    for start in range(0, len(points), size):
        part = points[start : start + size]
        fine = sorted((point for point in part if point[1] is not None), key=lambda point: point[1] or 0.0)
        kept.update(fine[:1], fine[-1:], [point for point in part if point[1] is None][:1])
    return sorted(kept, key=lambda point: point[0])


def curve(points: list[Point], across: Axis, up: Axis, index: int) -> str:
    """One line, broken where values are missing; where it ends is a dot."""
    style = f"stroke:{color(index)};stroke-width:1.7;stroke-dasharray:{DASHES[index % 6]}"
    parts, run = [], []
    for step, value in [*points, (0.0, None)]:
        if value is not None:
            run.append((across.at(step), up.at(value)))
        elif run:
            parts += [path(run, style), dot(*run[-1], 2.6, f"fill:{color(index)}")]
            run = []
    broken = [
        step for before, (step, value) in pairwise([(0.0, 0.0), *points]) if value is None and before[1] is not None
    ]
    return "".join(parts + [cross(across.at(step), up.end - 6, step) for step in broken])


def cross(x: float, y: float, step: float) -> str:
    """The mark of a value that was not finite."""
    places = [(x - 4, y - 4), (x + 4, y + 4), (x, y), (x + 4, y - 4), (x - 4, y + 4)]
    return path(places, f"stroke:{BAD};stroke-width:1.8", f"{tick_text(step)}: not a number")


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


def pareto(
    points: list[dict],
    x: Words,
    y: Words,
    better: str = "up",
    form: Form = tick_text,
    width: float = 760,
    height: float = 380,
) -> str:
    """Bytes (logarithmic) against a score, whiskers from `low` to `high`; what no other beats in both is
    joined. A point: {label, x, y, x_text?, low?, high?}. Labels never overlap: without room, none."""
    points = [point for point in points if finite(point["y"]) is not None and (finite(point["x"]) or 0) > 0]
    if not points:
        return note(f"{plain(y)} - {plain(x)}", width)
    ends = [end for point in points for end in reach(point)]
    up = axis(ends, height - 2 * LINE - 6, 30, form=form, pad=0.12, apart=48)
    across = axis([point["x"] for point in points], gutter(up), width - 14, True, byte_text, False, 0.25, 90)
    best = front(points, better)
    places = [(across.at(point["x"]), up.at(point["y"])) for point in best]
    joined = path(places, f"stroke:{color(0)};stroke-width:1.2;opacity:.5")
    marks = "".join(mark(point, across, up, point in best) for point in points)
    body = grid(across, up, x, y, 12) + joined + marks + labels(points, across, up, places)
    about = "; ".join(caption(point, form) for point in points)
    return svg(width, height, f"{plain(y)} - {plain(x)}", body, about)


def reach(point: dict) -> list[float]:
    """The score of a point and the ends of its interval, as far as they are known."""
    return [end for key in ("y", "low", "high") if (end := finite(point.get(key))) is not None]


def front(points: list[dict], better: str = "up") -> list[dict]:
    """The points that no other point beats in both size and score, smallest first."""
    sign, kept = (1 if better == "up" else -1), []
    for point in sorted(points, key=lambda point: (point["x"], -sign * point["y"])):
        if not kept or sign * point["y"] > sign * kept[-1]["y"]:
            kept.append(point)
    return kept


def caption(point: dict, form: Form) -> str:
    """A point in words."""
    return f"{point['label']}: {point.get('x_text') or byte_text(point['x'])}, {form(point['y'])}"


def mark(point: dict, across: Axis, up: Axis, best: bool) -> str:
    """A dot, filled when it is on the front, and the whisker of its confidence interval."""
    left, ends, tint = across.at(point["x"]), reach(point), color(0) if best else MUTED
    whisker = path([(left, up.at(min(ends))), (left, up.at(max(ends)))], f"stroke:{tint};opacity:.6")
    style = f"fill:{tint if best else 'var(--paper, Canvas)'};stroke:{tint};stroke-width:1.6"
    return whisker + dot(left, up.at(point["y"]), 4.5, style, caption(point, up.form))


def labels(points: list[dict], across: Axis, up: Axis, joined: list[tuple[float, float]]) -> str:
    """A label beside each point, or a way off with a thin line to it: clear of dots, labels and such lines,
    and of whiskers and the joining line where that can be had."""
    plot = (across.start, up.end - 10, across.end + 14, up.start)
    centers = [(across.at(point["x"]), up.at(point["y"])) for point in points]
    ends = [[up.at(end) for end in reach(point)] for point in points]
    whiskers = [(x - 3, min(end), x + 3, max(end)) for (x, _), end in zip(centers, ends)]
    way = [bead for ends in pairwise(joined) for bead in beads(*ends, count=40)]
    dots, taken, parts = [(x - 6, y - 6, x + 6, y + 6) for x, y in centers], [], []
    for center, point in zip(centers, points):
        name, size = str(point["label"]), str(point.get("x_text") or "")
        spots = [
            spot
            for spot in around(*center, text_width(name) * 1.08 + text_width(size) + 6)
            if inside(spot[0], plot) and not touches([spot[0]], dots + taken)
        ]
        clear = (
            spot
            for walls in (whiskers + way, whiskers, [])
            for spot in spots
            if not touches([spot[0]], walls)
            and not touches(spot[2][3:], dots + taken)
            and (spot[2] or center == min(centers, key=lambda one: math.dist(spot[1], one)))
        )
        for box, end, leader in islice(clear, 1):
            taken += [box, *leader]
            parts.append(path([center, end], f"stroke:{MUTED};stroke-width:.7") if leader else "")
            parts.append(named(box[0], box[3] - 4, name, size))
    return "".join(parts)


def named(x: float, y: float, name: str, figure: str) -> str:
    """A name and, quieter, its figure."""
    aside = f'<tspan dx="6" font-weight="400" style="fill:{MUTED}">{escape(figure)}</tspan></text>'
    return text(x, y, name, marks=' font-weight="600"').removesuffix("</text>") + aside


def beads(start: tuple[float, float], end: tuple[float, float], count: int = 12) -> list[Box]:
    """A line as a row of points, each a box without size, so that boxes can be tested against it."""
    return [(x, y, x, y) for x, y in np.linspace(start, end, count).tolist()]


def around(x: float, y: float, need: float) -> list[tuple[Box, tuple[float, float], list[Box]]]:
    """Places for a label of width `need`, best first: box, near end, and the line to it (empty when near)."""
    found = []
    for far in (11, 20, 32, 46, 62, 80, 100, 125, 150):
        for turn in (0, 180, 30, 150, -30, -150, 60, 120, -60, -120, 75, 105, -75, -105):
            end = x + far * math.cos(math.radians(turn)), y - far * math.sin(math.radians(turn))
            left = end[0] - need * (abs(turn) > 90)
            leader = beads((x, y), end) if far > 20 else []
            found.append(((left, end[1] - 8, left + need, end[1] + 8), end, leader))
    return found


def touches(ones: list[Box], others: list[Box]) -> bool:
    """Whether any two boxes of the two lists share a place."""
    return any(
        one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
        for one in ones
        for other in others
    )


def inside(box: Box, plot: Box) -> bool:
    """Whether a box lies wholly in another."""
    return plot[0] <= box[0] and plot[1] <= box[1] and box[2] <= plot[2] and box[3] <= plot[3]


def bars(rows: list[dict], title: Words, form: Form = tick_text, width: float = 440) -> str:
    """Bars from zero under their names and values; a row: {label, value, low?, high?} (the whisker)."""
    known = [end for row in rows for key in ("value", "high") if (end := finite(row.get(key))) is not None]
    if not known:
        return note(plain(title), width)
    scale = (width - 4) / (max(known) if max(known) > 0 else 1.0)
    drawn = "".join(bar(row, 38 + index * 38, scale, form) for index, row in enumerate(rows))
    about = "; ".join(f"{row['label']}: {row.get('value')}" for row in rows)
    return svg(width, 30 + 38 * len(rows), plain(title), text(0, 12, title, tint=MUTED) + drawn, about)


def bar(row: dict, y: float, scale: float, form: Form) -> str:
    """One row: name, value, bar, whisker."""
    value, high = finite(row.get("value")), finite(row.get("high"))
    if value is None:
        return named(0, y, str(row["label"]), "–")
    end = max(value, 0) * scale
    drawn = f'<rect y="{y + 7}" width="{end:.1f}" height="10" rx="1" style="fill:{color(0)};opacity:.8"/>'
    if high is not None:
        low, high = max(finite(row.get("low", value)) or 0, 0) * scale, max(high, 0) * scale
        places = [(low, y + 12), (high, y + 12), (high, y + 8), (high, y + 16)]
        drawn += path(places, "stroke:currentColor;opacity:.65")
    return named(0, y, str(row["label"]), form(value)) + drawn


def picture(pixels: np.ndarray, alt: str = "", size: int = 112) -> str:
    """uint8 (H, W) or (H, W, 1, 3 or 4) as an `<img>` that carries its own PNG: a small picture is enlarged
    with its pixels visible, a large one reduced to twice `size`, which is sharp on any screen and light."""
    pixels = np.asarray(pixels)
    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    if pixels.size == 0 or pixels.shape[2:] not in ((), (3,), (4,)) or pixels.ndim < 2:
        return f'<span class="note">{escape(f"no picture: shape {pixels.shape}")}</span>'
    image = Image.fromarray(np.ascontiguousarray(np.clip(pixels, 0, 255), dtype=np.uint8))
    scale = size // max(image.size) or size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    image.thumbnail((2 * size, 2 * size))
    held = io.BytesIO()
    image.save(held, "PNG")
    data = base64.b64encode(held.getvalue()).decode()
    look = f'width="{width}" height="{height}"' + ' style="image-rendering:pixelated"' * (scale > 1)
    return f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}" {look}>'
