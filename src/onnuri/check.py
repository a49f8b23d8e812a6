"""`onnuri check PACKAGE`: our own conformance kit on whatever a package registers, ours or a stranger's.

Every family of the package: all its facts and its whole row of the matrix. Every operation: its record, its whole column,
each promise measured somewhere, each setting by itself, each result twice. Every runtime: its record. What is run is
counted: no check at all, or one that could not be carried out, is a failure.
"""

import re
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import EntryPoint
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from . import registry
from .conformance import Check, check_family
from .conformance.bench import Bench, ordered
from .conformance.operations import checks_of, record
from .conformance.subject import carry_out
from .conformance.trial import Trial
from .errors import BadInput, propose
from .matrix import Cell, run_row
from .progress import Progress

AXES = ("families", "operations", "runtimes")


def check_package(package: str, quiet: bool) -> dict[str, Any]:
    """{package, checks, failed, results}, each check told on stderr as it is done. BadInput where a package registers
    nothing."""
    results: list[Check] = []
    with Progress("check", quiet) as log:
        for check in checks(package):
            results.append(check)
            log.console.print(line(check), markup=False, soft_wrap=True)
            log.progress(len(results), len(results) + 1, check.name)
    failed = sum(not check.passed for check in results)
    return {"package": package, "checks": len(results), "failed": failed, "results": [asdict(c) for c in results]}


def line(check: Check) -> str:
    return f"{'ok    ' if check.passed else 'FAILED'} {check.subject}: {check.name}: {check.text}"


def checks(package: str) -> Iterator[Check]:
    """Every check of all that the package registers."""
    found = {axis: registered(package, axis) for axis in AXES}
    if not any(found.values()):
        known = {registry.package_of(entry) for axis in AXES for entry in registry.entries(axis).values()}
        raise BadInput(
            f"'{package}' registers no family, operation or runtime: nothing could be checked; {propose(package, known)}",
            hint="pip install it, and name it as pip does",
        )
    whole: dict[str, list[str]] = {}
    for axis, names in found.items():
        yield from records_of(axis, names)
        whole[axis] = [name for name in names if not registry.fault_of(axis, name)]
    for name in whole["families"]:
        yield from check_family(registry.family(name))
    with TemporaryDirectory(prefix="onnuri-") as folder:
        cells: list[Cell] = []
        for cell in rows(whole["families"], whole["operations"], Path(folder)):
            cells.append(cell)
            yield Check(
                cell.family, cell.operation, cell.outcome != "failed", f"{cell.outcome}: {cell.text}", cell.seconds
            )
        for name in whole["operations"]:
            yield from check_operation(name, [cell for cell in cells if cell.operation == name], Path(folder))


def registered(package: str, axis: str) -> list[str]:
    """The names that a package registers on an axis; a package is known by its own name or by the one it is imported by."""

    def called(entry: EntryPoint) -> set[str]:
        return {plain(registry.package_of(entry)), plain(entry.module.partition(".")[0])}

    return [name for name, entry in registry.entries(axis).items() if plain(package) in called(entry)]


def plain(name: str) -> str:
    """A package's name as the package index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def records_of(axis: str, names: list[str]) -> Iterator[Check]:
    """One check for each record: it can be imported, is complete, and is what it must be."""

    def whole(name: str) -> str:
        found = registry.load(axis, name)
        return record(found) if axis == "operations" else f"a complete record: {registry.summary(axis, name)}"

    for name in names:
        yield from carry_out(name, {"record": whole}, name)


def rows(families: list[str], operations: list[str], folder: Path) -> Iterator[Cell]:
    """The whole rows of these families, and the columns of these operations in all the others."""
    for family in registry.entries("families"):
        wanted = ordered() if family in families else [name for name in ordered() if name in operations]
        if wanted:
            yield from run_row(family, wanted, folder / family)


def check_operation(name: str, cells: list[Cell], folder: Path) -> Iterator[Check]:
    """What an operation's column says of its promises and refusals, and its settings and seeds on the same benches."""
    operation = registry.operation(name)

    def promises(_: Any) -> str:
        measured = {text for cell in cells for text in cell.promises}
        unmeasured = [promise.text for promise in operation.promises if promise.text not in measured]
        if unmeasured:
            raise BadInput(*(f"measured on no family: {text}" for text in unmeasured))
        return f"{len(operation.promises)} promises, each measured on one family at least"

    def applies(_: Any) -> str:
        outcomes = [cell.outcome for cell in cells]
        if "passed" not in outcomes:
            raise BadInput(f"it passes on none of {len(outcomes)} families")
        return f"passes on {outcomes.count('passed')} of {len(outcomes)} families, refuses {outcomes.count('refused')}"

    trials = [Trial(operation, Bench(cell.family, folder / cell.family), on(cell, folder)) for cell in quickest(cells)]
    yield from carry_out(name, {"promises": promises, "applies": applies}, None)
    if trials:
        yield from carry_out(name, checks_of(trials), None)


def quickest(cells: list[Cell]) -> list[Cell]:
    """Those that could be carried out: the ones that passed first, the quickest of them before the others."""
    carried_out = [cell for cell in cells if cell.outcome != "failed"]
    return sorted(carried_out, key=lambda cell: (cell.outcome, cell.seconds))


def on(cell: Cell, folder: Path) -> Path | None:
    """The model that the cell took in the place of the first one."""
    return folder / cell.family / cell.on if cell.on else None
