"""Operations that change nothing: their answers or their report are written, with a page where there is something to see."""

import json
from pathlib import Path
from typing import Any

from . import ledger
from .answers import jsonable, require_ending, write_records
from .data import Data
from .errors import BadInput
from .evidence import described, key_of, model_folders
from .files import STATE, appear, is_main_process, standing, write_text
from .opening import opened
from .operation import Operation, Result, Settings


def look(
    operation: Operation,
    settings: Settings,
    inputs: dict[str, str],
    out: Path | None,
    partial: Path | None,
    options: dict[str, Any],
    quiet: bool,
) -> dict[str, Any]:
    """Apply an operation that changes no model; its report, or where its records were written."""
    from .progress import Progress

    if operation.gives == "records" and out is not None:
        require_ending(out)
        if page_beside(out).exists():
            raise BadInput(
                f"{page_beside(out)} already exists; what is finished is never overwritten", hint="another --out"
            )
    state = partial / STATE if partial else None
    unmoved = standing(model_folders(operation, inputs).values())
    found = opened(operation, settings, inputs, options)
    asked, settings = settings, resolved(settings, inputs, found)
    sources = described(inputs, found)
    overlap = asked != settings and settings.split == "all" and ledger.read(Path(inputs["model"]))  # type: ignore[attr-defined]
    unmoved()
    with Progress(operation.name, quiet, state, key_of(operation, asked, sources, options)) as log:
        if overlap:
            log.warn("all rows are scored: these data are not those of its training, but may hold rows of them")
        for role, one in found.items():
            if (
                role not in ("data", "against")
                and isinstance(one, Data)
                and held_out(Path(inputs["model"]), one) == "test"
            ):
                log.warn(
                    f"the model was trained with the data for {role}: what it knows by heart tells nothing of others"
                )
        result = operation.apply(settings, log, **found)
    report = {
        "operation": operation.name,
        "settings": settings.model_dump(),
        "inputs": sources,
        **(result.report or {}),
        **({"warnings": log.warnings} if log.warnings else {}),
    }
    if out is not None and partial is not None and is_main_process():
        write(result, report, partial, out)
    return report if result.records is None else answered(operation, result, log.warnings, out)


def write(result: Result, report: dict[str, Any], partial: Path, out: Path) -> None:
    """The records with, where something was drawn, a page beside them; else the report, as a page where `out` is called so."""
    from .report_page import report_page

    if result.records is None:
        page = out.suffix == ".html"
        text = report_page(report, result.charts) if page else json.dumps(report, indent=2, ensure_ascii=False) + "\n"
        write_text(partial / "result", text)
        return appear(partial / "result", out)
    write_records(result.records, partial / f"result{out.suffix}")
    appear(partial / f"result{out.suffix}", out)
    if result.charts:
        write_text(partial / "page", report_page(report, result.charts))
        appear(partial / "page", page_beside(out))


def page_beside(out: Path) -> Path:
    """Where the page of these records stands."""
    return out.with_name(f"{out.stem}.report.html")


def answered(operation: Operation, result: Result, warned: list[str], out: Path | None) -> dict[str, Any]:
    """Where the records were written, and what is known of them all; without a place the records themselves."""
    assert result.records is not None
    return {
        "operation": operation.name,
        "records": len(result.records),
        **({"out": str(out)} if out else {"answers": [jsonable(record) for record in result.records]}),
        **({"page": str(page_beside(out))} if out and result.charts else {}),
        **({"report": result.report} if result.report else {}),
        **({"warnings": warned} if warned and result.report else {}),
    }


def resolved(settings: Settings, inputs: dict[str, str], found: dict[str, Any]) -> Settings:
    """The settings with `auto` made plain where a split is asked for."""
    if getattr(settings, "split", None) == "auto" and "data" in found:
        return settings.model_copy(update={"split": held_out(Path(inputs["model"]), found["data"])})
    return settings


def held_out(folder: Path, data: Data) -> str:
    """`test` where the ledger says that the model was made with these data, else `all`."""
    seen = {entry.get("digest") for line in ledger.read(folder) for entry in line.get("inputs", [])}
    return "test" if data.digest in seen else "all"
