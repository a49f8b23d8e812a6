"""A recipe: a list of operations as YAML. Each step is cached by what went into it, resumable, and lands in one report.

A step's key is a digest of its operation, its settings, its data's fingerprint and its parents' keys. A step whose folder
carries that key and verifies is not run again; nothing heavy is imported to find that out.
"""

import json
import shutil
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from . import __version__, ledger, registry
from .errors import BadInput, BadSettings, UnknownName, propose

BUILT_IN = Path(__file__).parent / "recipes"
LARGEST = 2**20  # bytes of a recipe; a longer one is no recipe
RECIPE_KEYS = ("name", "data", "start", "answer", "fields", "steps")


@dataclass(frozen=True)
class Step:
    """One operation of a recipe: its settings, and its inputs as step names, folders or data sources."""

    name: str
    operation: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    key: str
    parents: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    name: str
    data: str
    options: dict[str, Any]
    steps: tuple[Step, ...]


def run_recipe(
    source: str, out: Path | None = None, changes: dict[str, Any] | None = None, quiet: bool = False
) -> dict[str, Any]:
    """Run every step that is not done yet and write `report.html`. What was finished before a fault stays finished."""
    began = time.perf_counter()
    recipe = read_recipe(source, changes or {})
    out = out or Path("runs") / recipe.name
    done = [finished(step, out) for step in recipe.steps]
    if not all(done):
        check_settings([step for step, line in zip(recipe.steps, done) if not line])
    lines = []
    for step in recipe.steps:
        lines.append(finished(step, out) or carry_out(step, recipe, out, quiet))
    write_report(recipe, lines, out, time.perf_counter() - began)
    steps = [summary(step, line, out, bool(was)) for step, line, was in zip(recipe.steps, lines, done)]
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
    if not path.exists():
        known = sorted(p.stem for p in BUILT_IN.glob("*.yaml"))
        raise UnknownName(f"there is no recipe '{source}'; {propose(source, known)}, or the path of a .yaml file")
    text = {**load_yaml(path), **changes}
    faults = [
        f"a recipe has no entry '{key}'; {propose(str(key), RECIPE_KEYS)}" for key in text if key not in RECIPE_KEYS
    ]
    faults += [f"a recipe needs '{key}'" for key in ("data", "steps") if not text.get(key)]
    if text.get("steps") and not isinstance(text["steps"], dict):
        faults.append("'steps' must be NAME: {OPERATION: {SETTING: VALUE}}, one below the other")
    if faults:
        raise BadInput(*(f"{path}: {fault}" for fault in faults))
    options = {key: text[key] for key in ("answer", "fields") if text.get(key)}
    steps: dict[str, Step] = {}
    for name, body in text["steps"].items():
        steps[str(name)] = read_step(str(name), body, text, options, steps, path)
    return Recipe(str(text.get("name") or path.stem), str(text["data"]), options, tuple(steps.values()))


def load_yaml(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST:
            raise BadInput(f"{path} is larger than a recipe can be")
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        raise BadInput(f"{path} is not a recipe: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise BadInput(f"{path} is not a recipe: it must be a mapping with data and steps")
    return value


def read_step(name: str, body: Any, recipe: dict, options: dict, before: dict[str, Step], path: Path) -> Step:
    """One step; `model` and `student` name earlier steps or folders, everything else is a setting."""
    if not isinstance(body, dict) or len(body) != 1 or not name.replace("-", "").replace("_", "").isalnum():
        raise BadInput(
            f"{path}: step '{name}' must be {{OPERATION: {{SETTING: VALUE}}}}, its name letters, digits, - and _"
        )
    operation, given = next(iter(body.items()))
    if operation not in registry.entries("operations"):
        raise UnknownName(
            f"{path}: step '{name}': there is no operation '{operation}'; "
            f"{propose(str(operation), registry.entries('operations'))}"
        )
    settings = dict(given or {})
    data = str(settings.pop("data", recipe["data"]))
    inputs = {role: str(settings.pop(role)) for role in ("model", "student") if settings.get(role)}
    if not before and "model" not in inputs:
        settings, inputs = begin(str(recipe.get("start") or ""), settings, inputs)
    parents = tuple(value for value in inputs.values() if value in before)
    identity = {role: before[value].key if value in before else fingerprint(value) for role, value in inputs.items()}
    key = sha256(
        ledger.canonical(
            {
                "operation": operation,
                "settings": settings,
                "inputs": identity,
                "data": fingerprint(data),
                "options": options,
                "version": __version__,
            }
        ).encode()
    ).hexdigest()
    return Step(name, operation, settings, {**inputs, "data": data}, key, parents)


def begin(start: str, settings: dict, inputs: dict) -> tuple[dict, dict]:
    """The first step begins with `start`: a kind of model, a folder, or both."""
    words = start.split()
    if words and words[0] in registry.entries("families"):
        settings = {"family": words.pop(0), **settings}
    return settings, {**inputs, **({"model": " ".join(words)} if words else {})}


def fingerprint(source: str) -> str:
    """What tells that a source is still the same, without reading it: names, sizes and times of its files."""
    path = Path(source)
    if not path.exists():
        return source
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    state = sha256(str(path.resolve()).encode())
    for file in files:
        stat = file.stat()
        state.update(f"{file}{stat.st_size}{stat.st_mtime_ns}".encode())
    return state.hexdigest()


def check_settings(steps: list[Step]) -> None:
    """Check the settings of every step that will run before the first one runs."""
    from . import plan

    faults = []
    for step in steps:
        try:
            plan.settings_of(registry.operation(step.operation), step.settings)
        except BadSettings as error:
            faults += [f"step '{step.name}' ({step.operation}): {fault}" for fault in error.faults]
    if faults:
        raise BadSettings(*faults)


# --------------------------------------------------------------------------------------------------------------- running


def finished(step: Step, out: Path) -> dict[str, Any] | None:
    """The step's ledger line if it was done with exactly these inputs and nothing in its folder was changed since."""
    folder = out / step.name
    try:
        lines = ledger.read(folder)
        same = bool(lines) and (out / ".keys" / step.name).read_text() == f"{step.key} {lines[-1]['digest']}"
        return lines[-1] if same and not ledger.verify(folder) else None
    except (BadInput, OSError, KeyError):
        return None


def carry_out(step: Step, recipe: Recipe, out: Path, quiet: bool) -> dict[str, Any]:
    """Run one step; its folder replaces an earlier one of other settings, which is kept as NAME.previous."""
    from .run import execute, write_whole

    folder = out / step.name
    if folder.exists():
        previous = out / f"{step.name}.previous"
        shutil.rmtree(previous, ignore_errors=True)
        folder.rename(previous)
    inputs = {role: str(out / value) if value in step.parents else value for role, value in step.inputs.items()}
    line = execute(step.operation, step.settings, inputs, folder, recipe.options, quiet)
    write_whole(out / ".keys" / step.name, f"{step.key} {line['digest']}")
    return line


def summary(step: Step, line: dict[str, Any], out: Path, cached: bool) -> dict[str, Any]:
    after = line.get("after") or {}
    return {
        "name": step.name,
        "operation": step.operation,
        "path": str(out / step.name),
        "cached": cached,
        "seconds": line["seconds"],
        "tensors": line["output"]["tensors"],
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


def write_report(recipe: Recipe, lines: list[dict], out: Path, seconds: float) -> None:
    """`report.html`, unless it was written from exactly these lines already."""
    mark = sha256("".join(line["digest"] for line in lines).encode()).hexdigest()
    page = out / "report.html"
    if page.exists() and (out / ".keys" / "report").exists() and (out / ".keys" / "report").read_text() == mark:
        return
    from . import machine
    from .report import recipe_page
    from .run import write_whole

    steps = [
        {"name": step.name, "operation": step.operation, "line": line, "path": str(out / step.name)}
        for step, line in zip(recipe.steps, lines)
    ]
    write_whole(
        page,
        recipe_page(
            recipe.name, steps, samples(recipe, out), sum(line["seconds"] for line in lines), machine.describe()
        ),
    )
    write_whole(out / ".keys" / "report", mark)


def samples(recipe: Recipe, out: Path) -> list[dict[str, Any]]:
    """The first test records: what was asked, what is true, what each model said."""
    from .answers import picture_of
    from .run import SAMPLES
    from .sources import open_data

    said = {
        step.name: json.loads(path.read_text(encoding="utf-8"))
        for step in recipe.steps
        if (path := out / step.name / "onnuri" / "samples.json").exists()
    }
    test = open_data(recipe.data, **recipe.options).split("test")
    asked = test[:SAMPLES].list()
    return [
        {
            "question": {k: v for k, v in record.items() if k != test.answer},
            "answer": record.get(test.answer or ""),
            "said": {
                name: {"answer": picture_of(rows[i]["answer"]), "score": top(rows[i])}
                for name, rows in said.items()
                if i < len(rows)
            },
        }
        for i, record in enumerate(asked)
    ]


def top(sample: dict[str, Any]) -> float | None:
    """The score of the answer given, where there is one per label."""
    scores = sample["scores"]
    return scores.get(str(sample["answer"])) if isinstance(scores, dict) else None
