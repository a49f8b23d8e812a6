"""The only place with side effects: open -> plan -> apply -> save -> reopen -> promises -> measure -> ledger -> appear.

A result is built beside its place, in `.NAME.partial`, and renamed when everything in it is on the disk: it appears whole
or not at all. The state of unfinished work is kept there too, so that the same command goes on where it was killed.
"""

import json
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import ledger, machine, plan, registry
from .card import card as model_card
from .data import Data
from .errors import BadInput, BrokenPromise
from .evidence import (
    DATA,
    base_of,
    changed_since,
    cost,
    described,
    inherited,
    keep_notices,
    key_of,
    kind_of,
    known,
    model_folders,
    parents,
    thin,
)
from .files import PIECES, STATE, appear, fresh_folder, is_main_process, staging, standing, sweep, writing
from .look import look
from .opening import opened
from .operation import Log, Operation, Result, Settings
from .promises import anew, promises_of, reopened

Card = Callable[[list[dict[str, Any]]], str]
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
    require_inputs(operation, inputs, out, data_options or {})
    with limited_warnings():
        if out is None:
            return look(operation, chosen, inputs, None, None, data_options or {}, quiet)
        sweep(out)
        plan.check_output(out, inputs.values())
        with staging(out) as partial:
            if is_main_process():  # a process that was here a moment ago may have put its result there
                plan.check_output(out, inputs.values())
            if "data" not in inputs and operation.at_rest is not None:
                return transform_at_rest(operation, chosen, inputs, out, partial, quiet)
            carry_out = {"model": transform, "data": rewrite}.get(operation.gives, look)
            return carry_out(operation, chosen, inputs, out, partial, data_options or {}, quiet)


def require_inputs(
    operation: Operation, inputs: dict[str, str], out: Path | None, options: Collection[str] = ()
) -> None:
    """Every input that the operation takes is there, and none that it does not; nor an option of data that are not given."""
    faults = [
        f"{operation.name} needs {'a MODEL' if name == 'model' else f'--{name}'}{'' if name in kind else ', the folder of a model'}"
        for name, kind in operation.takes.items()
        if not kind.endswith("?") and name not in inputs
    ]
    faults += [f"{operation.name} takes no {name}" for name in inputs if name not in operation.takes]
    given = any(operation.takes.get(role, "").startswith("data") for role in inputs)
    faults += [f"'{name}' says how data are read and has no effect without --data" for name in options if not given]
    asked = operation.gives == "records" and "data" not in inputs  # one question: its answer may be shown
    if operation.gives != "report" and out is None and not asked:
        result = "file of its answers" if operation.gives == "records" else "folder of its result"
        faults.append(f"{operation.name} needs --out, the {result}")
    if faults:
        raise BadInput(*faults, hint=f"onnuri {operation.name} --help")


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
    from .model import open_model, stored_bytes, tensor_digest, write_model
    from .progress import Progress

    unmoved = standing(model_folders(operation, inputs).values())
    found = opened(operation, settings, inputs, options)
    found["data"].split("test")  # too few rows are known now, not when the work is done
    sources = described(inputs, found)
    terms = inherited(operation, inputs, found)
    unmoved()
    key = key_of(operation, settings, sources, options)
    machine.forget_peak()
    started = datetime.now(UTC)
    with Progress(operation.name, quiet, partial / STATE, key) as log:
        for text in [*changed_since(inputs), *terms["conflicts"]]:
            log.warn(text)
        result = operation.apply(settings, log, **found)
    lineage = parents(inputs, found, result)
    spent = cost(log)
    assert result.model is not None
    if not is_main_process():
        return {"operation": operation.name, "out": str(out)}
    folder = fresh_folder(partial / "result")
    with writing(out, stored_bytes(result.model.net)):
        write_model(result.model, folder)
    tensors = tensor_digest(result.model.net)
    keep_notices(operation, inputs, folder, result.model.folder, len(lineage) + 1)
    data = found["data"]
    del found  # the parents' weights make room for the result's
    result.model = open_model(folder)
    kept = [reopened(result, tensors), *promises_of(operation, settings, anew(operation, inputs, data), result)]
    with Progress("measuring", quiet) as telling:
        scores = {role: before(where, data, telling) for role, where in model_folders(operation, inputs).items()}
        unmoved()
        after = measured(result.model, data, folder, telling)
    line: dict[str, Any] = {
        **known(operation, kind_of(result.model.family), settings, sources, terms, log, started),
        **spent,
        "data_options": options,
        "output": {"tensors": tensors, **({"base": base} if (base := base_of(result.model)) else {})},
        "before": scores.pop("model", None),
        "parents": scores,
        "promises": kept,
        "findings": [vars(finding) for finding in result.findings],
        "pace": result.pace,
        "curves": thin(result.curves),
        **({"bars": result.bars} if result.bars else {}),
        "key": key,
        "after": after,
    }
    return settled(folder, out, lineage, line)


def rewrite(
    operation: Operation,
    settings: Settings,
    inputs: dict[str, str],
    out: Path,
    partial: Path,
    options: dict[str, Any],
    quiet: bool,
) -> dict[str, Any]:
    """Apply an operation that gives data, write these as they come, check, and let the folder appear. The ledger line."""
    from .data_card import card
    from .data_folder import write_parts
    from .progress import Progress
    from .sources import open_documents

    unmoved = standing([Path(where) for where in inputs.values() if Path(where).is_dir()])
    found = opened(operation, settings, inputs, options)
    sources = described(inputs, found)
    machine.forget_peak()
    started = datetime.now(UTC)
    folder, key = partial / PIECES, key_of(operation, settings, sources, options)
    with Progress(operation.name, quiet, partial / STATE, key) as log:
        for text in changed_since(inputs):
            log.warn(text)
        result = operation.apply(settings, log, **found)
        assert result.parts is not None
        with writing(out):
            write_parts(result.parts, found["data"], folder, log)
    spent = cost(log)
    result.data = open_documents(str(folder))
    result.removed = open_documents(str(folder / "removed")) if (folder / "removed").exists() else None
    promises = promises_of(operation, settings, found, result)
    unmoved()
    line: dict[str, Any] = {
        **known(operation, DATA, settings, sources, {}, log, started),
        **spent,
        "data_options": options,
        "output": {},
        "before": None,
        "parents": {},
        "promises": promises,
        "findings": [],
        "pace": {},
        "curves": {},
        "bars": result.bars,
        "found": result.report,
        "key": key,
        "after": None,
    }
    lineage = ledger.read(Path(inputs["data"])) if Path(inputs["data"]).is_dir() else []
    return settled(folder, out, lineage, line, card)


def transform_at_rest(
    operation: Operation, settings: Settings, inputs: dict[str, str], out: Path, partial: Path, quiet: bool
) -> dict[str, Any]:
    """The same tensor by tensor, from files to files, without a net and without data to measure by. The ledger line."""
    from .claims import claimed_by
    from .model import digest_of
    from .progress import Progress
    from .stored import Stored, write_alike

    assert operation.at_rest is not None
    folders = model_folders(operation, inputs)
    unmoved = standing(folders.values())
    family, found = claimed_by(folders["model"]), {role: Stored(folder) for role, folder in folders.items()}
    sources, terms = described(inputs, {}), inherited(operation, inputs, {})
    machine.forget_peak()
    started = datetime.now(UTC)
    folder = fresh_folder(partial / "result")
    with Progress(operation.name, quiet) as log:
        for text in [*changed_since(inputs), *terms["conflicts"]]:
            log.warn(text)
        with writing(out, found["model"].nbytes):
            write_alike(found["model"], operation.at_rest(settings, log, **found), folder)
    spent, lineage = cost(log), ledger.read(folders["model"])
    keep_notices(operation, inputs, folder, folders["model"], len(lineage) + 1)
    stored = Stored(folder)
    with ThreadPoolExecutor() as threads:
        digest = threads.submit(digest_of, stored)
        promises = promises_of(operation, settings, found, Result(stored=stored))
    line: dict[str, Any] = {
        **known(operation, kind_of(family), settings, sources, terms, log, started),
        **spent,
        "data_options": {},
        "output": {"tensors": digest.result()},
        "before": None,
        "parents": {},
        "promises": promises,
        "findings": [],
        "pace": {},
        "curves": {},
        "key": key_of(operation, settings, sources, {}),
        "after": None,
    }
    unmoved()
    return settled(folder, out, lineage, line)


def settled(
    folder: Path, out: Path, lineage: list[dict[str, Any]], line: dict[str, Any], card: Card = model_card
) -> dict[str, Any]:
    """Write the evidence and let the folder appear; one that breaks a promise appears beside its place. The ledger line."""
    finish(folder, lineage, line, card)
    broken = [promise for promise in line["promises"] if not promise["kept"]]
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


def measured(model: Any, data: Data, folder: Path, log: Log) -> dict[str, Any]:
    """The measurement on the test split; its first answers are kept in the folder for people to look at."""
    from .answers import jsonable
    from .measure import measure

    test = data.split("test")
    answers = model.sample(model.asked(test.some(SAMPLES).list()), 0)
    scores = f"{model.answer}_scores"
    samples = [{"answer": jsonable(a.get(model.answer)), "scores": jsonable(a.get(scores))} for a in answers]
    (folder / "onnuri" / "reports").mkdir(parents=True, exist_ok=True)
    (folder / "onnuri" / "samples.json").write_text(json.dumps(samples, ensure_ascii=False), encoding="utf-8")
    return measure(model, test, log=log)


def before(folder: Path, data: Data, log: Log) -> dict[str, Any] | None:
    """The score of a model that came in: from its own ledger where it was measured on these data, else measured now."""
    from .measure import measure
    from .model import open_model

    lines = ledger.read(folder)
    if lines and lines[-1].get("after") and any(e.get("digest") == data.digest for e in lines[-1]["inputs"]):
        return lines[-1]["after"]
    try:
        model = open_model(folder)
        model.check(data.records)
        return measure(model, data.split("test"), log=log)
    except BadInput:  # a body without a head of its own, or with other labels, has no score
        return None


def finish(folder: Path, lines: list[dict], line: dict, card: Card) -> None:
    """Write card, report page and ledger; everything is in the folder afterwards."""
    from .report import operation_page

    (folder / "README.md").write_text(card([*lines, line]), encoding="utf-8")
    page = folder / "onnuri" / "reports" / f"{len(lines) + 1:03d}-{line['operation']}.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(operation_page(line), encoding="utf-8")
    line["output"]["files"] = ledger.file_digests(folder)
    ledger.write(folder, lines, line)


@contextmanager
def limited_warnings() -> Iterator[None]:
    """Libraries' advice to programmers is not for the user of a command."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
