"""The layout of compressed-tensors, which transformers (with the package of that name) and vLLM open: linear layers as codes.

A linear layer NAME is stored as codes and scales beside the library's other tensors, and `quantization_config` in config.json
says how to read them: pack-quantized (`NAME.weight_packed`, int32: codes made positive, the lowest bits first), or int-quantized
and float-quantized (`NAME.weight` is the codes). Both ways go by the contents of tensors and never by their names: the
library writes and reads the float net, and a stored tensor is the matrix of the layer that holds the same numbers.
"""

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import BadInput, Refusal
from ..hub import peek, read_json
from .attach import bake, packed_weights, put_stack
from .matrices import Weight, weights
from .packed import FORMATS, ROUNDING, Packed, spread

LAYOUT = "compressed-tensors"
KEY = "quantization_config"
INDEX = "model.safetensors.index.json"
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Storage:
    """How a scheme is called there. `strategy`: which numbers share a scale; `inputs`: how what is multiplied is rounded."""

    format: str
    kind: str
    strategy: str
    inputs: dict[str, Any] | None = None


ROUNDED = {"num_bits": 8, "type": "int", "symmetric": True}
STORAGES = {
    "int4": Storage("pack-quantized", "int", "group"),
    "int8": Storage("pack-quantized", "int", "channel"),
    "int8-dynamic": Storage("int-quantized", "int", "channel", ROUNDED | {"strategy": "token", "dynamic": True}),
    "int8-static": Storage("int-quantized", "int", "channel", ROUNDED | {"strategy": "tensor", "dynamic": False}),
    "fp8-e4m3": Storage("float-quantized", "float", "channel"),
}
"""By scheme; the others have no form there."""


def is_compressed(folder: Path) -> bool:
    found = peek(folder).get(KEY)
    return isinstance(found, dict) and found.get("quant_method") == LAYOUT


def fits(weight: Weight) -> bool:
    """Whether a weight is the matrix of one linear layer and nothing else: only those have a form there."""
    return len(weight.homes) == 1 and weight.homes[0][1] == "weight" and type(weight.homes[0][0]) is nn.Linear


def digest(value: Tensor) -> str:
    value = value.detach().cpu().contiguous()
    return sha256(
        f"{value.dtype} {tuple(value.shape)}".encode() + bytes(value.view(-1).view(torch.uint8).numpy())
    ).hexdigest()


# ---------------------------------------------------------------------------------------------------------------- writing


def write_compressed(net: nn.Module, write: Callable[[nn.Module], None], folder: Path) -> None:
    """Fill `folder`. `write`: the library's writer of a float net into it."""
    packed = packed_weights(net)
    known = {digest(base()): base for _, base in packed.values()}
    plain = copy.deepcopy(net)
    bake(plain)
    write(plain)
    ignored = [name for name, module in plain.named_modules() if isinstance(module, nn.Linear)]
    ignored = [name for name in ignored if f"{name}.weight" not in packed]
    left = set(known)
    for path in sorted(folder.glob("*.safetensors")):
        tensors: Tensors = {}
        for name, value in load_file(path).items():
            base = known.get(digest(value)) if name.endswith(".weight") else None
            left -= {digest(value)}
            tensors |= coded(name.removesuffix(".weight"), base) if base else {name: value}
        save_file(tensors, path, metadata={"format": "pt"})
    if left:
        raise Refusal(
            f"transformers stores {len(left)} of the packed matrices in another shape", "quantize --layout onnuri"
        )
    write_index(folder)
    config = read_json(folder / "config.json")
    config[KEY] = config_of([base for _, base in packed.values()], ignored)
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def coded(name: str, base: Packed) -> Tensors:
    """What stands for one linear layer's matrix."""
    rows, columns = base.shape
    found = {f"{name}.weight_scale": base.scale[0].to(base.dtype).contiguous()}
    if STORAGES[base.scheme].format != "pack-quantized":
        step = {f"{name}.input_scale": base.input_scale.reshape(1)} if base.input_scale is not None else {}
        return {f"{name}.weight": base.codes[0].contiguous(), **found, **step}
    codes = base.codes[0] if base.form.bits == 4 else (base.codes[0].short() + 128).to(torch.uint8)
    words = torch.nn.functional.pad(codes, (0, -codes.shape[1] % 4)).contiguous().view(torch.int32)
    return found | {f"{name}.weight_packed": words, f"{name}.weight_shape": torch.tensor([rows, columns])}


def write_index(folder: Path) -> None:
    """Say anew which file holds which tensor, where there is an index."""
    if not (folder / INDEX).exists():
        return
    places, total = {}, 0
    for path in sorted(folder.glob("*.safetensors")):
        tensors = load_file(path)
        places |= dict.fromkeys(tensors, path.name)
        total += sum(value.nbytes for value in tensors.values())
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2)
    (folder / INDEX).write_text(text + "\n", encoding="utf-8")


def config_of(bases: list[Packed], ignored: list[str]) -> dict[str, Any]:
    """`quantization_config`; all layers are of one scheme."""
    first = bases[0]
    storage, groups = STORAGES[first.scheme], first.scale.shape[2]
    sizes: dict[str, Any] = {"strategy": storage.strategy}
    if storage.strategy == "group" or groups > 1:
        sizes = {"strategy": "group", "group_size": first.shape[1] // groups}
    weight = {"num_bits": first.form.bits, "type": storage.kind, "symmetric": True, "dynamic": False, **sizes}
    scheme = {"targets": ["Linear"], "weights": weight, "input_activations": storage.inputs, "output_activations": None}
    return {
        "quant_method": LAYOUT,
        "format": storage.format,
        "quantization_status": "compressed",
        "config_groups": {"group_0": scheme},
        "ignore": ignored,
    }


# ---------------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Coded:
    """A linear layer's matrix as it lies in a folder: its float numbers, and what stands for them here."""

    value: Tensor
    codes: Tensor
    scale: Tensor
    scheme: str
    step: Tensor | None


def read_compressed(read: Callable[[Path], tuple[nn.Module, Any]], folder: Path) -> tuple[nn.Module, Any]:
    """The net of a folder in this layout, packed, and its assets. `read`: the library's loader of a float folder. Codes that no
    linear layer of the net holds alone (the parts of fused experts) are float numbers in it."""
    config = read_json(folder / "config.json")
    bits, inputs = understood(config.pop(KEY), folder)
    dtype = getattr(torch, str(config.get("dtype") or config.get("torch_dtype")), None)
    stored = Stored(folder, bits, inputs, dtype if isinstance(dtype, torch.dtype) else None)
    found: dict[str, Coded] = {}
    with TemporaryDirectory(prefix="onnuri-") as place:
        plain = Path(place)
        shutil.copytree(
            folder, plain, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors", "onnuri", ".*")
        )
        (plain / "config.json").write_text(json.dumps(config), encoding="utf-8")
        for path in sorted(folder.glob("*.safetensors")):
            tensors = dict(stored.floats(path))
            found |= {digest(one.value): one for one in tensors.values() if isinstance(one, Coded)}
            floats = {name: one.value if isinstance(one, Coded) else one for name, one in tensors.items()}
            save_file(floats, plain / path.name, metadata={"format": "pt"})
        write_index(plain)
        try:
            net, assets = read(plain)
        except BadInput as error:
            raise BadInput(*(fault.replace(place, str(folder)) for fault in error.faults), hint=error.hint) from error
    for weight in weights(net, "linear"):
        if one := found.get(digest(weight.value)):
            shape, kind = weight.value.shape, weight.value.dtype
            put_stack(weight, Packed(one.codes, one.scale, weight.view, shape, kind, one.scheme, one.step))
    return net, assets


def understood(config: dict[str, Any], folder: Path) -> tuple[set[int], str]:
    """(bits of the codes, "int8", "int8-dynamic" or "int8-static" for how layers with codes of int8 compute); BadInput for what
    there is no packed form for here."""
    groups = [group for group in config.get("config_groups", {}).values() if group.get("weights")]
    args, faults = [group["weights"] for group in groups], []
    known = {storage.format for storage in STORAGES.values()}
    if config.get("format") not in known:
        faults.append(f"{folder}: codes in the format {config.get('format')!r}; known: {', '.join(sorted(known))}")
    if not args or any(one.get("symmetric", True) is not True or one.get("actorder") == "group" for one in args):
        faults.append(f"{folder}: its codes have offsets, or their columns another order, which is not read")
    if any((one.get("type", "int"), one.get("num_bits")) not in (("int", 4), ("int", 8), ("float", 8)) for one in args):
        faults.append(f"{folder}: codes of 4 or 8 bits are read, and no others")
    rounded = [group.get("input_activations") or {} for group in groups]
    ways = {way(one) for one in rounded}
    if len(ways) > 1 or None in ways:
        faults.append(f"{folder}: what its layers multiply is rounded in a way that is not known here")
    if faults:
        raise BadInput(*faults, hint="the float model that it was made from opens, and quantize packs it")
    return {one["num_bits"] for one in args}, str(ways.pop())


def way(inputs: dict[str, Any]) -> str | None:
    """The scheme of codes of int8 whose inputs are treated so. Those of float codes stay float here."""
    if not inputs or inputs.get("type") == "float":
        return "int8"
    told: list[Any] = [inputs.get("num_bits"), inputs.get("symmetric", True), inputs.get("strategy")]
    if told == [8, True, "token"] and inputs.get("dynamic") is True:
        return "int8-dynamic"
    return "int8-static" if told == [8, True, "tensor"] and not inputs.get("dynamic") else None


@dataclass(frozen=True)
class Stored:
    """The tensors of a folder; those of one layer may lie in several of its files."""

    folder: Path
    bits: set[int]
    scheme: str
    dtype: torch.dtype | None

    @cached_property
    def places(self) -> dict[str, Path]:
        """{tensor: file}"""
        found = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                found |= dict.fromkeys(file.keys(), path)
        return found

    def get(self, name: str) -> Tensor | None:
        if name not in self.places:
            return None
        with safe_open(self.places[name], framework="pt") as file:
            return file.get_tensor(name)

    def floats(self, path: Path) -> Iterator[tuple[str, Tensor | Coded]]:
        """What a float folder would store in this file."""
        for name in [name for name, place in self.places.items() if place == path]:
            layer, _, part = name.rpartition(".")
            if f"{layer}.weight_scale" not in self.places:
                yield name, self.wanted(name)
            elif part == "weight_packed":
                yield f"{layer}.weight", self.coded(layer, *self.unpacked(layer))
            elif part == "weight":
                codes = self.wanted(name)
                yield name, self.coded(layer, codes[None], "fp8-e4m3" if codes.dtype.is_floating_point else self.scheme)
            elif part == "bias":
                yield name, self.wanted(name)
            elif part not in ("weight_scale", "weight_shape", "input_scale"):
                raise BadInput(f"{path}: {name} is a part of packed weights that is not known here")

    def wanted(self, name: str) -> Tensor:
        value = self.get(name)
        if value is None:
            raise BadInput(f"{self.folder}: missing tensor {name}")
        return value

    def unpacked(self, layer: str) -> tuple[Tensor, str]:
        """(codes as they are stored here, scheme) of int32 words."""
        words, shape = self.wanted(f"{layer}.weight_packed"), self.wanted(f"{layer}.weight_shape").tolist()
        rows, columns = shape
        fitting = [bits for bits in self.bits if words.shape == (rows, -(-columns * bits // 32))]
        if words.dtype != torch.int32 or len(fitting) != 1 or columns * fitting[0] % 8:
            raise BadInput(f"{self.folder}: the codes of {layer} do not fill a matrix of {rows} x {columns}")
        packed = words.contiguous().view(torch.uint8)[:, : columns * fitting[0] // 8]
        if fitting[0] == 4:
            return packed.contiguous()[None], "int4"
        return (packed.short() - 128).to(torch.int8)[None], self.scheme

    def coded(self, layer: str, stored: Tensor, scheme: str) -> Coded:
        """A layer's codes with their scales."""
        scale = self.wanted(f"{layer}.weight_scale")
        form = FORMATS[scheme]
        if stored.dtype != form.dtype:
            raise BadInput(f"{self.folder}: the codes of {layer} are {stored.dtype}, which is not read")
        codes = form.codes(stored)
        scales = (
            scale.float().reshape(1, -1, 1).expand(1, codes.shape[1], 1) if scale.numel() == 1 else scale.float()[None]
        )
        groups = scales.shape[-1]
        if scales.dim() != 3 or scales.shape[1] != codes.shape[1] or codes.shape[2] % groups:
            raise BadInput(
                f"{self.folder}: the scales of {layer} are {tuple(scale.shape)} for {tuple(codes.shape[1:])} codes"
            )
        step = self.get(f"{layer}.input_scale") if scheme == "int8-static" else None
        if scheme in ROUNDING and (groups > 1 or (scheme == "int8-static" and step is None)):
            raise BadInput(f"{self.folder}: {layer} rounds its input, and its scales do not fit that")
        value = (codes * spread(scales, codes.shape[2]))[0].to(self.dtype or scale.dtype)
        return Coded(value, stored, scales.contiguous(), scheme, None if step is None else step.float().reshape(()))
