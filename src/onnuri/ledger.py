"""The evidence: what was done to a model, from what, at what cost, with what result. A chain that verifies.

`onnuri/ledger.jsonl` in each model folder holds one line per operation, the parents' lines first. A line carries the
digest of the line before it and of every file of the folder as it was written, so that a changed byte anywhere is found.
Imports no torch: showing and verifying must be instant, and must work on a folder that no longer opens.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from .errors import BadInput

FILE = "onnuri/ledger.jsonl"
Line = dict[str, Any]


def read(folder: Path) -> list[Line]:
    """The lines of a folder's ledger, [] where it has none. BadInput when a line is no JSON object."""
    path = folder / FILE
    if not path.exists():
        return []
    lines = []
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {error}") from error
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise BadInput(f"{path} line {number} is not JSON: {error}") from error
        if not isinstance(line, dict):
            raise BadInput(f"{path} line {number} is not a JSON object")
        lines.append(line)
    return lines


def write(folder: Path, lines: list[Line], line: Line) -> Line:
    """Append `line`, sealed, to the parents' `lines` and write the ledger into `folder`; the sealed line."""
    sealed = {**line, "previous": lines[-1]["digest"] if lines else None}
    sealed["digest"] = digest(sealed)
    path = folder / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(canonical(each) + "\n" for each in [*lines, sealed]), encoding="utf-8")
    return sealed


def canonical(line: Line) -> str:
    """One spelling for each value: sorted keys, no blanks."""
    return json.dumps(line, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(line: Line) -> str:
    """sha256 of a line without its own digest."""
    return hashlib.sha256(canonical({k: v for k, v in line.items() if k != "digest"}).encode()).hexdigest()


def file_digests(folder: Path) -> dict[str, str]:
    """{path inside: sha256} of every file but the ledger itself."""
    return {
        str(p.relative_to(folder)): file_digest(p)
        for p in sorted(folder.rglob("*"))
        if p.is_file() and str(p.relative_to(folder)) != FILE
    }


def file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(folder: Path) -> list[str]:
    """[] when nothing was changed since the last operation; else every fault found."""
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder", hint="name a model folder")
    lines = read(folder)
    if not lines:
        raise BadInput(
            f"{folder} has no ledger ({FILE}), so nothing can be verified", hint="folders that Onnuri wrote have one"
        )
    faults = []
    for number, line in enumerate(lines):
        if line.get("digest") != digest(line):
            faults.append(f"ledger line {number + 1} was changed")
        if line.get("previous") != (lines[number - 1].get("digest") if number else None):
            faults.append(f"ledger line {number + 1} does not follow the line before it")
    output = lines[-1].get("output")
    stated = output.get("files", {}) if isinstance(output, dict) else {}
    return faults + compare(stated, file_digests(folder))


def compare(stated: dict[str, str], found: dict[str, str]) -> list[str]:
    faults = [f"{name} is missing" for name in stated if name not in found]
    faults += [f"{name} was changed" for name in stated if name in found and stated[name] != found[name]]
    return faults + [f"{name} was added" for name in found if name not in stated]


def folder_digest(folder: Path) -> str:
    """One digest for a whole model folder: the ledger's own where it has one, else of all files."""
    lines = read(folder)
    return str(lines[-1]["digest"]) if lines else digest({"files": file_digests(folder)})
