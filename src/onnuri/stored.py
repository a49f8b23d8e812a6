"""The tensors of a model folder as they lie on the disk, for work that needs no net: read one at a time, written one at a
time, so that a model may be larger than the memory.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from .claims import open_session
from .errors import BadInput, Refusal
from .hub import check_folder, guarded
from .model import OWN, OWN_FILE, PRUNED, copy_foreign, is_hidden
from .weights.adapters import is_adapter
from .weights.compressed_tensors import is_compressed

LENGTH = 8  # bytes at the start of a .safetensors file that say how long its header is


class Stored(Mapping[str, Tensor]):
    """{name: tensor} of all .safetensors files of a folder; a name begins with the sub-folder that it lies in. A tensor is
    mapped from its file when it is asked for, and what was read of it leaves the memory with it.

    BadInput for a folder that is not safe to read or holds no such file; Refusal where weights lie in another form."""

    def __init__(self, folder: Path):
        check_folder(folder)
        require_plain_files(folder)
        self.folder = folder
        self.files = [path for path in sorted(folder.rglob("*.safetensors")) if not is_hidden(path.relative_to(folder))]
        self.places: dict[str, tuple[Path, str]] = {}
        for path in self.files:
            inside = path.parent.relative_to(folder)
            self.places |= {(inside / name).as_posix(): (path, name) for name in header(path)}
        if not self.places:
            raise BadInput(f"{folder} holds no tensor in a .safetensors file")

    def __getitem__(self, name: str) -> Tensor:
        path, key = self.places[name]
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    @property
    def nbytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)


def require_plain_files(folder: Path) -> None:
    """Refusal unless the folder's weights are all in .safetensors files as a net stores them."""
    odd = "an adapter on a base" if is_adapter(folder) else ""
    odd = odd or "packed, factored or shared by blocks" * ((folder / OWN_FILE).exists() or is_compressed(folder))
    odd = odd or "pruned, which only a net can keep" * (folder / PRUNED).exists()
    if odd or open_session(folder) is not None:
        raise Refusal(f"{folder}: its weights are {odd or 'in the file of another runtime'}", "onnuri bake, or --data")


def header(path: Path) -> dict[str, Any]:
    """{name: {dtype, shape, data_offsets}} of a .safetensors file, in the order of its bytes."""
    entries = json.loads(head_of(path)[LENGTH:])
    entries.pop("__metadata__", None)
    return dict(sorted(entries.items(), key=lambda entry: entry[1]["data_offsets"]))


def head_of(path: Path) -> bytes:
    """All that stands before the tensors."""
    with open(path, "rb") as file:
        length = file.read(LENGTH)
        return length + file.read(int.from_bytes(length, "little"))


def write_alike(source: Stored, tensors: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """Write a tensor for each of `source`, of the same type and shape, into files that are laid out as those there; and
    copy what is no weight. Of the tensors only the one at hand is in memory."""
    with ExitStack() as opened:
        files, starts, missing = {}, {}, set(source)
        for path in source.files:
            target = folder / path.relative_to(source.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            files[path], head = opened.enter_context(open(target, "wb")), head_of(path)
            files[path].write(head)
            starts |= {(path, name): len(head) + said["data_offsets"][0] for name, said in header(path).items()}
        for name, tensor in tensors:
            place = source.places[name]
            files[place[0]].seek(starts[place])
            files[place[0]].write(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            missing.discard(name)
    assert not missing, sorted(missing)[:3]
    for index in source.folder.rglob("*.safetensors.index.json"):
        target = folder / index.relative_to(source.folder)
        target.write_bytes(index.read_bytes())
    (folder / OWN).mkdir(exist_ok=True)
    copy_foreign(source.folder, folder)


PROVENANCE = (
    *("_name_or_path", "name_or_path", "is_local", "local_files_only"),
    *("transformers_version", "_diffusers_version", "dtype", "torch_dtype"),
)
"""Entries that say where something came from and how numbers are stored, not what is computed with them."""
FREE = ("generation_config.json",)
"""Files that say how a text is drawn, not what the model answers."""


def first_unlike_file(one: Path, other: Path) -> str | None:
    """The first file, or entry of one, in which two folders say different things of how records are read and what is
    computed; None where they say the same. Weights, our own files, texts for people and provenance are no matter."""
    for path in sorted(one.rglob("*")):
        inside = path.relative_to(one)
        spoken = (
            path.suffix in (".md", ".txt", ".html", ".png") and "vocab" not in path.name and path.name != "merges.txt"
        )
        if is_hidden(inside) or spoken or not path.is_file() or path.name in FREE or "safetensors" in path.name:
            continue
        if not (other / inside).is_file() or path.read_bytes() == (other / inside).read_bytes():
            continue
        if path.suffix != ".json":
            return str(inside)
        entries = [guarded(lambda place: json.loads(place.read_bytes()), each) for each in (path, other / inside)]
        if not all(isinstance(each, dict) for each in entries):
            return str(inside)
        names = [name for name in (entries[0] | entries[1]) if entries[0].get(name) != entries[1].get(name)]
        if unlike := [name for name in names if name not in PROVENANCE]:
            return f"{inside}: {unlike[0]}"
    return None
