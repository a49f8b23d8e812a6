"""The file of a packed, factored or shared net, `onnuri/packed.safetensors`: codes and scales, factors, other tensors as they are.

Never under a file name that other tools would open: they would read the codes as weights, and miss those that are factored.
"""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import BadInput
from ..hub import read_json
from .attach import SLOT, factored_weights, packed_weights, put_stack
from .factored import Factored
from .matrices import Weight, weights
from .packed import FORMATS, Packed, packed_tensors
from .sharing import block_ties

SIDES = ("left", "right")


def plain_tensors(net: nn.Module) -> dict[str, Tensor]:
    """What a packed file stores beside the codes: every other tensor, tied ones once."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in net.state_dict(keep_vars=True).items():
        if f".{SLOT}." not in f".{name}" and id(value) not in seen:
            seen.add(id(value))
            found[name] = value.detach().contiguous()
    return found


def needs_own_file(net: nn.Module) -> bool:
    """Whether the net stores what no other tool would understand."""
    return any(isinstance(module, (Packed, Factored)) for module in net.modules()) or bool(block_ties(net))


def tensor_bytes(net: nn.Module) -> int:
    """Bytes of all that a file of the net stores, tied tensors once."""
    return sum(value.nbytes for value in [*plain_tensors(net).values(), *packed_tensors(net)])


def save_packed(net: nn.Module, path: Path) -> None:
    """Codes and scales under `packed.`, factors under `factored.`, all other tensors under `plain.`, by their names in memory."""
    packed = packed_weights(net)
    tensors: dict[str, Tensor] = {f"plain.{name}": value for name, value in plain_tensors(net).items()}
    for name, (_, base) in packed.items():
        tensors |= {f"packed.{name}.{part}": value for part, value in base.named_buffers()}
    for name, (_, base) in factored_weights(net).items():
        tensors |= {f"factored.{name}.{side}": getattr(base, side).detach().contiguous() for side in SIDES}
    kinds = {name: [str(base.dtype).removeprefix("torch."), base.scheme] for name, (_, base) in packed.items()}
    save_file(tensors, path, metadata={"format": "onnuri-packed", "version": "2", "weights": json.dumps(kinds)})


def load_packed(net: nn.Module, path: Path) -> None:
    """Fill a net that was read empty from a packed file. BadInput lists what is missing or left over."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        kinds = json.loads((file.metadata() or {}).get("weights", "{}"))
    known = {weight.name: weight for weight in weights(net)}
    for name, (dtype, scheme) in kinds.items():
        codes, scale = (tensors.pop(f"packed.{name}.{part}", None) for part in ("codes", "scale"))
        if name not in known or codes is None or scale is None:
            raise BadInput(f"{path}: the packed weight {name} is not one of this model's, or lacks its codes")
        step = tensors.pop(f"packed.{name}.input_scale", None)
        put_stack(known[name], base_of(known[name], codes, scale, step, dtype, scheme, path))
    names = dict.fromkeys(name.rpartition(".")[0] for name in tensors if name.startswith("factored."))
    for name in names:
        left, right = (tensors.pop(f"{name}.{side}", None) for side in SIDES)
        put_factors(known, name.removeprefix("factored."), left, right, path)
    fill(net, {name.removeprefix("plain."): value for name, value in tensors.items()}, path)


def put_factors(known: dict[str, Weight], name: str, left: Tensor | None, right: Tensor | None, path: Path) -> None:
    """Hang two factors on the weight of this name. BadInput where they are not what its matrices need."""
    if name not in known or left is None or right is None:
        raise BadInput(f"{path}: the factored weight {name} is not one of this model's, or lacks one of its factors")
    units, rows, columns = known[name].matrix.shape
    rank = right.shape[1] if right.dim() == 3 else 0
    shapes = rank > 0 and left.shape == (units, rows, rank) and right.shape == (units, rank, columns)
    if not shapes or left.dtype != right.dtype or not left.is_floating_point():
        raise BadInput(f"{path}: the factors of {name} are of another shape or type than the model's")
    put_stack(known[name], Factored(left, right, known[name].view, known[name].value.shape))


def ranks_of(net: nn.Module) -> dict[str, int]:
    """{weight: its rank} of those that are two factors."""
    return {name: base.rank for name, (_, base) in factored_weights(net).items()}


def write_ranks(net: nn.Module, path: Path) -> None:
    """The ranks of a net whose factors lie elsewhere, in the graph of another runtime; no file where it has none."""
    if ranks := ranks_of(net):
        path.write_text(json.dumps(ranks) + "\n", encoding="utf-8")


def put_ranks(net: nn.Module, path: Path) -> None:
    """Give a net without numbers the factors that `write_ranks` told of, without numbers as well."""
    ranks = read_json(path)
    known = {weight.name: weight for weight in weights(net)}
    for name, rank in ranks.items():
        if name not in known or type(rank) is not int or rank < 1:
            raise BadInput(f"{path}: {str(name)[:80]} is not the name of a weight of this model with its rank")
        units, rows, columns = known[name].matrix.shape
        left, right = (torch.empty(units, *size, device="meta") for size in ((rows, rank), (rank, columns)))
        put_factors(known, name, left, right, path)


def base_of(
    weight: Weight, codes: Tensor, scale: Tensor, step: Tensor | None, dtype: str, scheme: str, path: Path
) -> Packed:
    """Checked against the weight; BadInput says what is wrong."""
    kind, form = getattr(torch, dtype, None), FORMATS.get(scheme)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point or form is None:
        raise BadInput(
            f"{path}: the weight {weight.name} is packed as {dtype!r:.40} by {scheme!r:.40}, which is not known"
        )
    units, rows, columns = weight.matrix.shape
    stored = columns // 2 if form.bits == 4 else columns
    right = codes.dtype == form.dtype and scale.dtype == torch.float32 and scale.dim() == 3
    if not right or codes.shape != (units, rows, stored) or scale.shape[:2] != codes.shape[:2]:
        raise BadInput(f"{path}: the packed weight {weight.name} is of another shape or type than the model's")
    if not scale.shape[2] or columns % scale.shape[2] or (form.bits == 4 and columns % 2):
        raise BadInput(f"{path}: the packed weight {weight.name} has {scale.shape[2]} scales for {columns} columns")
    known = step is not None and step.dtype == torch.float32 and not step.dim() and bool(step > 0)
    if known != (scheme == "int8-static") or (step is not None and not known):
        raise BadInput(
            f"{path}: the packed weight {weight.name} is {scheme}, and the step of its input does not fit that"
        )
    return Packed(codes, scale, weight.view, weight.value.shape, kind, scheme, step)


def fill(net: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Set every unpacked tensor of `net` from `tensors`, types included; tied ones once."""
    wanted = dict(net.state_dict(keep_vars=True))
    needed = plain_tensors(net).keys()
    faults = [f"{path}: missing tensor {name}" for name in sorted(needed - tensors.keys())]
    faults += [f"{path}: unexpected tensor {name}" for name in sorted(tensors.keys() - needed)]
    faults += [
        f"{path}: tensor {name} is {tuple(tensors[name].shape)}, the model needs {tuple(wanted[name].shape)}"
        for name in sorted(needed & tensors.keys())
        if wanted[name].shape != tensors[name].shape
    ]
    if faults:
        raise BadInput(*faults)
    for name in needed:
        wanted[name].data = tensors[name]
