"""The page of a search: the front drawn by size and by latency, every point with the command that makes it again."""

from pathlib import Path
from typing import Any

from markupsafe import Markup

from .. import __version__, draw, machine
from ..figures import (
    SPACE,
    Pair,
    change,
    energy_text,
    interval_text,
    ms_text,
    percent,
    score_text,
    size_change,
    size_text,
    tick_text,
    time_text,
    words,
)
from ..files import write_text
from ..report import template

View = dict[str, Any]
SIZES = ((860, 400), (400, 340))  # of a picture on a wide page and on a narrow one
WHISKERS = 12  # points on the front up to which each shows how sure it is


def write_pages(result: dict[str, Any], out: Path) -> None:
    """`report.html` and `front.svg`."""
    points = [one for one in result["points"] if "validation" in one]
    best = {one["point"] for one in result["front"]}
    by_size = [dot(one, best, one["validation"]["bytes"], size_text) for one in points]
    metric, better = points[0]["validation"]["headline"]
    form = (lambda value: f"{100 * value:.4g}{SPACE}%") if percent(metric) else tick_text
    write_text(out / "front.svg", draw.pareto(by_size, "size", metric, better, form))
    page = template("shrink.html.j2").render(
        title=out.resolve().name,
        headline=headline(result),
        lede=lede(result),
        facts=facts(result),
        by_size=pictures(by_size, ("size", "크기"), metric, better, form),
        by_latency=pictures(
            [dot(one, best, one["validation"]["latency_ms"]["p50"], ms_text) for one in points],
            ("latency, median", "지연 시간, 중앙값"),
            metric,
            better,
            form,
            lambda value: f"{value:.3g}{SPACE}ms",
        ),
        better=better,
        front=[row(one, result) for one in result["front"]],
        others=[row(one, result) for one in points if one["point"] not in best],
        failed=[one for one in result["points"] if "fault" in one],
        version=__version__,
    )
    write_text(out / "report.html", page)


def dot(one: View, best: set[int], x: float, form: Any) -> dict[str, Any]:
    """A point of a picture: named where it is on the front, is one operation alone or none, else by its number."""
    low, high = one["validation"]["interval"] if one["point"] in best and len(best) <= WHISKERS else (None, None)
    name = "+".join(one["operations"]) or one["chain"]
    named = one["point"] in best or len(one["operations"]) < 2
    return {
        "label": f"{one['point']} {name}" if named else str(one["point"]),
        "x": x,
        "y": score(one),
        "low": low,
        "high": high,
        "x_text": form(x),
    }


def pictures(dots: list[dict], x: Pair, metric: str, better: str, form: Any, x_form: Any = None) -> list[Markup]:
    """Wide and narrow."""
    more = {"x_form": x_form} if x_form else {}
    return [Markup(draw.pareto(dots, x, words(metric), better, form, *size, **more)) for size in SIZES]


def score(one: View, split: str = "validation") -> float:
    return one[split]["scores"][one[split]["headline"][0]]


def headline(result: dict[str, Any]) -> Pair:
    """How much smaller the winner is, and what it keeps; or that nothing was within the limits."""
    winner, original = result["winner"], result["points"][0]
    if winner is None:
        return "No model within the limits", "조건을 만족하는 모델이 없습니다"
    metric = winner["validation"]["headline"][0]
    sizes = size_change(original["validation"]["bytes"], winner["validation"]["bytes"])
    scores = f"{score_text(metric, score(original))} → {score_text(metric, score(winner))}"
    english, korean = (f"{name} {scores}" for name in words(metric))
    return f"{sizes[0]}, {english}", f"{sizes[1]}, {korean}"


def lede(result: dict[str, Any]) -> Pair:
    """What the winner is made by, and what the split says that did not choose it."""
    winner, original = result["winner"], result["points"][0]
    if winner is None or not winner["test"] or not original["test"]:
        return "Scores are of the validation split.", "점수는 검증 데이터 기준입니다."
    metric = winner["test"]["headline"][0]
    shown = " → ".join(
        f"{score_text(metric, score(one, 'test'))} ({interval_text(metric, one['test']['interval'])})"
        for one in (original, winner)
    )
    return (
        f"{winner['chain']}. On the test split, which chose nothing: {shown}",
        f"{winner['chain']}. 선택에 쓰이지 않은 시험 데이터: {shown}",
    )


def facts(result: dict[str, Any]) -> list[tuple[Pair, str, Any]]:
    """The small facts under the headline: (name, figure, what to add)."""
    tried = [one for one in result["points"] if one["point"]]
    failed = sum("fault" in one for one in tried)
    asked = result["limits"]
    limits = {"size": asked["bytes"] and size_text(asked["bytes"]), "ms": asked["latency_ms"], "score": asked["score"]}
    shown = ", ".join(
        f"{name} {value if isinstance(value, str) else f'{value:.4g}'}" for name, value in limits.items() if value
    )
    seconds = sum(one["seconds"] for one in tried)
    known = machine.describe()
    return [
        (("Models made", "만든 모델"), str(len(tried) - failed), (f"{failed} could not be", f"불가 {failed}개")),
        (("On the front", "파레토 최적"), str(len(result["front"])), ""),
        (("Limits", "조건"), shown or "–", ""),
        (("Time", "소요 시간"), time_text(seconds), ""),
        (("Machine", "장비"), known.get("cpu") or "–", f"{known.get('cores', '–')}{SPACE}cores"),
    ]


def row(one: View, result: dict[str, Any]) -> dict[str, Any]:
    """A point of the table; each cell is (figure, what to add)."""
    found, tested = one["validation"], one["test"]
    metric, whole = found["headline"][0], result["points"][0]["validation"]["bytes"]
    cells = [
        (score_text(metric, score(one)), interval_text(metric, found["interval"])),
        (score_text(metric, score(one, "test")), interval_text(metric, tested["interval"])) if tested else ("–", ""),
        (size_text(found["bytes"]), change(whole, found["bytes"])),
        (ms_text(found["latency_ms"]["p50"]), ms_text(found["latency_ms"]["p95"])),
        (energy_text(found["energy_per_1000"]), ""),
        (time_text(one["seconds"]), ""),
    ]
    is_winner = result["winner"] is not None and result["winner"]["point"] == one["point"]
    return {**one, "cells": cells, "is_winner": is_winner}
