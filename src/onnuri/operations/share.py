"""Let blocks share their tensors: several blocks of a row compute with one set of numbers, stored and held once.

The net stays as deep as it was, and takes as long to compute. Which blocks share: neighbors (1 1 2 2), or by `cycle` those that
stand alike in each round (1 2 1 2), as Takase & Kiyono (arXiv:2104.06022) compare them; all in one set is the way of Lan
et al. (arXiv:1909.11942). A shared tensor begins as the mean of those that it stands for, or as the first of them (Bae et
al., arXiv:2410.20672), whichever leaves the outputs nearer on the records. Much is lost at first and learnt back by `train`, which
trains what is shared as one. What a block has no parameters for, its place in a cache or its statistics, stays its own.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import groupby
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..blocks import row_of
from ..data import Data
from ..errors import Refusal
from ..model import Model, count_parameters
from ..observe import reestimated_statistics
from ..operation import Log, Operation, Promise, Result, Way
from ..operation import Settings as Base
from ..weights.attach import require_plain
from ..weights.calibration import batches_of, looked_at
from ..weights.sensitivity import divergence
from ..weights.sharing import Ties, parameters, tie, ties

Start = Literal["mean", "first"]


class Settings(Base):
    size: float = Field(0.5, gt=0, lt=1, description="share of the blocks of a row that keep tensors of their own")
    order: Literal["neighbors", "cycle"] = Field(
        "neighbors", description="neighbors share, or those of equal place in each round"
    )
    start: Literal["best", "mean", "first"] = Field(
        "best", description="what a shared tensor begins as; best: what leaves the outputs nearer"
    )
    calibration: int = Field(128, ge=1, description="records on which best compares them")

    @model_validator(mode="after")
    def have_an_effect(self) -> "Settings":
        if self.start != "best" and self.changed("calibration"):
            raise ValueError("calibration has no effect where start is given")
        return self


def apply(settings: Settings, log: Log, model: Model, data: Data) -> Result:
    """The model with blocks that share their tensors."""
    require_plain(model.net, "share")
    wanted = ties_of(model, settings)
    records = data.split("train")
    if filled := [name for name in model.pruned if name in wanted or name in wanted.values()]:
        log.warn(f"{len(filled)} pruned matrices are shared now: training fills their zeros again")
    if settings.start != "best":
        made = shared(model, wanted, settings.start)
    else:
        batches = batches_of(model, looked_at(records, settings.calibration, log))
        outputs = [model.outputs(batch) for batch in batches]
        tried = [shared(model, wanted, start) for start in ("mean", "first")]
        made = min(tried, key=lambda one: divergence(one, batches, outputs))
    return Result(model=reestimated_statistics(made, records, log))


def shared(model: Model, wanted: Ties, start: Start) -> Model:
    """A copy in which each first tensor stands for those that are tied to it."""
    net = deepcopy(model.net)
    known = parameters(net)
    if start == "mean":
        with torch.no_grad():
            for first, members in members_of(wanted).items():
                known[first].copy_(mean([known[name] for name in members]))
    tie(net, wanted)
    changed = wanted.keys() | set(wanted.values())
    return replace(model, net=net, pruned=tuple(name for name in model.pruned if name not in changed), baked={})


def members_of(wanted: Ties) -> dict[str, list[str]]:
    """{first name: all names of what becomes one tensor}."""
    found: dict[str, list[str]] = {}
    for name, first in wanted.items():
        found.setdefault(first, [first]).append(name)
    return found


def mean(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([tensor.detach().double() for tensor in tensors]).mean(0)


# ---------------------------------------------------------------------------------------------------------- which share


def ties_of(model: Model, settings: Settings) -> Ties:
    """{parameter of a block: that of the block which it takes}. Refusal where no row has blocks that are alike."""
    found: Ties = {}
    for row, own in rows_alike(model):
        count = max(1, round(settings.size * len(row)))
        for place, name in enumerate(row):
            first = row[first_of(place, len(row), count, settings.order)]
            if first != name:
                found |= {f"{name}.{rest}": f"{first}.{rest}" for rest in own}
    if not found:
        raise Refusal(
            "this model has no blocks in a row that are alike and share nothing yet, or all of them would keep their own",
            "a smaller --size, or a narrower model of the same design: onnuri distill --size",
        )
    return found


def first_of(place: int, length: int, count: int, order: str) -> int:
    """The place of the block whose tensors the one at `place` takes, of `length` in a row of which `count` keep their own."""
    if order == "cycle":
        return place % count
    group = place * count // length
    return -(-group * length // count)


def rows_alike(model: Model) -> Iterator[tuple[list[str], Collection[str]]]:
    """(blocks that stand in one list and hold parameters of the same names and shapes, these names)."""
    held = ties(model.net)
    tied = held.keys() | set(held.values())
    own_shapes = {block: own_parameters(model.net, block, tied) for block in model.blocks}
    for where, row in groupby(model.blocks, row_of):
        if where:
            for own, alike in groupby(row, own_shapes.__getitem__):
                yield list(alike), own


def own_parameters(net: nn.Module, block: str, tied: Collection[str]) -> dict[str, torch.Size]:
    """{name within the block: shape} of its parameters, those left out that another place of the net holds as well."""
    found = net.get_submodule(block).named_parameters()
    return {name: parameter.shape for name, parameter in found if f"{block}.{name}" not in tied}


# ------------------------------------------------------------------------------------------------------------- promises


def parameters_left(settings: Settings, inputs: dict, result: Result) -> float:
    """Relative to all but those of the blocks that compute with another's."""
    assert result.model is not None
    before = parameters(inputs["model"].net)
    gone = sum(before[name].numel() for name in ties_of(inputs["model"], settings))
    return count_parameters(result.model.net) / (count_parameters(inputs["model"].net) - gone)


def distance(settings: Settings, inputs: dict, result: Result) -> float:
    """Of each shared number from what it is to begin as, in units in which the largest of its tensor is rounded."""
    assert result.model is not None
    before, after = parameters(inputs["model"].net), parameters(result.model.net)
    groups = members_of(ties_of(inputs["model"], settings))
    starts: dict[str, Callable] = {"mean": mean, "first": lambda tensors: tensors[0].detach().double()}
    allowed = starts.values() if settings.start == "best" else [starts[settings.start]]

    def gap(start: Callable, names: list[str]) -> float:
        wanted = start([before[name] for name in names])
        unit = torch.finfo(before[names[0]].dtype).eps * float(wanted.abs().max().clamp_min(1e-30))
        return max(float((after[name].detach() - wanted).abs().max()) for name in names) / unit

    return min(max(gap(start, names) for names in groups.values()) for start in allowed)


OPERATION = Operation(
    "share",
    Settings,
    {"model": "model", "data": "data"},
    "model",
    apply,
    (
        Promise(
            "parameters that are left, in those of the blocks that keep their own", "at most", 1.0, parameters_left
        ),
        Promise("distance of a shared number from what it begins as, in units of rounding", "at most", 1.0, distance),
    ),
    (Way("design", {"size": (0.5, 0.34)}, alone=False),),
)
