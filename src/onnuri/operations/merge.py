"""Merge two models of one design into one, by averaging their weights or along the arc between them.

linear: (1 - w) a + w b (Wortsman et al., 2022). slerp: sin((1 - w) t) / sin t a + sin(w t) / sin t b for each tensor, t
being the angle between the two, flattened (Shoemake, 1985). As mergekit defines it and unlike the paper: 1. the factors are
put to the tensors at their own lengths; 2. where |cos t| > 0.9995 it is linear; 3. a tensor shorter than 1e-8 counts as
being at a right angle to every other.
"""

import math
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from .. import measure
from ..attach import require_plain
from ..data import Data, Records
from ..errors import BadInput, Refusal
from ..model import Model
from ..observe import reestimated_statistics
from ..operation import Log, Operation, Promise, Result
from ..operation import Settings as Base

PARALLEL = 0.9995  # |cosine| above which the arc is taken for a line
SHORTEST = 1e-8  # length below which a tensor has no direction
CHUNK = 2**20  # numbers that are widened to fp64 at once
SAME = 1e-6  # relative; nets that compute alike from the same tensors do so to the bit
PROBES = 16  # records on which that is seen
READ = 512  # records that both must read as the same numbers


class Settings(Base):
    method: Literal["linear", "slerp"] = Field("linear", description="average, or go along the arc between the two")
    weight: float = Field(0.5, ge=0, le=1, description="share of the other model")


def apply(settings: Settings, log: Log, model: Model, other: Model, data: Data) -> Result:
    """`model` with its numbers merged with those of `other`, tensor by tensor and in place; what counts is the first's."""
    pairs, records = paired(model, other), data.split("train")
    require_same_reading(model, other, records.some(READ))
    for number, (name, a, b) in enumerate(pairs):
        require_finite(name, a, b)
        merge_into(a, b, settings)
        log.progress(number + 1, len(pairs), "tensors merged")
    require_same_computation(model, other, records.some(PROBES))
    if model.pruned or other.pruned:
        log.warn("pruned weights are zero only where they are zero in both models")
    model = replace(model, pruned=tuple(name for name in model.pruned if name in other.pruned), baked={})
    return Result(model=reestimated_statistics(model, records, log))


def merge_into(a: Tensor, b: Tensor, settings: Settings) -> None:
    """Set `a` to the merge of both, computed in fp32 or wider; then `b`, no longer needed, shares its memory."""
    with torch.no_grad():
        if a.is_floating_point() and not torch.equal(a, b):
            first, second = factors(a, b, settings)
            wide = torch.promote_types(a.dtype, torch.float32)
            a.copy_((first * a.to(wide)).add_(b.to(wide), alpha=second))
        b.data = a.data


def factors(a: Tensor, b: Tensor, settings: Settings) -> tuple[float, float]:
    """What each tensor is multiplied with."""
    w = settings.weight
    if settings.method == "linear":
        return 1 - w, w
    lengths = [math.sqrt(product(x, x)) for x in (a, b)]
    scale = math.prod(length if length > SHORTEST else 1.0 for length in lengths)
    cosine = max(-1.0, min(1.0, product(a, b) / scale))
    if abs(cosine) > PARALLEL:
        return 1 - w, w
    angle = math.acos(cosine)
    return math.sin((1 - w) * angle) / math.sin(angle), math.sin(w * angle) / math.sin(angle)


def product(a: Tensor, b: Tensor) -> float:
    """The inner product of the flattened tensors, in fp64."""
    parts = zip(a.detach().reshape(-1).split(CHUNK), b.detach().reshape(-1).split(CHUNK))
    return sum(float(x.double() @ y.double()) for x, y in parts)


# ------------------------------------------------------------------------------------------- what cannot be merged


def paired(model: Model, other: Model) -> list[tuple[str, Tensor, Tensor]]:
    """(name, of the one, of the other) of each stored tensor, tied ones once. Refusal where there is none, BadInput
    where the two differ in kind, in what they answer or in any tensor, or do not differ at all."""
    for each in (model, other):
        require_plain(each.net, "merge")
    if model.family.name != other.family.name:
        raise BadInput(
            f"the two are of different families: {model.family.name} and {other.family.name}",
            hint="distill the one into the other's kind",
        )
    mine, theirs = stored(model.net), stored(other.net)
    if not any(tensor.is_floating_point() for tensor in (*mine.values(), *theirs.values())):
        raise Refusal(
            "nothing to merge: this model holds no weights that could be averaged", "distill it into one that does"
        )
    require_same_axis(model, other)
    require_same_tensors(mine, theirs)
    first = first_names(mine)
    pairs = [(name, mine[name], theirs[name]) for name in mine if first[name] == name]
    if all(torch.equal(a, b) for _, a, b in pairs if a.is_floating_point()):
        raise BadInput("both models hold the same numbers: merging them has no effect", hint="name another --other")
    return pairs


def stored(net: nn.Module) -> dict[str, Tensor]:
    """Every tensor that the net stores, tied ones under each of their names."""
    return {name: value for name, value in net.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}


def first_names(tensors: dict[str, Tensor]) -> dict[str, str]:
    """{name: the first name of the same tensor}."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(value), name) for name, value in tensors.items()}


def require_same_axis(model: Model, other: Model) -> None:
    """BadInput unless both answers mean the same, in the same order."""
    one, two = model.family.axis(model.assets), other.family.axis(other.assets)
    if one == two:
        return
    shown = f"{str(one)[:200]} and {str(two)[:200]}"
    if isinstance(one, tuple) and isinstance(two, tuple) and sorted(map(str, one)) == sorted(map(str, two)):
        raise BadInput(f"the two have the same labels in another order: {shown}", hint="train both on the same data")
    raise BadInput(f"the answers of the two do not mean the same: {shown}", hint="distill the one into the other")


def require_same_tensors(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """BadInput that names the first tensor that the two do not have alike."""
    ties = first_names(mine), first_names(theirs)
    for name in [*mine, *theirs]:
        if name not in mine or name not in theirs:
            there, lacking = (mine, "other") if name in mine else (theirs, "first")
            fault = f"tensor {name} {tuple(there[name].shape)} is missing in the {lacking} model"
        elif mine[name].shape != theirs[name].shape:
            fault = f"tensor {name} is {tuple(mine[name].shape)} in the first model, {tuple(theirs[name].shape)} in the other"
        elif ties[0][name] != ties[1][name]:
            fault = f"tensor {name} is tied to another in only one of the models"
        else:
            continue
        raise BadInput(
            f"the two differ in design; the first difference: {fault}", hint="distill the one into the other's design"
        )


def require_finite(name: str, a: Tensor, b: Tensor) -> None:
    """BadInput where numbers to be merged are infinite or none at all."""
    if a.is_floating_point() and not torch.equal(a, b):
        bad = [which for which, x in (("first", a), ("other", b)) if not bool(x.isfinite().all())]
        if bad:
            raise BadInput(f"tensor {name} of the {bad[0]} model holds numbers that are not finite")


def require_same_reading(model: Model, other: Model, records: Records) -> None:
    """BadInput unless the same records become the same numbers: vocabularies, scales and sizes of pictures are alike."""
    for start in range(0, len(records), 64):
        part = records.list(slice(start, start + 64))
        one, two = (each.collate(part) for each in (model, other))
        if bad := [name for name in one if name not in two or not torch.equal(one[name], two[name])]:
            raise BadInput(
                f"the two read the same records as other numbers; the first that differ: {bad[0]}",
                hint="merge models that were trained onward from the same one",
            )


def require_same_computation(model: Model, other: Model, records: Records) -> None:
    """BadInput unless both nets, which hold the same tensors by now, answer the same records alike: what is in no tensor
    (activations, heads, positions) is the same then."""
    gap = measure.largest_difference(model, other, records)
    if gap is not None and gap > SAME:
        raise BadInput(
            f"the two have the same tensors but do not compute alike; the first difference: {unlike(model.net, other.net)}",
            hint="merge models that were trained onward from the same one",
        )


def unlike(net: nn.Module, other: nn.Module) -> str:
    """The first thing found in which two nets of the same tensors differ, for an error."""
    for (name, one), two in zip(net.named_modules(), other.modules()):
        if one.extra_repr() != two.extra_repr() or type(one) is not type(two):
            shown = (f"{type(each).__name__}({each.extra_repr()})" for each in (one, two))
            return f"{name or 'the net'} is {' and '.join(shown)}"
    buffers = dict(other.named_buffers())
    for name, value in net.named_buffers():
        if name not in buffers or not torch.equal(value, buffers[name]):
            return f"the constants {name}"
    return "something in their configs that neither a tensor nor a layer shows"


# ------------------------------------------------------------------------------------------------------------ promises


def distance_to_formula(settings: Settings, inputs: dict, result: Result) -> float:
    """The largest |merged - formula|, in units in the last place of what was added up: |factor a| + |factor b|. All in
    fp64, the angle by another formula than it was merged by. Batch-norm statistics may have been measured again."""
    assert result.model is not None
    merged, other = stored(result.model.net), stored(inputs["other"].net)
    skipped, worst = statistics(result.model.net), 0.0
    for name, a in stored(inputs["model"].net).items():
        if a.is_floating_point() and name not in skipped:
            first, second = expected_factors(a, other[name], settings)
            limits = torch.finfo(a.dtype)
            for x, y, z in zip(*(t.detach().reshape(-1).split(CHUNK) for t in (a, other[name], merged[name]))):
                x, y = first * x.double(), second * y.double()
                unit = limits.eps * (x.abs() + y.abs()).clamp_min(limits.tiny)
                worst = max(worst, float(((z.double() - (x + y)).abs() / unit).max().nan_to_num(math.inf)))
    return worst


def expected_factors(a: Tensor, b: Tensor, settings: Settings) -> tuple[float, float]:
    """`factors` once more: the angle by Kahan's formula, the sines by the addition theorem."""
    w = settings.weight
    squares, across = [product(x, x) for x in (a, b)], product(a, b)
    lengths = [math.sqrt(square) if math.sqrt(square) > SHORTEST else 1.0 for square in squares]
    inner, sums = 2 * across / math.prod(lengths), sum(s / n**2 for s, n in zip(squares, lengths))
    if settings.method == "linear" or abs(inner) > 2 * PARALLEL:
        return 1 - w, w
    angle = (
        math.pi / 2 if min(squares) <= SHORTEST**2 else 2 * math.atan2(math.sqrt(sums - inner), math.sqrt(sums + inner))
    )
    second = math.sin(w * angle) / math.sin(angle)
    return math.cos(w * angle) - math.cos(angle) * second, second


def changed_copies(settings: Settings, inputs: dict, result: Result) -> float:
    """How many tensors that hold no fractions are not those of the first model."""
    assert result.model is not None
    merged, skipped = stored(result.model.net), statistics(result.model.net)
    copied = {name: a for name, a in stored(inputs["model"].net).items() if not a.is_floating_point()}
    return sum(not torch.equal(a, merged[name]) for name, a in copied.items() if name not in skipped)


def statistics(net: nn.Module) -> set[str]:
    """The names of the batch-norm statistics."""
    layers = [(n, m) for n, m in net.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return {f"{path}.{name}" if path else name for path, layer in layers for name, _ in layer.named_buffers()}


OPERATION = Operation(
    "merge",
    Settings,
    {"model": "model", "other": "model", "data": "data"},
    "model",
    apply,
    (
        Promise("largest difference to the formula, in units in the last place", "at most", 2.0, distance_to_formula),
        Promise("whole-number tensors that are not the first model's", "at most", 0.0, changed_copies),
    ),
)
