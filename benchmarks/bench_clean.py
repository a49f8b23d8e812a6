"""Near copies among 200,000 film reviews, and all rules of quality on pages made of them, beside datatrove on two workers.

Ours is the whole command, its evidence and its promises included: Python started, the table read, the folder written and opened
again, a card, a report, a ledger line. `seconds` are those of the work itself on both sides, without starting Python.
"""

import sys

from .harness import Found, Race, Row, Side

MAKE = ("python", "{here}/sides/clean.py", "make", "--kept", "{kept}", "--data", "{data}")
JUDGE = (sys.executable, "{here}/sides/clean.py", "judge", "--kept", "{kept}", "--out", "{work}/out")
PLAIN = ("--languages", "all", "--mask", "", "--no-lines")
COPIES, RULES = ("--rules", "none", *PLAIN), ("--rules", "web", "--bands", "0", *PLAIN)
FASTER = 10.0


def ours(what: str, how: tuple[str, ...], *judge: tuple[str, ...]) -> Side:
    clean = ("onnuri", "clean", "--data", f"{{kept}}/{what}", *how, "--out", "{work}/out", "--json")
    return Side("onnuri", (clean, *judge), found)


def theirs(what: str, *judge: tuple[str, ...]) -> Side:
    clean = ("python", "{here}/sides/clean_datatrove.py", what, "--kept", "{kept}", "--out", "{work}/out")
    return Side("datatrove", (clean, *judge), found, venv="datatrove")


def found(lines: list[Found]) -> Found:
    """What the judge says, and of its maker the seconds, the time and the memory of the process."""
    made = lines[0]
    judged = lines[1] if len(lines) > 1 else {}
    return {
        **judged,
        "seconds": made["seconds"],
        "wall_seconds": made["process_seconds"],
        "peak_memory_bytes": made["process_bytes"],
    }


SPEED = (
    Row("seconds", "s", "lower", FASTER),
    Row("wall_seconds", "s", "lower", FASTER),
    Row("peak_memory_bytes", "B", "lower"),
)
RECALL = (Row("recall", "", "higher", 1.0), Row("documents_kept", "", "higher"))

RACES = (
    Race(
        "near copies",
        ours("reviews", COPIES, JUDGE),
        (theirs("copies", JUDGE),),
        {"datatrove": (*SPEED, *RECALL)},
        MAKE,
    ),
    Race("rules", ours("pages", RULES), (theirs("rules"),), {"datatrove": SPEED}, MAKE),
)
