"""The evidence: what was done to a model, from what, at what cost, with what result. A chain that verifies.

`onnuri/ledger.jsonl` in each model folder holds one line per operation, the parents' lines first. A line carries the
digest of the line before it and of every file of the folder as it was written, so that a changed byte anywhere is found.
Imports no torch: showing and verifying must be instant, and must work on a folder that no longer opens.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .errors import BadInput

FILE = "onnuri/ledger.jsonl"
Line = dict[str, Any]


def is_number(value: Any) -> bool:
    """A number that can be computed with."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def is_measured(value: Any) -> bool:
    """Nothing, or scores that are numbers, one of which is the headline."""
    if value is None:
        return True
    if not fits(value, {"headline": [str], "scores": dict}) or not all(map(is_number, value["scores"].values())):
        return False
    return len(value["headline"]) == 2 and value["headline"][0] in value["scores"]


def is_result(value: Any) -> bool:
    """What was measured of a result, with its interval."""
    return is_measured(value) and fits(value, AFTER) and len(value["interval"]) == 2


def are_measured(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_measured, value.values()))


AFTER = {
    "interval": [is_number],
    "interval_method": str,
    "bytes": is_number,
    "parameters": is_number,
    "records": is_number,
}
BASE = {"path": str, "digest": str}
FOUND = {
    "summary": str,
    "documents": {"read": is_number, "kept": is_number},
    "removed": dict,
    "edited": dict,
    "scores": dict,
    "languages": dict,
    "rules": {"bounds": dict},
    "examples": dict,
}
LICENSE = {
    "name": str,
    "parents": [{"path": str, "id": str, "name": str, "link": str}],
    "permitted": dict,
    "conditions": [str],
    "conflicts": [str],
    "front": dict,
    "advice": str,
}
SHAPE = {
    "digest": str,
    "operation": str,
    "family": str,
    "task": str,
    "started": str,
    "settings": dict,
    "inputs": [{"role": str, "path": str}],
    "output": dict,
    "energy": {"joules": is_number, "error": is_number},
    "promises": [{"text": str, "value": is_number, "kept": bool}],
    "findings": [{"name": str, "evidence": str}],
    "seconds": is_number,
}
"""What every line holds: card, timeline and recipe read it unasked."""
MORE = {
    "after": is_result,
    "before": is_measured,
    "parents": are_measured,
    "license": LICENSE,
    "warnings": [str],
    "found": FOUND,
}
"""What a line holds besides where it has these: a result that was measured, licenses since they are recorded."""


def read(folder: Path) -> list[Line]:
    """The lines of a folder's ledger, [] where it has none. BadInput when a line is no JSON object of a line's shape."""
    path = folder / FILE
    if not path.exists():
        return []
    lines = []
    for number, text in enumerate(texts_of(path), 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{path} line {number} is not JSON: {error}") from error
        if not isinstance(line, dict):
            raise BadInput(f"{path} line {number} is not a JSON object")
        shape = SHAPE | {name: part for name, part in MORE.items() if line.get(name) is not None}
        if wrong := [name for name, part in shape.items() if not fits(line.get(name), part)]:
            raise BadInput(f"{path} line {number} is no ledger line: {', '.join(wrong)} missing or of the wrong type")
        lines.append(line)
    return lines


def fits(value: Any, shape: Any) -> bool:
    """Whether a JSON value has a shape: a type, a function that knows, {name: shape} or [shape of every entry]."""
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(fits(value.get(name), part) for name, part in shape.items())
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(entry, shape[0]) for entry in value)
    return isinstance(value, shape) if isinstance(shape, type) else shape(value)


def texts_of(path: Path) -> list[str]:
    """The lines as text. Only a line feed ends one: JSON may hold every other character that Python would split at."""
    try:
        return path.read_bytes().decode("utf-8", "surrogatepass").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {error}") from error


def write(folder: Path, lines: list[Line], line: Line) -> Line:
    """Append `line`, sealed, to the parents' `lines` and write the ledger into `folder`; the sealed line."""
    sealed = {**line, "previous": lines[-1]["digest"] if lines else None}
    sealed["digest"] = digest(sealed)
    path = folder / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded("".join(canonical(each) + "\n" for each in [*lines, sealed])))
    return sealed


def canonical(line: Line) -> str:
    """One spelling for each value: sorted keys, no blanks."""
    return json.dumps(line, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def encoded(text: str) -> bytes:
    """UTF-8, also for the halves of characters that stand in file names of another encoding."""
    return text.encode("utf-8", "surrogatepass")


def digest(line: Line) -> str:
    """sha256 of a line without its own digest."""
    return hashlib.sha256(encoded(canonical({k: v for k, v in line.items() if k != "digest"}))).hexdigest()


def file_digests(folder: Path) -> dict[str, str]:
    """{path inside: sha256} of everything in the folder but folders and the ledger itself."""
    inside = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_symlink() or not p.is_dir()}
    inside.pop(FILE, None)
    with ThreadPoolExecutor() as threads:  # hashing leaves the interpreter to others
        return dict(zip(inside, threads.map(file_digest, inside.values())))


def file_digest(path: Path) -> str:
    if not path.is_file():
        return "no file"
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(folder: Path) -> list[str]:
    """[] when nothing was changed since the last operation; else every fault found.

    Found for certain: any change of a byte in any file of the folder, the card, the reports and the ledger included; a file
    that was added, removed or renamed; a line of the ledger that was changed, removed or moved; of an adapter, the same in
    its base. Not looked at: times, permissions and empty folders, and the data. Whoever rewrites the whole ledger with all
    its digests makes another evidence that verifies as well: compare the last digest with one that was kept elsewhere.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder", hint="name a model folder")
    lines = read(folder)
    if not lines:
        raise BadInput(
            f"{folder} has no ledger ({FILE}), so nothing can be verified", hint="folders that Onnuri wrote have one"
        )
    return faults_of(folder, lines) + base_faults(folder, lines[-1]["output"].get("base"))


def faults_of(folder: Path, lines: list[Line]) -> list[str]:
    """What was changed in the folder itself."""
    faults = []
    for number, (line, text) in enumerate(zip(lines, texts_of(folder / FILE))):
        if line["digest"] != digest(line) or canonical(line) != text:
            faults.append(f"ledger line {number + 1} was changed")
        if line.get("previous") != (lines[number - 1]["digest"] if number else None):
            faults.append(f"ledger line {number + 1} does not follow the line before it")
    if not (folder / FILE).read_bytes().endswith(b"\n"):
        faults.append("the end of the ledger was changed")
    stated = lines[-1]["output"].get("files")
    return faults + compare(stated if isinstance(stated, dict) else {}, file_digests(folder))


def base_faults(folder: Path, stated: Any) -> list[str]:
    """What was changed in the base that a model needs, `stated` as {path, digest}. The base lies where it lay, or beside
    the model under the same name."""
    if not fits(stated, BASE):
        return []
    places = [Path(stated["path"]), folder.resolve().parent / Path(stated["path"]).name]
    base = next((place for place in places if place.is_dir()), None)
    if base is None:
        return [f"its base {stated['path']} is not here"]
    try:
        lines = read(base)
        faults = [f"its base {base}: {fault}" for fault in (faults_of(base, lines) if lines else [])]
        other = folder_digest(base) != stated["digest"]
    except BadInput as error:
        return [f"its base: {fault}" for fault in error.faults]
    return faults or ([f"its base {base} was changed or replaced"] if other else [])


def compare(stated: dict[str, str], found: dict[str, str]) -> list[str]:
    faults = [f"{name} is missing" for name in stated if name not in found]
    faults += [f"{name} was changed" for name in stated if name in found and stated[name] != found[name]]
    return faults + [f"{name} was added" for name in found if name not in stated]


def folder_digest(folder: Path) -> str:
    """One digest for a whole model folder: the ledger's own where it has one, else of all files."""
    lines = read(folder)
    return str(lines[-1]["digest"]) if lines else digest({"files": file_digests(folder)})
