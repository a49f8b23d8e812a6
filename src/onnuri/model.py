"""A model: a family, a net and its assets, opened from a folder. Opening checks; saving appears whole or not at all."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .bounds import bounded
from .claims import claimed_by, open_session
from .data import Record, Records, check_answers, check_fields, check_numbers
from .errors import BadInput, OnnuriError, Refusal
from .family import Batch, Family, Generators, Outputs, Session
from .hub import PICKLES, check_folder, guarded, read_json
from .padding import parted
from .weights.adapters import (
    BAKED,
    Base,
    Parts,
    base_digest,
    base_folder,
    is_adapter,
    open_adapter,
    read_own,
    write_adapter,
    write_own,
)
from .weights.compressed_tensors import LAYOUT, is_compressed, read_compressed, write_compressed
from .weights.packed import packed_numbers

PRUNED = "onnuri/pruned.json"
RANKS = "onnuri/ranks.json"
TIES = "onnuri/ties.json"
WEIGHTS = (".safetensors", ".gguf", ".onnx", ".onnx_data", ".ot", ".pte", *PICKLES)
WINDOW = 16
"""Times as many records as are answered at once: among them those of like length are put together."""

WORK = 10**11
"""Parameters times records that are answered before any is kept: on two cores about a minute for short texts."""

LARGE = {"image", "audio"}
"""Kinds of fields of which no more are read than are answered at once."""

OWN = "onnuri"
"""The sub-folder of a model folder that is ours: ledger, reports, packed weights."""

OWN_FILE = f"{OWN}/packed.safetensors"
"""Where the weights lie that are packed, factored or shared by blocks."""


@dataclass
class Model:
    """What operations get: the facts of the family, bound to one net and its assets."""

    family: Family
    net: nn.Module
    assets: Any
    folder: Path | None = None
    pruned: tuple[str, ...] = ()
    """The names of the weights whose zeros were put there, so that training must not fill them."""

    base: Base | None = None
    """Where the net lies without its low-rank updates, when it is an adapter on a base."""

    baked: Parts = field(default_factory=dict)
    """The low-rank updates that were baked into the net and can be taken out again."""

    layout: str = OWN
    """How packed matrices are stored: in our own sub-folder, or as compressed-tensors does."""

    @property
    def players(self) -> dict[str, nn.Module]:
        """{name: module}; {} where nothing follows a gradient."""
        return self.family.players(self.net) if any(True for _ in self.net.parameters()) else {}

    @property
    def blocks(self) -> dict[str, tuple[nn.Module, int]]:
        """{name: (module, feature axis)} where activations can be read; {} where no module of torch runs."""
        return self.family.blocks(self.net) if any(True for _ in self.net.parameters()) else {}

    @property
    def files(self) -> Path | None:
        """The folder of the files that are no weights: an adapter has them in its base."""
        return self.base.folder if self.base else self.folder

    @property
    def answer(self) -> str:
        """The field that this model fills in."""
        return self.family.fields(self.assets)[1][0]

    @property
    def headline(self) -> tuple[str, str]:
        return self.family.headline(self.assets)

    def check(self, records: Records, judged: bool = True) -> None:
        """BadInput unless the records hold what is asked for. `judged`: and answers to judge by, all of them known."""
        question, (name, kind) = self.family.fields(self.assets)
        check_fields(records, question, (name, kind) if judged else None)
        labels = self.family.axis(self.assets)
        if judged and kind == "category" and isinstance(labels, tuple):
            check_answers(records, name, labels)
        elif judged and kind == "number":
            check_numbers(records, name)
        if self.folder is not None:
            self.check_answering(records[0])

    def check_answering(self, record: Record) -> None:
        """BadInput where the net cannot take a record that holds what it asks for: its config or its processor says other
        than its weights, which nothing notices before."""
        try:
            self.outputs(self.collate(self.asked([record])))
        except OnnuriError:
            raise
        except Exception as error:  # a library's net stumbles over anything
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise BadInput(
                f"{self.folder} cannot answer: {reason}", hint="fetch it again; its config does not fit it"
            ) from error

    def collate(self, records: Sequence[Record], seed: int = 0, keys: Sequence[int] | None = None) -> Batch:
        return self.family.collate(records, self.assets, Generators(seed, keys or range(len(records))))

    @torch.no_grad()
    def outputs(self, batch: Batch) -> Outputs:
        return self.family.outputs(self.net, batch)

    @torch.no_grad()
    def sample(self, records: Sequence[Record], seed: int = 0, keys: Sequence[int] | None = None) -> list[Record]:
        return self.family.sample(self.net, self.assets, records, Generators(seed, keys or range(len(records))))

    def answers(
        self,
        records: Sequence[Record],
        seed: int,
        keys: Sequence[int],
        at_once: int,
        told: Callable[[int], None] = lambda done: None,
    ) -> list[Record]:
        """`sample` of any number of records, those of like length together, `at_once` at most. `told`: how many are done."""
        found: dict[int, Record] = {}
        for part in parted(self.family.lengths(records, self.assets), at_once):
            some = self.sample([records[i] for i in part], seed, [keys[i] for i in part])
            found |= zip(part, some)
            told(len(found))
        return [found[i] for i in range(len(records))]

    def window(self, at_once: int) -> int:
        """Among how many records those of like length are looked for, to be answered `at_once`: no more than can lie in memory, nor
        so many that a large net answers them for minutes before any is kept."""
        question, (_, kind) = self.family.fields(self.assets)
        if LARGE & {kind, *question.values()}:
            return at_once
        return max(at_once, min(WINDOW * at_once, WORK // max(1, count_parameters(self.net))))

    def asked(self, records: Sequence[Record]) -> list[Record]:
        """The records without their answers, as someone who does not know them asks. What is asked about itself stays."""
        hidden = {self.answer} - self.family.fields(self.assets)[0].keys()
        return [{name: value for name, value in record.items() if name not in hidden} for record in records]

    def require_players(self) -> dict[str, nn.Module]:
        """`players`, or a Refusal where there is nothing to train, or where the matrices are packed and could not move."""
        from .weights.attach import require_trainable

        require_trainable(self.net, "train")
        if not self.players:
            raise Refusal(
                "nothing in this model follows a gradient",
                "train a new one from data, or use this one as the teacher of distill",
            )
        return self.players


def open_model(folder: Path | str) -> Model:
    """Open any model folder. BadInput unless exactly one family claims it and every tensor is there."""
    from .weights.packed_file import load_packed, put_ranks
    from .weights.sharing import put_ties

    folder = Path(folder)
    check_folder(folder)
    if is_adapter(folder):
        return adapted(folder)
    family = claimed_by(folder)
    packed = folder / OWN_FILE
    session = open_session(folder)
    compressed = is_compressed(folder) and not packed.exists() and session is None
    if compressed:
        net, assets = guarded(lambda path: read_compressed(lambda place: read_net(family, place, False), path), folder)
    else:
        net, assets = read_net(family, folder, packed.exists() or session is not None)
    if (folder / TIES).exists() and (session or packed.exists()):
        put_ties(net, folder / TIES)
    if session:
        if (folder / RANKS).exists():
            put_ranks(net, folder / RANKS)
        session.original = without_tensors(net)
    elif packed.exists():
        guarded(lambda path: load_packed(net, path), packed)
    baked = read_own(folder / BAKED) if (folder / BAKED).exists() else {}
    layout = LAYOUT if compressed else OWN
    return Model(family, session or net, assets, folder, read_pruned(folder), baked=baked, layout=layout)


def read_net(family: Family, folder: Path, empty: bool) -> tuple[nn.Module, Any]:
    """What the family reads, not much larger than what the folder stores."""
    from .weights.sharing import most_places

    with bounded(folder, most_places(folder / TIES)):
        return guarded(family.read, folder, empty)


def adapted(folder: Path) -> Model:
    """The base of an adapter's folder with the adapter attached."""
    model = open_model(base_folder(folder))
    assert model.folder is not None
    base = open_adapter(model.net, folder, Base(model.folder, base_digest(model.net), False))
    return replace(model, folder=folder, base=base)


def read_pruned(folder: Path) -> tuple[str, ...]:
    """The names of the weights that were pruned in this folder's life."""
    names = read_json(folder / PRUNED).get("weights") if (folder / PRUNED).exists() else []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadInput(f"{folder / PRUNED} must list the names of weights")
    return tuple(names)


def write_model(model: Model, folder: Path) -> None:
    """Write the model into an existing empty folder: the family's files, our own file of weights where no other tool would read
    them, and every foreign file of the folder that it was opened from; of an adapter the updates alone. Raises Refusal for a net
    with other functions that are not baked in."""
    from .weights.attach import is_packed, require_baked
    from .weights.packed_file import needs_own_file, save_packed, write_ranks
    from .weights.sharing import write_ties

    (folder / OWN).mkdir(parents=True, exist_ok=True)
    if model.base:
        return write_adapter(model.net, model.base, folder)
    require_baked(model.net)
    session = model.net if isinstance(model.net, Session) else None
    net, own = session.original if session else model.net, needs_own_file(model.net)
    foreign = is_packed(model.net) and model.layout != OWN
    if foreign:
        write_compressed(model.net, lambda net: model.family.write(net, model.assets, folder, True), folder)
    else:
        model.family.write(net, model.assets, folder, not (own or session))
    if session:
        session.save(folder)
        write_ranks(session.original, folder / RANKS)
    if model.pruned:
        (folder / PRUNED).write_text(json.dumps({"weights": model.pruned}) + "\n", encoding="utf-8")
    if model.baked:
        write_own(model.baked, folder / BAKED, {})
    if own and not foreign:
        save_packed(model.net, folder / OWN_FILE)
    write_ties(net, folder / TIES)
    if model.folder:
        copy_foreign(model.folder, folder)


def copy_foreign(source: Path, target: Path) -> None:
    """Copy what is in `source` and not in `target`, except weights, the card, hidden files and our own sub-folder."""
    for path in sorted(source.rglob("*")):
        inside = path.relative_to(source)
        taken = is_hidden(inside) or holds_weights(inside) or str(inside) == "README.md"
        if path.is_file() and not taken and not (target / inside).exists():
            (target / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / inside)


def is_hidden(inside: Path) -> bool:
    """Whether a path inside a model folder is none of the model's own: hidden, or in our own sub-folder."""
    return inside.parts[0] == OWN or any(part.startswith(".") for part in inside.parts)


def holds_weights(path: Path) -> bool:
    """Weights of the model as it was, in whatever format: they would contradict those written now."""
    return path.suffix in WEIGHTS or path.name.endswith(".index.json")


def tensor_digest(net: nn.Module) -> str:
    """sha256 over the names, types, shapes and bytes of all that the net stores; a text or graph that stands for
    weights is part of it (`get_extra_state`)."""
    return digest_of(net.state_dict())


def digest_of(tensors: Mapping[str, Any]) -> str:
    """The same over tensors by name, one at a time."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        if isinstance(value, Tensor):
            state.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            state.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            state.update(name.encode() + (value if isinstance(value, bytes) else str(value).encode()))
    return state.hexdigest()


def count_parameters(net: nn.Module) -> int:
    """Stored weights, tied ones once; packed codes count as the weights that they stand for, and a net that another
    runtime executes has as many as the one it was made from."""
    net = net.original if isinstance(net, Session) else net
    return sum(tensor.numel() for tensor in net.parameters()) + packed_numbers(net)


def stored_bytes(net: nn.Module) -> int:
    """Bytes of all the tensors that the net stores, tied ones once; what a file of them needs at least."""
    values = {id(value): value for value in net.state_dict(keep_vars=True).values()}
    return sum(value.nbytes for value in values.values() if isinstance(value, Tensor) and not value.is_meta)


def without_tensors(net: nn.Module) -> nn.Module:
    """The net itself, its tensors on the meta device; unlike after `net.to`, tied ones stay tied."""
    moved: dict[int, Tensor] = {}
    for module in net.modules():
        for tensors in (module._parameters, module._buffers):
            for name, value in tensors.items():
                if value is not None and not value.is_meta:
                    empty = value.detach().to("meta")
                    made = nn.Parameter(empty, value.requires_grad) if isinstance(value, nn.Parameter) else empty
                    tensors[name] = moved.setdefault(id(value), made)  # type: ignore[assignment]
    return net


def with_net(model: Model, net: nn.Module) -> Model:
    """The same model around another net; it remembers its folder so that foreign files survive."""
    return replace(model, net=net, base=None, folder=model.files, baked={})
