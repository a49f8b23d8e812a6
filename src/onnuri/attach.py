"""Hanging functions on a Weight, the packed form beneath them, and baking both away.

A module whose tensor has a Stack gets a subclass in which that attribute is a property: it computes the stack each time
it is read. Unlike torch's `parametrize`, undoing touches the instance only, so a deepcopy and its original stay apart.
Order of a stack: base (a parameter, or packed codes) first, then each function on the result of the one before.
"""

import copy
import json
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import BadInput, Refusal
from .lowrank import LowRank
from .weights import View, Weight, is_transposed_linear, weights

SLOT = "attached"
SCHEMES = ("int8", "int8-dynamic")
Updates = dict[str, tuple[Weight, LowRank]]
"""{name of a weight: (the weight, the low-rank update on it)}"""


class Plain(nn.Module):
    """The base of a stack: the stored parameter itself."""

    def __init__(self, parameter: nn.Parameter, view: View):
        super().__init__()
        self.parameter, self.view = parameter, view

    @property
    def shape(self) -> torch.Size:
        return self.parameter.shape

    def forward(self) -> Tensor:
        return self.parameter

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, self.view.matrix(self.parameter)[0], bias)

    def rows(self, places: Tensor) -> Tensor:
        return F.embedding(places, self.parameter)


class Int8(nn.Module):
    """The base of a stack: int8 codes in the parameter's own layout, one fp32 scale per row of its matrices.

    scheme "int8": only the weights are short. scheme "int8-dynamic": a Linear also rounds each row of its input to
    int8 on the fly and multiplies integers.
    """

    codes: Tensor
    scale: Tensor

    def __init__(self, codes: Tensor, scale: Tensor, view: View, dtype: torch.dtype, scheme: str):
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.view, self.dtype, self.scheme = view, dtype, scheme

    @property
    def shape(self) -> torch.Size:
        return self.codes.shape

    def forward(self) -> Tensor:
        """The dequantized tensor: the product in fp32, cast once."""
        matrix = self.view.matrix(self.codes).float() * self.scale
        return self.view.tensor(matrix, self.codes.shape).to(self.dtype)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., in) -> (..., out) without forming the float matrix."""
        codes = self.view.matrix(self.codes)[0]
        # codes are up to 127: their products would leave the range of a short type before they are scaled
        # rounding has no gradient: where one is asked for (an update below is trained) the input stays float
        rounded = self.scheme == "int8-dynamic" and not (torch.is_grad_enabled() and x.requires_grad)
        product = dynamic_product(x, codes) if rounded else F.linear(x.float(), codes.float())
        product = (product * self.scale[0, :, 0]).to(x.dtype)
        return product if bias is None else product + bias

    def rows(self, places: Tensor) -> Tensor:
        """These rows of a table, without forming the float table."""
        return (self.codes[places].float() * self.scale[0, :, 0][places].unsqueeze(-1)).to(self.dtype)


def dynamic_product(x: Tensor, codes: Tensor) -> Tensor:
    """x (..., in) times codes (out, in) transposed, x rounded to int8 per row; fp32 (..., out)."""
    rows = x.reshape(-1, x.shape[-1]).float()
    step = rows.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
    integers = torch.round(rows / step).to(torch.int8)
    product = torch._int_mm(integers, codes.t())  # type: ignore[attr-defined]  torch exports it under no other name
    return (product.float() * step).reshape(*x.shape[:-1], codes.shape[0])


class Stack(nn.Module):
    """A base and the functions on it."""

    def __init__(self, base: Plain | Int8):
        super().__init__()
        self.base, self.functions = base, nn.ModuleList()

    def forward(self) -> Tensor:
        value = self.base()
        for function in self.functions:
            value = function(value)
        return value

    @property
    def updates(self) -> list[LowRank] | None:
        """The functions where all are sums with a low rank, which can be left apart from the base; else None."""
        found = [function for function in self.functions if isinstance(function, LowRank)]
        return found if len(found) == len(self.functions) else None

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., in) -> (..., out); the base's own product, plus those of the updates, where nothing else is attached."""
        if (updates := self.updates) is None:
            return F.linear(x, self.base.view.matrix(self())[0], bias)
        product = self.base.linear(x, bias)
        for update in updates:
            product = product + update.product(x)
        return product

    def rows(self, places: Tensor) -> Tensor:
        """The rows of a table at these places, without forming the table where nothing but updates is attached."""
        if (updates := self.updates) is None:
            return F.embedding(places, self())
        found = self.base.rows(places)
        for update in updates:
            found = found + update.rows(places).to(found.dtype)
        return found


# ------------------------------------------------------------------------------------------------ hanging and unhanging


def stacks(module: nn.Module) -> dict[str, Stack]:
    """{attribute: stack} of one module."""
    slot = module._modules.get(SLOT)
    return dict(slot.items()) if isinstance(slot, nn.ModuleDict) else {}  # type: ignore[arg-type]


@cache
def attached_class(original: type, attributes: tuple[str, ...]) -> type:
    """A subclass of `original` that computes these attributes from their stacks."""
    body: dict = {name: property(lambda self, name=name: stacks(self)[name]()) for name in attributes}
    # a class that overrides the forward pass of these does something of its own with the tensor
    if original.forward is nn.Linear.forward or is_transposed_linear(original):
        body["forward"] = lambda self, x: stacks(self)["weight"].linear(x, self.bias)
    if original.forward is nn.Embedding.forward:
        body["forward"] = lambda self, x: stacks(self)["weight"].rows(x)
    if issubclass(original, nn.RNNBase):
        body |= flat_once(original)
    return type(original.__name__, (original,), {**body, "original": original, "__module__": original.__module__})


def flat_once(original: type[nn.RNNBase]) -> dict:
    """The members of a recurrent layer that keep a second list of its tensors: computed once for each forward pass."""

    def flat(self) -> list:
        return self.__dict__.get("flat") or [getattr(self, name) for name in self._flat_weights_names]

    def forward(self, *inputs, **options):
        self.__dict__["flat"] = flat(self)
        try:
            return original.forward(self, *inputs, **options)
        finally:
            del self.__dict__["flat"]

    found = property(flat, lambda self, _: None)
    return {"_flat_weights": found, "_update_flat_weights": lambda self: None, "forward": forward}


def put_stack(weight: Weight, base: Plain | Int8 | None = None) -> Stack:
    """The weight's stack, made where there is none; `base` replaces the stored parameter. Shared by all its homes."""
    stack = stacks(weight.homes[0][0]).get(weight.homes[0][1])
    if stack is None:
        parameter = weight.homes[0][0]._parameters[weight.homes[0][1]]
        assert parameter is not None
        stack = Stack(base or Plain(parameter, weight.view))
        for module, attribute in weight.homes:
            hang(module, attribute, stack)
    elif base is not None:
        stack.base = base
    return stack


def hang(module: nn.Module, attribute: str, stack: Stack) -> None:
    del module._parameters[attribute]
    if SLOT not in module._modules:
        module._modules[SLOT] = nn.ModuleDict()
    module._modules[SLOT][attribute] = stack  # type: ignore[index]
    original = getattr(type(module), "original", type(module))
    module.__class__ = attached_class(original, tuple(sorted(stacks(module))))
    module.__dict__.pop("_flat_weights", None)  # of a recurrent layer: it would keep the replaced tensors in memory


def attach(weight: Weight, function: nn.Module) -> None:
    """Hang `function` (tensor -> tensor of the same shape) on top of the weight's stack, in all its homes."""
    put_stack(weight).functions.append(function)


def bake(net: nn.Module) -> None:
    """Replace every stack by a plain parameter that holds its value; tied homes stay tied."""
    for weight in [w for w in weights(net) if stacks(w.homes[0][0])]:
        stack = stacks(weight.homes[0][0]).get(weight.homes[0][1])
        if stack is not None:
            unhang(weight, nn.Parameter(stack().detach().clone()))


def unhang(weight: Weight, parameter: nn.Parameter) -> None:
    """Put `parameter` in every home of the weight in place of its stack."""
    for module, attribute in weight.homes:
        slot = module._modules[SLOT]
        del slot[attribute]  # type: ignore[attr-defined]
        left = tuple(sorted(stacks(module)))
        original = type(module).original  # type: ignore[attr-defined]
        module.__class__ = attached_class(original, left) if left else original
        if not left:
            del module._modules[SLOT]
        module.register_parameter(attribute, parameter)
        if isinstance(module, nn.RNNBase) and not left:
            module._init_flat_weights()


def require_baked(net: nn.Module) -> None:
    """Raise Refusal while any function is attached: such a net would be saved under names that nobody can read."""
    loose = [name for name, module in net.named_modules() if isinstance(module, Stack) and len(module.functions)]
    if loose:
        raise Refusal(f"{len(loose)} weights have functions attached, first {loose[0]}", "bake them in, then save")


# --------------------------------------------------------------------------------------------------------- the packed form


def pack(weight: Weight, scheme: str) -> None:
    """Store the weight as int8, symmetric, one scale per row: |error| <= half a scale everywhere."""
    matrix = weight.matrix.float()
    scale = matrix.abs().amax(2, keepdim=True).clamp_min(1e-12) / 127
    codes = torch.round(matrix / scale).to(torch.int8)
    value = weight.value
    stored = weight.view.tensor(codes, value.shape).contiguous()
    put_stack(weight, Int8(stored, scale, weight.view, value.dtype, scheme))


def packed_weights(net: nn.Module) -> dict[str, tuple[Weight, Int8]]:
    """{name: (weight, codes)} of those stored packed."""
    found = {}
    for weight in weights(net):
        stack = stacks(weight.homes[0][0]).get(weight.homes[0][1])
        if stack is not None and isinstance(stack.base, Int8):
            found[weight.name] = (weight, stack.base)
    return found


def is_packed(net: nn.Module) -> bool:
    return any(isinstance(module, Int8) for module in net.modules())


def updates(net: nn.Module) -> Updates:
    """The low-rank update of each weight that has one."""
    found = {}
    for weight in weights(net):
        stack = stacks(weight.homes[0][0]).get(weight.homes[0][1])
        if stack is not None and stack.updates:
            found[weight.name] = (weight, stack.updates[-1])
    return found


def unrounded(net: nn.Module) -> nn.Module:
    """The net itself, its packed products without rounding of inputs; a copy where any rounds them."""
    if any(base.scheme == "int8-dynamic" for _, base in packed_weights(net).values()):
        net = copy.deepcopy(net)
        for _, base in packed_weights(net).values():
            base.scheme = "int8"
    return net


def is_attached(net: nn.Module) -> bool:
    """Whether anything is packed, or hangs on a weight."""
    return any(isinstance(module, Stack) for module in net.modules())


def require_plain(net: nn.Module, doing: str) -> None:
    """Raise Refusal for a net whose matrices are packed, or carry an adapter: they can be computed with, not changed."""
    if is_packed(net):
        raise Refusal("the matrices of this model are packed as integers", f"{doing} the model that it was made from")
    if is_attached(net):
        raise Refusal("this model is an adapter on a base that stays as it is", f"onnuri bake, then {doing} the result")


def plain_copy(net: nn.Module) -> nn.Module:
    """The net with plain parameters: itself where it is so, else a baked copy."""
    if not is_attached(net):
        return net
    net = copy.deepcopy(net)
    bake(net)
    return net


def plain_tensors(net: nn.Module) -> dict[str, Tensor]:
    """What a packed file stores beside the codes: every other tensor, tied ones once."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in net.state_dict(keep_vars=True).items():
        if f".{SLOT}." not in f".{name}" and id(value) not in seen:
            seen.add(id(value))
            found[name] = value.detach().contiguous()
    return found


def save_packed(net: nn.Module, path: Path) -> None:
    """Write `onnuri/packed.safetensors`: codes and scales under `packed.`, all other tensors under `plain.`; memory
    names. Never under a file name that other tools would open: they would read the codes as weights."""
    packed = packed_weights(net)
    tensors: dict[str, Tensor] = {f"plain.{name}": value for name, value in plain_tensors(net).items()}
    for name, (_, base) in packed.items():
        tensors |= {f"packed.{name}.codes": base.codes, f"packed.{name}.scale": base.scale}
    kinds = {name: [str(base.dtype).removeprefix("torch."), base.scheme] for name, (_, base) in packed.items()}
    save_file(tensors, path, metadata={"format": "onnuri-packed", "version": "1", "weights": json.dumps(kinds)})


def load_packed(net: nn.Module, path: Path) -> None:
    """Fill a net that was read empty from a packed file. BadInput lists what is missing or left over."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        kinds = json.loads((file.metadata() or {}).get("weights", "{}"))
    known = {weight.name: weight for weight in weights(net)}
    for name, (dtype, scheme) in kinds.items():
        if name not in known or f"packed.{name}.codes" not in tensors or f"packed.{name}.scale" not in tensors:
            raise BadInput(f"{path}: the packed weight {name} is not one of this model's, or lacks its codes")
        weight, codes, scale = known[name], tensors.pop(f"packed.{name}.codes"), tensors.pop(f"packed.{name}.scale")
        if (
            codes.shape != weight.value.shape
            or codes.dtype != torch.int8
            or scale.shape != (*weight.matrix.shape[:2], 1)
        ):
            raise BadInput(f"{path}: the packed weight {name} is of another shape or type than the model's")
        kind = getattr(torch, dtype, None)
        if not isinstance(kind, torch.dtype) or not kind.is_floating_point or scheme not in SCHEMES:
            raise BadInput(
                f"{path}: the weight {name} is packed as {dtype!r:.40} by {scheme!r:.40}, which is not known"
            )
        put_stack(weight, Int8(codes, scale, weight.view, kind, scheme))
    fill(net, {name.removeprefix("plain."): value for name, value in tensors.items()}, path)


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
