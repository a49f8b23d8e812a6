"""An operation carried out on a bench directly (`apply`), without its evidence, and what was seen of it.

What it did is seen in its outcome: the digest of the model or of the records, each figure of a report, curves, warnings, how
often it said how far it is or kept its state; or the words by which it said no.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from .. import ledger, plan, run
from ..answers import jsonable
from ..data import Record
from ..errors import OnnuriError
from ..files import fresh_folder
from ..look import resolved
from ..model import Model, tensor_digest, write_model
from ..operation import Operation, Quiet, Result
from ..weights.matrices import Weight, weights
from .bench import Bench
from .subject import gap

UNCHANGED = 1e-5  # relative: well above rounding, well below what six steps of training do
NUMBER = re.compile(r"[-+]?\d[\d.,]*(e[-+]?\d+)?")
Outcome = dict[str, str]


class Listening(Quiet):
    """A log that counts what an operation said."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = self.states = 0

    def progress(self, done: int, total: int, text: str = "") -> None:
        self.steps += 1

    def save_state(self, tensors: dict, facts: dict) -> None:
        self.states += 1


@dataclass
class Trial:
    """An operation on a bench. `on`: the model that it takes where the first one is refused."""

    operation: Operation
    bench: Bench
    on: Path | None = None
    known: dict[str, Outcome] = field(default_factory=dict)

    def outcome(self, settings: dict[str, Any], again: bool = False) -> Outcome:
        """What comes of these settings, or what comes of them `again`; each carried out once."""
        key = json.dumps([settings, again], sort_keys=True, default=str)
        if key not in self.known:
            self.known[key] = self.carried_out(settings)
        return self.known[key]

    def carried_out(self, settings: dict[str, Any]) -> Outcome:
        inputs, log = self.bench.inputs(self.operation, self.on), Listening()
        try:
            with run.limited_warnings():
                chosen = plan.settings_of(self.operation, settings)
                found = run.opened(self.operation, chosen, inputs, {})
                before = {role: snapshot(value) for role, value in found.items() if isinstance(value, Model)}
                result = self.operation.apply(resolved(chosen, inputs, found), log, **found)
                seen = self.seen(result)
        except OnnuriError as error:
            return {"refusal": f"{type(error).__name__}: {error}"}
        said = {
            "warnings": log.warnings,
            "number of warnings": len(log.warnings),
            "progress": log.steps,
            "states": log.states,
        }
        said |= {"spoiled": spoiled(before, found, result), "touched": json.dumps(touched(before, result))}
        return seen | {name: str(value) for name, value in said.items()}

    def seen(self, result: Result) -> Outcome:
        """A result as texts that can be compared: a model by its tensors and by what is written of it."""
        found = {"curves": str(result.curves), "findings": str(result.findings)}
        if result.model is not None:
            found["tensors"] = tensor_digest(result.model.net)
            folder = fresh_folder(self.bench.folder / "trial")
            write_model(result.model, folder)
            written = [path for path in folder.rglob("*") if path.is_file()]
            found |= {f"file {path.relative_to(folder)}": content(path) for path in written}
        if result.records is not None:
            found["records"] = digest_of(result.records)
        if result.parts is not None:
            parts = list(result.parts)  # the report is filled in with the last of them
            found["records"] = digest_of([record for part in parts for record in part.kept])
            found["removed"] = digest_of([record for part in parts for record in part.removed])
        for name, value in (result.report or {}).items():
            found |= {f"figure {name}": str(value), f"form of {name}": NUMBER.sub("#", str(value))}
        return found


def digest_of(records: list[Record]) -> str:
    rows = [{name: jsonable(value) for name, value in row.items()} for row in records]
    return hashlib.sha256(json.dumps(rows, default=str).encode()).hexdigest()


def content(path: Path) -> str:
    """A digest of what a file holds. safetensors writes its metadata in any order, so that equal files differ in bytes."""
    if path.suffix != ".safetensors":
        return ledger.file_digest(path)
    with safe_open(path, framework="pt") as file:
        state = hashlib.sha256(json.dumps(file.metadata(), sort_keys=True).encode())
        for name in sorted(file.keys()):
            value = file.get_tensor(name)
            state.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            state.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def snapshot(model: Model) -> tuple[str, dict[str, Weight]]:
    """The digest of a model's tensors, and its weights with their numbers as they are now."""
    found = weights(model.net)
    for weight in found:
        weight.__dict__["matrix"] = weight.matrix.clone()  # the cached view of a tensor that may change
    return tensor_digest(model.net), {weight.name: weight for weight in found}


def touched(before: dict[str, tuple[str, dict[str, Weight]]], result: Result) -> dict[str, tuple[list[str], list[str]]]:
    """{role: (weights that changed, weights that did not)} of the first model; {} where the result has other weights."""
    if result.model is None or not before:
        return {}
    old = next(iter(before.values()))[1]
    new = {weight.name: weight for weight in weights(result.model.net)}
    found: dict[str, tuple[list[str], list[str]]] = {}
    for name, weight in old.items() if old.keys() == new.keys() else ():
        same = gap(weight.matrix, new[name].matrix) <= UNCHANGED
        if not same or varies(weight):
            found.setdefault(weight.role, ([], []))[same].append(name)
    return found


def varies(weight: Weight) -> bool:
    """Whether a weight holds more than one number: nothing shows in one that does not."""
    return bool((weight.matrix != weight.matrix.flatten()[0]).any())


def spoiled(before: dict[str, tuple[str, dict[str, Weight]]], found: dict[str, Any], result: Result) -> str:
    """The models that were changed by an operation that only looks."""
    looked = before if result.model is None else {}
    return ", ".join(role for role in looked if tensor_digest(found[role].net) != before[role][0])
