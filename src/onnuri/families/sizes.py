"""How many units a design has, as its config states it: channels, heads and experts, whatever the architecture.

No architecture is named. Every whole number of a transformers config is offered, also those within lists, with a net in
which it is another; which of these nets is the old one with units left out is found out elsewhere, by running them. Only
words that the library's configs use for all architectures are read: `head` and `expert`, and `per_tok` or `top_k` for
how many experts a token asks. Numbers of heads go together, since they divide each other.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from ..errors import Refusal
from ..family import Size
from .depth import NOT_PER_BLOCK, empty, parts_of

GRAIN = 8  # channels: as many numbers fill a register, and the grouped product of experts reads no fewer
PROBE = 24  # a value for entries that state none; where a tensor gets this size it was theirs
ASKED = ("per_tok", "top_k", "topk")
"""What the names of numbers contain that say how many experts a token asks."""

Entry = tuple[int, str, int | None]
"""Which part of a config, the name, and the place within a list or None."""


def none(net: nn.Module, assets: Any) -> list[Size]:
    """See Family.sizes: for designs that state none."""
    return []


def of_config(net: Any, assets: Any) -> list[Size]:
    """See Family.sizes: for a net of transformers."""
    entries = dict(numbers_of(net.config))
    found = [*of_heads(net, entries)]
    for entry, value in entries.items():
        if "head" in entry[1] or any(word in entry[1] for word in ASKED):
            continue
        count = value or stated_by_shapes(net, entry)
        if count > 1:
            found.append(size_of(net, entries, entry, count))
    return found


def size_of(net: Any, entries: Mapping[Entry, int], entry: Entry, count: int) -> Size:
    """The channels or experts that one entry counts."""
    made = maker(net, {entry: 1})
    if "expert" not in entry[1]:
        return Size(label(entry), "channels", count, made, math.gcd(count, GRAIN))
    asked = [value for (part, name, _), value in entries.items() if part == entry[0] and any(w in name for w in ASKED)]
    return Size(label(entry), "experts", count, made, least=max([1, *(n for n in asked if n <= count)]))


def of_heads(net: Any, entries: Mapping[Entry, int]) -> Iterator[Size]:
    """All that counts heads in one part of the config, as their greatest common divisor; in a list each place alone."""
    heads = {entry: value for entry, value in entries.items() if is_heads(entry[1]) and value}
    for part, place in dict.fromkeys((part, place) for part, _, place in heads):
        some = {entry: value for entry, value in heads.items() if (entry[0], entry[2]) == (part, place)}
        count = math.gcd(*some.values())
        if count > 1:
            width = [e for e, value in entries.items() if e[0] == part and "head_dim" in e[1] and not value]
            stated = {entry: value for entry in width if (value := stated_by_shapes(net, entry))}
            made = maker(net, {entry: value // count for entry, value in some.items()}, stated)
            yield Size(" and ".join(map(label, some)), "heads", count, made)


def is_heads(name: str) -> bool:
    return "head" in name and not any(word in name for word in ("dim", "size", "width"))


def numbers_of(config: Any) -> Iterator[tuple[Entry, int]]:
    """Each whole number of a config from 2 up, and each entry without a value as 0."""
    for part, owner in enumerate(parts_of(config)):
        for name, value in vars(owner).items():
            if name.startswith("_") or name.endswith(NOT_PER_BLOCK):
                continue
            if value is None or (type(value) is int and value > 1):
                yield (part, name, None), value or 0
            elif isinstance(value, (list, tuple)):
                yield from (((part, name, i), n) for i, n in enumerate(value) if type(n) is int and n > 1)


def label(entry: Entry) -> str:
    return entry[1] if entry[2] is None else f"{entry[1]}[{entry[2]}]"


def maker(
    net: Any, entries: Mapping[Entry, int], stated: Mapping[Entry, int] | None = None
) -> Callable[[int], nn.Module]:
    """A number -> the empty net whose entries are that number times their factor, and others as `stated`."""

    def made(number: int) -> nn.Module:
        values = {entry: number * factor for entry, factor in entries.items()} | dict(stated or {})
        what = " and ".join(f"{label(entry)} {value}" for entry, value in values.items())
        smaller = empty(type(net), edited(net.config, values), lambda why: Refusal(f"{what}: {why}", "another number"))
        if net.can_generate():
            smaller.generation_config = deepcopy(net.generation_config)
        return smaller

    return made


def edited(config: Any, values: Mapping[Entry, int]) -> Any:
    """A copy of a config with other values. Refusal where it does not take them."""
    config = deepcopy(config)
    for (part, name, place), value in values.items():
        owner = parts_of(config)[part]
        whole = getattr(owner, name)
        if place is not None:
            value = type(whole)([*whole[:place], value, *whole[place + 1 :]])
        try:
            setattr(owner, name, value)
        except Exception as error:  # the library checks each entry by the types that it was declared with
            raise Refusal(f"{name} cannot be {value}", "another number") from error
    return config


def stated_by_shapes(net: Any, entry: Entry) -> int:
    """The value that an entry without one stands for: what the sizes of tensors are in proportion to; else 0."""
    try:
        probe = maker(net, {entry: 1})(PROBE)
    except Refusal:
        return 0
    old, new = ({name: tuple(v.shape) for name, v in one.state_dict().items()} for one in (net, probe))
    if old.keys() != new.keys():
        return 0
    found = {before * PROBE / after for name in old for before, after in zip(old[name], new[name]) if before != after}
    value = found.pop() if len(found) == 1 else 0
    return int(value) if value == int(value) else 0


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """What `build` makes, its tensors without storage."""
    with torch.device("meta"):
        return build().eval()
