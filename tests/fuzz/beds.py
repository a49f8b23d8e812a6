"""Small model folders in which one file is exchanged for an input; and the opening of such a folder, every part of it.

They are made by our own families and operations, and by transformers and diffusers, when they are first asked for. The
table net is the one in the corpus, so that the adapters there stay adapters of it.
"""

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from contract import Invalid

import folders
from onnuri import registry
from onnuri.errors import OnnuriError
from onnuri.model import Model, count_parameters, open_model, write_model
from onnuri.run import limited_warnings

CORPUS = Path(__file__).parent / "corpus"
SEEDS = {"tabular": ("config.json", "model.safetensors")}
"""The beds whose files are those of the corpus."""


@cache
def root() -> Path:
    """Where the beds lie; removed when Python ends."""
    folder = Path(tempfile.mkdtemp(prefix="onnuri-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def bed(name: str) -> Path:
    """A folder that opens."""
    folder = root() / name
    folder.mkdir()
    if name in SEEDS:
        for file in SEEDS[name]:
            shutil.copyfile(CORPUS / f"{name}-{file}" / f"start{Path(file).suffix}", folder / file)
    elif name in MAKERS:
        write_model(MAKERS[name](open_model(bed("tabular"))), folder)
    elif name in registry.entries("families"):
        write_model(started(name), folder)
    else:
        folders.save(name, folder)
    return folder


def started(name: str) -> Model:
    """A new tiny model of a family."""
    family = registry.family(name)
    small = {"rounds": 2} if name == "forest" else {}
    return Model(family, *family.start({**family.tiny(), **small}, family.toy(60, 0), torch.Generator().manual_seed(0)))


def packed(model: Model) -> Model:
    from onnuri.weights.attach import pack
    from onnuri.weights.matrices import weights

    for number, weight in enumerate(weights(model.net)):
        pack(weight, "int4" if number % 2 and weight.matrix.shape[2] % 2 == 0 else "int8")
    return model


def adapted(model: Model, peft: bool) -> Model:
    from onnuri.weights.adapters import Base, base_digest
    from onnuri.weights.attach import attach
    from onnuri.weights.lowrank import fresh
    from onnuri.weights.matrices import weights

    assert model.folder is not None
    model.base = Base(Path("/tabular"), base_digest(model.net), peft)
    for weight in [w for w in weights(model.net) if w.name.endswith(".weight") or not peft]:
        attach(weight, fresh(weight, 2, 4.0, torch.Generator().manual_seed(1)))
    return model


def baked(model: Model) -> Model:
    from onnuri.weights.adapters import parts_of
    from onnuri.weights.attach import bake

    parts = parts_of(adapted(model, False).net)
    bake(model.net)
    model.base, model.baked = None, parts
    return model


def exported(model: Model) -> Model:
    from onnuri.data import Data
    from onnuri.operation import Quiet

    operation = registry.operation("export")
    toy = model.family.toy(60, 0)
    made = operation.apply(operation.settings(), Quiet(), model=model, data=Data("toy", toy, {}, toy)).model
    assert made is not None
    return made


MAKERS: dict[str, Callable[[Model], Model]] = {
    "packed": packed,
    "baked": baked,
    "own_adapter": lambda model: adapted(model, False),
    "peft_adapter": lambda model: adapted(model, True),
    "exported": exported,
}


def warm() -> None:
    """Let libraries do what they do once, when a folder is first opened that no family knows: that is not judged."""
    folder = root() / "warm"
    folder.mkdir(exist_ok=True)
    for kind in ("bert", "no such kind"):
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
        with suppress(OnnuriError):
            open_model(folder)


# ---------------------------------------------------------------------------------------------------------- as a target


def own(reader: str) -> list[bytes]:
    """[the file that the reader `BED-FILE` exchanges, as it is in its bed]; [] where the bed has no such file."""
    name, _, wanted = reader.partition("-")
    files = [path for path in bed(name).rglob("*") if path.is_file()] if wanted else []
    return [path.read_bytes() for path in files if str(path.relative_to(bed(name))).replace("/", "-") == wanted]


def put(name: str, file: str) -> Callable[[bytes, Path], Path]:
    """The input is `file` of a copy of the bed `name`; the copy's folder. `_`: the folder of other inputs is not used."""

    @cache
    def copied() -> Path:
        folder = root() / f"{name}-{file.replace('/', '-')}"
        shutil.copytree(bed(name), folder)
        (folder / file).parent.mkdir(exist_ok=True)
        return folder

    def put_file(data: bytes, _: Path) -> Path:
        (copied() / file).write_bytes(data)
        return copied()

    return put_file


def read(folder: Path) -> None:
    """Open a folder, ask for every fact of the model, and have it answer two records of its family's toy."""
    with limited_warnings():
        ask(open_model(folder))


def ask(model: Model) -> None:
    family, assets = model.family, model.assets
    question, (_, kind) = family.fields(assets)
    metric, better = family.headline(assets)
    hash(family.axis(assets))
    if not metric or better not in ("up", "down") or family.kind(assets) not in ("logits", "values") or not kind:
        raise Invalid("no facts")
    if count_parameters(model.net) < 0 or not all(map(str, model.blocks)):
        raise Invalid("nothing in it")
    records = family.toy(2, 0)
    try:
        model.check(records, judged=False)
    except OnnuriError:
        return  # it asks for other fields now
    asked = [{name: record[name] for name in question} for record in records.list()]
    values, mask = model.outputs(model.collate(asked))
    if len(values) != 2 or mask.shape != values.shape[:2]:
        raise Invalid(f"values {tuple(values.shape)}, mask {tuple(mask.shape)}")
