"""Merge two models of one design into one: an average, the arc between them, or what each has learned since a base.

`weights/merging.py` says how, tensor by tensor. What is no number of the nets comes from the first. With data, both nets must read
and compute alike on their records, and the result is measured. Without, the folders must say the same of it, and tensors go
from files to files one at a time: a model may be larger than the memory then, and nothing is opened or measured.
"""

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from .. import measure
from ..data import Data, Records
from ..errors import BadInput, BadSettings, Refusal
from ..family import mix
from ..model import Model
from ..observe import reestimated_statistics
from ..operation import Log, Operation, Promise, Result
from ..operation import Settings as Base
from ..stored import Stored, first_unlike_file
from ..weights.attach import require_plain
from ..weights.merging import CHUNK, FROM_A_BASE, PARALLEL, SHORTEST, Way, factors, from_base, product

SAME = 1e-6  # relative; nets that compute alike from the same tensors do so to the bit
PROBES = 16  # records on which that is seen
READ = 512  # records that both must read as the same numbers


class Settings(Base):
    method: Literal["linear", "slerp", "task-arithmetic", "ties", "dare", "dare-ties"] = Field(
        "linear", description="average, the arc between the two, or from a --base what each has learned"
    )
    weight: float = Field(0.5, ge=0, le=1, description="share of the other model")
    scale: float = Field(1.0, gt=0, description="of all that is added to the base; 2: both differences in full")
    density: float = Field(0.5, gt=0, le=1, description="share of the differences that ties and dare keep")
    seed: int = Field(0, ge=0, description="of the random choice of dare")

    @model_validator(mode="after")
    def have_an_effect(self) -> "Settings":
        for name, methods in (("scale", FROM_A_BASE), ("density", FROM_A_BASE[1:]), ("seed", FROM_A_BASE[2:])):
            if self.changed(name) and self.method not in methods:
                raise ValueError(f"{name} has no effect on {self.method}, only on {', '.join(methods)}")
        return self

    @property
    def way(self) -> Way:
        return Way(self.method, self.weight, self.density, self.scale)


def apply(settings: Settings, log: Log, model: Model, other: Model, data: Data, base: Model | None = None) -> Result:
    """`model` with its numbers merged with those of `other`, tensor by tensor and in place; what counts is the first's."""
    require_base(settings, base)
    pairs, records = paired(model, other), data.split("train")
    require_same_reading(model, other, records.some(READ))
    origin = based(model, base, records.some(READ)) if base else {}
    for number, (name, a, b) in enumerate(pairs):
        require_finite(name, a, b)
        merge_into(a, b, settings, origin.get(name), name)
        log.progress(number + 1, len(pairs), "tensors merged")
    require_same_computation(model, other, records.some(PROBES))
    if model.pruned or other.pruned:
        log.warn("pruned weights are zero only where they are zero in both models")
    model = replace(model, pruned=tuple(name for name in model.pruned if name in other.pruned), baked={})
    return Result(model=reestimated_statistics(model, records, log))


def merged_at_rest(
    settings: Settings, log: Log, model: Stored, other: Stored, base: Stored | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Each tensor of `model` merged with that of `other`, one at a time."""
    require_base(settings, base)
    for each in (other, base) if base else (other,):
        require_same_files(model, each)
        require_same_tensors(model, each)
    require_difference((name, model[name], other[name]) for name in model)
    for number, name in enumerate(model):
        a, b = model[name], other[name]
        require_finite(name, a, b)
        yield name, merged(a, b, settings, base[name] if base else None, name)
        log.progress(number + 1, len(model), "tensors merged")


def merge_into(a: Tensor, b: Tensor, settings: Settings, base: Tensor | None = None, name: str = "") -> None:
    """Set `a` to the merge of both; then `b`, no longer needed, shares its memory."""
    with torch.no_grad():
        a.copy_(merged(a, b, settings, base, name))
        b.data = a.data


@torch.no_grad()
def merged(a: Tensor, b: Tensor, settings: Settings, base: Tensor | None = None, name: str = "") -> Tensor:
    """The merge of both in the type of `a`, computed in fp32 or wider; `a` itself where there is nothing to merge."""
    if a.is_floating_point() and base is not None:
        origin = base.double()
        deltas = torch.stack([a.double() - origin, b.double() - origin])
        return (origin + from_base(deltas, settings.way, drawing(settings, name))).to(a.dtype)
    if not a.is_floating_point() or torch.equal(a, b):
        return a
    first, second = factors(a, b, settings.way)
    wide = torch.promote_types(a.dtype, torch.float32)
    return (first * a.to(wide)).add_(b.to(wide), alpha=second).to(a.dtype)


def drawing(settings: Settings, name: str) -> torch.Generator:
    """The same numbers for a tensor of this name, whichever came before."""
    return torch.Generator().manual_seed(mix(settings.seed, zlib.crc32(name.encode())))


# ------------------------------------------------------------------------------------------- what cannot be merged


def paired(model: Model, other: Model) -> list[tuple[str, Tensor, Tensor]]:
    """(name, of the one, of the other) of each stored tensor, tied ones once. Refusal where there is none, BadInput
    where the two differ in kind, in what they answer or in any tensor, or do not differ at all."""
    require_same_family(model, other)
    mine, theirs = stored(model.net), stored(other.net)
    if not any(tensor.is_floating_point() for tensor in (*mine.values(), *theirs.values())):
        raise Refusal(
            "nothing to merge: this model holds no weights that could be averaged", "distill it into one that does"
        )
    require_same_axis(model, other)
    require_same_tensors(mine, theirs)
    first = first_names(mine)
    pairs = [(name, mine[name], theirs[name]) for name in mine if first[name] == name]
    require_difference(pairs)
    return pairs


def require_difference(pairs: Iterable[tuple[str, Tensor, Tensor]]) -> None:
    if all(torch.equal(a, b) for _, a, b in pairs if a.is_floating_point()):
        raise BadInput("both models hold the same numbers: merging them has no effect", hint="name another --other")


def require_same_files(one: Stored, other: Stored) -> None:
    """BadInput unless both folders say the same of everything that is in no tensor. Refusal where a batch norm's
    statistics, which an average of weights makes wrong, would have to be measured again."""
    if unlike := first_unlike_file(one.folder, other.folder):
        raise BadInput(
            f"{one.folder} and {other.folder} do not say the same in {unlike}",
            hint="--data FILE, to see by records whether they read and compute alike",
        )
    if any(name.endswith("running_var") for name in one):
        raise Refusal("the statistics of its batch norms must be measured again after merging", "merge with --data")


def require_same_family(model: Model, other: Model) -> None:
    for each in (model, other):
        require_plain(each.net, "merge")
    if model.family.name != other.family.name:
        raise BadInput(
            f"the two are of different families: {model.family.name} and {other.family.name}",
            hint="distill the one into the other's kind",
        )


def require_base(settings: Settings, base: Model | Stored | None) -> None:
    if (base is not None) != (settings.method in FROM_A_BASE):
        fault = "has no effect on" if base else "is needed for"
        raise BadSettings(
            f"'base', the model that both were trained onward from, {fault} {settings.method}",
            hint=f"--method {FROM_A_BASE[0]}" if base else "--base FOLDER",
        )


def based(model: Model, base: Model, records: Records) -> dict[str, Tensor]:
    """The base's tensors, but for batch-norm statistics, which are averaged: a variance has no difference that could be
    doubled. BadInput unless they are those of the model's design, and records become the same numbers."""
    require_same_family(model, base)
    mine, theirs = stored(model.net), stored(base.net)
    require_same_axis(model, base)
    require_same_tensors(mine, theirs)
    require_same_reading(model, base, records)
    skipped = statistics(base)
    return {name: value for name, value in theirs.items() if name not in skipped}


def tensors_of(one: Model | Stored) -> Mapping[str, Tensor]:
    """Every tensor of a model, whether it is opened or lies on the disk."""
    return one if isinstance(one, Stored) else stored(one.net)


def stored(net: nn.Module) -> dict[str, Tensor]:
    """Every tensor that the net stores, tied ones under each of their names."""
    return {name: value for name, value in net.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}


def first_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """{name: the first name of the same tensor}; a file holds each once."""
    if isinstance(tensors, Stored):
        return {name: name for name in tensors}
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


def require_same_tensors(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
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
    """The largest |merged - formula|, in units in the last place of what was added up. All in fp64; an angle by another
    formula than it was merged by. Batch-norm statistics may have been measured again."""
    merged, skipped, worst = result_of(result), statistics(result.model), 0.0
    mine, other = tensors_of(inputs["model"]), tensors_of(inputs["other"])
    origin = tensors_of(inputs["base"]) if "base" in inputs else {}
    first_name = first_names(mine)
    for name, a in mine.items():
        if not a.is_floating_point() or name in skipped:
            continue
        if origin:
            change = expected_change(a, other[name], origin[name], settings, first_name[name])
            parts = [(origin[name].double(), change)]
            gaps = [distance(merged[name], x, y) for x, y in parts]
        else:
            first, second = expected_factors(a, other[name], settings)
            chunks = zip(*(t.detach().reshape(-1).split(CHUNK) for t in (a, other[name], merged[name])))
            gaps = [distance(z, first * x.double(), second * y.double()) for x, y, z in chunks]
        worst = max(worst, *gaps)
    return worst


def distance(found: Tensor, x: Tensor, y: Tensor) -> float:
    """The largest |found - (x + y)|, in units in the last place of |x| + |y|."""
    limits = torch.finfo(found.dtype)
    unit = (x.abs() + y.abs()).clamp_min_(limits.tiny).mul_(limits.eps)
    return float((found.double() - x).sub_(y).abs_().div_(unit).max().nan_to_num(math.inf))


def expected_change(a: Tensor, b: Tensor, base: Tensor, settings: Settings, name: str) -> Tensor:
    """`from_base` once more, as it is written in the papers: place by place what each model brings in."""
    draw, parts = drawing(settings, name), []
    for weight, tensor in ((1 - settings.weight, a), (settings.weight, b)):
        delta = tensor.detach().double() - base.detach().double()
        keep = torch.ones_like(delta)
        if settings.method == "ties":
            sizes = delta.abs().flatten().numpy()
            dropped = len(sizes) - max(1, int(settings.density * len(sizes)))
            keep = (delta.abs() >= float(np.partition(sizes, dropped)[dropped])).double()
        elif settings.method.startswith("dare"):
            keep = (torch.rand(delta.shape, generator=draw) < settings.density).double() / settings.density
        parts.append((weight, delta * keep))
    brought = [weight * delta for weight, delta in parts]
    if settings.method.endswith("ties"):
        upward = sum(brought) >= 0  # type: ignore[operator]
        of_sign = [(part > 0) & upward | (part < 0) & ~upward for part in brought]
        total = sum(part * chosen for part, chosen in zip(brought, of_sign))
        share = sum(weight * chosen for (weight, _), chosen in zip(parts, of_sign))
        brought = [total if settings.method != "ties" else torch.where(share > 0, total / share, total)]  # type: ignore
    return settings.scale * sum(brought)  # type: ignore[return-value]


def expected_factors(a: Tensor, b: Tensor, settings: Settings) -> tuple[float, float]:
    """`factors` once more: the angle by Kahan's formula, the sines by the addition theorem."""
    w = settings.weight
    if settings.method == "linear":
        return 1 - w, w
    squares, across = [product(x, x) for x in (a, b)], product(a, b)
    lengths = [math.sqrt(square) if math.sqrt(square) > SHORTEST else 1.0 for square in squares]
    inner, sums = 2 * across / math.prod(lengths), sum(s / n**2 for s, n in zip(squares, lengths))
    if abs(inner) > 2 * PARALLEL:
        return 1 - w, w
    angle = (
        math.pi / 2 if min(squares) <= SHORTEST**2 else 2 * math.atan2(math.sqrt(sums - inner), math.sqrt(sums + inner))
    )
    second = math.sin(w * angle) / math.sin(angle)
    return math.cos(w * angle) - math.cos(angle) * second, second


def changed_copies(settings: Settings, inputs: dict, result: Result) -> float:
    """How many tensors that hold no fractions are not those of the first model."""
    merged, skipped = result_of(result), statistics(result.model)
    copied = {name: a for name, a in tensors_of(inputs["model"]).items() if not a.is_floating_point()}
    return sum(not torch.equal(a, merged[name]) for name, a in copied.items() if name not in skipped)


def result_of(result: Result) -> Mapping[str, Tensor]:
    found = result.model or result.stored
    assert found is not None
    return tensors_of(found)


def statistics(model: Model | None) -> set[str]:
    """The names of the batch-norm statistics; what lies on the disk alone has none, see `require_same_files`."""
    modules = model.net.named_modules() if model else ()
    layers = [(n, m) for n, m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return {f"{path}.{name}" if path else name for path, layer in layers for name, _ in layer.named_buffers()}


OPERATION = Operation(
    "merge",
    Settings,
    {"model": "model", "other": "model", "base": "model?", "data": "data?"},
    "model",
    apply,
    (
        Promise("largest difference to the formula, in units in the last place", "at most", 2.0, distance_to_formula),
        Promise("whole-number tensors that are not the first model's", "at most", 0.0, changed_copies),
    ),
    at_rest=merged_at_rest,
)
