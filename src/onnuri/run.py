"""The only place with side effects: open -> plan -> apply -> save -> reopen -> promises -> measure -> ledger -> appear.

A result is built beside its place, in `.NAME.partial`, and renamed when everything in it is on the disk: it appears whole
or not at all. The state of unfinished work is kept there too, so that the same command goes on where it was killed.
"""

import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from . import __version__, ledger, license, machine, plan, registry
from .data import Data
from .errors import BadInput, BrokenPromise
from .files import STATE, appear, fresh_folder, is_main_process, staging, write_text
from .operation import Operation, Promise, Result, Settings

SAMPLES = 24
"""Records whose answers are kept with each model, for people to look at."""


def execute(
    name: str,
    settings: dict[str, Any],
    inputs: Mapping[str, str | Path],
    out: str | Path | None = None,
    data_options: dict[str, Any] | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run the operation `name`. `inputs`: {input: folder or data source}. The ledger line, or the report.

    Raises an OnnuriError, with everything finished intact and the state of unfinished work kept for the next try.
    """
    operation = registry.operation(name)
    chosen = plan.settings_of(operation, settings)
    inputs = {role: str(where) for role, where in inputs.items()}
    out = Path(out) if out is not None else None
    require_inputs(operation, inputs, out)
    if out is not None:
        plan.check_output(out, inputs.values())
    with limited_warnings():
        if operation.gives != "model":
            return look(operation, chosen, inputs, out, data_options or {}, quiet)
        assert out is not None
        with staging(out) as partial:
            return transform(operation, chosen, inputs, out, partial, data_options or {}, quiet)


def require_inputs(operation: Operation, inputs: dict[str, str], out: Path | None) -> None:
    """Every input that the operation takes is there, and none that it does not."""
    faults = [
        f"{operation.name} needs {'a MODEL' if name == 'model' else f'--{name}'}{'' if name in kind else ', the folder of a model'}"
        for name, kind in operation.takes.items()
        if not kind.endswith("?") and name not in inputs
    ]
    faults += [f"{operation.name} takes no {name}" for name in inputs if name not in operation.takes]
    if operation.gives != "report" and out is None:
        result = "folder of its result" if operation.gives == "model" else "file of its answers"
        faults.append(f"{operation.name} needs --out, the {result}")
    if faults:
        raise BadInput(*faults, hint=f"onnuri {operation.name} --help")


# ------------------------------------------------------------------------------------------------------- opening inputs


def opened(operation: Operation, settings: Settings, inputs: dict[str, str], options: dict[str, Any]) -> dict[str, Any]:
    """The inputs as objects, checked against each other."""
    from .model import Model, open_model
    from .sources import open_data

    found: dict[str, Any] = {}
    for name, kind in operation.takes.items():
        if name in inputs and kind.startswith("data"):
            found[name] = open_data(inputs[name], **options)
    for name, kind in operation.takes.items():
        if name in inputs and kind.startswith("body"):
            found[name] = body(Path(inputs[name]), settings, found["data"])
        elif name in inputs and kind.startswith("model"):
            found[name] = open_model(inputs[name])
    for model in [value for value in found.values() if isinstance(value, Model)]:
        for data in [value for value in found.values() if isinstance(value, Data)]:
            model.check(data.records, judged=operation.gives != "records")
    return found


def body(folder: Path, settings: Any, data: Data):
    """A model to train onward: opened as it is, or adopted for the labels of the data where another kind is asked for."""
    import torch

    from .adapters import is_adapter
    from .claims import claimed_by
    from .family import mix
    from .hub import check_folder, guarded
    from .model import Model, open_model, read_pruned

    check_folder(folder)
    if is_adapter(folder):
        return open_model(folder)
    family = registry.family(settings.family) if settings.family else claimed_by(folder)
    if guarded(family.claims, folder) and not settings.new_head:
        return open_model(folder)
    generator = torch.Generator().manual_seed(mix(settings.seed, 0))
    net, assets = guarded(family.adopt, folder, data.split("train"), generator)
    return Model(family, net, assets, folder, read_pruned(folder))


def described(inputs: dict[str, str], found: dict[str, Any]) -> list[dict[str, Any]]:
    """What the ledger says of the inputs."""
    return [
        {
            "role": role,
            "path": where,
            "digest": found[role].digest if isinstance(found[role], Data) else ledger.folder_digest(Path(where)),
        }
        for role, where in inputs.items()
    ]


# ------------------------------------------------------------------------------------------------ operations that only look


def look(
    operation: Operation, settings: Settings, inputs: dict[str, str], out: Path | None, options: dict, quiet: bool
) -> dict:
    """Apply an operation that changes no model; its report, or where its records were written."""
    from .answers import require_ending, write_records
    from .progress import Progress

    if operation.gives == "records" and out is not None:
        require_ending(out)
    found = opened(operation, settings, inputs, options)
    asked, settings = settings, resolved(settings, inputs, found)
    with Progress(operation.name, quiet) as log:
        if asked != settings and settings.split == "all" and ledger.read(Path(inputs["model"])):  # type: ignore[attr-defined]
            log.warn("all rows are scored: these data are not those of its training, but may hold rows of them")
        result = operation.apply(settings, log, **found)
    if result.records is not None:
        assert out is not None
        write_records(result.records, out)
        return {"operation": operation.name, "records": len(result.records), "out": str(out)}
    report = {
        "operation": operation.name,
        "settings": settings.model_dump(),
        "inputs": described(inputs, found),
        **(result.report or {}),
        **({"warnings": log.warnings} if log.warnings else {}),
    }
    if out is not None:
        write_text(out, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return report


def resolved(settings: Settings, inputs: dict[str, str], found: dict[str, Any]) -> Settings:
    """The settings with `auto` made plain where a split is asked for."""
    if getattr(settings, "split", None) == "auto":
        return settings.model_copy(update={"split": held_out(Path(inputs["model"]), found["data"])})
    return settings


def held_out(folder: Path, data: Data) -> str:
    """`test` where the ledger says that the model was made with these data, else `all`."""
    seen = {entry.get("digest") for line in ledger.read(folder) for entry in line.get("inputs", [])}
    return "test" if data.digest in seen else "all"


# ------------------------------------------------------------------------------------------- operations that give a model


def transform(
    operation: Operation,
    settings: Settings,
    inputs: dict[str, str],
    out: Path,
    partial: Path,
    options: dict[str, Any],
    quiet: bool,
) -> dict[str, Any]:
    """Apply, save, reopen, check, measure, write the evidence, and let the folder appear. The ledger line."""
    from .model import open_model, tensor_digest, write_model
    from .progress import Progress

    found = opened(operation, settings, inputs, options)
    found["data"].split("test")  # too few rows are known now, not when the work is done
    sources = described(inputs, found)
    terms = inherited(operation, inputs, found)
    key = sha256(
        ledger.canonical(
            {
                "operation": operation.name,
                "settings": settings.model_dump(),
                "inputs": sources,
                "options": options,
                "version": __version__,
            }
        ).encode()
    ).hexdigest()
    machine.forget_peak()
    started = datetime.now(UTC)
    with Progress(operation.name, quiet, partial / STATE, key) as log:
        for text in [*changed_since(operation, inputs), *terms["conflicts"]]:
            log.warn(text)
        result = operation.apply(settings, log, **found)
    lineage = parents(inputs, found, result)
    seconds, joules = log.spent()
    energy = replace(log.meter.energy(), joules=joules)
    assert result.model is not None
    if not is_main_process():
        return {"operation": operation.name, "out": str(out)}
    folder = fresh_folder(partial / "result")
    write_model(result.model, folder)
    tensors = tensor_digest(result.model.net)
    keep_notices(operation, inputs, folder, result.model.folder, len(lineage) + 1)
    data = found["data"]
    del found  # the parents' weights make room for the result's
    result.model = open_model(folder)
    kept = check_promises(operation, settings, inputs, data, result, tensors)
    scores = {role: before(where, data) for role, where in model_folders(operation, inputs).items()}
    line: dict[str, Any] = {
        "operation": operation.name,
        "family": result.model.family.name,
        "task": result.model.family.tag,
        "settings": settings.model_dump(),
        "data_options": options,
        "seed": getattr(settings, "seed", 0),
        "inputs": sources,
        "output": {"tensors": tensors},
        "versions": versions(),
        "machine": machine.describe(),
        "started": started.isoformat(timespec="seconds"),
        "seconds": seconds,
        "peak_memory_bytes": machine.peak_memory(),
        "energy": machine.as_dict(energy),
        "before": scores.pop("model", None),
        "parents": scores,
        "after": None,
        "promises": kept,
        "findings": [vars(finding) for finding in result.findings],
        "warnings": log.warnings,
        "license": terms,
        "curves": thin(result.curves),
        "key": key,
    }
    line["after"] = measured(result.model, data, folder)
    finish(folder, lineage, line)
    broken = [promise for promise in kept if not promise["kept"]]
    place = out.with_name(out.name + ".broken") if broken else out
    if broken:
        shutil.rmtree(place, ignore_errors=True)
    appear(folder, place)
    if broken:
        raise BrokenPromise(
            *(f"{p['text']}: {p['value']:.3g}, promised {p['sense']} {p['bound']:.3g}" for p in broken),
            hint=f"the result is kept in {place} to be looked at; do not ship it",
        )
    return ledger.read(place)[-1]


def changed_since(operation: Operation, inputs: dict[str, str]) -> list[str]:
    """What was changed in the model folders after their last operation: it goes into the new ledger line, or a change
    would be covered up by the next operation."""
    folders = model_folders(operation, inputs).values()
    return [f"{folder}: {fault}" for folder in folders if ledger.read(folder) for fault in ledger.verify(folder)]


def model_folders(operation: Operation, inputs: dict[str, str]) -> dict[str, Path]:
    """{role: folder} of the inputs that are models; the one that the operation is done to is `model`."""
    return {role: Path(inputs[role]) for role, kind in operation.takes.items() if role in inputs and "data" not in kind}


def inherited(operation: Operation, inputs: dict[str, str], found: dict[str, Any]) -> dict[str, Any]:
    """What the licenses of the models that come in say of the one that comes out. The base of an adapter counts as well;
    the ledger of an adapter names it already."""
    folders = list(model_folders(operation, inputs).values())
    bases = [(one, found[role].base) for role, one in model_folders(operation, inputs).items()]
    folders += [base.folder for one, base in bases if base and not ledger.read(one)]
    return license.combined([one for folder in folders for one in license.origins(folder, ledger.read(folder))])


def keep_notices(
    operation: Operation, inputs: dict[str, str], folder: Path, lives_on: Path | None, number: int
) -> None:
    """Copy the license texts and notices of each parent whose files are not those that live on, into a place that no
    later operation writes to."""
    for role, parent in model_folders(operation, inputs).items():
        inner = [path for path in (parent / "licenses").rglob("*") if path.is_file()]
        for path in [*license.texts(parent), *inner] if parent != lives_on else ():
            target = folder / "licenses" / f"{number:03d}-{role}" / path.relative_to(parent)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def check_promises(
    operation: Operation, settings: Settings, inputs: dict[str, str], data: Data, result: Result, tensors: str
) -> list[dict[str, Any]]:
    """Measure every promise on the reopened result against the inputs opened anew (the operation may have changed them)."""
    from .model import open_model, tensor_digest

    fresh: dict[str, Any] = {
        name: open_model(inputs[name])
        for name, kind in operation.takes.items()
        if kind.startswith("model") and name in inputs and operation.promises
    }
    fresh["data"] = data
    assert result.model is not None
    reopened = float(tensor_digest(result.model.net) != tensors)
    checks = [(Promise("tensors that differ after saving and opening again", "at most", 0.0, lambda *_: reopened))]
    kept = []
    for promise in [*checks, *operation.promises]:
        value = promise.measure(settings, fresh, result)
        if value is not None:
            right = value <= promise.bound if promise.sense == "at most" else value >= promise.bound
            kept.append(
                {"text": promise.text, "value": value, "bound": promise.bound, "sense": promise.sense, "kept": right}
            )
    return kept


def measured(model: Any, data: Data, folder: Path) -> dict[str, Any]:
    """The measurement on the test split; its first answers are kept in the folder for people to look at."""
    from .answers import jsonable
    from .measure import measure

    test = data.split("test")
    answers = model.sample(model.asked(test.some(SAMPLES).list()), 0)
    scores = f"{model.answer}_scores"
    samples = [{"answer": jsonable(a.get(model.answer)), "scores": jsonable(a.get(scores))} for a in answers]
    (folder / "onnuri" / "reports").mkdir(parents=True, exist_ok=True)
    (folder / "onnuri" / "samples.json").write_text(json.dumps(samples, ensure_ascii=False), encoding="utf-8")
    return measure(model, test)


def before(folder: Path, data: Data) -> dict[str, Any] | None:
    """The score of a model that came in: from its own ledger where it was measured on these data, else measured now."""
    from .measure import measure
    from .model import open_model

    lines = ledger.read(folder)
    if lines and lines[-1].get("after") and any(e.get("digest") == data.digest for e in lines[-1]["inputs"]):
        return lines[-1]["after"]
    try:
        model = open_model(folder)
        model.check(data.records)
        return measure(model, data.split("test"))
    except BadInput:  # a body without a head of its own, or with other labels, has no score
        return None


def parents(inputs: dict[str, str], found: dict[str, Any], result: Result) -> list[dict[str, Any]]:
    """The ledger of the model that lives on in the result: the one that was given back, else the first one."""
    role = next((role for role, value in found.items() if value is result.model), "model")
    return ledger.read(Path(inputs[role])) if role in inputs else []


def finish(folder: Path, lines: list[dict], line: dict) -> None:
    """Write card, report page and ledger; everything is in the folder afterwards."""
    from .card import card
    from .report import operation_page

    (folder / "README.md").write_text(card([*lines, line]), encoding="utf-8")
    page = folder / "onnuri" / "reports" / f"{len(lines) + 1:03d}-{line['operation']}.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(operation_page(line), encoding="utf-8")
    line["output"]["files"] = ledger.file_digests(folder)
    ledger.write(folder, lines, line)


def versions() -> dict[str, str]:
    """The libraries whose versions can change a result."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"onnuri": __version__}
    for package in ("torch", "transformers", "numpy", "diffusers", "lightgbm", "onnx", "onnxruntime"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def thin(curves: dict[str, list[tuple[int, float]]], most: int = 400) -> dict[str, list[tuple[int, float]]]:
    """Curves with at most `most` points each, the last kept: a picture shows no more."""
    return {
        name: curve if len(curve) <= most else [*curve[:: -(-len(curve) // most)], curve[-1]]
        for name, curve in curves.items()
    }


@contextmanager
def limited_warnings() -> Iterator[None]:
    """Libraries' advice to programmers is not for the user of a command."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
