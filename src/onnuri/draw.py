"""Charts by hand: each function returns one SVG string (or an `<img>`) for an HTML page; no plotting library.

A figure that is missing or not finite is never drawn as a value: a gap, a cross or a note says so. `svg.py` holds
what all charts share: colors, texts in two languages, axes.
"""

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice, pairwise
from typing import Any

import numpy as np
from PIL import Image

from .figures import DASH, byte_text, finite, tick_text
from .svg import (
    BAD,
    DASHES,
    LINE,
    MUTED,
    Axis,
    Form,
    Words,
    axis,
    color,
    dot,
    escape,
    grid,
    gutter,
    legend,
    named,
    note,
    path,
    plain,
    svg,
    text,
    text_width,
)

Point = tuple[float, float | None]  # None: a value that is not a finite number
Box = tuple[float, float, float, float]  # left, top, right, bottom


MOST_BARS = 24  # of one kind; a deep net has hundreds of matrices


def curves(
    series: Mapping[Any, Sequence], x: Words, y: Words, log_y: bool = False, width: float = 440, height: float = 250
) -> str:
    """Lines over shared axes, {words: [(step, value), ...]}, as of training. A value that is not finite (or
    not positive, when `log_y`) is a gap with a cross above it: a run that broke must look broken. Steps are whole; what is
    not, as a learning rate, is laid out by its magnitude."""
    points = {name: kept for name, values in series.items() if (kept := usable(values, log_y))}
    steps = [step for kept in points.values() for step, _ in kept]
    seen = [value for kept in points.values() for _, value in kept if value is not None]
    if not seen:
        return note(f"{plain(y)} - {plain(x)}", width)
    key, rows = legend(list(points), width) if len(points) > 1 else ("", 0)
    up = axis(seen, height - 2 * LINE - 6, (rows + 1) * LINE + 10, log_y, apart=34)
    whole = all(step == int(step) for step in steps)
    across = axis(steps, gutter(up), width - 14, not whole and min(steps) > 0, whole=whole, pad=0.0)
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


def forecast(
    past: Sequence[float], lines: Mapping[Any, Sequence[float]], width: float = 300, height: float = 200
) -> str:
    """The end of a past in grey, and the lines that go on from it, {words: values}; step 0 is the last that was seen."""
    seen = list(past)[-(2 * max(map(len, lines.values()), default=len(past)) + 1) :]
    before = usable(enumerate(seen, 1 - len(seen)), False)
    points = {name: before[-1:] + usable(enumerate(values, 1), False) for name, values in lines.items()}
    drawn = [point for one in [before, *points.values()] for point in one if point[1] is not None]
    if not drawn:
        return note("", width)
    key, rows = legend(list(points), width) if points else ("", 0)
    up = axis([value for _, value in drawn if value is not None], height - 2 * LINE - 6, rows * LINE + 8, apart=34)
    across = axis([step for step, _ in drawn], gutter(up), width - 14, whole=True, pad=0.0)
    grey = path([(across.at(step), up.at(value)) for step, value in before if value is not None], f"stroke:{MUTED}")
    goes_on = "".join(curve(one, across, up, index) for index, one in enumerate(points.values()))
    body = key + grid(across, up, ("steps from now", "현재 기준 스텝"), "", 0) + grey + goes_on
    return svg(
        width,
        height,
        "forecast / 예측",
        body,
        "; ".join(f"{plain(name)}: {one[-1][1]}" for name, one in points.items()),
    )


def pareto(
    points: list[dict],
    x: Words,
    y: Words,
    better: str = "up",
    form: Form = tick_text,
    width: float = 760,
    height: float = 380,
    x_form: Form = byte_text,
) -> str:
    """Bytes, or what else `x_form` writes, on a logarithmic axis against a score, whiskers from `low` to `high`; what no
    other beats in both is joined. A point: {label, x, y, x_text?, low?, high?}. Labels never overlap: without room, none."""
    points = [point for point in points if finite(point["y"]) is not None and (finite(point["x"]) or 0) > 0]
    if not points:
        return note(f"{plain(y)} - {plain(x)}", width)
    ends = [end for point in points for end in reach(point)]
    up = axis(ends, height - 2 * LINE - 6, 30, form=form, pad=0.12, apart=48)
    across = axis([point["x"] for point in points], gutter(up), width - 14, True, x_form, False, 0.25, 90)
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


def wide_range(name: str, series: dict) -> bool:
    """Whether values span so much that only a logarithmic axis shows them; a schedule is read by shape."""
    values = [value for points in series.values() for _, one in points if (value := finite(one)) is not None]
    if name == "learning rate" or not values or min(values) <= 0:
        return False
    return bool(max(values) / np.quantile(values, 0.05) > 100)


def parts(found: dict[str, dict[str, float]], form: Form) -> list[str]:
    """{what was measured: {part of a model: value}} as bars, the MOST_BARS largest of each kind."""
    charts = []
    for title, values in found.items():
        largest = sorted(values.items(), key=lambda one: -(finite(one[1]) or 0))[:MOST_BARS]
        told = title if len(largest) == len(values) else f"{title} (the {MOST_BARS} largest of {len(values)})"
        charts.append(bars([{"label": name, "value": value} for name, value in largest], (told, told), form))
    return charts


def bar(row: dict, y: float, scale: float, form: Form) -> str:
    """One row: name, value, bar, whisker."""
    value, high = finite(row.get("value")), finite(row.get("high"))
    if value is None:
        return named(0, y, str(row["label"]), DASH)
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
