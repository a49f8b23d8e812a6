"""Checks a whole command before anything is spent: settings, folders, columns. All faults at once."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .errors import BadInput, BadSettings, UnknownName, propose
from .operation import Operation, Settings


def settings_of(operation: Operation, given: dict[str, Any]) -> Settings:
    """The operation's settings from plain values. BadSettings lists every fault with the right name or range."""
    known, help_ = [*operation.settings.model_fields, *operation.takes], f"onnuri {operation.name} --help"
    try:
        return operation.settings.model_validate({str(name): value for name, value in given.items()})
    except ValidationError as error:
        raise BadSettings(*(explain(fault, known) for fault in error.errors()), hint=help_) from None
    except (BadSettings, UnknownName) as error:  # of others whom the settings have asked
        raise BadSettings(*error.faults, hint=error.hint or help_) from None


def explain(fault: Any, known: list[str]) -> str:
    name = ".".join(map(str, fault["loc"]))
    if not fault["loc"]:
        return str(fault["ctx"]["error"])  # of several settings together
    if fault["type"] == "extra_forbidden":
        return f"there is no setting '{name}'; {propose(name, known)}"
    return f"setting '{name}': {fault['msg'][0].lower()}{fault['msg'][1:]}, found {repr(fault['input'])[:80]}"


def check_output(out: Path, inputs: Iterable[str]) -> None:
    """The place of the result must be free, have a name of its own, and lie outside every folder that is read."""
    if os.path.lexists(out):  # a link that leads nowhere is there as well
        raise BadInput(f"{out} already exists; what is finished is never overwritten", hint="another --out")
    if out.name in ("", ".."):
        raise BadInput(f"{out} is no name for a result", hint="--out runs/NAME")
    check_parent(out)
    for source in map(Path, inputs):
        if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
            raise BadInput(f"{out} lies inside {source}, which would be changed by it", hint="an --out beside it")


def check_parent(out: Path) -> None:
    """The folder of a result, or the nearest one that is there, takes new files."""
    parent = next(p for p in [out.parent, *out.parent.parents] if p.exists())
    if not parent.is_dir():
        raise BadInput(f"{parent} is not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise BadInput(f"{out} cannot be written: {parent} may only be read", hint="another --out")
