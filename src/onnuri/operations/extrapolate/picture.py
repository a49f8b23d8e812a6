"""A scaling law drawn: what was trained as dots, the law as lines through them, and where it leads."""

from typing import Any

import numpy as np

from ...figures import scaled, tick_text
from ...svg import BAD, DASHES, LINE, Words, axis, color, dot, grid, gutter, legend, path, svg
from .law import Law

WIDTH, HEIGHT = 860, 400
NAMES: dict[str, Words] = {
    "parameters": ("parameters outside of embeddings", "임베딩을 뺀 파라미터 수"),
    "records": ("records", "표본 수"),
}
LOSS: Words = ("loss on held-out records", "검증 손실")


def drawn(report: dict[str, Any], law: Law, axes: list[str]) -> str:
    """Both axes logarithmic. A line for each amount of records, or one; the loss that is predicted stands with its range at the end
    of the line that leads to it, and the one that was measured beside it as a ring."""
    x, end = axes[0], report["predicted"]
    groups = sorted({run[axes[-1]] for run in report["runs"]} | {end[axes[-1]]}) if len(axes) > 1 else [None]
    places = [run[x] for run in report["runs"]] + [end[x]]
    losses = [run["loss"] for run in report["runs"]] + [end["low"], end["high"]]
    losses += [report["checked"]["loss"]] if "checked" in report else []
    names = [(f"{count:,} records", f"표본 {count:,}개") for count in groups if count] or [("the law", "법칙")]
    key, rows = legend(list(names), WIDTH)
    up = axis(losses, HEIGHT - 2 * LINE - 6, (rows + 1) * LINE + 10, True, tick_text, apart=34)
    across = axis(places, gutter(up), WIDTH - 14, True, lambda value: scaled(value, "", least=1))
    spread = np.geomspace(min(places), max(places), 60)
    parts = [key, grid(across, up, NAMES[x], LOSS, rows * LINE + 12)]
    for index, count in enumerate(groups):
        points = np.array([[value, count] for value in spread] if count else [[value] for value in spread], float)
        line = [(across.at(value), up.at(loss)) for value, loss in zip(spread, law.loss(points))]
        line = [place for place in line if up.end - 1 <= place[1] <= up.start + 1]
        parts.append(path(line, f"stroke:{color(index)};stroke-width:1.4;stroke-dasharray:{DASHES[index % 6]}"))
        mine = [run for run in report["runs"] if count in (None, run[axes[-1]])]
        parts += [dot(across.at(run[x]), up.at(run["loss"]), 4, f"fill:{color(index)}", words(run)) for run in mine]
    middle = across.at(end[x])
    parts.append(
        path([(middle, up.at(end["low"])), (middle, up.at(end["high"]))], f"stroke:{BAD};stroke-width:5;opacity:.35")
    )
    parts.append(dot(middle, up.at(end["loss"]), 4, f"fill:{BAD}", f"predicted: {words(end)}"))
    if "checked" in report:
        ring = f"fill:none;stroke:{BAD};stroke-width:2"
        parts.append(dot(middle, up.at(report["checked"]["loss"]), 7, ring, f"measured: {words(report['checked'])}"))
    return svg(WIDTH, HEIGHT, report["summary"], "".join(parts), report["summary"])


def words(run: dict[str, Any]) -> str:
    """A training in words."""
    return f"{run['parameters']:,} parameters, {run['records']:,} records: loss {run['loss']:.4g}"
