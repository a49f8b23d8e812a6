"""The same model with fewer blocks: which can go, and what is noted of those that stay.

Blocks are left out evenly, as DistilBERT takes its layers from BERT (Sanh et al., arXiv:1910.01108). The first and the last
stay: what leaves them out loses most (Men et al., ShortGPT, arXiv:2403.03853; Gromov et al., arXiv:2403.17887, who
drop deep blocks but never the last).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from .errors import Refusal
from .model import Model
from .weights.attach import require_plain


def with_blocks(model: Model, names: Collection[str]) -> Model:
    """The same model with only these of its blocks, its tensors its own; the weights that were pruned are known by their
    new names, and baked updates are forgotten."""
    require_plain(model.net, "leave out blocks of")
    net, assets = model.family.keep(model.net, model.assets, names)
    kept = replace(model, net=net, assets=assets, baked={})
    places = dict(zip((name for name in model.blocks if name in names), kept.blocks))
    return replace(kept, pruned=tuple(new for old in model.pruned if (new := renumbered(old, model.blocks, places))))


def renumbered(weight: str, blocks: Collection[str], places: Mapping[str, str]) -> str:
    """The name of a weight where blocks have new places ({old: new}); "" for one of a block that has none."""
    block = next((name for name in blocks if weight.startswith(f"{name}.")), None)
    if block is None:
        return weight
    return f"{places[block]}{weight.removeprefix(block)}" if block in places else ""


def spaced(model: Model, share: float) -> list[str]:
    """The names of the blocks that stay: `share` of each row that can be thinned out, evenly spaced, and all others.
    Refusal where no row can."""
    names, refusals = list(model.blocks), []
    for row in rows_of(names):
        fewer = [name for name in names if name not in row or name in even(row, share)]
        try:
            with_blocks(model, fewer)
            names = fewer
        except Refusal as refusal:  # the convolutions before a transformer differ in shape: they stay
            refusals.append(refusal)
    if len(names) == len(model.blocks) and refusals:
        raise refusals[0]
    return names


def rows_of(blocks: Sequence[str]) -> list[list[str]]:
    """The blocks that stand in one list, for each list of more than one. Refusal where there is none."""
    rows = [list(row) for where, row in groupby(blocks, row_of) if where]
    if not any(len(row) > 1 for row in rows):
        raise Refusal(
            f"this model has no row of blocks to choose from; its blocks: {', '.join(blocks) or 'none'}",
            "a narrower model of the same design: onnuri distill --size",
        )
    return [row for row in rows if len(row) > 1]


def row_of(name: str) -> str:
    """The list in which a block stands: its name without its number; "" for one that has none."""
    row, _, number = name.rpartition(".")
    return row if number.isdigit() else ""


def even(row: Sequence[str], share: float) -> list[str]:
    """At least one of `row`, evenly spaced: the first, and where there are two also the last."""
    count = max(1, round(share * len(row)))
    return [row[round(place * (len(row) - 1) / max(1, count - 1))] for place in range(count)]
