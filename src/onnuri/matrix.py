"""The matrix: every family under every operation, tiny and toy. It keeps its promises, or refuses with a reason.

Before any operation the family's own facts are checked. An operation that refuses a trained model is tried on what the
other operations of the row gave: one that undoes another passes there. `docs/matrix.md` is written from such a run and never
by hand.
"""

import os
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from queue import Empty
from tempfile import TemporaryDirectory
from typing import Any, Literal

from . import ledger, registry
from .conformance import check_family, tiny_size
from .conformance.bench import Bench, maker, ordered
from .errors import OnnuriError, Refusal
from .progress import Progress
from .run import execute

FACTS = "facts"
"""The name of the first column, which is no operation."""


@dataclass(frozen=True)
class Cell:
    """One family under one operation. `text`: the figures, the reason of the refusal, or the fault; `parameters`: of the
    model on which it was proven; `promises`: those that were measured; `on`: the operation whose result was taken."""

    family: str
    operation: str
    outcome: Literal["passed", "refused", "failed"]
    text: str
    parameters: int = 0
    seconds: float = 0.0
    promises: tuple[str, ...] = ()
    on: str = ""


def columns() -> list[str]:
    """All columns in their order."""
    return [FACTS, *ordered()]


# ------------------------------------------------------------------------------------------------------------------- rows


def run_row(family: str, wanted: Collection[str], folder: Path) -> Iterator[Cell]:
    """The wanted cells of one family; models are left in `folder`/OPERATION. Those that an operation refused at first
    come last."""
    if FACTS in wanted:
        yield facts(family)
    asked = [name for name in ordered() if name in wanted]
    refused: dict[str, Cell] = {}
    for name in asked:
        cell = run_cell(family, name, folder)
        if cell.outcome == "refused":
            refused[name] = cell
        else:
            yield cell
    yield from (refused.pop(name) for name in list(refused) if not takes_a_model(name))
    if refused:
        givers = [name for name in ordered() if registry.operation(name).gives == "model" and name not in asked]
        refused |= {name: cell for name in givers if (cell := run_cell(family, name, folder)).outcome == "refused"}
        yield from (cell for name, cell in second_rounds(family, refused, folder).items() if name in asked)


def takes_a_model(operation: str) -> bool:
    """Whether another model could change what it says."""
    return any(not kind.startswith("data") for kind in registry.operation(operation).takes.values())


def second_rounds(family: str, refused: dict[str, Cell], folder: Path) -> dict[str, Cell]:
    """What was refused, tried on every model that another operation gave, until nothing more passes."""
    cells, tried, again = dict(refused), set[tuple[str, str]](), True
    givers = [name for name in ordered()[1:] if registry.operation(name).gives == "model"]
    while again:
        again = False
        for name in [name for name, cell in cells.items() if cell.outcome == "refused"]:
            for giver in [giver for giver in givers if giver != name and (folder / giver).is_dir()]:
                if (name, giver) not in tried and cells[name].outcome == "refused":
                    tried.add((name, giver))
                    cell = run_cell(family, name, folder, giver)
                    if cell.outcome != "refused":
                        cells[name], again = cell, True
    return cells


def run_cell(family: str, operation: str, folder: Path, on: str = "") -> Cell:
    """One cell. The operation that makes models begins with none, the others with its result or with that of `on`."""
    began, bench = time.perf_counter(), Bench(family, folder)
    cell = Cell(family, operation, "failed", "", on=on)
    try:
        cell = passed(cell, carried_out(bench, operation, folder / on if on else None), bench)
    except Refusal as refusal:
        told = f"{refusal.why}; instead: {refusal.instead}"
        whole = refusal.why and refusal.instead  # one that leaves either out is a fault
        cell = replace(cell, outcome="refused" if whole else "failed", text=told, parameters=size(bench))
    except OnnuriError as error:
        cell = replace(cell, text=str(error), parameters=size(bench))
    except Exception as error:  # what an operation never foresaw is a failure of its cell, not the end of the matrix
        reason = (str(error) or "no reason given").splitlines()[0]
        cell = replace(cell, text=f"{type(error).__name__}: {reason}", parameters=size(bench))
    text = f"on what {on} gave: {cell.text}" if on else cell.text
    return replace(cell, text=text, seconds=time.perf_counter() - began)


def carried_out(bench: Bench, operation: str, model: Path | None) -> dict[str, Any]:
    """The ledger line or report of one operation on the bench."""
    record = registry.operation(operation)
    settings, anew = bench.settings(record), operation == maker() and not (bench.folder / operation).exists()
    settings |= bench.beginning() if anew else {}
    inputs = {"data": bench.data} if anew else bench.inputs(record, model)
    folder = bench.folder / operation
    places = {"model": folder, "data": folder, "records": bench.folder / f"{operation}.jsonl", "report": None}
    return execute(operation, settings, inputs, places[record.gives], quiet=True)


def facts(family: str) -> Cell:
    """The cell of a family's own facts."""
    began = time.perf_counter()
    try:
        record = registry.family(family)
        checks, parameters = list(check_family(record)), tiny_size(record)
    except OnnuriError as error:
        return Cell(family, FACTS, "failed", str(error), seconds=time.perf_counter() - began)
    broken = [f"{check.name}: {check.text}" for check in checks if not check.passed]
    text = "; ".join(broken) or f"{len(checks)} checks; " + "; ".join(
        check.text for check in checks if check.name in ("outputs", "players and learning")
    )
    return Cell(family, FACTS, "failed" if broken else "passed", text, parameters, time.perf_counter() - began)


# ---------------------------------------------------------------------------------------------------------------- figures


def passed(cell: Cell, result: dict[str, Any], bench: Bench) -> Cell:
    """The cell with its figures: the headline score, and every promise's value beside its bound."""
    after = result.get("after") or result
    if "headline" in after:
        metric = after["headline"][0]
        text, parameters = f"{metric} {after['scores'][metric]:.3g}", after["parameters"]
    elif "found" in result:
        text, parameters = str(result["found"]["summary"]), size(bench)
    elif "out" in result:
        text, parameters = f"{result['records']} answers", size(bench)
    else:
        text, parameters = str(result["summary"]), size(bench)
    promises = result.get("promises", [])
    text += "".join(
        f"; {p['text']}: {p['value']:.2g} ({p['sense']} {p['bound']:g})" for p in promises if p["bound"] or p["value"]
    )
    texts = tuple(promise["text"] for promise in promises)
    return replace(cell, outcome="passed", text=text, parameters=parameters, promises=texts)


def size(bench: Bench) -> int:
    """The parameters of the model that the row begins with; 0 where it holds no tensors, or could not be made."""
    place = bench.folder / maker()
    return ledger.read(place)[-1]["after"]["parameters"] if place.exists() else 0


# ------------------------------------------------------------------------------------------------------- the whole of it


def run_matrix(families: list[str], wanted: list[str], folder: Path, processes: int = 2) -> Iterator[Cell]:
    """The wanted cells of these families as they are done; one thread in each process."""
    if processes == 1:
        for family in families:
            yield from run_row(family, wanted, folder / family)
        return
    context = get_context("spawn")
    with one_thread(), context.Manager() as manager, ProcessPoolExecutor(processes, context) as pool:
        done = manager.Queue()
        rows = [pool.submit(put_row, family, wanted, folder / family, done) for family in families]
        seen = 0
        while not all(one.done() for one in rows) or seen < sum(one.result() for one in rows):
            with suppress(Empty):
                yield done.get(timeout=0.2)
                seen += 1


def put_row(family: str, wanted: list[str], folder: Path, done: Any) -> int:
    """In a process of its own: one row into the queue; the number of its cells."""
    cells = 0
    for cell in run_row(family, wanted, folder):
        done.put(cell)
        cells += 1
    return cells


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, a new process computes with one thread: two that take all cores slow each other twenty-fold."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        os.environ.update({"OMP_NUM_THREADS": before} if before else {})


def chosen(family: str | None, operation: str | None) -> tuple[list[str], list[str]]:
    """(families, columns) that were asked for; UnknownName for one that is not there."""
    for axis, name in (("families", family), ("operations", operation)):
        if name and name != FACTS:
            registry.load(axis, name)
    return [family] if family else list(registry.entries("families")), [operation] if operation else columns()


def measure_matrix(family: str | None, operation: str | None, quiet: bool) -> list[Cell]:
    """All cells in the order of the page, with a line for each and the time left on stderr."""
    families, wanted = chosen(family, operation)
    cells: list[Cell] = []
    with TemporaryDirectory(prefix="onnuri-") as folder, Progress("matrix", quiet) as log:
        for cell in run_matrix(families, wanted, Path(folder), min(2, len(families))):
            cells.append(cell)
            log.console.print(
                f"{cell.family:18} {cell.operation:10} {cell.outcome:8} {cell.text:.100}", markup=False, soft_wrap=True
            )
            log.progress(len(cells), len(families) * len(wanted), f"{cell.family} {cell.operation}")
    return sorted(cells, key=lambda cell: (families.index(cell.family), wanted.index(cell.operation)))


def counts(cells: list[Cell]) -> dict[str, int]:
    """How many cells there are of each outcome, and how many of the table were not run."""
    found = {outcome: sum(cell.outcome == outcome for cell in cells) for outcome in ("passed", "refused", "failed")}
    whole = len({cell.family for cell in cells}) * len({cell.operation for cell in cells})
    return found | {"untested": whole - len(cells)}
