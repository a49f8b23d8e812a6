"""The page of the matrix, written from its cells: the table of outcomes first, then every cell with its figures."""

from .matrix import FACTS, Cell, counts

SIGNS = {"passed": "yes", "refused": "refuses", "failed": "**FAILED**"}


def markdown(cells: list[Cell]) -> str:
    """The page."""
    families = list(dict.fromkeys(cell.family for cell in cells))
    columns = list(dict.fromkeys(cell.operation for cell in cells))
    by = {(cell.family, cell.operation): SIGNS[cell.outcome] for cell in cells}
    lines = [
        "# The matrix",
        "",
        "Written by `make matrix` from a run of every family under every operation, tiny and on toy data; never by hand. "
        "The first column checks the family's own facts. A cell keeps every promise of its operation, or refuses with a "
        "reason. It says that the operation is sound there; whether it is good is for the benchmarks on real data.",
        "",
        f"{totals(cells)}.",
        "",
        "| family | " + " | ".join(columns) + " |",
        "|---|" + "---|" * len(columns),
        *(f"| {f} | " + " | ".join(by.get((f, c), "**UNTESTED**") for c in columns) + " |" for f in families),
    ]
    for family in families:
        lines += [
            "",
            f"## {family}",
            "",
            "| operation | outcome | figures, or why not and what instead | parameters | s |",
        ]
        lines += ["|---|---|---|---|---|", *(line(cell) for cell in cells if cell.family == family)]
    return "\n".join([*lines, ""])


def totals(cells: list[Cell]) -> str:
    """One line: the size of the table, and how many cells there are of each outcome."""
    families, columns = ({getattr(cell, axis) for cell in cells} for axis in ("family", "operation"))
    size = f"{len(families)} families x {len(columns - {FACTS})} operations" + (
        " and their facts" if FACTS in columns else ""
    )
    return f"{size}: {', '.join(f'{number} {outcome}' for outcome, number in counts(cells).items())}"


def line(cell: Cell) -> str:
    text = " ".join(cell.text.replace("|", "/").split())
    size = f"{cell.parameters:,}" if cell.parameters else "-"
    return f"| {cell.operation} | {cell.outcome} | {text} | {size} | {cell.seconds:.1f} |"
