"""The matrix: every family under every operation, tiny and toy. It keeps its promises, or refuses with a reason.

`docs/matrix.md` is written from such a run and never by hand.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from . import registry
from .errors import OnnuriError, Refusal
from .run import execute

SMALL = {"steps": 6, "batch_size": 16, "size": 0.5}
"""Settings that make any operation quick; each operation gets those that it knows."""


@dataclass(frozen=True)
class Cell:
    """One family under one operation. `text`: the figures, the reason of the refusal, or the fault."""

    family: str
    operation: str
    outcome: Literal["passed", "refused", "failed"]
    text: str
    parameters: int = 0


def run_matrix(folder: Path) -> Iterator[Cell]:
    """Every cell, one after the other; models are left in `folder`/FAMILY/OPERATION."""
    operations = ["train", *(name for name in registry.entries("operations") if name != "train")]
    for family in registry.entries("families"):
        for operation in operations:
            yield run_cell(family, operation, folder / family)


def run_cell(family: str, operation: str, folder: Path) -> Cell:
    """One cell. The first operation makes the model that the others begin with."""
    record = registry.operation(operation)
    settings = {name: value for name, value in SMALL.items() if name in record.settings.model_fields}
    inputs = {"data": f"toy:{family}"}
    base = folder / "train"
    if base.exists():
        inputs["model"] = str(base)
    else:
        settings |= {"family": family, "config": registry.family(family).tiny()}
    out = (
        folder / operation
        if record.gives == "model"
        else folder / "answers.jsonl"
        if record.gives == "records"
        else None
    )
    try:
        return passed(family, operation, execute(operation, settings, inputs, out, quiet=True))
    except Refusal as refusal:
        return Cell(family, operation, "refused", f"{refusal.why}; instead: {refusal.instead}")
    except OnnuriError as error:
        return Cell(family, operation, "failed", str(error))


def passed(family: str, operation: str, result: dict) -> Cell:
    """The figures of a cell: the headline score, and the largest share of a promise's bound that was used."""
    after = result.get("after") or result
    if "headline" not in after:
        return Cell(family, operation, "passed", f"{result['records']} answers")
    metric = after["headline"][0]
    text = f"{metric} {after['scores'][metric]:.3g}"
    promises = [p for p in result.get("promises", []) if p["bound"]]
    text += "".join(f"; {p['text']}: {p['value']:.2g} ({p['sense']} {p['bound']:g})" for p in promises)
    return Cell(family, operation, "passed", text, after["parameters"])


def markdown(cells: list[Cell]) -> str:
    """The page: a table of outcomes, then every cell with its figures."""
    families = list(dict.fromkeys(cell.family for cell in cells))
    operations = list(dict.fromkeys(cell.operation for cell in cells))
    by = {(cell.family, cell.operation): cell for cell in cells}
    signs = {"passed": "yes", "refused": "refuses", "failed": "**FAILED**"}
    count = {outcome: sum(cell.outcome == outcome for cell in cells) for outcome in signs}
    lines = [
        "# The matrix",
        "",
        "Written by `make matrix` from a run of every family under every operation, tiny and on toy data; never by hand. "
        "A cell keeps every promise of its operation, or refuses with a reason. It says that the operation is sound there; "
        "whether it is good is for the benchmarks on real data.",
        "",
        f"{count['passed']} cells passed, {count['refused']} refused, {count['failed']} failed.",
        "",
        "| family | " + " | ".join(operations) + " |",
        "|---|" + "---|" * len(operations),
    ]
    lines += [f"| {f} | " + " | ".join(signs[by[f, o].outcome] for o in operations) + " |" for f in families]
    for family in families:
        lines += [
            "",
            f"## {family}",
            "",
            "| operation | outcome | figures, or why not and what instead | parameters |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {c.operation} | {c.outcome} | {c.text.replace('|', '/')} | {c.parameters:,} |"
            for c in cells
            if c.family == family
        ]
    return "\n".join([*lines, ""])


def main() -> None:
    """`python -m onnuri.matrix PAGE`: run the matrix and write the page."""
    import sys
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        cells = []
        for cell in run_matrix(Path(folder)):
            cells.append(cell)
            print(f"{cell.family:18} {cell.operation:10} {cell.outcome:8} {cell.text[:110]}", flush=True)
    Path(sys.argv[1]).write_text(markdown(cells), encoding="utf-8")
    sys.exit(any(cell.outcome == "failed" for cell in cells))


if __name__ == "__main__":
    main()
