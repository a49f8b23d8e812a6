"""Set the smallest weights to zero (magnitude pruning: Han et al., 2015), and leave the rest untouched.

Zeros alone make a model smaller only when it is compressed, and no faster here; training onward keeps them.
"""

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ..attach import require_plain
from ..data import Data
from ..errors import Refusal
from ..model import Model
from ..observe import reestimated_statistics
from ..operation import Log, Operation, Promise, Result
from ..operation import Settings as Base
from ..weights import Weight, weights

ROLES = ("linear", "conv", "expert")


class Settings(Base):
    share: float = Field(0.5, gt=0, lt=1, description="share of each matrix's numbers that becomes zero")
    scope: Literal["matrix", "row"] = Field(
        "matrix", description="rank the numbers within a matrix, or within each of its rows"
    )


def apply(settings: Settings, log: Log, model: Model, data: Data) -> Result:
    """The model with `share` of every matrix at zero."""
    require_plain(model.net, "prune")
    found = weights(model.net, *ROLES)
    if not found:
        raise Refusal(
            "nothing to prune: this model holds no weight matrices", "predict, evaluate, or the teacher of distill"
        )
    with torch.no_grad():
        for number, weight in enumerate(found):
            matrix = weight.view.matrix(weight.value)
            kept = weight.view.tensor(keep(matrix, settings), weight.value.shape)
            weight.value.mul_(kept)
            log.progress(number + 1, len(found), "matrices pruned")
    pruned = tuple(dict.fromkeys([*model.pruned, *(weight.name for weight in found)]))
    model = replace(model, pruned=pruned, baked={})  # an update taken out would fill the zeros
    return Result(model=reestimated_statistics(model, data.split("train"), log))


def keep(matrix: Tensor, settings: Settings) -> Tensor:
    """1 for the numbers of (units, rows, columns) that stay: the largest of each unit, or of each row."""
    flat = matrix.abs().flatten(1) if settings.scope == "matrix" else matrix.abs()
    count = round(settings.share * flat.shape[-1])
    kept = torch.ones_like(flat)
    kept.scatter_(-1, flat.argsort(dim=-1, stable=True)[..., :count], 0)
    return kept.reshape(matrix.shape)


def zeros(model: Model) -> float:
    found = [weight.matrix for weight in weights(model.net, *ROLES)]
    return sum(int((m == 0).sum()) for m in found) / sum(m.numel() for m in found)


def missing_zeros(settings: Settings, inputs: dict, result: Result) -> float:
    assert result.model is not None
    return settings.share - zeros(result.model)


def change_of_the_rest(settings: Settings, inputs: dict, result: Result) -> float:
    """The largest change of a number that was not set to zero."""
    assert result.model is not None
    pairs: list[tuple[Weight, Weight]] = list(
        zip(weights(inputs["model"].net, *ROLES), weights(result.model.net, *ROLES))
    )
    return max(
        float((b.matrix - a.matrix)[b.matrix != 0].abs().max()) if bool((b.matrix != 0).any()) else 0.0
        for a, b in pairs
    )


OPERATION = Operation(
    "prune",
    Settings,
    {"model": "model", "data": "data"},
    "model",
    apply,
    (
        Promise("share of zeros below what was asked for", "at most", 0.02, missing_zeros),
        Promise("largest change of a number that was kept", "at most", 0.0, change_of_the_rest),
    ),
)
