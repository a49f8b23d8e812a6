"""Finds families, operations and runtimes by name through entry points; nothing is imported before it is used.

A plug-in registers exactly as the built-in ones do: one line under `onnuri.families`, `onnuri.operations` or
`onnuri.runtimes` in its own package metadata.
"""

import ast
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import OnnuriError, UnknownName, propose

if TYPE_CHECKING:
    from .family import Family
    from .operation import Operation


@cache
def entries(axis: str) -> dict[str, EntryPoint]:
    """{name: entry point} of `families`, `operations` or `runtimes`. Two packages with one name are an error."""
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=f"onnuri.{axis}"):
        if entry.name in found and found[entry.name].value != entry.value:
            raise OnnuriError(
                f"two packages register the {axis} name '{entry.name}': {found[entry.name].value} and {entry.value}",
                hint="uninstall or rename one of them",
            )
        found[entry.name] = entry
    return found


def load(axis: str, name: str) -> Any:
    """The record registered under `name`. Raises UnknownName with the nearest names."""
    if name not in entries(axis):
        raise UnknownName(f"no {axis} entry is called '{name}'; {propose(name, entries(axis))}")
    return entries(axis)[name].load()


def family(name: str) -> "Family":
    return load("families", name)


def operation(name: str) -> "Operation":
    return load("operations", name)


def families() -> "list[Family]":
    return [family(name) for name in entries("families")]


def summary(axis: str, name: str) -> str:
    """The first line of the module's docstring, read without importing it (so that --help stays quick)."""
    package, _, module = entries(axis)[name].module.rpartition(".")
    origin = (find_spec(package).submodule_search_locations or [None])[0] if package else None  # type: ignore[union-attr]
    path = Path(origin, f"{module}.py") if origin else None
    if path is None or not path.exists():
        spec = find_spec(entries(axis)[name].module)
        path = Path(spec.origin) if spec and spec.origin else None
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) if path else None
    return (text or name).splitlines()[0]
