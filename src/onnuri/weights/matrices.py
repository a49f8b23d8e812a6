"""The second noun: a net seen as a list of weight matrices, whatever its architecture.

One short table of layer kinds says how a stored tensor is read as matrices; no architecture is named. A tensor stored
once and used in several places (tied) is one Weight with several homes.
"""

import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn

Role = Literal["linear", "conv", "expert", "embedding", "raw"]


@dataclass(frozen=True)
class View:
    """Which dimensions of a stored tensor are separate units, rows (outputs) and columns (inputs) of its matrices."""

    units: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def matrix(self, tensor: Tensor) -> Tensor:
        """The stored tensor as (units, rows, columns)."""
        sizes = [prod(tensor.shape[d] for d in part) for part in (self.units, self.rows, self.columns)]
        return tensor.permute(self.units + self.rows + self.columns).reshape(sizes)

    def tensor(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `matrix`: (units, rows, columns) back to the stored `shape`."""
        order = self.units + self.rows + self.columns
        inverse = sorted(range(len(order)), key=order.__getitem__)
        return matrix.reshape([shape[d] for d in order]).permute(inverse)


@dataclass(frozen=True)
class Weight:
    """A stored tensor of two dimensions or more: its first name, all its homes, what it does, how it reads as matrices."""

    name: str
    homes: tuple[tuple[nn.Module, str], ...]
    role: Role
    view: View

    @property
    def value(self) -> Tensor:
        """The tensor as the net computes with it: attached functions applied."""
        module, attribute = self.homes[0]
        return getattr(module, attribute)

    @cached_property
    def matrix(self) -> Tensor:
        """`value` as (units, rows, columns), detached."""
        return self.view.matrix(self.value.detach())


def weights(net: nn.Module, *roles: Role) -> list[Weight]:
    """Every Weight of the net in order of first appearance, of these roles only where any is given."""
    homes: dict[int, list[tuple[nn.Module, str]]] = {}
    first: dict[int, str] = {}
    for path, module, attribute, key in stored(net):
        if dimensions(module, attribute) < 2:
            continue
        if (module, attribute) not in homes.setdefault(key, []):  # a module may bear two names
            homes[key].append((module, attribute))
        first.setdefault(key, f"{path}.{attribute}" if path else attribute)
    found = [Weight(first[key], tuple(places), *kind_of(places)) for key, places in homes.items()]
    return [weight for weight in found if not roles or weight.role in roles]


def stored(net: nn.Module) -> Iterator[tuple[str, nn.Module, str, int]]:
    """(path, module, attribute, identity) for each place of a parameter, attached ones included."""
    from .attach import Stack, stacks

    for path, module in net.named_modules(remove_duplicate=False):
        if isinstance(module, Stack) or ".attached." in f".{path}.":
            continue
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                yield path, module, attribute, id(parameter)
        for attribute, stack in stacks(module).items():
            yield path, module, attribute, id(stack)


def kind_of(places: list[tuple[nn.Module, str]]) -> tuple[Role, View]:
    """Role and view by the home that is an embedding where there is one: a table that is tied to a head is looked up row
    by row as well, and what is done to it must suit both."""
    kinds = [layer_kind(module, attribute) for module, attribute in places]
    return next((kind for kind in kinds if kind[0] == "embedding"), kinds[0])


def layer_kind(module: nn.Module, attribute: str) -> tuple[Role, View]:
    """The table of layer kinds."""
    dims = dimensions(module, attribute)
    everything = tuple(range(1, dims))
    if attribute == "weight":
        if isinstance(module, nn.Linear):
            return "linear", View((), (0,), (1,))
        if is_transposed_linear(type(module)):
            return "linear", View((), (1,), (0,))
        if isinstance(module, nn.modules.conv._ConvTransposeNd):
            return "conv", View((), (1,), (0, *range(2, dims)))
        if isinstance(module, nn.modules.conv._ConvNd):
            return "conv", View((), (0,), everything)
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            return "embedding", View((), (0,), (1,))
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)) and dims == 2:
        return "linear", View((), (0,), (1,))
    if dims == 3 and getattr(module, "num_experts", None) == shape_of(module, attribute)[0]:
        # transformers marks every class of fused experts that stores (expert, in, out) with `is_transposed`
        turned = getattr(module, "is_transposed", False)
        return "expert", View((0,), (2,), (1,)) if turned else View((0,), (1,), (2,))
    return "raw", View((), (0,), everything)


def is_transposed_linear(kind: type) -> bool:
    """transformers' Conv1D, a Linear that stores (in, out); asked without importing transformers."""
    library = sys.modules.get("transformers.pytorch_utils")
    return library is not None and issubclass(kind, library.Conv1D)


def shape_of(module: nn.Module, attribute: str) -> torch.Size:
    from .attach import stacks

    stack = stacks(module).get(attribute)
    return stack.base.shape if stack is not None else getattr(module, attribute).shape


def dimensions(module: nn.Module, attribute: str) -> int:
    return len(shape_of(module, attribute))


def zeros_of(net: nn.Module, names: Collection[str]) -> list[tuple[Tensor, Tensor]]:
    """(parameter, where it is zero) of each weight with one of these names that can be trained."""
    found = [weight.value for weight in weights(net) if weight.name in names]
    return [(value, value.detach() == 0) for value in found if value.is_leaf and value.requires_grad]


def typical_size(parameters: Iterable[Tensor]) -> float:
    """Root mean square over all matrices among the parameters."""
    matrices = [p.detach().float() for p in parameters if p.dim() >= 2]
    squares = sum(float(m.square().sum()) for m in matrices)
    return max((squares / max(1, sum(m.numel() for m in matrices))) ** 0.5, 1e-12)
