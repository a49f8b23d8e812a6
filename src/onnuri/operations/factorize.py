"""Store each large matrix as two thin ones, by truncated SVD, and compute two smaller products in place of one.

How far it goes, `size` says (the share of the model's parameters that is left; which matrices give most is found out) or `error`
(how much the product of each matrix may change). svd: nearest to the weights. aware: nearest in what the weights give on the
records, as SVD-LLM (Wang et al., arXiv:2403.07378) and ASVD (Yuan et al., arXiv:2312.05821) cut them, block after block, each
seeing what the cut ones before it give; the rows of a table count as often as they are looked up. A matrix stays whole where two
factors would save nothing. Training onward makes up for much of what is lost; the factors stay factors.

Under `size`, aware cuts so that the errors of all matrices, each relative to what it gives, are least in sum; svd, which knows of
no outputs, so that all weights together change least.
"""

import copy
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..data import Data, Records
from ..errors import Refusal
from ..measure import outputs
from ..model import Model, count_parameters
from ..observe import reestimated_statistics
from ..operation import Log, Operation, Promise, Quiet, Result, Way
from ..operation import Settings as Base
from ..weights.attach import factored_weights, put_stack, require_plain
from ..weights.calibration import BATCH, in_turn, looked_at, looked_up
from ..weights.factored import Factored
from ..weights.matrices import Weight, weights
from ..weights.ranks import Curve, Spectrum, choose, factors, most, rank_within, spectrum, weighted

ROLES = ("linear", "conv", "expert", "embedding")


class Settings(Base):
    size: float = Field(0.5, gt=0, lt=1, description="share of the model's parameters that is left")
    error: float = Field(
        0.0, ge=0, lt=1, description="in place of size: how much each matrix's product may change; 0: size decides"
    )
    method: Literal["aware", "svd"] = Field("aware", description="nearest on the records, or nearest in the weights")
    calibration: int = Field(128, ge=1, description="records that aware looks at")
    embeddings: bool = Field(True, description="factorize embedding tables as well")

    @model_validator(mode="after")
    def have_an_effect(self) -> "Settings":
        if self.error and self.changed("size"):
            raise ValueError("error and size both say how far to go: leave one of them out")
        if self.method == "svd" and self.changed("calibration"):
            raise ValueError("calibration has no effect on method svd")
        return self


def apply(settings: Settings, log: Log, model: Model, data: Data) -> Result:
    """The model with its matrices stored as factors."""
    require_plain(model.net, "factorize")
    found = candidates(model, settings)
    if not found:
        raise Refusal(
            "nothing to factorize: this model holds no matrix that two factors would make smaller",
            "quantize makes it smaller; so does a student of distill",
        )
    records = data.split("train")
    seen = looked_at(records, settings.calibration, log) if settings.method == "aware" else None
    ranks = {} if settings.error else ranks_of(model, found, seen, settings)
    for number, (weight, target) in enumerate(targets(model, found, seen)):
        cut(weight, target, ranks.get(weight.name), settings.error)
        log.progress(number + 1, len(found), "matrices looked at")
    names = factored_weights(model.net).keys()
    tell_of_the_rest(names, weights(model.net, *ROLES), settings, log)
    pruned = tuple(name for name in model.pruned if name not in names)
    return Result(model=reestimated_statistics(replace(model, pruned=pruned, baked={}), records, log))


@dataclass(frozen=True)
class Target:
    """A matrix (units, rows, columns) to be cut and the `moments` of its inputs. A table is looked up by row: its matrix lies on
    its side, and its inputs are the rows' numbers, each by itself."""

    matrix: Tensor
    moments: Tensor | None
    table: bool

    @cached_property
    def spectrum(self) -> Spectrum:
        return spectrum(self.matrix, self.moments)

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """(left, right) of the matrix as it is stored."""
        left, right = factors(self.matrix, self.spectrum.directions, rank)
        return (right.mT, left.mT) if self.table else (left, right)


def targets(model: Model, found: list[Weight], seen: Records | None) -> Iterator[tuple[Weight, Target]]:
    """Each weight with what is to be kept of it, as `in_turn` has them."""
    shares = looked_up(model, seen, found) if seen else {}
    for weight, moments in in_turn(model, found, seen):
        table = weight.role == "embedding"
        yield (
            weight,
            Target(weight.matrix.mT, shares.get(weight.name), True) if table else Target(weight.matrix, moments, False),
        )


def candidates(model: Model, settings: Settings) -> list[Weight]:
    """The weights whose matrices two factors could make smaller."""
    found = weights(model.net, *(ROLES if settings.embeddings else ROLES[:-1]))
    return [weight for weight in found if most(weight.matrix)]


def ranks_of(model: Model, found: list[Weight], seen: Records | None, settings: Settings) -> dict[str, int]:
    """{weight: its rank, or one beyond the largest that saves anything} so that `size` of the parameters are left. Refusal
    where rank 1 for all leaves more."""
    curves: dict[str, Curve] = {}
    for weight, target in targets(model, found, seen):
        losses = target.spectrum.shares if seen else target.spectrum.left_over
        curves[weight.name] = Curve.of(losses, weight.matrix)
    total = count_parameters(model.net)
    rest = total - sum(int(curve.costs[-1]) for curve in curves.values())
    least = (rest + sum(int(curve.costs[0]) for curve in curves.values())) / total
    if least > settings.size:
        raise Refusal(
            f"even rank 1 for every matrix leaves {least:.2g} of the parameters, not {settings.size:g}",
            f"--size {least + 0.01:.2f} or more, or a narrower student: onnuri distill --size",
        )
    places = choose(list(curves.values()), settings.size * total - rest)
    return {name: place + 1 for name, place in zip(curves, places)}


def cut(weight: Weight, target: Target, rank: int | None, error: float) -> None:
    """Put factors in the weight's place: of this rank, or of the least one within `error`; none where that saves nothing."""
    value, largest = weight.value, most(weight.matrix)
    if rank is None:  # what rounding the factors to their type may add is taken off the budget
        rank = rank_within(target.spectrum, max(0.0, error - torch.finfo(value.dtype).eps))
    if rank <= largest:
        left, right = (part.to(value.dtype) for part in target.factors(rank))
        put_stack(weight, Factored(left, right, weight.view, value.shape))


def tell_of_the_rest(names: Collection[str], found: list[Weight], settings: Settings, log: Log) -> None:
    """Say which matrices stay whole. Refusal where all do."""
    if not names:
        raise Refusal(
            f"no matrix of this model can be cut within an error of {settings.error:g} and be smaller for it",
            "a larger --error, or --size",
        )
    if whole := [weight.name for weight in found if weight.name not in names]:
        log.warn(f"{len(whole)} of {len(found)} matrices stay whole: {', '.join(whole)}")


# ------------------------------------------------------------------------------------------------------------- promises


def parameters_left(settings: Settings, inputs: dict, result: Result) -> float | None:
    assert result.model is not None
    if settings.error:
        return None
    return count_parameters(result.model.net) / count_parameters(inputs["model"].net) / settings.size


@torch.no_grad()
def errors(settings: Settings, inputs: dict, result: Result) -> list[float]:
    """The relative error of each matrix on the inputs that it was cut for: those of the net as it was then."""
    assert result.model is not None
    bases = {name: base for name, (_, base) in factored_weights(result.model.net).items()}
    model, found = replace(inputs["model"], net=copy.deepcopy(inputs["model"].net)), list[float]()
    seen = looked_at(inputs["data"].split("train"), settings.calibration, Quiet())
    for weight, target in targets(model, candidates(model, settings), seen if settings.method == "aware" else None):
        if weight.name in bases:
            base = bases[weight.name]
            product = base.left.float() @ base.right.float()
            apart = target.matrix.float() - (product.mT if target.table else product)
            sizes = [weighted(one, target.moments).norm(dim=(1, 2)) for one in (apart, target.matrix)]
            found.append(float((sizes[0] / sizes[1].clamp_min(1e-30)).max()))
            put_stack(weight, base)
    return found


def worst_error(settings: Settings, inputs: dict, result: Result) -> float | None:
    return max(errors(settings, inputs, result), default=0.0) / settings.error if settings.error else None


def change_of_outputs(settings: Settings, inputs: dict, result: Result) -> float | None:
    """Root mean square of the change, relative to the outputs and to the sum of the matrices' errors."""
    assert result.model is not None
    if settings.method != "aware":  # it sees no inputs, so that nothing bounds what comes out
        return None
    records, sums = inputs["data"].split("test").some(64), torch.zeros(2, dtype=torch.float64)
    for start in range(0, len(records), BATCH):
        part = records.list(slice(start, start + BATCH))
        keys = range(start, start + len(part))
        (a, mask), (b, _) = (outputs(model, part, 0, keys) for model in (inputs["model"], result.model))
        sums += torch.stack([(a - b)[mask].double().square().sum(), a[mask].double().square().sum()])
    return float((sums[0] / sums[1].clamp_min(1e-300)).sqrt()) / sum(errors(settings, inputs, result))


OPERATION = Operation(
    "factorize",
    Settings,
    {"model": "model", "data": "data"},
    "model",
    apply,
    (
        Promise("parameters that are left, in what was asked for", "at most", 1.0, parameters_left),
        Promise("largest relative error of a matrix, in budgets", "at most", 1.001, worst_error),
        Promise(
            "change of the outputs, in what the errors of the matrices add up to", "at most", 2.0, change_of_outputs
        ),
    ),
    (Way("weights", {"size": (0.5, 0.25, 0.75)}),),
)
