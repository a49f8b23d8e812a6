"""Limits, the front of what no other point beats, and the point that is best within the limits."""

import math
from dataclasses import dataclass
from typing import Any

from ..errors import BadSettings, Refusal
from ..figures import finite, ms_text, percent, score_text, size_text
from .points import Place, Point, score_of

ONE_POINT = 0.01
ALIKE = 0.01
UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "B": 1.0}


@dataclass(frozen=True)
class Limits:
    """What was asked for; None where it was not. `score`: in the headline's own units, `better` "up" or "down"."""

    bytes: float | None
    latency: float | None
    score: float
    better: str
    floor_only: bool
    """Whether size and latency are free: then the smallest that keeps the score is looked for, else the best score."""

    def excess(self, point: Point) -> dict[str, float]:
        """By how much, in parts of the limit, a point is beyond each limit; 0 or less where it is within."""
        one, found = point.measured, {}
        if self.bytes is not None:
            found["bytes"] = one["bytes"] / self.bytes - 1
        if self.latency is not None:
            found["latency"] = one["latency_ms"]["p50"] / self.latency - 1
        away = self.score - score_of(one) if self.better == "up" else score_of(one) - self.score
        return found | ({"score": away / max(abs(self.score), 1e-12)} if math.isfinite(self.score) else {})

    @property
    def facts(self) -> dict[str, float | None]:
        return {"bytes": self.bytes, "latency_ms": self.latency, "score": finite(self.score)}


def bytes_of(size: str, whole: float) -> float:
    """Bytes from a share of `whole` (up to 1), a number of bytes, or one with a unit."""
    unit = next((unit for unit in UNITS if size.endswith(unit)), "")
    try:
        value = float(size.removesuffix(unit)) * UNITS.get(unit, 1.0)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise BadSettings(
            f"size '{size}' is neither bytes nor a share", hint="--size 0.1, --size 250000 or --size 250kB"
        )
    return value * whole if value <= 1 and not unit else value


def limits_of(original: dict[str, Any], size: str, latency: float | None, score: float | None) -> Limits:
    """The limits as figures. Without any, the score may fall by one point, or, where it is no share, within its interval."""
    better = original["headline"][1]
    worst = -math.inf if better == "up" else math.inf
    if score is None and not size and latency is None:
        score = kept(original)
    limit = bytes_of(size, original["bytes"]) if size else None
    return Limits(limit, latency, worst if score is None else score, better, not size and latency is None)


def kept(original: dict[str, Any]) -> float:
    """The worst score that still counts as the original's."""
    low, high = original["interval"]
    if percent(original["headline"][0]):
        return score_of(original) + (-ONE_POINT if original["headline"][1] == "up" else ONE_POINT)
    return low if original["headline"][1] == "up" else high


def values_of(point: Point, limits: Limits) -> tuple[float, ...]:
    """What is to be small: the loss of score, bytes as their logarithm, and latency where it is limited."""
    one = point.measured
    score = score_of(one) if limits.better == "down" else -score_of(one)
    return (score, math.log(one["bytes"]), *([one["latency_ms"]["p50"]] if limits.latency is not None else []))


def figures_of(one: dict[str, Any]) -> str:
    metric = one["headline"][0]
    speed = ms_text(one["latency_ms"]["p50"])
    return f"{metric} {score_text(metric, score_of(one))}, {size_text(one['bytes'])}, {speed}"


def front_of(points: list[Point], limits: Limits) -> list[Point]:
    """The points that no other one equals or beats in everything; of equal ones the first. Smallest first."""
    values = {point.number: values_of(point, limits) for point in points}

    def is_beaten(point: Point) -> bool:
        mine = values[point.number]
        return any(
            all(theirs <= own for theirs, own in zip(values[one.number], mine))
            and (values[one.number] != mine or one.number < point.number)
            for one in points
            if one is not point
        )

    return sorted((point for point in points if not is_beaten(point)), key=lambda point: point.measured["bytes"])


def best_of(points: list[Point], limits: Limits) -> Point | None:
    """The best score within the limits, or the smallest that keeps the score where neither size nor latency is limited; sizes
    within about ALIKE of each other are one then, so that a name in a header does not outweigh a score."""

    def order(point: Point) -> tuple[float, ...]:
        values = values_of(point, limits)
        return (round(values[1] / ALIKE), *values) if limits.floor_only else values

    within = [point for point in points if all(value <= 0 for value in limits.excess(point).values())]
    return min(within, key=lambda point: (*order(point), point.number), default=None)


def out_of_reach(points: list[Point], limits: Limits, place: Place) -> Refusal:
    """The message for limits that nothing meets, with what came closest."""

    def distance(point: Point) -> float:
        return sum(max(0.0, value) for value in limits.excess(point).values())

    point = min(points, key=distance)
    asked = [
        f"{name} of at most {form(limit)}"
        for name, limit, form in (("a size", limits.bytes, size_text), ("a latency", limits.latency, ms_text))
        if limit is not None
    ]
    metric = point.measured["headline"][0]
    if math.isfinite(limits.score):
        bound = "at least" if limits.better == "up" else "at most"
        asked.append(f"{metric} of {bound} {score_text(metric, limits.score)}")
    return Refusal(
        f"none of {len(points)} models has {' and '.join(asked)} on the validation split; closest came "
        f"point {point.number:03d}: {figures_of(point.measured)} ({point.chain})",
        f"onnuri run {place.path(point.number)}, wider limits, or more --trials; all that was found is in {place.out}",
    )
