"""Hanging functions on a Weight, the packed or factored form beneath them, and baking all of it away.

A module whose tensor has a Stack gets a subclass in which that attribute is a property: it computes the stack each time
it is read. Unlike torch's `parametrize`, undoing touches the instance only, so a deepcopy and its original stay apart.
Order of a stack: base (a parameter, packed codes, or two factors) first, then each function on the result of the one before.
"""

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import Refusal
from .factored import MATRICES, Factored
from .lowrank import LowRank
from .matrices import View, Weight, is_transposed_linear, shape_of, weights
from .packed import FORMATS, ROUNDING, Packed, Rounding, is_plain_conv, nearest

SLOT = "attached"
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


Base = Plain | Packed | Factored


class Stack(nn.Module):
    """A base and the functions on it."""

    def __init__(self, base: Base):
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

    def convolved(self, layer: Any, x: Tensor, **options: Any) -> Tensor:
        """What a convolution gives: in two steps where its kernels are two factors, in integers where its input is rounded."""
        base = self.base
        if not self.functions and isinstance(base, Factored) and layer.groups == 1:
            return base.convolved(layer, x, **options)
        in_integers = is_plain_conv(layer) and not self.functions
        if in_integers and isinstance(base, Packed) and base.input_scale is not None and base.rounds(x):
            return base.conv2d(x, layer)
        return type(layer).original.forward(layer, x, **options)

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


CONVOLUTIONS = [kind.forward for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d)]
TRANSPOSED = [kind.forward for kind in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)]


@cache
def attached_class(original: type, attributes: tuple[str, ...]) -> type:
    """A subclass of `original` that computes these attributes from their stacks."""
    body: dict = {name: property(lambda self, name=name: stacks(self)[name]()) for name in attributes}
    if is_plain_linear(original):
        body["forward"] = lambda self, x: stacks(self)["weight"].linear(x, self.bias)
    if original.forward is nn.Embedding.forward:
        body["forward"] = lambda self, x: stacks(self)["weight"].rows(x)
    if original.forward in CONVOLUTIONS:
        body["forward"] = lambda self, input: stacks(self)["weight"].convolved(self, input)
    if original.forward in TRANSPOSED:
        body["forward"] = lambda self, input, output_size=None: stacks(self)["weight"].convolved(
            self, input, output_size=output_size
        )
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


def stack_of(weight: Weight) -> Stack | None:
    """The weight's stack, None where it is a plain parameter."""
    return stacks(weight.homes[0][0]).get(weight.homes[0][1])


def put_stack(weight: Weight, base: Base | None = None) -> Stack:
    """The weight's stack, made where there is none; `base` replaces the stored parameter. Shared by all its homes."""
    stack = stack_of(weight)
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


def bake(net: nn.Module, factors: bool = True) -> None:
    """Replace every stack by a plain parameter that holds its value; tied homes stay tied. `factors`: also those that are
    two factors and nothing else."""
    for weight in weights(net):
        stack = stack_of(weight)
        if stack is not None and (factors or stack.functions or not isinstance(stack.base, Factored)):
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


def pack(
    weight: Weight, scheme: str, group: int = 0, rounding: Rounding = nearest, input_scale: Tensor | None = None
) -> None:
    """Store the weight in a scheme of `FORMATS`. `group`: columns that share a scale, 0 for whole rows. `input_scale`: the step
    of what it is multiplied with, for int8-static."""
    value, form = weight.value, FORMATS[scheme]
    codes, scale = (part.contiguous() for part in rounding(weight.matrix.float(), form, group))
    base = Packed(form.stored(codes), scale, weight.view, value.shape, value.dtype, scheme, input_scale)
    put_stack(weight, base)


def computes_integers(weight: Weight) -> bool:
    """Whether every layer that holds the weight can round its input and multiply integers."""
    return all(
        attribute == "weight"
        and (is_plain_linear(type(module)) or (type(module).forward is nn.Conv2d.forward and is_plain_conv(module)))
        for module, attribute in weight.homes
    )


def is_plain_linear(kind: type) -> bool:
    """A class that overrides the forward pass of these does something of its own with the tensor."""
    return kind.forward is nn.Linear.forward or is_transposed_linear(kind)


def packed_weights(net: nn.Module) -> dict[str, tuple[Weight, Packed]]:
    """{name: (weight, codes)} of those stored packed."""
    return {weight.name: (weight, base) for weight, base in bases(net) if isinstance(base, Packed)}


def factored_weights(net: nn.Module) -> dict[str, tuple[Weight, Factored]]:
    """{name: (weight, factors)} of those stored as two factors."""
    return {weight.name: (weight, base) for weight, base in bases(net) if isinstance(base, Factored)}


def bases(net: nn.Module) -> list[tuple[Weight, Base]]:
    """The weights that have a stack, and what lies lowest in it."""
    return [(weight, stack.base) for weight in weights(net) if (stack := stack_of(weight)) is not None]


def stored_matrices(weight: Weight) -> list[tuple[Tensor, View]]:
    """What is stored of a weight and can be trained, and how that reads as matrices: itself, or its two factors."""
    stack = stack_of(weight)
    if stack is not None and isinstance(stack.base, Factored):
        return [(stack.base.left, MATRICES), (stack.base.right, MATRICES)]
    return [(weight.value, weight.view)] if weight.value.is_leaf else []


def stored_numbers(weight: Weight) -> int:
    """How many numbers stand for a weight: codes count as the numbers that they are read as, factors as they are."""
    stack = stack_of(weight)
    if stack is not None and isinstance(stack.base, Factored):
        return stack.base.left.numel() + stack.base.right.numel()
    return shape_of(*weight.homes[0]).numel()


def is_packed(net: nn.Module) -> bool:
    return any(isinstance(module, Packed) for module in net.modules())


def is_factored(net: nn.Module) -> bool:
    return any(isinstance(module, Factored) for module in net.modules())


def updates(net: nn.Module) -> Updates:
    """The low-rank update of each weight that has one."""
    found = {}
    for weight in weights(net):
        stack = stack_of(weight)
        if stack is not None and stack.updates:
            found[weight.name] = (weight, stack.updates[-1])
    return found


def unrounded(net: nn.Module) -> nn.Module:
    """The net itself, its packed products without rounding of inputs; a copy where any rounds them."""
    if any(base.scheme in ROUNDING for _, base in packed_weights(net).values()):
        net = copy.deepcopy(net)
        for _, base in packed_weights(net).values():
            base.scheme = "int8" if base.scheme in ROUNDING else base.scheme
    return net


def is_attached(net: nn.Module) -> bool:
    """Whether anything is packed or factored, or hangs on a weight."""
    return any(isinstance(module, Stack) for module in net.modules())


def is_trainable(net: nn.Module) -> bool:
    """Whether all that is stored can follow a gradient: nothing is packed, and no adapter hangs on a base that stays."""
    return not is_packed(net) and not any(isinstance(m, Stack) and len(m.functions) for m in net.modules())


def require_trainable(net: nn.Module, doing: str) -> None:
    """Raise Refusal for a net whose matrices are packed, or carry an adapter: they can be computed with, not changed."""
    if is_packed(net):
        raise Refusal("the matrices of this model are packed as integers", f"{doing} the model that it was made from")
    if not is_trainable(net):
        raise Refusal("this model is an adapter on a base that stays as it is", f"onnuri bake, then {doing} the result")


def require_plain(net: nn.Module, doing: str) -> None:
    """As `require_trainable`, and a Refusal for a net of factors as well: there is no whole matrix to be changed."""
    require_trainable(net, doing)
    if is_factored(net):
        raise Refusal(
            "the matrices of this model are stored as two factors each",
            f"onnuri bake, which makes them whole, then {doing} the result",
        )


def plain_copy(net: nn.Module) -> nn.Module:
    """The net with plain parameters: itself where it is so, else a baked copy."""
    if not is_attached(net):
        return net
    net = copy.deepcopy(net)
    bake(net)
    return net
