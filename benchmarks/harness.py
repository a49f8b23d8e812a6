"""Races: ours and its peers on the same work, in turn, in one run; every figure is written down, won or lost.

A side is one or several commands, each a process of its own. What it found is the JSON object in its last line of output;
`wall_seconds` and `peak_memory_bytes` of all its processes are added here, and to each output those of its own, as
`process_seconds` and `process_bytes`. Before and after each turn the same product is timed: where the two disagree by more than a
tenth, something else was running, and the turn is taken again.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any, Literal

from onnuri import machine
from onnuri.costs import peaks
from onnuri.files import write_text

HERE = Path(__file__).parent
RESULTS, VENVS = HERE / "results", HERE / ".venvs"
DATA = Path(os.environ.get("ONNURI_DATA", HERE.parents[1] / "shared" / "data"))
AGAIN = 2  # turns that are repeated at most on a busy machine
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_TOP_PAD_": str(2**28)}
"""Our own allocator setting, as a peer can have it: from the environment."""

Found = dict[str, Any]
Better = Literal["higher", "lower"]


def last(outputs: list[Found]) -> Found:
    return outputs[-1]


def train(*how: str, out: str = "{work}/model") -> tuple[str, ...]:
    """The command that trains a model of ours; its output is the ledger line."""
    return ("onnuri", "train", *how, "--out", out, "--json")


@dataclass(frozen=True)
class Side:
    """`commands`: argument lists; the first word `onnuri` or `python` is that of the venv. `{work}` is an empty folder
    of the turn, `{kept}` one that all turns share, `{data}` the real data. `found`: the outputs -> {metric: figure}."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    found: Callable[[list[Found]], Found] = last
    environment: dict[str, str] = field(default_factory=dict)
    venv: str = ""


@dataclass(frozen=True)
class Row:
    """A figure that is compared. `goal`: what ours must reach, as a ratio to the peer's (`of` "ratio") or by itself."""

    metric: str
    unit: str
    better: Better
    goal: float | None = None
    of: Literal["ratio", "ours"] = "ratio"


@dataclass(frozen=True)
class Race:
    """`rows`: {name of a peer: what is compared with it}; the name "" is for figures without a peer. `timed`: whether any of them
    depends on what else the machine does; the turns of a race for quality alone stand as they were."""

    case: str
    ours: Side
    peers: tuple[Side, ...]
    rows: dict[str, tuple[Row, ...]]
    prepare: tuple[str, ...] = ()
    repeats: int = 3
    timed: bool = True


def run(
    name: str, races: tuple[Race, ...], repeats: int | None = None, only: str = "", folder: Path | None = None
) -> list[Found]:
    """All rows of the races whose case contains `only`; those of the others stay as they were. `folder`: for what the races
    prepare, and taken from there where it was prepared before; None: one that goes at the end."""
    path = RESULTS / f"{name}.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    with tempfile.TemporaryDirectory(prefix="bench-") as fresh:
        kept = folder.resolve() if folder else Path(fresh)
        kept.mkdir(parents=True, exist_ok=True)
        chosen = [race for race in races if only in race.case]
        for command in dict.fromkeys(race.prepare for race in chosen if race.prepare):
            prepare(command, kept)
        for race in chosen:
            found = raced(race, repeats or race.repeats, kept)
            rows = [row for row in rows if row["case"] != race.case] + found
            write_text(path, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    order = [race.case for race in races]
    return sorted(rows, key=lambda row: order.index(row["case"]) if row["case"] in order else len(order))


def prepare(command: tuple[str, ...], kept: Path) -> None:
    """Fill `kept`, unless this very command did so before."""
    marker = kept / f"prepared-{sha256(repr(command).encode()).hexdigest()[:16]}"
    if not marker.exists():
        execute(command, {}, kept, kept, "")
        write_text(marker, f"{' '.join(command)}\n")


def raced(race: Race, repeats: int, kept: Path) -> list[Found]:
    """The rows of one race. Sides take turns, so that a slow hour is slow for all of them."""
    sides, take = (race.ours, *race.peers), quiet_turn if race.timed else turn
    turns: dict[str, list[Found]] = {side.name: [] for side in sides}
    for number in range(repeats):
        for side in sides:
            turns[side.name].append(take(side, kept))
            tell(race.case, number, side, turns[side.name][-1])
    return [
        compared(race, row, peer, turns[race.ours.name], turns.get(peer, []))
        for peer, rows in race.rows.items()
        for row in rows
    ]


def tell(case: str, number: int, side: Side, found: Found) -> None:
    figures = {name: round(value, 4) for name, value in found.items() if isinstance(value, float)}
    print(f"{case} | {number + 1} | {side.name}: {json.dumps(figures)}", file=sys.stderr, flush=True)


def quiet_turn(side: Side, kept: Path) -> Found:
    """A turn, taken again where the machine was busy; `busy` in what is found says that it still was."""
    for _ in range(1 + AGAIN):
        before = peaks.reference()
        found = turn(side, kept)
        said = peaks.busy(before, peaks.reference())
        if not said:
            return found
    return {**found, "busy": said}


def turn(side: Side, kept: Path) -> Found:
    work = Path(tempfile.mkdtemp(prefix="turn-", dir=kept))
    try:
        done = [execute(command, side.environment, work, kept, side.venv) for command in side.commands]
    finally:
        shutil.rmtree(work, ignore_errors=True)
    seconds, memory = sum(one[1] for one in done), max(one[2] for one in done)
    outputs = [{"process_seconds": one[1], "process_bytes": one[2], **one[0]} for one in done]
    return {"wall_seconds": seconds, "peak_memory_bytes": memory, **side.found(outputs)}


def execute(
    command: tuple[str, ...], environment: dict[str, str], work: Path, kept: Path, venv: str
) -> tuple[Found, float, float]:
    """(its last line as JSON, seconds, bytes at the peak) of one process."""
    words = [word.format(work=work, kept=kept, data=DATA, here=HERE) for word in command]
    words[0] = str(programs(venv) / words[0])
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(words, stdout=out, stderr=err, env={**os.environ, **environment}, cwd=HERE.parent)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - began
        out.seek(0), err.seek(0)
        lines, said = out.read().splitlines(), err.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(words)}\nended with {process.returncode}:\n{said[-2000:]}")
    return parsed(lines), seconds, usage.ru_maxrss * 1024.0


def parsed(lines: list[str]) -> Found:
    """The JSON object that the output ends with, on one line or on several; {} where there is none."""
    starts = [place for place, line in enumerate(lines) if line.startswith("{")]
    for start in reversed(starts):
        try:
            return json.loads("\n".join(lines[start:]))
        except json.JSONDecodeError:
            continue
    return {}


def programs(venv: str) -> Path:
    """Where the programs of a venv are; a peer's is made from peers/VENV.txt when it is first asked for."""
    if not venv:
        return Path(sys.executable).parent
    folder = VENVS / venv
    if not (folder / "ready").exists():
        print(f"installing {venv} ...", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [folder / "bin" / "pip", "install", "--quiet", "--constraint", HERE.parent / "constraints.txt"]
        subprocess.run([*install, "torch"], check=True)
        subprocess.run([*install, "--requirement", HERE / "peers" / f"{venv}.txt"], check=True)
        (folder / "ready").touch()
    return folder / "bin"


# ------------------------------------------------------------------------------------------------------------------- rows


def compared(race: Race, row: Row, peer: str, ours: list[Found], theirs: list[Found]) -> Found:
    """One row of the results. `ratio` above 1 means that ours is better; `spread`: (highest - lowest) / median."""
    mine, other = ([found[row.metric] for found in turns if row.metric in found] for turns in (ours, theirs))
    if not mine:
        raise SystemExit(f"{race.case}: ours found no '{row.metric}', only {', '.join(ours[0])}")
    value, against = median(mine), median(other) if other else None
    ratio = None if not against or not value else value / against if row.better == "higher" else against / value
    judged = ratio if row.of == "ratio" else value
    higher = row.of == "ratio" or row.better == "higher"
    met = None if row.goal is None or judged is None else judged >= row.goal if higher else judged <= row.goal
    return {
        "case": race.case,
        "metric": row.metric,
        "unit": row.unit,
        "better": row.better,
        "ours": value,
        "peer": against,
        "peer_name": peer,
        "ratio": ratio,
        "goal": None if row.goal is None else f"{'>=' if higher else '<='} {row.goal:g}{'x' * (row.of == 'ratio')}",
        "met": met,
        "spread": {"ours": spread(mine), "peer": spread(other)},
        "peak_memory_bytes": {"ours": memory(ours), "peer": memory(theirs)},
        "repeats": len(mine),
        "busy": sum("busy" in found for found in [*ours, *theirs]),
        "machine": machine.describe(),
        "date": date.today().isoformat(),
    }


def spread(values: list[float]) -> float | None:
    return (max(values) - min(values)) / abs(median(values)) if len(values) > 1 and median(values) else None


def memory(turns: list[Found]) -> float | None:
    return median(found["peak_memory_bytes"] for found in turns) if turns else None
