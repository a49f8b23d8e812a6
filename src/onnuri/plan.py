"""Checks a whole command before anything is spent: settings, folders, columns. All faults at once."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .data import Data, check_answers, check_fields
from .errors import BadInput, BadSettings, propose
from .model import Model
from .operation import Operation, Settings


def settings_of(operation: Operation, given: dict[str, Any]) -> Settings:
    """The operation's settings from plain values. BadSettings lists every fault with the right name or range."""
    known = operation.settings.model_fields
    try:
        return operation.settings(**given)
    except ValidationError as error:
        raise BadSettings(
            *(explain(fault, list(known)) for fault in error.errors()), hint=f"onnuri {operation.name} --help"
        ) from None


def explain(fault: Any, known: list[str]) -> str:
    name = ".".join(map(str, fault["loc"])) or "settings"
    if fault["type"] == "extra_forbidden":
        return f"there is no setting '{name}'; {propose(name, known)}"
    return f"setting '{name}': {fault['msg'][0].lower()}{fault['msg'][1:]}, found {fault['input']!r}"


def check_output(out: Path, overwrite: bool) -> None:
    """The place of the result must be free, and writable."""
    if out.exists() and not overwrite:
        raise BadInput(f"{out} already exists; what is finished is never overwritten", hint="another --out")
    parent = next(p for p in [out.parent, *out.parent.parents] if p.exists())
    if not parent.is_dir():
        raise BadInput(f"{parent} is not a folder")


def check_model_and_data(model: Model, data: Data) -> None:
    """The data must hold what the model asks for, and answers that it knows."""
    question, answer = model.family.fields(model.assets)
    has_answer = answer[0] in data.records.fields
    check_fields(data.records, question, answer if has_answer else None)
    labels = model.family.axis(model.assets)
    if has_answer and answer[1] == "category" and isinstance(labels, tuple):
        check_answers(data.records, answer[0], labels)
