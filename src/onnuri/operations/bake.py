"""Bake an adapter, or packed, factored or shared weights, into plain ones: a folder that every tool opens.

The update is added to its matrix in fp32 and stored in the base's own type. What was baked in is kept beside the weights, so
that it can be taken out again.
"""

from dataclasses import replace

import torch
from torch import Tensor

from .. import measure
from ..data import Data
from ..errors import Refusal
from ..model import Model
from ..operation import Log, Operation, Promise, Result, Settings
from ..weights.adapters import parts_of
from ..weights.attach import bake, is_attached, stacks, unrounded, updates
from ..weights.lowrank import LowRank
from ..weights.matrices import Weight, weights
from ..weights.sharing import block_ties, untie


def apply(settings: Settings, log: Log, model: Model, data: Data) -> Result:
    """The same model with plain weights."""
    if not is_attached(model.net) and not block_ties(model.net):
        raise Refusal("nothing to bake: the weights of this model are plain", "adapt it first, or use it as it is")
    if unrounded(model.net) is not model.net:
        log.warn("this model computes in integers; baked it computes in float")
    parts, changed = parts_of(model.net), set(updates(model.net))
    bake(model.net)
    shared, baked = bool(block_ties(model.net)), parts or model.baked
    if shared and parts:  # known by the first names of what is shared, so that they can be taken out again
        log.warn("the blocks of this model still share tensors: bake once more for a folder that every tool opens")
    elif shared:
        untie(model.net)
        baked = {}
    pruned = tuple(name for name in model.pruned if name not in changed)
    return Result(model=replace(model, base=None, folder=model.files, baked=baked, pruned=pruned))


def rounding_error(settings: Settings, inputs: dict, result: Result) -> float | None:
    """The largest difference of a stored number to base + update, in units in which numbers of its size are rounded."""
    assert result.model is not None
    stored = {weight.name: weight for weight in weights(result.model.net)}
    found = updates(inputs["model"].net).values()
    return max((gap(stored[weight.name], base_of(weight), update) for weight, update in found), default=None)


def base_of(weight: Weight) -> Tensor:
    """The stored tensor below the update."""
    return stacks(weight.homes[0][0])[weight.homes[0][1]].base().detach()


def gap(stored: Weight, base: Tensor, update: LowRank) -> float:
    """The largest |stored - (base + scale up down)| in steps of the stored type at the size of the larger summand."""
    low = torch.einsum("urk,uko->uro", update.up.detach(), update.down.detach())
    wanted = stored.view.matrix(base).float() + update.scale * low
    found = stored.view.matrix(stored.value.detach()).float()
    size = torch.maximum(wanted.abs(), (update.scale * low).abs()).clamp_min(1e-30)
    return float(((found - wanted).abs() / size).max()) / torch.finfo(stored.value.dtype).eps


def change_of_outputs(settings: Settings, inputs: dict, result: Result) -> float | None:
    """None where the stored type is short: what rounding then does is seen in the score."""
    assert result.model is not None
    if any(parameter.dtype != torch.float32 for parameter in result.model.net.parameters()):
        return None
    before = replace(inputs["model"], net=unrounded(inputs["model"].net))
    return measure.largest_difference(before, result.model, inputs["data"].split("test").some(64))


OPERATION = Operation(
    "bake",
    Settings,
    {"model": "model", "data": "data"},
    "model",
    apply,
    (
        Promise("largest error of a weight, in units of rounding", "at most", 2.0, rounding_error),
        Promise("largest relative change of the outputs", "at most", 1e-4, change_of_outputs),
    ),
)
