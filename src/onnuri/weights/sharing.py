"""Tensors in which several places of a net agree: one parameter in memory, stored once, tied again when a folder is opened.

Many designs tie a table to a head by themselves, a few also blocks; which blocks share their tensors beside these, the folder
says.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from ..errors import BadInput
from ..hub import read_json
from .matrices import stored

MOST_PLACES = 256  # that share a tensor: no more are believed of a file
Ties = dict[str, str]
"""{name of a tensor: the first name of the one that stands in its place}"""

NUMBER = re.compile(r"(?:(?<=\.)|^)\d+(?=\.)")


def ties(net: nn.Module) -> Ties:
    """Every further name of a tensor that has several, those of one module under two names left out."""
    first: dict[int, tuple[str, nn.Module]] = {}
    found: Ties = {}
    for path, module, attribute, key in stored(net):
        name = f"{path}.{attribute}" if path else attribute
        earlier, owner = first.setdefault(key, (name, module))
        if earlier != name and owner is not module:
            found[name] = earlier
    return found


def block_ties(net: nn.Module) -> Ties:
    """Those between places whose names differ in numbers alone, as those of blocks in a row do, but for what the net's library
    ties by itself."""
    known = library_ties(net)
    return {name: first for name, first in ties(net).items() if are_alike(name, first) and not {name, first} & known}


def are_alike(name: str, first: str) -> bool:
    """Whether two names differ in numbers alone."""
    return NUMBER.sub("*", name) == NUMBER.sub("*", first)


def library_ties(net: nn.Module) -> set[str]:
    """The names of tensors that transformers ties to another in a net of its own, and of those others."""
    library = sys.modules.get("transformers.modeling_utils")
    known = library is not None and isinstance(net, library.PreTrainedModel)
    tied: dict[str, str] = net.all_tied_weights_keys if known else {}  # type: ignore[assignment]
    return {*tied, *tied.values()}


def unshared_numbers(net: nn.Module) -> int:
    """How many parameters a net of plain ones would have if each block had its own."""
    shared = sum(net.get_parameter(name).numel() for name in block_ties(net))
    return shared + sum(parameter.numel() for parameter in net.parameters())


def parameters(net: nn.Module) -> dict[str, nn.Parameter]:
    """All by all their names, tied ones by each."""
    return dict(net.named_parameters(remove_duplicate=False))


def tie(net: nn.Module, wanted: Mapping[str, str]) -> None:
    """Put the first tensor in the place of each that shares it, in a net of plain parameters, where it has both."""
    known = parameters(net)
    for name, first in wanted.items():
        if name in known and first in known:
            put(net, name, known[first])


def untie(net: nn.Module) -> None:
    """Give every block tensors of its own again, equal to those that it shared."""
    known = parameters(net)
    for name in block_ties(net).keys() & known.keys():
        put(net, name, nn.Parameter(known[name].detach().clone(), known[name].requires_grad))


def put(net: nn.Module, name: str, parameter: nn.Parameter) -> None:
    path, _, attribute = name.rpartition(".")
    setattr(net.get_submodule(path), attribute, parameter)


# ------------------------------------------------------------------------------------------------------------ on disk


def write_ties(net: nn.Module, path: Path) -> None:
    """Which tensors of blocks are one; no file where none are."""
    if found := block_ties(net):
        path.write_text(json.dumps(found) + "\n", encoding="utf-8")


def most_places(path: Path) -> int:
    """How many places one stored tensor stands for at most, by the file of ties; 1 where there is none."""
    counts = Counter(map(str, read_json(path).values())) if path.exists() else {}
    return 1 + min(MOST_PLACES, max(counts.values(), default=0))


def put_ties(net: nn.Module, path: Path) -> None:
    """Tie a net that was read without numbers as `write_ties` says. BadInput where it has no such tensors."""
    known, wanted = parameters(net), read_json(path)
    for name, first in wanted.items():
        both = type(first) is str and name in known and first in known and are_alike(name, first)
        if not both or known[name].shape != known[first].shape:
            raise BadInput(f"{path}: {name[:80]} and {str(first)[:80]} are not the same tensor of two blocks")
    tie(net, wanted)
