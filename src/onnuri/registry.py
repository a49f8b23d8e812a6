"""Finds families, operations and runtimes by name through entry points; nothing is imported before it is used.

A plug-in registers exactly as the built-in ones do: one line under `onnuri.families`, `onnuri.operations` or
`onnuri.runtimes` in its own package metadata. What is wrong with a plug-in is said with its package's name.
"""

import ast
import re
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin

from .errors import BadInput, OnnuriError, UnknownName, propose

if TYPE_CHECKING:
    from .family import Family
    from .operation import Operation
    from .runtime import Runtime

RECORDS = {
    "families": ("family", "Family"),
    "operations": ("operation", "Operation"),
    "runtimes": ("runtime", "Runtime"),
}
"""{axis: module and class of its records}"""

ONE_OF = {"families": "family", "operations": "operation", "runtimes": "runtime"}


@cache
def entries(axis: str) -> dict[str, EntryPoint]:
    """{name: entry point} of `families`, `operations` or `runtimes`. Two packages with one name are an error."""
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=f"onnuri.{axis}"):
        if entry.name in found and found[entry.name].value != entry.value:
            first, second = found[entry.name], entry
            raise BadInput(
                f"two packages register the {axis} name '{entry.name}': "
                f"{package_of(first)} ({first.value}) and {package_of(second)} ({second.value})",
                hint=f"pip uninstall {package_of(second if package_of(second) != 'onnuri' else first)}, or rename its entry",
            )
        found[entry.name] = entry
    return found


def package_of(entry: EntryPoint) -> str:
    """The distribution that registers an entry; its import name where the metadata do not say."""
    return entry.dist.name if entry.dist else entry.module.partition(".")[0]


def load(axis: str, name: str) -> Any:
    """The record registered under `name`, checked. UnknownName with the nearest names; BadInput, with the package and
    all that is wrong, for one that cannot be imported or is no complete record."""
    if name not in entries(axis):
        raise UnknownName(f"there is no {ONE_OF.get(axis, axis)} '{name}'; {propose(name, entries(axis))}")
    entry = entries(axis)[name]
    try:
        record = entry.load()
    except OnnuriError:
        raise
    except Exception as error:  # whatever a stranger's module stumbles over when it is imported
        raise broken(axis, entry, reason_of(error)) from error
    if faults := faults_of(axis, name, record):
        raise broken(axis, entry, *faults)
    return record


def broken(axis: str, entry: EntryPoint, *faults: str) -> BadInput:
    """The error for a plug-in that cannot be used."""
    package = package_of(entry)
    told = f"{package}: '{entry.name}' of onnuri.{axis} ({entry.value})"
    return BadInput(*(f"{told} {fault}" for fault in faults), hint=f"pip uninstall {package}, or another version of it")


def reason_of(error: Exception) -> str:
    """Why a module could not be imported, in words; of a record that was not filled in all that it lacks."""
    text = str(error)
    if isinstance(error, TypeError) and "__init__() missing" in text:
        lacks = re.findall(r"'(\w+)'", text.partition("missing")[2])
        return f"is an incomplete record: it lacks {', '.join(lacks)}"
    return f"cannot be imported: {type(error).__name__}: {(text or 'no reason given').splitlines()[0]}"


def faults_of(axis: str, name: str, record: Any) -> list[str]:
    """[] when `record` is a complete record of its axis under its own name; else everything that is wrong with it."""
    module, name_of_class = RECORDS[axis]
    kind = getattr(import_module(f".{module}", __package__), name_of_class)
    if not isinstance(record, kind):
        return [f"is no {kind.__name__}, but {type(record).__name__}"]
    facts = {field.name: field.type for field in fields(record)}
    faults = [
        f"is an incomplete record: '{fact}' must be {words_of(wanted)}, found {value!r:.60}"
        for fact, wanted in facts.items()
        if not fits(value := getattr(record, fact, None), wanted)
    ]
    if not faults and record.name != name:
        faults.append(f"calls itself '{record.name}': a record and its entry must have one name")
    return faults


def fits(value: Any, wanted: Any) -> bool:
    """Whether a value is of a kind that an annotation says; an empty text is none."""
    return value != "" and any(not isinstance(kind, type) or isinstance(value, kind) for kind in kinds_of(wanted))


def kinds_of(wanted: Any) -> list[Any]:
    """The classes that an annotation names, one or several."""
    either = get_args(wanted) if isinstance(wanted, UnionType) else (wanted,)
    return [get_origin(one) or one for one in either]


def words_of(wanted: Any) -> str:
    names = {str: "text", Callable: "a function", type: "a class", NoneType: "None"}
    return " or ".join(names.get(kind, f"a {kind.__name__}") for kind in kinds_of(wanted))


def family(name: str) -> "Family":
    return load("families", name)


def operation(name: str) -> "Operation":
    return load("operations", name)


def runtime(name: str) -> "Runtime":
    return load("runtimes", name)


def families() -> "list[Family]":
    """Every family that can be used: a plug-in that is broken must not keep the models of the others from being opened."""
    return [family(name) for name in entries("families") if not fault_of("families", name)]


def fault_of(axis: str, name: str) -> str:
    """What is wrong with the record registered under `name`; "" where it can be used."""
    try:
        load(axis, name)
    except OnnuriError as error:
        return str(error)
    return ""


def summary(axis: str, name: str) -> str:
    """The first line of the module's docstring, read without importing it (so that --help stays quick); of a module that
    is not there or cannot be read what is the matter with it."""
    entry = entries(axis)[name]
    try:
        path = source_of(entry.module)
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) if path else None
    except Exception as error:  # to look up a package is to import it, and a stranger's may stumble over anything
        return f"cannot be read ({type(error).__name__}): pip uninstall {package_of(entry)}"
    return (text or name).splitlines()[0]


def source_of(name: str) -> Path | None:
    """The file of a module; its package is looked up, and the module itself only where that does not lie beside it."""
    package, _, module = name.rpartition(".")
    origin = (find_spec(package).submodule_search_locations or [None])[0] if package else None  # type: ignore[union-attr]
    path = Path(origin, f"{module}.py") if origin else None
    if path is None or not path.exists():
        spec = find_spec(name)
        path = Path(spec.origin) if spec and spec.origin else None
    return path
