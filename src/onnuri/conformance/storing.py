"""Facts of a family about folders: what is written is read again, all of it, and by nobody else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .. import registry
from ..errors import OnnuriError, Refusal
from ..hub import guarded
from ..model import Model
from ..weights.matrices import weights
from .subject import TOLERANCE, Subject, batch_gap, gap, require, unlike


def tensors_return(subject: Subject) -> str:
    """Every tensor that the net holds, stored or derived, comes back bit by bit."""
    before, after = everything(subject.model.net), everything(subject.reopened.net)
    require(before.keys() == after.keys(), f"tensors that only one side has: {sorted(before.keys() ^ after.keys())}")
    lost = [name for name, value in before.items() if not same(value, after[name])]
    require(not lost, f"write and read changed {len(lost)} of {len(before)} tensors: {', '.join(lost[:8])}")
    require(not subject.reopened.net.training, "read must give a net in eval mode")
    buffers = len(dict(subject.model.net.named_buffers()))
    return f"{len(before) - buffers} tensors and {buffers} buffers equal, bit by bit"


def everything(net: nn.Module) -> dict[str, Any]:
    """All that a net holds by every name: parameters, buffers (derived ones too), and a text that stands for weights."""
    tensors = {name: value for name, value in net.state_dict().items() if not name.endswith("_extra_state")}
    texts = {name: value for name, value in net.state_dict().items() if name.endswith("_extra_state")}
    return {**tensors, **dict(net.named_buffers(remove_duplicate=False)), **texts}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return (
            one.dtype == other.dtype and one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())
        )
    return one == other


def ties_return(subject: Subject) -> str:
    """A weight with several homes has them all again."""
    before, after = homes(subject.model), homes(subject.reopened)
    untied = [f"{name} ({number} homes, then {after.get(name, 0)})" for name, number in before.items()]
    untied = [text for text, name in zip(untied, before) if before[name] != after.get(name)]
    require(
        before == after, f"weights whose homes changed: {', '.join(untied) or sorted(after.keys() - before.keys())}"
    )
    return f"{len(before)} weights, {sum(number > 1 for number in before.values())} of them tied"


def homes(model: Model) -> dict[str, int]:
    return {weight.name: len(weight.homes) for weight in weights(model.net)}


def outputs_return(subject: Subject) -> str:
    """The reopened model asks, computes, answers and is judged as the one that was written."""
    one, other = subject.model, subject.reopened
    for fact in ("fields", "axis", "kind", "headline"):
        before, after = (getattr(subject.family, fact)(model.assets) for model in (one, other))
        require(before == after, f"{fact} was {before!r:.80} and is {after!r:.80} when opened again")
    rows = subject.rows[:6]
    apart = batch_gap(one.collate(rows), other.collate(rows))
    require(apart == 0, f"the same records give another batch when opened again (difference {apart:.2g})")
    values, again = (model.outputs(model.collate(rows))[0] for model in (one, other))
    require(
        gap(values, again) <= TOLERANCE,
        f"outputs change by {gap(values, again):.2g} when opened again: something that they need is not written",
    )
    require(not unlike(one.sample(rows), other.sample(rows)), "the answers change when opened again")
    return f"outputs differ by {gap(values, again):.1g}; batch, answers and assets are equal"


def empty_return(subject: Subject) -> str:
    """A folder without weights gives the right modules, to be filled."""
    kept, described = files(subject.written), files(subject.described)
    require(described <= kept, f"only the folder without weights has {sorted(described - kept)}")
    empty = guarded(subject.family.read, subject.described, True)[0]
    shapes, wanted = ({name: tuple(value.shape) for name, value in tensors(net)} for net in (empty, subject.model.net))
    odd = sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
    require(not odd, f"read with empty=True gives other names or shapes: {', '.join(odd[:8])}")
    require(
        homes(Model(subject.family, empty, None)) == homes(subject.model), "read with empty=True ties other weights"
    )
    return f"{len(wanted)} names and shapes, from {len(described)} of {len(kept)} files"


def tensors(net: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, value) for name, value in net.state_dict().items() if isinstance(value, Tensor)]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def damage_is_found(subject: Subject) -> str:
    """A folder that lacks a tensor, has one too many, or was cut off is BadInput, never a model."""
    told = []
    for name in sorted(files(subject.written) - files(subject.described)):
        if name.endswith(".safetensors"):
            held = load_file(subject.written / name)
            first = next(iter(held))
            refused(subject, name, "a missing tensor", {k: v for k, v in held.items() if k != first})
            refused(subject, name, "an unexpected tensor", held | {"no.such.tensor": torch.zeros(2)})
            told += ["missing", "unexpected"]
        refused(subject, name, "a file cut off in its middle", None)
        told.append("cut off")
    return f"refused: {', '.join(told) or 'nothing is stored that could be damaged'}"


def refused(subject: Subject, name: str, fault: str, held: dict[str, Tensor] | None) -> None:
    """Damage one file of a copy of the folder and require that the family will not read it."""
    copy = subject.folder / "damaged"
    shutil.copytree(subject.written, copy)
    path = copy / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if held is not None:
        save_file(held, path, metadata={"format": "pt"})
    found = refuses(lambda: guarded(subject.family.read, copy, False))
    shutil.rmtree(copy)
    require(found, f"{name} with {fault} is read without a word: the loader's report is not checked")


def refuses(call: Callable[[], Any]) -> bool:
    """Whether a call says no, in one of the ways that a person can read."""
    try:
        call()
    except OnnuriError:
        return True
    return False


def claims_are_exclusive(subject: Subject) -> str:
    """A family claims what it wrote and nothing else; nobody else claims that."""
    family, odd = subject.family, subject.folder / "odd"
    require(family.claims(subject.written) is True, "it does not claim the folder that it wrote itself")
    odd.mkdir()
    for text in (None, "{}", "[]", "not JSON", json.dumps({"model_type": None, "architectures": [None]})):
        if text is not None:
            (odd / "config.json").write_text(text, encoding="utf-8")
        require(family.claims(odd) is False, f"it claims a folder whose config.json is {text!r}")
    others = [other for other in registry.families() if other.name != family.name]
    rivals = [other.name for other in others if guarded(other.claims, subject.written)]
    require(not rivals, f"its folder is claimed by {', '.join(rivals)} as well")
    stolen = [other.name for other in others if claimed_of(family, other, subject.folder / other.name)]
    require(not stolen, f"it claims the folders of {', '.join(stolen)} as well")
    return f"its own, none of {len(others)} others and of 5 odd ones"


def claimed_of(family: Any, other: Any, folder: Path) -> bool:
    """Whether `family` claims what `other` writes."""
    net, assets = other.start(other.tiny(), other.toy(16, 0), torch.Generator().manual_seed(0))
    folder.mkdir()
    other.write(net, assets, folder, False)
    return family.claims(folder)


def adoption(subject: Subject) -> str:
    """A folder of nothing is refused; its own, under the same labels, keeps its body or is refused with a reason."""
    family, nothing = subject.family, subject.folder / "nothing"
    nothing.mkdir()

    def adopted(folder: Path) -> tuple[nn.Module, Any]:
        return guarded(family.adopt, folder, subject.records, torch.Generator().manual_seed(0))

    require(refuses(lambda: adopted(nothing)), "it adopts an empty folder")
    try:
        net, assets = adopted(subject.written)
    except Refusal as refusal:
        return f"refuses: {refusal.why}"
    require(family.axis(assets) == family.axis(subject.model.assets), "the same labels have another order when adopted")
    before, after = everything(subject.model.net), everything(net)
    kept = sum(name in after and same(value, after[name]) for name, value in before.items())
    require(2 * kept >= len(before), f"only {kept} of {len(before)} tensors are kept when its own folder is adopted")
    return f"{kept} of {len(before)} tensors of its own folder kept"


STORING = {
    "write and read: tensors": tensors_return,
    "write and read: tied weights": ties_return,
    "write and read: outputs": outputs_return,
    "read empty": empty_return,
    "read damaged": damage_is_found,
    "claims": claims_are_exclusive,
    "adopt": adoption,
}
