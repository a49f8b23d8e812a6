"""Hanging functions on a Weight, the packed form beneath them, and baking both away.

A module whose tensor has a Stack gets a subclass in which that attribute is a property: it computes the stack each time
it is read. Unlike torch's `parametrize`, undoing touches the instance only, so a deepcopy and its original stay apart.
Order of a stack: base (a parameter, or packed codes) first, then each function on the result of the one before.
"""

import copy
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import Refusal
from .lowrank import LowRank
from .packed import FORMATS, ROUNDING, Packed, Rounding, is_plain_conv, nearest
from .weights import View, Weight, is_transposed_linear, weights

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


class Stack(nn.Module):
    """A base and the functions on it."""

    def __init__(self, base: Plain | Packed):
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

    def conv2d(self, x: Tensor, layer: nn.Conv2d, original: type[nn.Conv2d]) -> Tensor:
        """A plain convolution, in integers where the base rounds its input and nothing else is attached."""
        base = self.base
        if not self.functions and isinstance(base, Packed) and base.input_scale is not None and base.rounds(x):
            return base.conv2d(x, layer)
        return original.forward(layer, x)

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
    if is_plain_linear(original):
        body["forward"] = lambda self, x: stacks(self)["weight"].linear(x, self.bias)
    if original.forward is nn.Conv2d.forward:
        body["forward"] = lambda self, x: stacks(self)["weight"].conv2d(x, self, original)
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


def put_stack(weight: Weight, base: Plain | Packed | None = None) -> Stack:
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
    found = {}
    for weight in weights(net):
        stack = stacks(weight.homes[0][0]).get(weight.homes[0][1])
        if stack is not None and isinstance(stack.base, Packed):
            found[weight.name] = (weight, stack.base)
    return found


def is_packed(net: nn.Module) -> bool:
    return any(isinstance(module, Packed) for module in net.modules())


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
    if any(base.scheme in ROUNDING for _, base in packed_weights(net).values()):
        net = copy.deepcopy(net)
        for _, base in packed_weights(net).values():
            base.scheme = "int8" if base.scheme in ROUNDING else base.scheme
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
