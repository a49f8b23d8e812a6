"""Single numbers that become zero."""

from dataclasses import replace

import torch
from torch import Tensor

from ...data import Records
from ...model import Model
from ...operation import Log, Result
from ...weights.calibration import in_turn
from ...weights.gptq import BLOCK, sparse
from ...weights.matrices import Weight, weights
from ...weights.sharing import block_ties
from .settings import ROLES, Settings

FOUR = 4  # columns in a row, of which "2:4" keeps two


def with_zeros(settings: Settings, log: Log, model: Model, seen: Records | None) -> Model:
    """The model with zeros in its matrices."""
    found = weights(model.net, *ROLES)
    fitting = [weight for weight in found if settings.pattern == "any" or weight.matrix.shape[2] % FOUR == 0]
    if len(fitting) < len(found):
        log.warn(f"{len(found) - len(fitting)} matrices have columns that four does not divide, and stay as they are")
    for number, (weight, moments) in enumerate(in_turn(model, fitting, seen)):
        with torch.no_grad():
            matrix = pruned(weight.matrix, settings, moments)
            weight.value.copy_(weight.view.tensor(matrix, weight.value.shape))
        log.progress(number + 1, len(fitting), "matrices pruned")
    known = dict.fromkeys([*model.pruned, *(weight.name for weight in fitting)])
    shared = [name for name, first in block_ties(model.net).items() if first in known]
    names = tuple(dict.fromkeys([*known, *shared]))
    return replace(model, pruned=names, baked={})  # an update taken out would fill the zeros


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


def missing_zeros(settings: Settings, inputs: dict, result: Result) -> float | None:
    assert result.model is not None
    if settings.units != "numbers":
        return None
    found = matrices(result.model, result.model.pruned)
    return settings.share - sum(int((m == 0).sum()) for m in found) / max(sum(m.numel() for m in found), 1)


def change_of_the_rest(settings: Settings, inputs: dict, result: Result) -> float | None:
    """The largest change of a number that was not set to zero; sparsegpt means to change them."""
    assert result.model is not None
    if settings.method == "sparsegpt" or settings.units != "numbers":
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
