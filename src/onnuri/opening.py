"""The inputs of an operation as objects: data, models, and bodies to train onward."""

from pathlib import Path
from typing import Any

from . import registry
from .data import Data, Records
from .errors import BadInput, Refusal
from .operation import Operation, Settings


def opened(operation: Operation, settings: Settings, inputs: dict[str, str], options: dict[str, Any]) -> dict[str, Any]:
    """The inputs as objects, checked against each other."""
    from .sources import open_data, open_documents

    found: dict[str, Any] = {}
    given = {role: kind for role, kind in operation.takes.items() if role in inputs}
    for role, kind in given.items():
        if is_whole(kind):
            found[role] = open_documents(inputs[role])
        elif kind.startswith("data"):
            found[role] = open_data(inputs[role], **(unanswered(options) if is_asked(kind) else options))
    if len(found) < len(given):
        found |= opened_models(operation, settings, inputs, found)
    return found


def opened_models(
    operation: Operation, settings: Settings, inputs: dict[str, str], data: dict[str, Data]
) -> dict[str, Any]:
    """The models among the inputs, each checked against all of the `data`."""
    from .model import open_model

    found: dict[str, Any] = {}
    for role, kind in operation.takes.items():
        if role in inputs and kind.startswith("body"):
            found[role] = body(Path(inputs[role]), settings, data["data"])
        elif role in inputs and kind.startswith("model"):
            found[role] = open_model(inputs[role])
    for number, model in enumerate(found.values()):
        if number and operation.gives == "records":
            break  # the others are asked for tokens, and see no record
        for role, one in data.items():
            asked = is_asked(operation.takes[role]) or (operation.gives == "records" and role == "data")
            model.check(one.records, judged=not asked)
            if operation.gives == "records" and role == "data":
                require_place(one.records, f"{model.answer}_scores")
    return found


def require_place(records: Records, name: str) -> None:
    """BadInput where a column stands where something of each answer will be written."""
    if name in records.fields:
        raise BadInput(
            f"the column '{name}' would be lost: the scores of the answers are written there", hint="rename that column"
        )


def is_asked(kind: str) -> bool:
    """Whether an input is records that need no answers."""
    return kind.startswith("data to answer")


def is_whole(kind: str) -> bool:
    """Whether an input is documents, each of them a record."""
    return kind.startswith("data whole")


def unanswered(options: dict[str, Any]) -> dict[str, Any]:
    """How to read records whose answers may not be there: nothing is said of those."""
    if options.get("window"):
        return options
    fields = {name: kind for name, kind in (options.get("fields") or {}).items() if name != options.get("answer")}
    return options | {"answer": None, "fields": fields or None}


def body(folder: Path, settings: Any, data: Data):
    """A model to train onward: opened as it is, or adopted for the labels of the data where another kind is asked for."""
    import torch

    from .claims import claimed_by
    from .family import mix
    from .hub import check_folder, guarded
    from .model import OWN_FILE, Model, open_model, read_pruned
    from .weights.adapters import is_adapter

    check_folder(folder)
    if is_adapter(folder):
        return open_model(folder)
    family = registry.family(settings.family) if settings.family else claimed_by(folder)
    if guarded(family.claims, folder) and not settings.new_head:
        return open_model(folder)
    if (folder / OWN_FILE).exists():
        raise Refusal(
            "the weights of this folder are packed, factored or shared by blocks: no other head can be put on them",
            "onnuri bake, then train the result; or the model that it was made from",
        )
    generator = torch.Generator().manual_seed(mix(settings.seed, 0))
    net, assets = guarded(family.adopt, folder, data.split("train"), generator)
    return Model(family, net, assets, folder, read_pruned(folder))
