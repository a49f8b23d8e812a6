"""Search the operations that make a model smaller for the best one within limits, and save it with the front it stands on.

Points are chosen by the validation split; the test split only speaks of the front in the end. What is finished is never done
again: the same command goes on where it was stopped, and with more trials it goes further. The search is led by score and
bytes, which are the same in every run with the same seed; by latency, which is not, only where it is limited.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import ledger, plan
from ..errors import BadInput, BadSettings, Refusal
from ..files import appear, fresh_folder, is_main_process, locked, tidied, write_text, writing
from ..progress import Progress
from ..recipe import KEYS, read_recipe
from .front import Limits, best_of, bytes_of, figures_of, front_of, limits_of, out_of_reach, values_of
from .points import Field, Place, Point, absolute, made
from .proposals import Chain, Offer, Search, offers, pairs, quiet_optuna, singles

TRIALS = 30  # models made, where neither trials nor minutes are given
MOST_REFUSED = 3  # times as many chains are tried as models are to be made


@dataclass(frozen=True)
class Wish:
    """What is asked for, as it is typed: `size` a share, bytes or bytes with a unit; `latency` in milliseconds; `score` in
    the units of the headline; how long to search, and with which seed."""

    size: str = ""
    latency: float | None = None
    score: float | None = None
    trials: int | None = None
    minutes: float | None = None
    seed: int = 0

    def faults(self) -> list[str]:
        found = {"latency": self.latency, "trials": self.trials, "minutes": self.minutes}
        faults = [
            f"setting '{name}': must be a number above 0, found {value:g}"
            for name, value in found.items()
            if value is not None and not 0 < value < math.inf
        ]
        if self.score is not None and not math.isfinite(self.score):
            faults.append(f"setting 'score_at_least': must be a number, found {self.score:g}")
        return faults


def shrink(
    model: str,
    data: str,
    out: Path,
    wish: Wish,
    changes: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Try chains of operations, write the front and its report, and save the best as `winner`. What was found.

    `changes`: {SETTING or OPERATION.SETTING: value} for the operations that are tried. Refusal where nothing within the limits
    was found, with what came closest; all that was finished is kept.
    """
    if not is_main_process() or os.environ.get("WORLD_SIZE", "1") != "1":
        raise BadSettings("a search is run by one process")
    began = time.perf_counter()
    quiet_optuna()
    found = offers(changes or {})
    place = Place(absolute(model), absolute(data), options or {}, out, quiet)
    check(place, wish)
    with writing(out), tidied(out), locked(out / ".lock", out):
        field = Field.opened(place)
        limits = limits_of(field.original.measured, wish.size, wish.latency, wish.score)
        tried = search(field, found, limits, wish)
        return conclude(field, tried, limits, began)


def check(place: Place, wish: Wish) -> None:
    """The place of the result is ours or free, and what is asked for can be read. BadInput or BadSettings otherwise."""
    if faults := wish.faults():
        raise BadSettings(*faults, hint="onnuri shrink --help")
    if wish.size:
        bytes_of(wish.size, 1.0)
    if not Path(place.model).is_dir():
        raise BadInput(f"{place.model} is not a folder", hint="name the folder of a model")
    if not os.path.lexists(place.out):
        plan.check_output(place.out, [place.model, place.data])
    elif not (place.out / "points").is_dir():
        raise BadInput(
            f"{place.out} already exists and holds no search; what is there is never overwritten", hint="another --out"
        )


# -------------------------------------------------------------------------------------------------------------- the search


def search(field: Field, found: list[Offer], limits: Limits, wish: Wish) -> list[Point]:
    """The points that were tried, in their order, those of earlier runs among them."""
    points: list[Point] = []
    trials = wish.trials or (math.inf if wish.minutes else TRIALS)
    seconds = 60 * (wish.minutes or math.inf)
    began = time.monotonic()

    def is_over() -> bool:
        enough = count_made(points) >= trials or len(points) >= MOST_REFUSED * trials
        return bool(points) and (enough or time.monotonic() - began > seconds)

    with Progress("shrink", field.place.quiet) as log:

        def tried(chain: Chain) -> Point:
            point, new = field.point(chain)
            points.append(point)
            log.console.print(line_of(point, new), markup=False, soft_wrap=True)
            gone = max(count_made(points) / trials, (time.monotonic() - began) / seconds)
            log.progress(round(1000 * gone), 1000, point.chain)
            return point

        follow(found, limits, wish.seed, tried, is_over)
    return points


def follow(
    found: list[Offer], limits: Limits, seed: int, tried: Callable[[Chain], Point], is_over: Callable[[], bool]
) -> None:
    """Ways alone, then pairs of them, then what is proposed, until it `is_over`. Refusal where no way alone can be gone."""
    alone: dict[str, tuple[Chain, Point]] = {}
    first = singles(found)
    for offer, chain in first:
        if is_over():
            break
        alone[offer.name] = chain, tried(chain)
    if all(point.fault for _, point in alone.values()):
        what = "that makes a model smaller" if len(alone) == len(first) else "of what was tried in time"
        why = "; ".join(f"{point.chain}: {point.fault}" for _, point in alone.values())
        raise Refusal(
            f"nothing {what} can be done to this one: {why}", "each operation by itself says what to do instead"
        )
    found = [offer for offer in found if offer.name not in alone or not alone[offer.name][1].fault]
    proposer = Search(found, seed, 2 + (limits.latency is not None))

    def tell(chain: Chain, point: Point) -> None:
        if point.fault:
            proposer.tell_fault(chain, point.refused)
        else:
            proposer.tell(chain, values_of(point, limits), limits.excess(point))

    for chain, point in alone.values():
        if not point.fault:
            tell(chain, point)
    for chains in (filter(proposer.is_new, pairs(found)), proposer.proposals()):
        for chain in chains:
            if is_over():
                return
            tell(chain, tried(chain))


def count_made(points: list[Point]) -> int:
    return sum(not point.fault for point in points)


def line_of(point: Point, new: bool) -> str:
    """A point as it is told while the search goes on."""
    what = f"cannot: {point.fault[:90]}" if point.fault else figures_of(point.measured)
    return f"{point.number:03d}  {what}  ({point.chain}){'' if new else ', known'}"


# ---------------------------------------------------------------------------------------------------------- what came of it


def conclude(field: Field, tried: list[Point], limits: Limits, began: float) -> dict[str, Any]:
    """Write front, pictures, report and winner. What was found; Refusal where nothing is within the limits."""
    from .page import write_pages

    place, original = field.place, field.original
    good = [point for point in tried if not point.fault]
    front = front_of([original, *good], limits)
    smaller = [point for point in good if point.measured["bytes"] < original.measured["bytes"]]
    winner = best_of(smaller if limits.floor_only else good, limits)
    kept = [point for point in good if point in front or point is winner]
    tests = tests_of(kept, place)
    result: dict[str, Any] = {
        "out": str(place.out),
        "winner": None,
        "limits": limits.facts,
        "front": [view(point, place, tests) for point in front],
        "points": [view(point, place, tests) for point in [original, *tried]],
        "report": str(place.out / "report.html"),
    }
    if winner is not None:
        save_winner(winner, place)
        result["winner"] = {**view(winner, place, tests), "path": str(place.out / "winner")}
    result["seconds"] = round(time.perf_counter() - began, 2)
    write_text(place.out / "front.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    write_pages(result, place.out)
    clear(place, kept)
    if winner is None:
        raise out_of_reach(smaller or good, limits, place)
    return result


def tests_of(points: list[Point], place: Place) -> dict[int, Any]:
    """{point: its measurement on the test split}, that of the original as 0: it came into the first step of any."""
    tests: dict[int, Any] = {}
    for point in points:
        lines = made(place, point.number)
        tests |= {0: lines[0]["before"], point.number: lines[-1]["after"]}
    return tests


def view(point: Point, place: Place, tests: dict[int, Any]) -> dict[str, Any]:
    """A point for people and programs: `validation` chose it, `test` is only told."""
    found = {
        "point": point.number,
        "chain": point.chain or "as it is",
        "operations": list(point.operations),
        "command": f"onnuri run {place.path(point.number)}" if point.number else "",
        "seconds": point.seconds,
        "tensors": point.tensors,
    }
    return found | (
        {"fault": point.fault} if point.fault else {"validation": point.measured, "test": tests.get(point.number)}
    )


def save_winner(winner: Point, place: Place) -> None:
    """`winner`, a copy of the point's folder; another one that was there is kept as `winner.previous`."""
    folder, target = place.result(winner.number), place.out / "winner"
    if target.exists() and ledger.folder_digest(target) == ledger.folder_digest(folder) and not ledger.verify(target):
        return
    partial = fresh_folder(place.out / ".winner.partial")
    shutil.copytree(folder, partial, dirs_exist_ok=True)
    if target.exists():
        previous = place.out / "winner.previous"
        shutil.rmtree(previous, ignore_errors=True)
        target.rename(previous)
    appear(partial, target)


def clear(place: Place, kept: list[Point]) -> None:
    """Remove the steps that no point of the front is made of; their recipes make them again."""
    steps = {step.name for point in kept for step in read_recipe(str(place.path(point.number)), {}).steps}
    for folder in list(place.work.iterdir()) if place.work.is_dir() else ():
        if folder.is_dir() and folder.name not in {*steps, KEYS}:
            shutil.rmtree(folder, ignore_errors=True)
