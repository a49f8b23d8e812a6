"""Adapters on the disk: low-rank updates of a base that lies in a folder of its own.

Written as PEFT does (`adapter_config.json`, `adapter_model.safetensors`) wherever PEFT has a form for every update, else as
`onnuri/adapter.safetensors`, whole, under the names of the weights. Either file carries the digest of its base.
"""

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import BadInput
from ..hub import guarded, read_json
from .attach import attach, updates
from .lowrank import LowRank
from .matrices import weights
from .packed import packed_tensors
from .peft_format import from_peft, to_peft

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
OWN = Path("onnuri", "adapter.safetensors")
BAKED = Path("onnuri", "baked.safetensors")
Parts = dict[str, tuple[Tensor, Tensor, float]]
"""{name of a weight: (down (units, rank, columns), up (units, rows, rank), scale)}"""


@dataclass(frozen=True)
class Base:
    """What an adapter hangs on: its folder and the digest of its tensors; whether PEFT reads the adapter, and what the
    adapter replaces whole."""

    folder: Path
    tensors: str
    peft: bool
    replaced: tuple[str, ...] = ()


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).exists() or (folder / OWN).exists()


def base_folder(folder: Path) -> Path:
    """Where the base of this adapter lies: as it says, or beside it under the same name, or in the Hub's cache."""
    config = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
    said = config.get("base_model_name_or_path") or metadata(
        folder / (OWN if (folder / OWN).exists() else TENSORS)
    ).get("base")
    if not isinstance(said, str) or not said:
        raise BadInput(f"{folder}: base_model_name_or_path does not name its base", hint="the path of the base there")
    places = [Path(said), folder.resolve().parent / Path(said).name, *cached(said, config.get("revision"))]
    found = next((place for place in places if os.path.isdir(place)), None)
    if found is None:
        raise BadInput(
            f"{folder} is an adapter for {said}, which is not here",
            hint=f"put that model into {places[1]}, or its path into {CONFIG} (base_model_name_or_path)",
        )
    if is_adapter(found):
        raise BadInput(
            f"{folder}: its base {found} is itself an adapter", hint=f"onnuri bake {found} --data D --out BASE"
        )
    return found


def cached(name: str, revision: Any) -> list[Path]:
    """Where the Hub's cache keeps this revision of a model; nothing is fetched."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return [Path(snapshot_download(name, revision=revision, local_files_only=True))]
    except (HFValidationError, LocalEntryNotFoundError, OSError, TypeError):
        return []


def metadata(path: Path) -> dict[str, str]:
    """The header's own entries of a safetensors file."""

    def read(path: Path) -> dict[str, str]:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}

    return guarded(read, path)


# ------------------------------------------------------------------------------------------------------------------ reading


def open_adapter(net: nn.Module, folder: Path, base: Base) -> Base:
    """Hang the adapter of `folder` on `net`, a plain or packed net with the tensors of `base`. BadInput when it was made
    for another one."""
    path = folder / (OWN if (folder / OWN).exists() else TENSORS)
    if not path.exists():
        raise BadInput(f"{folder} holds no {TENSORS}", hint="save the adapter as safetensors")
    made_for = metadata(path).get("base_tensors", base.tensors)
    if made_for != base.tensors:
        raise BadInput(
            f"{folder} was made for another base: {base.folder} holds other tensors than those it was trained on",
            hint=f"the base as it was, in {CONFIG} (base_model_name_or_path), or adapt this one anew",
        )
    if path.name == OWN.name:
        hang(net, read_own(path), path)
        return base
    config, tensors = read_json(folder / CONFIG), guarded(load, path)
    found, replaced = guarded(lambda _: from_peft(net, config, tensors), folder)
    hang(net, found, path)
    known = dict(net.state_dict(keep_vars=True))
    for name, value in replaced.items():
        known[name].data = value.to(known[name].dtype)
    return replace(base, peft=True, replaced=tuple(replaced))


def load(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def hang(net: nn.Module, found: Parts, path: Path) -> None:
    """Attach (down, up, scale) to the weights so named. BadInput lists all that do not fit."""
    known = {weight.name: weight for weight in weights(net)}
    faults = [f"{path}: the base has no weight {name}" for name in found if name not in known]
    faults += [
        f"{path}: the update of {name} is for a weight of other shape"
        for name, (down, up, _) in found.items()
        if name in known and (len(up), up.shape[1], down.shape[2]) != tuple(known[name].matrix.shape)
    ]
    if faults:
        raise BadInput(*faults, hint="the base that it was made for")
    for name, (down, up, scale) in found.items():
        attach(known[name], LowRank(known[name].view, down, up, scale))


def read_own(path: Path) -> Parts:
    """{weight: (down, up, scale)} of our own layout."""
    tensors, scales = guarded(load, path), guarded(lambda p: json.loads(metadata(p)["scales"]), path)
    try:
        found = {name: (tensors[f"{name}.down"], tensors[f"{name}.up"], float(scale)) for name, scale in scales.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"{path} is no adapter of ours: {error}") from error
    if faults := [
        f"{path}: the parts of {name} do not fit each other" for name, parts in found.items() if torn(*parts)
    ]:
        raise BadInput(*faults, hint="fetch it again from where it came")
    return found


def torn(down: Tensor, up: Tensor, scale: float) -> bool:
    """Whether these are not (units, rank, columns) and (units, rows, rank)."""
    if down.dim() != 3 or up.dim() != 3 or not (down.is_floating_point() and up.is_floating_point()):
        return True
    return len(down) != len(up) or down.shape[1] != up.shape[2]


def base_digest(net: nn.Module) -> str:
    """What tells a base from another: its numbers, whatever the library calls them and in whatever order."""
    stored = [*net.parameters(), *packed_tensors(net)]
    digests = sorted(
        hashlib.sha256(
            f"{value.dtype} {tuple(value.shape)}".encode()
            + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        ).hexdigest()
        for value in stored
    )
    return hashlib.sha256("".join(digests).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------------------------ writing


def write_adapter(net: nn.Module, base: Base, folder: Path) -> None:
    """Write the low-rank updates of `net` into an existing folder."""
    if not base.peft:
        facts = {"base": str(base.folder.resolve()), "base_tensors": base.tensors}
        write_own(parts_of(net), folder / OWN, facts)
        return
    config, tensors = to_peft(net, updates(net), base.replaced)
    config["base_model_name_or_path"] = str(base.folder.resolve())
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    save_file(tensors, folder / TENSORS, metadata={"format": "pt", "base_tensors": base.tensors})


def parts_of(net: nn.Module) -> Parts:
    """The low-rank updates of `net` as tensors."""
    return {
        name: (update.down.detach(), update.up.detach(), update.scale) for name, (_, update) in updates(net).items()
    }


def write_own(parts: Parts, path: Path, facts: dict[str, str]) -> None:
    """Our own layout: NAME.down and NAME.up for each weight; the scales, and `facts`, in the header."""
    path.parent.mkdir(exist_ok=True)
    tensors = {
        f"{name}.{half}": value.contiguous()
        for name, (down, up, _) in parts.items()
        for half, value in (("down", down), ("up", up))
    }
    scales = json.dumps({name: scale for name, (_, _, scale) in parts.items()})
    save_file(tensors, path, metadata={**facts, "scales": scales})
