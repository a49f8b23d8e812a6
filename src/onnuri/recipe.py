"""A recipe: a list of operations as YAML. Each step is cached by what went into it, resumable, and lands in one report.

A step's key is a digest of its operation, its settings, its data's fingerprint and its parents' keys. A step whose folder
carries that key and verifies is not run again; nothing heavy is imported to find that out.
"""

import json
import os
import shutil
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from . import __version__, ledger, registry
from .errors import BadInput, BadSettings, OnnuriError, UnknownName, propose
from .files import is_main_process, locked, partial_of, sweep, tidied, write_text, writing
from .plain_yaml import changed, load_yaml, plain

BUILT_IN = Path(__file__).parent / "recipes"
READING = ("answer", "fields", "window")
RECIPE_KEYS = ("name", "data", "start", *READING, "steps")
OURS = ("model", "student", "other", "questions", "against")
MADE = ("builtin:", "toy:")  # how the names of data begin that lie in no file
KEYS, REPORT_MARK, LOCK = ".keys", ".report", ".lock"  # no step can be called so


@dataclass(frozen=True)
class Step:
    """One operation of a recipe: its settings, and its inputs as step names, folders or data sources."""

    name: str
    operation: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    options: dict[str, Any]
    """How its data are read."""

    key: str
    parents: tuple[str, ...]

    def place(self, role: str, out: Path) -> str:
        """Where an input is, in a recipe whose results are in `out`."""
        value = self.inputs[role]
        return str(out / value) if value in self.parents else value


@dataclass(frozen=True)
class Recipe:
    name: str
    steps: tuple[Step, ...]


def run_recipe(
    source: str, out: Path | None = None, changes: dict[str, Any] | None = None, quiet: bool = False
) -> dict[str, Any]:
    """Run every step that is not done yet and write `report.html`. What was finished before a fault stays finished."""
    if not is_main_process() or os.environ.get("WORLD_SIZE", "1") != "1":
        raise BadSettings(
            "a recipe is run by one process", hint="torchrun the training step alone: torchrun -m onnuri train ..."
        )
    began = time.perf_counter()
    recipe = read_recipe(source, changes or {})
    out = out or Path("runs") / recipe.name
    done = [finished(step, out) for step in recipe.steps]
    lines = [line for line in done if line]
    if len(lines) < len(done):
        check_settings([step for step, line in zip(recipe.steps, done) if not line])
    if len(lines) < len(done) or not is_reported(lines, out) or is_littered(recipe, out):
        lines = completed(recipe, out, quiet)
    steps = [summary(step, line, out, line == was) for step, line, was in zip(recipe.steps, lines, done)]
    return {
        "recipe": recipe.name,
        "out": str(out),
        "report": str(out / "report.html"),
        "seconds": round(time.perf_counter() - began, 2),
        "steps": steps,
    }


# --------------------------------------------------------------------------------------------------------------- reading


def read_recipe(source: str, changes: dict[str, Any]) -> Recipe:
    """A recipe by built-in name or path, with its variables changed. All faults of its form at once."""
    path = Path(source) if Path(source).suffix in (".yaml", ".yml") else BUILT_IN / f"{source}.yaml"
    if not there(path):
        known = sorted(p.stem for p in BUILT_IN.glob("*.yaml"))
        raise UnknownName(f"there is no recipe '{source}'; {propose(source, known)}, or the path of a .yaml file")
    text = changed(load_yaml(path), plain(changes, path))
    if faults := form_faults(text):
        raise BadInput(*(f"{path}: {fault}" for fault in faults))
    options = {key: text[key] for key in READING if text.get(key)}
    steps: dict[str, Step] = {}
    faults = list[str]()
    for name, body in text["steps"].items():
        try:
            steps[name] = read_step(name, body, text, options, steps)
        except OnnuriError as error:
            faults += [f"{path}: step '{name}': {fault}" for fault in error.faults]
            steps[name] = Step(name, "", {}, {}, {}, "", ())  # so that the steps after it can name it
    if faults:
        raise BadInput(*faults)
    return Recipe(str(text.get("name") or path.stem), tuple(steps.values()))


def form_faults(text: dict[str, Any]) -> list[str]:
    """What is wrong with the entries of a recipe, before its steps are looked into."""
    faults = [f"a recipe has no entry '{key}'; {propose(key, RECIPE_KEYS)}" for key in text if key not in RECIPE_KEYS]
    faults += [f"a recipe needs '{key}'" for key in ("data", "steps") if not text.get(key)]
    faults += [
        f"'{key}' must be a text, found {text[key]!r}"
        for key in ("data", "start", "answer")
        if text.get(key) and not isinstance(text[key], str)
    ]
    if text.get("steps") and not isinstance(text["steps"], dict):
        faults.append("'steps' must be NAME: {OPERATION: {SETTING: VALUE}}, one below the other")
    if text.get("fields") and not isinstance(text["fields"], dict):
        faults.append("'fields' must be {COLUMN: KIND}")
    if text.get("name") and not is_name(str(text["name"])):
        faults.append(f"'name' must be letters, digits, - and _, found {text['name']!r}")
    return faults


def is_name(text: str) -> bool:
    """Whether a folder can safely be called so."""
    return len(text) <= 60 and text.replace("-", "").replace("_", "").isalnum()


def there(path: Path) -> bool:
    """Whether a path exists; one that no file could have does not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def read_step(name: str, body: Any, recipe: dict, options: dict, before: dict[str, Step]) -> Step:
    """One step; `model`, `student` and `other` name earlier steps or folders, `data`, `questions` and `against` earlier steps or
    data; whatever else names an earlier step is an input as well, and the rest are settings."""
    given = next(iter(body.values())) or {} if isinstance(body, dict) and len(body) == 1 else None
    if not isinstance(given, dict) or not is_name(name):
        raise BadInput("it must be {OPERATION: {SETTING: VALUE}}, its name letters, digits, - and _")
    operation = next(iter(body))
    if operation not in registry.entries("operations"):
        raise UnknownName(f"there is no operation '{operation}'; {propose(operation, registry.entries('operations'))}")
    settings = dict(given)
    data = str(settings.pop("data", recipe["data"]))
    own = {name: settings.pop(name) for name in READING if name in settings}
    options = {name: value for name, value in {**options, **own}.items() if value}
    steps = [key for key, value in settings.items() if isinstance(value, str) and value in before]
    roles = dict.fromkeys([*OURS, *steps])  # those of ours may name folders, too
    inputs = {role: str(settings.pop(role)) for role in roles if settings.get(role)}
    if not before and "model" not in inputs:
        settings, inputs = begin(str(recipe.get("start") or ""), settings, inputs)
    faults = [
        f"its {role} '{value}' is no step before it and no folder; {propose(value, before)}"
        for role, value in inputs.items()
        if value not in before and not there(Path(value)) and not value.startswith(MADE)
    ]
    if data not in before and not there(Path(data)) and not data.startswith(MADE):
        faults.append(f"its data '{data}' are no step before it and do not exist")
    if faults:
        raise BadInput(*faults)
    parents = tuple(value for value in (*inputs.values(), data) if value in before)
    known = {role: before[value].key if value in before else fingerprint(value) for role, value in inputs.items()}
    key = sha256(
        ledger.canonical(
            {
                "operation": operation,
                "settings": settings,
                "inputs": known,
                "data": before[data].key if data in before else fingerprint(data),
                "options": options,
                "version": __version__,
            }
        ).encode()
    ).hexdigest()
    return Step(name, operation, settings, {**inputs, "data": data}, options, key, parents)


def begin(start: str, settings: dict, inputs: dict) -> tuple[dict, dict]:
    """The first step begins with `start`: a kind of model, a folder, or both."""
    words = start.split()
    if words and words[0] in registry.entries("families"):
        family = words.pop(0)
        settings = {"family": family, **({"new_head": True} if words else {}), **settings}
    return settings, {**inputs, **({"model": " ".join(words)} if words else {})}


def fingerprint(source: str) -> str:
    """What tells that a source is still the same, without reading it: names, sizes and times of its files."""
    path = Path(source)
    if not there(path):
        return source
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    state = sha256(str(path.resolve()).encode())
    for file in files:
        stat = file.stat()
        state.update(f"{file}{stat.st_size}{stat.st_mtime_ns}".encode())
    return state.hexdigest()


def check_settings(steps: list[Step]) -> None:
    """Check the settings of every step that will run, and that it makes a model, before the first one runs."""
    from . import plan
    from .run import require_inputs

    faults = []
    for step in steps:
        operation = registry.operation(step.operation)
        if operation.gives not in ("model", "data"):
            faults.append(
                f"step '{step.name}': {step.operation} makes no model and no data, which a later step could use"
            )
        try:
            require_inputs(operation, step.inputs, Path(step.name))
            plan.settings_of(operation, step.settings)
        except OnnuriError as error:
            faults += [f"step '{step.name}' ({step.operation}): {fault}" for fault in error.faults]
    if faults:
        raise BadSettings(*faults)


# --------------------------------------------------------------------------------------------------------------- running


def finished(step: Step, out: Path) -> dict[str, Any] | None:
    """The step's ledger line if it was done with exactly these inputs and nothing in its folder was changed since."""
    folder = out / step.name
    try:
        lines = ledger.read(folder)
        mark = (out / KEYS / step.name).read_text()
        same = bool(lines) and mark in (step.key, f"{step.key} {lines[-1]['digest']}")
        return lines[-1] if same and not ledger.verify(folder) and follows(step, lines[-1], out) else None
    except (BadInput, OSError, UnicodeDecodeError):
        return None


def follows(step: Step, line: dict[str, Any], out: Path) -> bool:
    """Whether the line was made from the parents that lie there now, and not from earlier ones of the same key."""
    made_from = {entry["role"]: entry.get("folder", entry["digest"]) for entry in line["inputs"]}
    parents = {role: out / name for role, name in step.inputs.items() if name in step.parents}
    return all(made_from.get(role) == ledger.folder_digest(folder) for role, folder in parents.items())


def places_of(recipe: Recipe, out: Path) -> list[Path]:
    """All that a recipe writes."""
    names = [step.name for step in recipe.steps]
    return [
        out / "report.html",
        *(out / name for name in names),
        *(out / KEYS / name for name in (*names, REPORT_MARK)),
    ]


def is_littered(recipe: Recipe, out: Path) -> bool:
    """Whether a killed process left something unfinished beside what the recipe writes."""
    return any(map(os.path.lexists, [out / KEYS / LOCK, *map(partial_of, places_of(recipe, out))]))


def completed(recipe: Recipe, out: Path, quiet: bool) -> list[dict[str, Any]]:
    """Run what is not done and write the report, as the only process in `out`. The ledger lines."""
    keys = out / KEYS
    with writing(out), tidied(keys), locked(keys / LOCK, out):
        for place in places_of(recipe, out):
            sweep(place)
        lines = carried_out(recipe, out, quiet)
        write_report(recipe, lines, out)
    return lines


def carried_out(recipe: Recipe, out: Path, quiet: bool) -> list[dict[str, Any]]:
    """The ledger line of every step, after running those that are not done. Nobody else may be at work in `out`."""
    return [finished(step, out) or carry_out(step, out, quiet) for step in recipe.steps]


def carry_out(step: Step, out: Path, quiet: bool) -> dict[str, Any]:
    """Run one step; its folder replaces an earlier one of other settings, which is kept as NAME.previous.

    Its key is noted when no folder is there: one that appears from then on is this step's, even if the process is killed
    before the key can be bound to the digest of the folder.
    """
    from .run import execute

    folder = out / step.name
    if folder.exists():
        previous = out / f"{step.name}.previous"
        shutil.rmtree(previous, ignore_errors=True)
        folder.rename(previous)
    inputs = {role: step.place(role, out) for role in step.inputs}
    note = out / KEYS / step.name
    write_text(note, step.key)
    try:
        line = execute(step.operation, step.settings, inputs, folder, step.options, quiet)
    except OnnuriError as error:
        error.found_in(f"step '{step.name}' ({step.operation})")
        raise
    finally:
        if not folder.exists():
            note.unlink(missing_ok=True)
    write_text(note, f"{step.key} {line['digest']}")
    return line


def summary(step: Step, line: dict[str, Any], out: Path, cached: bool) -> dict[str, Any]:
    after = line.get("after") or {}
    return {
        "name": step.name,
        "operation": step.operation,
        "path": str(out / step.name),
        "cached": cached,
        "seconds": line["seconds"],
        "tensors": line["output"].get("tensors"),
        **({"found": line["found"]["summary"]} if line.get("found") else {}),
        **{
            key: after.get(key)
            for key in (
                "headline",
                "scores",
                "interval",
                "bytes",
                "parameters",
                "latency_ms",
                "energy_per_1000",
                "runtime",
            )
        },
    }


# ---------------------------------------------------------------------------------------------------------------- report


def mark_of(lines: list[dict[str, Any]]) -> str:
    return sha256("".join(line["digest"] for line in lines).encode()).hexdigest()


def is_reported(lines: list[dict[str, Any]], out: Path) -> bool:
    """Whether `report.html` was written from exactly these lines."""
    note = out / KEYS / REPORT_MARK
    return (out / "report.html").exists() and note.exists() and note.read_bytes() == mark_of(lines).encode()


def write_report(recipe: Recipe, lines: list[dict[str, Any]], out: Path) -> None:
    """`report.html`, unless it was written from exactly these lines already."""
    if is_reported(lines, out):
        return
    from . import machine
    from .report import recipe_page

    steps = [
        {"name": step.name, "operation": step.operation, "line": line, "path": str(out / step.name)}
        for step, line in zip(recipe.steps, lines)
    ]
    seconds = sum(line["seconds"] for line in lines)
    page = recipe_page(recipe.name, steps, samples(recipe, out), seconds, machine.describe())
    write_text(out / "report.html", page)
    write_text(out / KEYS / REPORT_MARK, mark_of(lines))


def samples(recipe: Recipe, out: Path) -> list[dict[str, Any]]:
    """The first test records of the data that the last model was measured on: what was asked, what is true, what each model
    that was measured on the same said."""
    from .answers import picture_of
    from .run import SAMPLES
    from .sources import open_data

    paths = [(step, out / step.name / "onnuri" / "samples.json") for step in recipe.steps]
    measured = [(step, path) for step, path in paths if path.exists()]
    if not measured:
        return []
    last = measured[-1][0]
    asked = {"data": last.inputs["data"], **last.options}
    said = {
        step.name: json.loads(path.read_text(encoding="utf-8"))
        for step, path in measured
        if {"data": step.inputs["data"], **step.options} == asked
    }
    test = open_data(last.place("data", out), **last.options).split("test")
    return [
        {
            "question": {k: v for k, v in record.items() if k != test.answer},
            "answer": record.get(test.answer or ""),
            "kind": test.fields.get(test.answer or ""),
            "said": {
                name: {"answer": picture_of(rows[i]["answer"]), "score": top(rows[i])}
                for name, rows in said.items()
                if i < len(rows)
            },
        }
        for i, record in enumerate(test.some(SAMPLES).list())
    ]


def top(sample: dict[str, Any]) -> float | None:
    """The score of the answer given, where there is one per label."""
    scores = sample["scores"]
    return scores.get(str(sample["answer"])) if isinstance(scores, dict) else None
