"""Set the least important weights to zero: by size, or by what the layers see of the data.

magnitude: the smallest numbers (Han et al., arXiv:1506.02626). wanda: the smallest products of number and input (Sun et al.,
arXiv:2306.11695; its authors rank within rows: `--scope row`). sparsegpt: those that cost least, and what is left makes up for
them (Frantar & Alistarh, arXiv:2301.00774). What no layer of the net multiplies its input with in the plain way (experts,
recurrent nets) goes by size. Zeros alone make a model smaller only when it is compressed, and no faster here; training onward
keeps them. Two of four in a row is what the sparse units of some accelerators take.
"""

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..attach import require_plain
from ..calibration import in_turn, looked_at
from ..data import Data
from ..errors import Refusal
from ..gptq import BLOCK, sparse
from ..model import Model
from ..observe import reestimated_statistics
from ..operation import Log, Operation, Promise, Result
from ..operation import Settings as Base
from ..weights import Weight, weights

ROLES = ("linear", "conv", "expert")
FOUR = 4  # columns in a row, of which "2:4" keeps two


class Settings(Base):
    share: float = Field(0.5, gt=0, lt=1, description="share of each matrix's numbers that becomes zero")
    method: Literal["magnitude", "wanda", "sparsegpt"] = Field(
        "magnitude", description="by size, by size times input, or so that what is left makes up for it"
    )
    scope: Literal["matrix", "row"] = Field(
        "matrix", description="rank the numbers within a matrix, or within each of its rows"
    )
    pattern: Literal["any", "2:4"] = Field("any", description="2:4: two of every four columns in a row, in every row")
    calibration: int = Field(128, ge=1, description="records that wanda and sparsegpt look at")

    @model_validator(mode="after")
    def have_an_effect(self) -> "Settings":
        if self.pattern == "2:4" and (self.changed("share") or self.changed("scope")):
            raise ValueError("pattern 2:4 sets half of each four to zero: share and scope have no effect")
        if self.method == "magnitude" and self.changed("calibration"):
            raise ValueError("calibration has no effect on method magnitude")
        return self


def apply(settings: Settings, log: Log, model: Model, data: Data) -> Result:
    """The model with `share` of every matrix at zero."""
    require_plain(model.net, "prune")
    found = weights(model.net, *ROLES)
    if not found:
        raise Refusal(
            "nothing to prune: this model holds no weight matrices", "predict, evaluate, or the teacher of distill"
        )
    fitting = [weight for weight in found if settings.pattern == "any" or weight.matrix.shape[2] % FOUR == 0]
    if len(fitting) < len(found):
        log.warn(f"{len(found) - len(fitting)} matrices have columns that four does not divide, and stay as they are")
    records = data.split("train")
    seen = looked_at(records, settings.calibration, log) if settings.method != "magnitude" else None
    for number, (weight, moments) in enumerate(in_turn(model, fitting, seen)):
        with torch.no_grad():
            matrix = pruned(weight.matrix, settings, moments)
            weight.value.copy_(weight.view.tensor(matrix, weight.value.shape))
        log.progress(number + 1, len(fitting), "matrices pruned")
    names = tuple(dict.fromkeys([*model.pruned, *(weight.name for weight in fitting)]))
    model = replace(model, pruned=names, baked={})  # an update taken out would fill the zeros
    return Result(model=reestimated_statistics(model, records, log))


def pruned(matrix: Tensor, settings: Settings, moments: Tensor | None) -> Tensor:
    """(units, rows, columns) with its zeros. `moments`: of what it is multiplied with, where that is known."""
    if moments is None:
        return matrix * keep(matrix.abs(), settings)
    if settings.method == "wanda":
        return matrix * keep(matrix.abs() * moments.diagonal().sqrt(), settings)
    run = FOUR if settings.pattern == "2:4" else BLOCK
    return sparse(matrix.float(), lambda costs: keep(costs, settings), run, moments)


def keep(scores: Tensor, settings: Settings) -> Tensor:
    """1 for the numbers of (units, rows, columns) that stay: the highest scores of each unit, each row or each four."""
    if settings.pattern == "2:4":
        flat = scores.unflatten(2, (-1, FOUR))
    else:
        flat = scores.flatten(1) if settings.scope == "matrix" else scores
    count = round(settings.share * flat.shape[-1])
    kept = torch.ones_like(flat)
    kept.scatter_(-1, flat.argsort(dim=-1, stable=True)[..., :count], 0)
    return kept.reshape(scores.shape)


# ------------------------------------------------------------------------------------------------------------- promises


def matrices(model: Model, names: tuple[str, ...]) -> list[Tensor]:
    return [weight.matrix for weight in weights(model.net, *ROLES) if weight.name in names]


def missing_zeros(settings: Settings, inputs: dict, result: Result) -> float:
    assert result.model is not None
    found = matrices(result.model, result.model.pruned)
    return settings.share - sum(int((m == 0).sum()) for m in found) / max(sum(m.numel() for m in found), 1)


def change_of_the_rest(settings: Settings, inputs: dict, result: Result) -> float | None:
    """The largest change of a number that was not set to zero; sparsegpt means to change them."""
    assert result.model is not None
    if settings.method == "sparsegpt":
        return None
    pairs: list[tuple[Weight, Weight]] = list(
        zip(weights(inputs["model"].net, *ROLES), weights(result.model.net, *ROLES))
    )
    return max(
        float((b.matrix - a.matrix)[b.matrix != 0].abs().max()) if bool((b.matrix != 0).any()) else 0.0
        for a, b in pairs
    )


def crowded_fours(settings: Settings, inputs: dict, result: Result) -> float | None:
    """How many of the fours in a row hold more than two numbers."""
    assert result.model is not None
    if settings.pattern != "2:4":
        return None
    fitting = [m for m in matrices(result.model, result.model.pruned) if m.shape[2] % FOUR == 0]
    return sum(int(((m.unflatten(2, (-1, FOUR)) != 0).sum(-1) > 2).sum()) for m in fitting)


OPERATION = Operation(
    "prune",
    Settings,
    {"model": "model", "data": "data"},
    "model",
    apply,
    (
        Promise("share of zeros below what was asked for", "at most", 0.02, missing_zeros),
        Promise("largest change of a number that was kept", "at most", 0.0, change_of_the_rest),
        Promise("fours in a row with more than two numbers", "at most", 0.0, crowded_fours),
    ),
)
