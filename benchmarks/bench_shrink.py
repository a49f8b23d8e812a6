"""A search finds a model of a tenth of the bytes at no more than one point lost, and chains beat each operation alone."""

from .harness import Found, Race, Row, Side, train
from .lives import MODELS, data_of, trained

TEXT = ("--family", "causal_lm", "--data", "{data}/tinyshakespeare")
SEARCHES: dict[str, tuple[str, ...]] = {
    "MNIST": ("--trials", "12", "--set", "epochs=1"),
    "NSMC": ("--trials", "24", "--set", "epochs=2"),
    "Shakespeare": ("--trials", "20", "--set", "epochs=2"),
}
POINT = 1.0
"""What may be lost: of a share of right answers a point, of another score one percent of it."""

ROWS = (
    Row("bytes_kept", "of the bytes", "lower", 0.1, "ours"),
    Row("points_lost", "points", "lower", POINT, "ours"),
    Row("formats_beaten", "of int8 alone", "higher", 1, "ours"),
    Row("students_beaten", "of distill alone", "higher", 1, "ours"),
    Row("front", "models", "higher"),
)


def found(lines: list[Found]) -> Found:
    """`bytes_kept` of the smallest model that loses no more than a point on the validation split, `points_lost` by it on the
    test split; and which share of the models that one operation made by itself another model beats on the validation split."""
    result = lines[-1]
    original, *points = [one for one in result["points"] if "validation" in one]
    winner = result["winner"]
    return {
        "bytes_kept": winner["validation"]["bytes"] / original["validation"]["bytes"],
        "points_lost": lost(original["test"], winner["test"]),
        "formats_beaten": beaten([one for one in points if one["chain"] == "quantize scheme=int8"], points),
        "students_beaten": beaten([one for one in points if one["operations"] == ["distill"]], points),
        "front": float(len(result["front"])),
    }


def lost(before: Found, after: Found) -> float:
    metric, better = before["headline"]
    one, other = before["scores"][metric], after["scores"][metric]
    return 100 * (one - other if better == "up" else (other - one) / one)


def beaten(some: list[Found], others: list[Found]) -> float:
    """The share of `some` that another is at least equal to in size and score, and better in one; 1 where there is none to beat."""
    return sum(any(beats(other, one) for other in others) for one in some) / len(some) if some else 1.0


def beats(one: Found, other: Found) -> bool:
    mine, theirs = values(one["validation"]), values(other["validation"])
    return mine != theirs and mine[0] <= theirs[0] and mine[1] <= theirs[1]


def values(measured: Found) -> tuple[float, float]:
    metric, better = measured["headline"]
    score = measured["scores"][metric]
    return (-score if better == "up" else score), measured["bytes"]


def race(name: str) -> Race:
    known = name in MODELS
    data = data_of(name) if known else TEXT[2:]
    making = trained(name, "{work}/whole") if known else train(*TEXT, "--epochs", "2", out="{work}/whole")
    searching = ("onnuri", "shrink", "{work}/whole", *data, *SEARCHES[name], "--out", "{work}/out", "--json")
    return Race(name, Side("onnuri", (making, searching), found), (), {"": ROWS}, repeats=1, timed=False)


RACES = tuple(race(name) for name in SEARCHES)
