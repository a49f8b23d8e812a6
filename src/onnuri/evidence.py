"""What the ledger says of any operation: key, cost, inputs, licenses, lineage, the base that a result hangs on, versions."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__, ledger, license, machine
from .data import Data
from .operation import Operation, Result, Settings

if TYPE_CHECKING:
    from .family import Family
    from .model import Model


def described(inputs: dict[str, str], found: dict[str, Any]) -> list[dict[str, Any]]:
    """What the ledger says of the inputs. `found`: those that were opened, the data among them. `folder`: the digest of a folder
    of data that has a ledger, which tells also what was done to them."""

    def digest(role: str) -> str:
        data, path = found.get(role), Path(inputs[role])
        if isinstance(data, Data) and not (data.whole and path.exists()):
            return data.digest
        return ledger.folder_digest(path) if path.is_dir() else ledger.file_digest(path)

    def own_digest(role: str, where: str) -> dict[str, str]:
        lines = ledger.read(Path(where)) if isinstance(found.get(role), Data) and Path(where).is_dir() else []
        return {"folder": str(lines[-1]["digest"])} if lines else {}

    with ThreadPoolExecutor() as threads:  # hashing leaves the interpreter to others
        digests = threads.map(digest, inputs)
        return [
            {"role": role, "path": where, "digest": one, **own_digest(role, where)}
            for (role, where), one in zip(inputs.items(), digests)
        ]


def model_folders(operation: Operation, inputs: dict[str, str]) -> dict[str, Path]:
    """{role: folder} of the inputs that are models; the one that the operation is done to is `model`."""
    return {role: Path(inputs[role]) for role, kind in operation.takes.items() if role in inputs and "data" not in kind}


def changed_since(inputs: dict[str, str]) -> list[str]:
    """What was changed in folders of models and of data after their last operation: it goes into the new ledger line, or a change
    would be covered up by the next operation."""
    folders = [Path(where) for where in inputs.values() if Path(where).is_dir()]
    return [f"{folder}: {fault}" for folder in folders if ledger.read(folder) for fault in ledger.verify(folder)]


def parents(inputs: dict[str, str], found: dict[str, Any], result: Result) -> list[dict[str, Any]]:
    """The ledger of the model that lives on in the result: the one that was given back, else the first one."""
    role = next((role for role, value in found.items() if value is result.model), "model")
    return ledger.read(Path(inputs[role])) if role in inputs else []


def inherited(operation: Operation, inputs: dict[str, str], found: dict[str, Any]) -> dict[str, Any]:
    """What the licenses of the models that come in say of the one that comes out. The base of an adapter counts as well;
    the ledger of an adapter names it already."""
    from .model import Model

    folders = list(model_folders(operation, inputs).values())
    models = [one for one in found.values() if isinstance(one, Model)]
    folders += [one.base.folder for one in models if one.base and one.folder and not ledger.read(one.folder)]
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


def base_of(model: "Model") -> dict[str, str] | None:
    """The folder that a result cannot be opened without, and its digest: the base of an adapter. None for all others."""
    if not model.base:
        return None
    folder = model.base.folder.resolve()
    return {"path": str(folder), "digest": ledger.folder_digest(folder)}


def versions() -> dict[str, str]:
    """The libraries whose versions can change a result."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"onnuri": __version__}
    for package in ("torch", "transformers", "numpy", "diffusers", "lightgbm", "onnx", "onnxruntime", "openvino"):
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


def key_of(operation: Operation, settings: Settings, sources: list[dict[str, Any]], options: dict[str, Any]) -> str:
    """What tells this work from any other: the same key, the same result."""
    work = {"operation": operation.name, "settings": settings.model_dump(), "inputs": sources, "options": options}
    return sha256(ledger.canonical({**work, "version": __version__}).encode()).hexdigest()


def cost(log: Any) -> dict[str, Any]:
    """Seconds, memory and energy of the work that `log` has seen, up to now."""
    seconds, joules = log.spent()
    energy = machine.as_dict(replace(log.meter.energy(), joules=joules))
    return {"seconds": seconds, "peak_memory_bytes": machine.peak_memory(), "energy": energy}


DATA = {"family": "data", "task": ""}
"""What stands in a ledger line in place of a model's kind."""


def kind_of(family: "Family") -> dict[str, str]:
    return {"family": family.name, "task": family.tag}


def known(
    operation: Operation,
    kind: dict[str, str],
    settings: Settings,
    sources: list[dict[str, Any]],
    terms: dict[str, Any],
    log: Any,
    started: datetime,
) -> dict[str, Any]:
    """What a ledger line says of every operation, whatever it gave."""
    return {
        "operation": operation.name,
        **kind,
        "settings": settings.model_dump(),
        "seed": getattr(settings, "seed", 0),
        "inputs": sources,
        "versions": versions(),
        "machine": machine.describe(),
        "started": started.isoformat(timespec="seconds"),
        "warnings": log.warnings,
        **({"license": terms} if terms else {}),
    }
