"""merge beside mergekit: two Llamas of 79 M, whole commands. Ours measures the parents and the result besides, writes a card, a
report and a ledger line, and opens what it wrote again; mergekit writes the tensors."""

from .harness import Found, Race, Row, Side

PARENTS = ("python", "{here}/sides/merging.py", "--data", "{data}", "--kept", "{kept}")


def ours(method: str) -> Side:
    base = ("--base", "{kept}/base") if method == "ties" else ()
    data = ("--data", "{kept}/texts.jsonl", "--answer", "text")
    merging = ("onnuri", "merge", "{kept}/one", "--other", "{kept}/other", "--method", method, "--weight", "0.3", *base)
    return Side("onnuri", ((*merging, *data, "--out", "{work}/merged", "--json"),), seconds)


def seconds(lines: list[Found]) -> Found:
    """Those of the operation alone, without opening, measuring and evidence."""
    return {"merging_seconds": lines[0]["seconds"]}


def race(method: str) -> Race:
    command = (
        "python",
        "{here}/sides/merging_mergekit.py",
        "--kept",
        "{kept}",
        "--method",
        method,
        "--out",
        "{work}/m",
    )
    peer = Side("mergekit", (command,), venv="mergekit")
    rows = {
        "": (Row("merging_seconds", "s", "lower", 2.0, "ours"),),
        peer.name: (Row("wall_seconds", "s", "lower", 1.0), Row("peak_memory_bytes", "B", "lower", 1.0)),
    }
    return Race(f"two Llamas of 79 M, {method}", ours(method), (peer,), rows, PARENTS)


RACES = tuple(race(method) for method in ("linear", "slerp", "ties"))
