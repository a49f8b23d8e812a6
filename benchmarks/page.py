"""docs/benchmarks.md and its pictures, written from the results alone; rows that we lose stay in."""

import json
import math
from pathlib import Path
from typing import Any

from onnuri.figures import DASH, number, scaled, size_text, time_text
from onnuri.files import write_text
from onnuri.svg import MUTED, color, dot, path, svg, text

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
Result = dict[str, Any]
ROW, LEFT, WIDTH = 30, 330, 760
PAPER = '<rect x="-16" y="-16" width="{width}" height="{height}" fill="#fcfbf9"/>'
STYLE = "<style>svg{color:#1f2428;font-family:system-ui,sans-serif}</style>"
INTRODUCTION = """# Benchmarks

Ours beside the tools that people use, in the same run on the same machine: sides take turns, a turn is taken again where
another process was busy, and each figure is the median of the turns with its spread, (highest - lowest) / median. A ratio
above 1 means that ours is better. `make bench NAME={names}` repeats a table; rows that we lose stay in.
"""


def write() -> None:
    """The page and a picture for each benchmark."""
    parts, files = [], sorted((HERE / "results").glob("*.json"))
    for file in files:
        rows = json.loads(file.read_text())
        name = f"benchmarks-{file.stem}.svg"
        write_text(DOCS / name, picture(file.stem, rows))
        parts.append(f"## {file.stem}\n\n![{file.stem}: ours beside its peers]({name})\n\n{table(rows)}\n{notes(rows)}")
    names = " | ".join(file.stem for file in files)
    write_text(DOCS / "benchmarks.md", INTRODUCTION.format(names=names) + "\n" + "\n".join(parts))


def table(rows: list[Result]) -> str:
    lines = [
        "| case | what | ours | peer | ratio | goal | met | spread (ours, peer) | memory (ours, peer) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = (
            row["case"],
            row["metric"].replace("_", " "),
            figure(row, "ours"),
            f"{row['peer_name']}: {figure(row, 'peer')}" if row["peer_name"] else DASH,
            DASH if row["ratio"] is None else f"{row['ratio']:.2f}x",
            row["goal"] or DASH,
            {True: "yes", False: "**no**", None: DASH}[row["met"]],
            ", ".join(DASH if one is None else f"{one:.0%}" for one in row["spread"].values()),
            ", ".join(size_text(one, 2) for one in row["peak_memory_bytes"].values()),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def figure(row: Result, side: str) -> str:
    value, unit = row[side], row["unit"]
    if unit == "s":
        return time_text(value)
    if unit in ("B", "FLOP/s"):
        return scaled(value, unit)
    return number(value, 4 if unit == "" or "of" in unit else 3) + (f" {unit}" if unit else "")


def notes(rows: list[Result]) -> str:
    """Where and when; and how many turns were taken on a busy machine."""
    machines = sorted({f"{row['machine']['cores']} cores {row['machine']['cpu']}" for row in rows})
    dates = sorted({row["date"] for row in rows})
    busy = sum(row["busy"] for row in rows)
    text = f"{', '.join(machines)}; {' to '.join(dict.fromkeys((dates[0], dates[-1])))}; "
    text += f"{min(row['repeats'] for row in rows)} or more turns of each side"
    return text + (f"; {busy} turns remained on a busy machine" if busy else "") + ".\n"


def picture(name: str, rows: list[Result]) -> str:
    """A line of dots for each row with a peer: the ratio on a logarithmic axis, a stroke at the goal, 1x in the middle."""
    rows = [row for row in rows if row["ratio"]]
    most = max([2.0, *(max(row["ratio"], 1 / row["ratio"]) for row in rows)]) * 1.15
    ends = LEFT + 20, WIDTH - 60

    def at(ratio: float) -> float:
        share = (math.log(ratio) + math.log(most)) / (2 * math.log(most))
        return ends[0] + share * (ends[1] - ends[0])

    height = 44 + ROW * len(rows)
    body = path([(at(1), 30), (at(1), height)], f"stroke:{MUTED}") + text(
        at(1), 18, "as fast or as good", "middle", MUTED
    )
    body += text(ends[1] + 40, 18, "ours better", "end", MUTED)
    for place, row in enumerate(rows):
        y = 48 + ROW * place
        tint = color(0) if row["ratio"] >= 1 else color(1)
        body += text(0, y, row["case"][:52]) + text(
            0, y + 13, f"{row['metric'].replace('_', ' ')}, {row['peer_name']}", tint=MUTED
        )
        body += path([(at(1), y), (at(row["ratio"]), y)], f"stroke:{tint};stroke-width:3")
        body += dot(at(row["ratio"]), y, 5, f"fill:{tint}", f"{row['case']}: {row['ratio']:.2f}x")
        body += text(
            at(row["ratio"]) + (10 if row["ratio"] >= 1 else -10),
            y + 4,
            f"{row['ratio']:.2f}x",
            "start" if row["ratio"] >= 1 else "end",
        )
        if row["goal"] and row["goal"].endswith("x"):
            goal = at(float(row["goal"].split()[1].rstrip("x")))
            body += path([(goal, y - 8), (goal, y + 8)], f"stroke:{MUTED};stroke-dasharray:2 2")
    drawn = svg(WIDTH, height, f"{name}: ratios to the peers", body)
    drawn = drawn.replace(f'viewBox="0 0 {WIDTH} {height}"', f'viewBox="-16 -16 {WIDTH + 32} {height + 32}"')
    head, rest = drawn.split(">", 1)
    return f"{head}>{STYLE}{PAPER.format(width=WIDTH + 32, height=height + 32)}{rest}\n"
