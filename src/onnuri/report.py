"""The report page: one HTML file that needs no network, for a whole recipe or for one operation.

The figures become words and charts here; `report.html.j2` lays them out. All come from ledger lines, any part
of which may be missing: what was not measured is a dash, never a zero. Our words are pairs (English, Korean);
names, findings, promises and warnings stay as the ledger has them.
"""

import shlex
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from . import data_card, draw
from .figures import (
    DASH,
    SPACE,
    Pair,
    change,
    counted,
    energy_text,
    finite,
    interval_text,
    joules_text,
    ms_text,
    number,
    percent,
    plain,
    scaled,
    score_text,
    size_change,
    size_text,
    tick_text,
    time_text,
    words,
)
from .report_samples import sample

EMPTY = {
    "settings": {},
    "inputs": [],
    "output": {},
    "versions": {},
    "machine": {},
    "promises": [],
    "warnings": [],
    "license": {},
    "energy": {},
    "before": None,
    "parents": {},
    "after": None,
    "findings": None,
    "bars": {},
    "found": {},
    "seconds": None,
    "peak_memory_bytes": None,
    "digest": "",
}


def recipe_page(title: str, steps: list[dict], samples: list[dict], seconds: float, machine: dict) -> str:
    """The page of a whole recipe: what came of it, every model, sample answers, training, the ledger."""
    commands = [f"onnuri verify {shlex.quote(str(step['path']))}" for step in steps if step.get("path")]
    repeat = [f"onnuri run {shlex.quote(title)}"]
    return page(title, steps, samples, seconds, machine, commands=commands, repeat=repeat)


def operation_page(line: dict) -> str:
    """The page of one ledger line, which lies in the model's folder as onnuri/reports/NNN-operation.html."""
    name = str(line.get("operation") or "operation")
    steps = [{"name": name, "operation": name, "line": line}]
    return page(name, steps, [], line.get("seconds"), line.get("machine") or {}, commands=["onnuri verify ."])


def page(title: str, steps: list[dict], samples: list[dict], seconds: float | None, machine: dict, **more: Any) -> str:
    """The template, filled."""
    steps = [complete(step) for step in steps]
    measured = measurements(steps)
    return template().render(
        title=title,
        headline=headline(measured, steps, seconds),
        lede=lede(measured),
        facts=facts(steps, seconds, machine),
        broken=broken(steps),
        pareto=size_against_score(measured),
        data=[data_card.view(step) for step in steps if step["found"]],
        rows=rows(steps, measured),
        methods=energy_methods(measured),
        bars=speed_and_energy(measured),
        samples=[sample(one) for one in samples if one],
        ledger=[entry(step) for step in steps],
        looked=[
            step | {"charts": [Markup(chart) for chart in draw.parts(step["bars"], number)]}
            for step in steps
            if step["bars"]
        ],
        trained=[training(step) for step in steps if step["curves"] or step["findings"]],
        version=steps[-1]["versions"].get("onnuri", "") if steps else "",
        **more,
    )


@cache
def template(name: str = "report.html.j2"):
    """A template beside this file, with every value escaped."""
    house = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return house.get_template(name)


def complete(step: dict) -> dict:
    """A step with its ledger line spread out and every missing part empty."""
    line = {name: value for name, value in (step.get("line") or {}).items() if value is not None}
    known = {name: step.get(name) or line.get(name) or "" for name in ("name", "operation", "path")}
    curves = {name: points for name, points in line.get("curves", {}).items() if points}
    return {**EMPTY, **line, **known, "curves": curves}


def score_of(measurement: dict) -> tuple[str, float | None, str]:
    """The headline of a measurement: (metric, value, "up" or "down")."""
    metric, better = measurement.get("headline") or ("", "up")
    return metric, finite((measurement.get("scores") or {}).get(metric)), better


def measurements(steps: list[dict]) -> list[tuple[str, dict]]:
    """(name, measurement) of every model: what was there before the first step, then what each step made."""
    return came_in(steps) + [(step["name"], step["after"]) for step in steps if step["after"]]


def came_in(steps: list[dict]) -> list[tuple[str, dict]]:
    """(name, measurement) of what was there before the first step, and of further models that no step made."""
    before = [("before", step["before"]) for step in steps[:1] if step["before"]]
    made = [step["after"] for step in steps]
    others = {role: one for step in steps for role, one in step["parents"].items() if one and one not in made}
    return before + list(others.items())


def headline(measured: list[tuple[str, dict]], steps: list[dict], seconds: float | None) -> Pair:
    """The page's first sentence, written from the figures of the first and the last model, or from those of the data."""
    if not measured and steps and steps[-1]["found"]:
        return data_card.headline(steps[-1]["found"])
    if not measured:
        return f"{counted(len(steps))[0]}, {time_text(seconds)}", f"{counted(len(steps))[1]}, {time_text(seconds)}"
    first, last = measured[0][1], measured[-1][1]
    metric, after, _ = score_of(last)
    found = [value for _, value, _ in map(score_of, ends_of(measured)) if value is not None]
    scores = " → ".join(score_text(metric, value) for value in found)
    english, korean = (f"{name} {scores}" if after is not None else "" for name in words(metric))
    sizes = size_change(first.get("bytes"), last.get("bytes"))
    return ", ".join(filter(None, (sizes[0], english))), ", ".join(filter(None, (sizes[1], korean)))


def ends_of(measured: list[tuple[str, dict]]) -> list[dict]:
    """The first measurement and the last; the last alone where the other was of another metric or on other data."""
    ends = [one for _, one in [*measured[:1], *measured[1:][-1:]]]
    told = [(score_of(one)[0], one.get("records")) for one in ends]
    return [one for one, each in zip(ends, told) if each == told[-1]]


def lede(measured: list[tuple[str, dict]]) -> Pair | None:
    """How sure the headline is: the confidence intervals of the scores that it names."""
    ends = ends_of(measured)
    ranges = [interval_text(score_of(one)[0], one.get("interval")) for one in ends]
    if not any(ranges):
        return None
    method, records = ends[-1].get("interval_method") or DASH, ends[-1].get("records") or DASH
    shown = " → ".join(text or DASH for text in ranges)
    return (
        f"Confidence interval {shown} ({method}, {records} records)",
        f"신뢰 구간 {shown} ({method}, 표본 {records}개)",
    )


def facts(steps: list[dict], seconds: float | None, machine: dict) -> list[tuple[Pair, str, Any]]:
    """The line of small facts under the headline: (name, figure, what to add)."""
    kept = [promise.get("kept") for step in steps for promise in step["promises"]]
    memory = finite(machine.get("memory_gib"))
    parts = [
        f"{machine['cores']}{SPACE}cores" if machine.get("cores") else "",
        f"{number(memory)}{SPACE}GiB" if memory else "",
        machine.get("system"),
    ]
    energy = total_energy(steps)
    found = [
        (("Time", "소요 시간"), time_text(seconds), counted(len(steps))),
        (("Promises kept", "보장 조건 충족"), f"{sum(map(bool, kept))} / {len(kept)}" if kept else DASH, ""),
        (("Energy", "에너지"), energy_text(energy), (energy or {}).get("method", "")),
    ]
    return [*found, (("Machine", "장비"), machine.get("cpu") or DASH, ", ".join(filter(None, parts)))]


def total_energy(steps: list[dict]) -> dict | None:
    """The energy of all steps. Errors add up as they are: the same method errs the same way each time."""
    known = [step["energy"] for step in steps if finite(step["energy"].get("joules")) is not None]
    joules = sum(energy["joules"] for energy in known)
    if not joules:
        return None
    error = sum(energy["joules"] * (finite(energy.get("error")) or 0) for energy in known) / joules
    methods = dict.fromkeys(energy["method"] for energy in known if energy.get("method"))
    return {"joules": joules, "error": error or None, "method": "; ".join(methods)}


def broken(steps: list[dict]) -> list[tuple[str, dict]]:
    """(step, promise) of each promise that was not kept."""
    return [
        (step["name"], promise_view(promise))
        for step in steps
        for promise in step["promises"]
        if promise.get("kept") is False
    ]


def size_against_score(measured: list[tuple[str, dict]]) -> dict | None:
    """The Pareto picture, wide and narrow, of the models that are scored alike; equal ones share a point."""
    metric, _, better = score_of(measured[-1][1]) if measured else ("", None, "up")
    points: dict[tuple, dict] = {}
    for name, one in measured:
        size, (known, score, _) = one.get("bytes"), score_of(one)
        if known == metric and score is not None and size:
            label = f"{points[size, score]['label']}, {name}" if (size, score) in points else name
            low, high = one.get("interval") or (None, None)
            points[size, score] = {
                "label": label,
                "x": size,
                "y": score,
                "low": low,
                "high": high,
                "x_text": size_text(size),
            }
    form = (lambda value: f"{100 * value:.4g}{SPACE}%") if percent(metric) else tick_text
    dots, names = list(points.values()), (("size", "크기"), words(metric))
    wide, narrow = (
        Markup(draw.pareto(dots, *names, better, form, width, height)) for width, height in ((860, 400), (400, 340))
    )
    method = measured[-1][1].get("interval_method") if points else ""
    return {"wide": wide, "narrow": narrow, "better": better, "method": method} if points else None


def rows(steps: list[dict], measured: list[tuple[str, dict]]) -> list[dict]:
    """The table of all steps, after a line for what was there before them."""
    before = [{**EMPTY, "name": name, "operation": "", "after": one} for name, one in came_in(steps)]
    first = next((one["bytes"] for _, one in measured if one.get("bytes")), None)
    return [row(step, step["after"] or {}, first) for step in before + steps]


def row(step: dict, one: dict, first: float | None) -> dict:
    """One step of the table; each cell is (figure, what to add)."""
    metric, score, _ = score_of(one)
    latency = one.get("latency_ms") or {}
    kept = [promise.get("kept") is not False for promise in step["promises"]]
    spent = size_text(step["peak_memory_bytes"]) if step["peak_memory_bytes"] else ""
    cells = [
        (score_text(metric, score), interval_text(metric, one.get("interval"))),
        (size_text(one.get("bytes")), change(first, one.get("bytes"))),
        (scaled(one.get("parameters"), "", least=1), ""),
        (ms_text(latency.get("p50")), ms_text(latency.get("p95")) if latency else ""),
        (energy_text(one.get("energy_per_1000")), ""),
        (time_text(step["seconds"]), spent),
        (f"{sum(kept)} / {len(kept)}" if kept else DASH, ""),
    ]
    operation = " · ".join(filter(None, (step["operation"], one.get("runtime"))))
    return {**step, "operation": operation, "kept": all(kept), "cells": cells}


def energy_methods(measured: list[tuple[str, dict]]) -> list[str]:
    """How the energy of the models was found; the models are named when they differ in that."""
    found = {name: (one.get("energy_per_1000") or {}).get("method") for name, one in measured}
    methods = list(dict.fromkeys(filter(None, found.values())))
    return methods if len(methods) < 2 else [f"{name}: {method}" for name, method in found.items() if method]


def speed_and_energy(measured: list[tuple[str, dict]]) -> list[Markup]:
    """Bars of latency (to p95) and of energy (with its error), when two or more models have the figure."""
    latency, energy = [], []
    for name, one in measured:
        speed, spent = one.get("latency_ms") or {}, one.get("energy_per_1000") or {}
        latency.append({"label": name, "value": speed.get("p50"), "high": speed.get("p95")})
        joules, error = finite(spent.get("joules")), finite(spent.get("error")) or 0
        ends = {} if joules is None else {"low": joules * (1 - error), "high": joules * (1 + error)}
        energy.append({"label": name, "value": joules, **ends})
    charts = (
        (latency, ("latency: p50, to p95", "지연 시간: p50~p95"), ms_text),
        (energy, ("energy per 1,000 predictions", "예측 1,000회당 에너지"), joules_text),
    )
    return [
        Markup(draw.bars(bars, title, form))
        for bars, title, form in charts
        if sum(finite(one["value"]) is not None for one in bars) > 1
    ]


def training(step: dict) -> dict:
    """The curves of a step that trained, and what the doctor found in them."""
    left, charts = dict(step["curves"]), []
    names = (("loss", "training"), ("validation", "validation"))
    losses = {words(name): left.pop(key) for key, name in names if key in left}
    groups = [(words("loss"), losses)] if losses else []
    for y, series in [*groups, *((words(name), {words(name): points}) for name, points in left.items())]:
        x = words("learning rate" if "by learning rate" in y[0] else "step")
        charts.append(Markup(draw.curves(series, x, y, draw.wide_range(y[0], series), 300, 200)))
    return {**step, "charts": charts}


def promise_view(promise: dict) -> dict:
    """A promise with its figures written out."""
    figures = {name: plain(promise.get(name)) for name in ("value", "bound")}
    return {"text": "", "sense": "", "kept": None, **promise, **figures}


def license(found: dict) -> dict:
    """The license of a model, those of the models that went in, and what they permit."""
    parents = {one.get("path", ""): one.get("name") or one.get("id") for one in found.get("parents") or []}
    lists = {name: "; ".join(found.get(name) or []) or None for name in ("conflicts", "conditions")}
    known = {"license": found.get("name"), **(found.get("permitted") or {}), **parents, **lists}
    return known | {"note": found.get("advice")} if found else {}


def entry(step: dict) -> dict:
    """A ledger line, every part of it, for the folded list."""
    memory = step["peak_memory_bytes"] and size_text(step["peak_memory_bytes"])
    cost = {"started": step.get("started"), "seconds": step["seconds"], "memory": memory, **step["energy"]}
    inputs = {f"{one.get('role', '')} {one.get('path', '')}": one.get("digest", "") for one in step["inputs"]}
    output = {**(step["output"].get("files") or {}), "tensors": step["output"].get("tensors")}
    chain = {name: step.get(name) or None for name in ("previous", "digest")}
    parts = [
        (("Settings", "설정"), {**step["settings"], "seed": step.get("seed")}),
        (("Pace", "속도"), step.get("pace", {})),
        (("Inputs", "입력"), inputs),
        (("Output", "출력"), output),
        (("License", "라이선스"), license(step["license"])),
        (("Cost", "소요 자원"), cost),
        (("Versions", "버전"), step["versions"]),
        (("Machine", "장비"), step["machine"]),
        (("Hash chain", "해시 체인"), chain),
    ]
    known = [(name, {key: plain(value) for key, value in part.items() if value is not None}) for name, part in parts]
    return {
        **step,
        "time": time_text(step["seconds"]),
        "parts": [part for part in known if part[1]],
        "promises": [promise_view(promise) for promise in step["promises"]],
    }
