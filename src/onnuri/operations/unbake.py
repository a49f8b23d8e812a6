"""Take an adapter out of a model that it was baked into: the base again, but for rounding.

Whatever else happened to the weights since stays in them.
"""

from dataclasses import replace

import torch

from ..data import Data
from ..errors import BadInput, Refusal
from ..model import Model
from ..operation import Log, Operation, Promise, Result, Settings
from ..weights.attach import require_plain
from ..weights.lowrank import LowRank
from ..weights.matrices import Weight, weights


def apply(settings: Settings, log: Log, model: Model, data: Data) -> Result:
    """The model without what was last baked into it."""
    if not model.baked:
        raise Refusal("no adapter was baked into this model", "adapt, then bake; or use the base that is known")
    require_plain(model.net, "unbake")
    require_fitting(model)
    take_out(model)
    return Result(model=replace(model, baked={}))


def require_fitting(model: Model) -> None:
    """BadInput for updates of weights that the model does not have, or has in another shape."""
    shapes = {weight.name: weight.matrix.shape for weight in weights(model.net)}
    faults = [
        f"{name}: the model has no such weight, or one of another shape"
        for name, (down, up, _) in model.baked.items()
        if name not in shapes or (len(up), up.shape[1], down.shape[2]) != tuple(shapes[name])
    ]
    if faults:
        raise BadInput(*faults, hint="unbake the folder that bake wrote")


@torch.no_grad()
def take_out(model: Model) -> None:
    """Subtract what was baked in from the stored weights, in fp32."""
    for weight, update in baked_into(model, model):
        weight.value.copy_(weight.value.float() - update.delta(weight.value.shape))


def baked_into(model: Model, net_of: Model) -> list[tuple[Weight, LowRank]]:
    """(weight of `net_of`, the update that was baked into `model`)."""
    found = [(weight, model.baked[weight.name]) for weight in weights(net_of.net) if weight.name in model.baked]
    return [(weight, LowRank(weight.view, *parts)) for weight, parts in found]


@torch.no_grad()
def error_when_baked_again(settings: Settings, inputs: dict, result: Result) -> float:
    """The largest difference of a number to what came in when its update is added once more, in steps of its type at the
    size of the matrix's largest number."""
    assert result.model is not None
    before = {weight.name: weight.value.float() for weight in weights(inputs["model"].net)}
    worst = 0.0
    for weight, update in baked_into(inputs["model"], result.model):
        again, old = weight.value.float() + update.delta(weight.value.shape), before[weight.name]
        size = max(float(old.abs().max()), float(weight.value.float().abs().max()), 1e-30)
        worst = max(worst, float((again - old).abs().max()) / size / torch.finfo(weight.value.dtype).eps)
    return worst


OPERATION = Operation(
    "unbake",
    Settings,
    {"model": "model", "data": "data"},
    "model",
    apply,
    (Promise("largest error when it is baked in again, in units of rounding", "at most", 4.0, error_when_baked_again),),
)
