"""The same net with only some of its blocks, whatever its architecture.

No architecture is named. Blocks are the numbered entries of lists of modules. The entry of a transformers config that
counts them is found by trying those of that value. What makes it safe is the comparison in `filled`: each tensor
must find its place, and each plain attribute (a window, a scale, a kind of attention) keep its value.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from .. import hub
from ..errors import BadSettings, Refusal, propose
from ..hub_blocks import hub_blocks

Kept = Mapping[str, Sequence[int]]
"""{name of a list of modules: numbers of the entries that stay, in order}."""

NOT_PER_BLOCK = ("token_id", "token_ids", "image_size", "patch_size", "architectures")
"""How the names end of lists in a config that are never one entry per block, be they just as long."""


def refuse(net: nn.Module, assets: Any, names: Collection[str]) -> tuple[nn.Module, Any]:
    """See Family.keep: for designs whose stages each change the shape."""
    raise misfit("its stages differ in shape")


def keep_layers(net: Any, assets: Any, names: Collection[str]) -> tuple[nn.Module, Any]:
    """See Family.keep: for a net of transformers."""
    for where, numbers in chosen(hub_blocks(net), names).items():
        net = with_layers(net, where, numbers)
    return net, assets


def misfit(why: str) -> Refusal:
    return Refusal(f"no block of this design can be left out: {why}", "a narrower net of the same design: distill")


def chosen(blocks: Mapping[str, Any], names: Collection[str]) -> dict[str, list[int]]:
    """The blocks in `names` as numbers within their lists. BadSettings for unknown names; Refusal for none, for an empty
    list, and where a block that is in no list would go."""
    if unknown := [name for name in names if name not in blocks]:
        raise BadSettings(*(f"there is no block '{name}'; {propose(name, blocks)}" for name in unknown))
    lists: dict[str, list[int]] = {}
    alone = []
    for name in blocks:
        where, _, number = name.rpartition(".")
        if not number.isdigit():
            alone += [] if name in names else [name]
            continue
        lists.setdefault(where, [])
        lists[where] += [int(number)] if name in names else []
    empty = [where for where, numbers in lists.items() if not numbers]
    if alone or empty or not lists:
        raise Refusal(
            f"nothing would be left in the place of {', '.join([*alone, *empty]) or 'the blocks'}",
            f"keep at least one of each list, and all that are in none; the blocks: {', '.join(blocks) or 'none'}",
        )
    return lists


# -------------------------------------------------------------------------------------------------- nets of transformers


def with_layers(net: Any, where: str, numbers: Sequence[int]) -> Any:
    """A copy of `net` with these entries of its list `where`; Refusal where no config makes a net that they fit."""
    reasons = []
    for config in configs(net.config, len(net.get_submodule(where)), numbers):
        try:
            smaller = filled(empty(type(net), config), net, {where: numbers})
        except Refusal as refusal:
            reasons.append(refusal)
            continue
        if net.can_generate():
            smaller.generation_config = deepcopy(net.generation_config)
        return smaller
    raise reasons[0] if reasons else misfit(f"its config does not count the entries of {where}")


def empty(kind: type, config: Any, misfit: Callable[[str], Refusal] = misfit) -> Any:
    """The modules, tensors without storage, as they will be built when the config is read again. `misfit`: the reason why
    they cannot be -> what is raised."""
    try:
        again = type(config).from_dict(config.to_dict())
        if again.to_dict() != config.to_dict():
            raise misfit("its config would be read otherwise than it was written")
        with torch.device("meta"):
            return hub.ready(kind(config))
    except Refusal:
        raise
    except Exception as error:  # each architecture checks its config in its own way
        raise misfit((str(error).strip() or type(error).__name__).splitlines()[-1].strip()) from error


def configs(config: Any, count: int, numbers: Sequence[int]) -> Iterator[Any]:
    """Copies of `config` in which one entry of the value `count` became the number of `numbers`, those with `layer` in
    their name first; lists of that length are cut to the entries that stay."""
    if len(numbers) == count:
        yield deepcopy(config)
        return
    for part, owner in enumerate(parts_of(config)):
        names = [name for name, value in vars(owner).items() if type(value) is int and value == count]
        for name in sorted(names, key=lambda name: "layer" not in name):
            other = deepcopy(config)
            edited = parts_of(other)[part]
            setattr(edited, name, len(numbers))
            for entry, value in list(vars(edited).items()):
                if isinstance(value, (list, tuple)) and len(value) == count and not entry.endswith(NOT_PER_BLOCK):
                    setattr(edited, entry, type(value)(value[number] for number in numbers))
            as_backbone(edited, len(numbers))
            yield other


def as_backbone(config: Any, count: int) -> None:
    """What a config that can serve as a backbone says of its stages: their names, and that the last is put out."""
    if names := getattr(config, "stage_names", None):
        config.stage_names = names[: count + 1]  # the stem is the first
        config.out_features, config.out_indices = names[count : count + 1], [count]


def parts_of(config: Any) -> list[Any]:
    """The config and those inside it (a text model's within that of pictures and text)."""
    return [config, *(part for name in config.sub_configs if (part := getattr(config, name, None)) is not None)]


# -------------------------------------------------------------------------------------------------------------- any net


def filled(smaller: nn.Module, net: nn.Module, kept: Kept) -> Any:
    """`smaller` with copies of the tensors of `net`: entry i of each list gets those of entry `kept[list][i]`. Tied
    tensors stay tied. Refusal unless each module finds its like and none but those of dropped entries is left over."""
    old = dict(net.named_modules(remove_duplicate=False))
    new = dict(smaller.named_modules(remove_duplicate=False))
    for where, numbers in kept.items():
        if where not in new or len(list(new[where].children())) != len(numbers):
            raise misfit(f"a net of this design with {len(numbers)} entries in {where} cannot be had")
    pairs = {name: before(name, kept) for name in new}
    lost = {name for name in old if is_kept(name, kept)} - set(pairs.values())
    strange = set(pairs.values()) - old.keys()
    if lost or strange:
        raise misfit(f"{min(lost | strange)} would find no place")
    numbers = same_numbers(net, kept)
    copies: dict[int, Any] = {}
    for name, module in new.items():
        require_alike(name, module, old[pairs[name]], numbers)
        for mine, theirs in stores(module, old[pairs[name]]):
            mine.update({key: copies.setdefault(id(value), copied(value)) for key, value in theirs.items()})
    return smaller.train(net.training)


def before(name: str, kept: Kept) -> str:
    """The name that a module of the smaller net had."""
    for where, numbers in kept.items():
        if name.startswith(f"{where}."):
            number, dot, rest = name.removeprefix(f"{where}.").partition(".")
            return f"{where}.{numbers[int(number)]}{dot}{rest}"
    return name


def is_kept(name: str, kept: Kept) -> bool:
    """Whether a module of the larger net has a place in the smaller one."""
    inside = [
        (name.removeprefix(f"{where}."), numbers) for where, numbers in kept.items() if name.startswith(f"{where}.")
    ]
    return all(int(rest.partition(".")[0]) in numbers for rest, numbers in inside)


def same_numbers(net: nn.Module, kept: Kept) -> set[tuple[int, int]]:
    """(before, after) of all that counts: an entry's own number, and how many there are."""
    lengths = {(len(list(net.get_submodule(where).children())), len(numbers)) for where, numbers in kept.items()}
    return lengths | {pair for numbers in kept.values() for pair in zip(numbers, range(len(numbers)))}


def require_alike(name: str, new: nn.Module, old: nn.Module, numbers: Collection[tuple[int, int]]) -> None:
    """Refusal unless both modules are of one type, with tensors of the same shapes and the same plain attributes."""
    if "drop" in name.rpartition(".")[2]:
        return  # its rate may grow with the depth; it works in training only, and holds no tensor
    if type(new).__qualname__ != type(old).__qualname__:  # a parametrized module has a type of its own
        raise misfit(f"{name} would be a {type(new).__name__} instead of a {type(old).__name__}")
    for mine, theirs in stores(new, old):
        if shapes(mine) != shapes(theirs):
            raise misfit(f"the tensors of {name} would have shapes {shapes(mine)} instead of {shapes(theirs)}")
    mine, theirs = plain(new), plain(old)
    changed = {key: (theirs.get(key), mine.get(key)) for key in mine | theirs if theirs.get(key) != mine.get(key)}
    for key, pair in changed.items():
        if pair not in numbers:
            raise misfit(f"{key} of {name} would be {pair[1]!r} instead of {pair[0]!r}")


def stores(new: nn.Module, old: nn.Module) -> tuple[tuple[dict, dict], tuple[dict, dict]]:
    """The parameters of both, and the buffers of both."""
    return (new._parameters, old._parameters), (new._buffers, old._buffers)


def shapes(tensors: Mapping[str, Any]) -> dict[str, tuple[int, ...] | None]:
    return {name: None if value is None else tuple(value.shape) for name, value in tensors.items()}


def plain(module: nn.Module) -> dict[str, Any]:
    """The attributes that steer what a module computes: numbers, texts and tuples of them; not rates of dropout."""
    kinds = (bool, int, float, str, tuple)
    return {name: value for name, value in vars(module).items() if isinstance(value, kinds) and steers(name)}


def steers(name: str) -> bool:
    return not name.startswith("_") and "drop" not in name and name != "training"


def copied(value: Any) -> Any:
    """A tensor of its own, or None."""
    if value is None:
        return None
    copy = value.detach().clone()
    return nn.Parameter(copy, value.requires_grad) if isinstance(value, nn.Parameter) else copy
