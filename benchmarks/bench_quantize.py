"""int8 in a quarter of the bytes, at no more than 0.5 points lost; what was packed opens again bit for bit."""

from .harness import Found, Race, Row, Side
from .lives import broken_promises, data_of, headline, trained

ROWS = (
    Row("bytes_kept", "of the bytes", "lower", 0.27, "ours"),  # a quarter, and the scales
    Row("points_lost", "points", "lower", 0.5, "ours"),
    Row("broken_promises", "", "lower", 0, "ours"),
)


def found(lines: list[Found]) -> Found:
    whole, packed = lines
    return {
        "bytes_kept": packed["after"]["bytes"] / whole["after"]["bytes"],
        "points_lost": 100 * (headline(whole) - headline(packed)),
        "broken_promises": broken_promises(packed),
    }


def race(name: str) -> Race:
    packing = ("onnuri", "quantize", "{work}/whole", *data_of(name), "--out", "{work}/packed", "--json")
    return Race(name, Side("onnuri", (trained(name, "{work}/whole"), packing), found), (), {"": ROWS}, repeats=1)


RACES = tuple(race(name) for name in ("MNIST", "NSMC", "Adult"))
