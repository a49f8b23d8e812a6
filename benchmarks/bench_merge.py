"""merge beside mergekit: two Llamas of 79 M, and two of over a gigabyte each, whole commands from files to files.

`seconds` are those of the merging itself. Ours measures besides how far each number is from the formula, and writes a card,
a report and a ledger line; mergekit writes the tensors.
"""

from .harness import Race, Row, Side

SMALL, BIG = "79", "270"
"""Millions of parameters, as `sides/language.py` calls the Llamas."""
LOADED = 2 * 1_069_191_168
"""Bytes of the tensors of both big models."""


def prepared(size: str) -> tuple[str, ...]:
    return ("python", "{here}/sides/merging.py", "--data", "{data}", "--kept", "{kept}", "--size", size)


def ours(size: str, method: str) -> Side:
    base = ("--base", f"{{kept}}/{size}/base") if method == "ties" else ()
    parents = (f"{{kept}}/{size}/one", "--other", f"{{kept}}/{size}/other")
    how = ("--method", method, "--weight", "0.3", *base, "--out", "{work}/merged", "--json")
    return Side("onnuri", (("onnuri", "merge", *parents, *how),))


def mergekit(size: str, method: str) -> Side:
    words = ("--kept", f"{{kept}}/{size}", "--method", method, "--out", "{work}/m")
    return Side("mergekit", (("python", "{here}/sides/merging_mergekit.py", *words),), venv="mergekit")


def race(size: str, method: str) -> Race:
    rows = {
        "": (Row("wall_seconds", "s", "lower", 2.0, "ours"), Row("seconds", "s", "lower"))
        if size == SMALL
        else (Row("peak_memory_bytes", "B", "lower", LOADED / 4, "ours"),),
        "mergekit": (Row("wall_seconds", "s", "lower", 1.0), Row("peak_memory_bytes", "B", "lower", 1.0)),
    }
    return Race(
        f"two Llamas of {size} M, {method}", ours(size, method), (mergekit(size, method),), rows, prepared(size)
    )


RACES = (*(race(SMALL, method) for method in ("linear", "slerp", "ties")), race(BIG, "linear"))
