"""Store the weights in short number formats, packed on disk, and optionally compute with them.

int8, int4, fp8-e4m3, fp8-e5m2: codes with one scale for each row, or for each group of its columns; bf16: the numbers cut short.
int8-dynamic: the codes of int8, and every Linear also rounds its input to int8 per row on the fly, so that its product runs
on the processor's integer units. int8-static: so do convolutions, at a step that is fixed by what the layers see of the data.

method gptq rounds the matrices of linear layers and convolutions so that what they give on the data changes least, block after
block, each seeing what the packed ones before it give; awq first makes the columns larger whose inputs are large, as far as the
layer before can be made smaller; every other matrix is rounded to the nearest code. A budget gives each matrix the format that
costs the outputs least.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor

from .. import measure
from ..data import Data, Records
from ..errors import BadSettings, Refusal
from ..hub import is_library_net
from ..model import Model
from ..operation import Log, Operation, Promise, Result, Way
from ..operation import Settings as Base
from ..weights.attach import computes_integers, pack, packed_weights, require_plain
from ..weights.awq import fitted, scale_columns
from ..weights.calibration import cut_off, fitted_step, in_turn, input_sizes, looked_at
from ..weights.compressed_tensors import STORAGES, fits
from ..weights.gptq import gptq
from ..weights.matrices import Weight, weights
from ..weights.number_formats import relative_errors
from ..weights.packed import FORMATS, GROUP, Format, Rounding, divided, nearest, spread, usual_group
from ..weights.packed_file import tensor_bytes
from ..weights.sensitivity import FLOAT, Choice, sensitivity, sizes_of, spent
from ..weights.sharing import block_ties

ROLES = ("linear", "conv", "expert", "embedding")
CANDIDATES = ("int4", "int8", "fp8-e4m3", "bf16")
"""Of which a budget chooses; or the matrix stays as it is."""

RANKED = 4  # formats are ranked by a quarter of the records: that takes fewer of them than fitting does
BEYOND = 0.01  # share of what a layer sees that may lie beyond the range that was calibrated for it
TIMES = 4  # as large a share as on the records that were calibrated with is no surprise
Plan = dict[str, tuple[str, int]]
"""{weight: (scheme, columns of a group)}"""


class Settings(Base):
    scheme: Literal["int8", "int8-dynamic", "int8-static", "int4", "fp8-e4m3", "fp8-e5m2", "bf16"] = Field(
        "int8", description="the number format; int8-dynamic, int8-static: of what the layers multiply too"
    )
    budget: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the bytes that may be left; each matrix gets its own format; 0: no budget",
    )
    group: int = Field(0, ge=0, description="columns that share a scale; 0: whole rows, and 32 for int4")
    method: Literal["nearest", "gptq", "awq", "awq-gptq"] = Field(
        "nearest", description="gptq, awq: by what the layers see of the data; awq-gptq: both"
    )
    calibration: int = Field(128, ge=1, description="records that gptq, awq, int8-static and a budget look at")
    embeddings: bool = Field(True, description="pack embedding tables as well")
    layout: Literal["onnuri", "compressed-tensors"] = Field(
        "onnuri", description="compressed-tensors: linear layers only, for transformers and vLLM"
    )

    @model_validator(mode="after")
    def have_an_effect(self) -> "Settings":
        if self.budget and self.changed("scheme"):
            raise ValueError("a budget chooses the scheme of each matrix: scheme has no effect")
        if self.scheme == "bf16" and (self.group or self.method != "nearest"):
            raise ValueError("bf16 has no scales: group and method have no effect")
        if self.scheme in ("int8-dynamic", "int8-static") and self.group:
            raise ValueError(f"{self.scheme} multiplies whole rows of integers: group has no effect")
        if not self.looks and self.changed("calibration"):
            raise ValueError("calibration has no effect without method gptq or awq, int8-static or a budget")
        if self.layout == "compressed-tensors" and (self.budget or self.scheme not in STORAGES):
            raise ValueError(f"layout compressed-tensors takes one scheme for all: {', '.join(STORAGES)}")
        if self.layout == "compressed-tensors" and self.changed("embeddings"):
            raise ValueError("layout compressed-tensors packs linear layers only: embeddings has no effect")
        return self

    @property
    def looks(self) -> bool:
        """Whether records are looked at."""
        return self.method != "nearest" or self.scheme == "int8-static" or bool(self.budget)


def apply(settings: Settings, log: Log, model: Model, data: Data) -> Result:
    """The model with its matrices packed."""
    require_plain(model.net, "quantize")
    found = chosen(settings, model)
    seen = looked_at(data.split("train"), settings.calibration, log) if settings.looks else None
    result = Result(model=replace(model, layout=settings.layout))
    budget = seen if settings.budget else None
    plan = within_budget(settings, model, found, budget, log, result) if budget else plan_of(settings, found, log)
    found = [weight for weight in found if plan[weight.name][0] != FLOAT]
    if settings.method.startswith("awq") and seen:
        scale(model, found, plan, seen, log)
    steps = input_steps(model, found, plan, seen) if seen else {}
    rounded_by = seen if settings.method != "nearest" else None
    for number, (weight, moments) in enumerate(in_turn(model, found, rounded_by)):
        scheme, group = plan[weight.name]
        rounding = rounding_of(settings, moments)
        if settings.layout != "onnuri":
            rounding = partial(short_scales, rounding=rounding, like=weight.value)
        pack(weight, scheme, group, rounding, steps.get(weight.name))
        log.progress(number + 1, len(found), "matrices packed")
    if steps and seen:
        check_ranges(model, steps, seen, data.split("test").some(len(seen)), log, result)
    return result


def chosen(settings: Settings, model: Model) -> list[Weight]:
    """The matrices to pack."""
    if settings.layout != "onnuri":
        instead = "--layout onnuri"
        if not is_library_net(model.net):
            raise Refusal("only nets of transformers have a config that says how codes are read", instead)
        if block_ties(model.net):
            raise Refusal(
                "its blocks share their tensors, which that layout cannot say", f"{instead}, or onnuri bake first"
            )
        if weights(model.net, "expert"):
            raise Refusal(
                "in that layout transformers opens fused experts only as codes, which are not written", instead
            )
        found = [weight for weight in weights(model.net, "linear") if fits(weight)]
        if not found:
            raise Refusal("this net has no linear layer that layout compressed-tensors could pack", instead)
        return found
    found = weights(model.net, *(ROLES if settings.embeddings else ROLES[:-1]))
    if not found:
        raise Refusal(
            "nothing to quantize: this model holds no weight matrices", "predict, evaluate, or the teacher of distill"
        )
    return found


def plan_of(settings: Settings, found: Sequence[Weight], log: Log) -> Plan:
    """One scheme for all, but for those that it does not fit."""
    scheme, group = settings.scheme, group_of(settings, settings.scheme)
    whole = [weight for weight in found if not divided(weight.matrix.shape, scheme, group)]
    if len(whole) == len(found):
        raise BadSettings(
            f"setting 'group': no matrix of this model has columns that {group} divides",
            hint="a smaller --group, or --scheme int8",
        )
    instead = "int8" if settings.layout == "onnuri" else FLOAT
    if whole:
        log.warn(f"{len(whole)} matrices whose columns {group} does not divide are {instead}: {names_of(whole)}")
    plan: Plan = {weight.name: (scheme, group) for weight in found} | {w.name: (instead, 0) for w in whole}
    if scheme == "int8-static":
        plan |= {weight.name: ("int8", 0) for weight in found if not computes_integers(weight)}
    return plan


def group_of(settings: Settings, scheme: str) -> int:
    if not FORMATS[scheme].largest:
        return 0
    return settings.group or usual_group(scheme)


def names_of(found: Sequence[Weight]) -> str:
    return ", ".join(weight.name for weight in found[:3]) + (" ..." if len(found) > 3 else "")


# --------------------------------------------------------------------------------------------------------- how it is rounded


def rounding_of(settings: Settings, moments: Tensor | None) -> Rounding:
    if moments is None:
        return nearest
    return partial(gptq if settings.method.endswith("gptq") else fitted, moments=moments)


def short_scales(matrix: Tensor, form: Format, group: int, rounding: Rounding, like: Tensor) -> tuple[Tensor, Tensor]:
    """Scales that the type of `like` holds: other readers store them in the type of the net."""
    codes, scale = rounding(matrix, form, group)
    return codes, scale.to(like.dtype).float()


def scale(model: Model, found: Sequence[Weight], plan: Plan, seen: Records, log: Log) -> None:
    """Fold the scales of awq into the net."""

    def round_trip(weight: Weight, matrix: Tensor, moments: Tensor) -> Tensor:
        scheme, group = plan[weight.name]
        if not FORMATS[scheme].largest:
            return matrix
        codes, steps = nearest(matrix, FORMATS[scheme], group)
        return codes * spread(steps, matrix.shape[2])

    scaled = scale_columns(
        model, found, seen, round_trip, lambda done, total: log.progress(done, total, "groups of layers scaled")
    )
    if not scaled:
        log.warn("awq: no layer was found that feeds another in proportion, or scaling helped none; nothing is scaled")


# ------------------------------------------------------------------------------------------------------------- the budget


def within_budget(
    settings: Settings, model: Model, found: Sequence[Weight], seen: Records, log: Log, result: Result
) -> Plan:
    """The format of each matrix by what it costs the outputs; what was measured is shown with the result."""
    groups = {scheme: group_of(settings, scheme) for scheme in CANDIDATES}
    candidates = {
        weight.name: (weight, [(s, group) for s, group in groups.items() if divided(weight.matrix.shape, s, group)])
        for weight in found
    }
    whole = tensor_bytes(model.net)
    room = int(settings.budget * whole)
    rest = whole - sum(weight.value.nbytes for weight in found)
    least = rest + sum(min(sizes_of(*candidate).values()) for candidate in candidates.values())
    if room < least:  # told before anything is measured
        raise BadSettings(
            f"setting 'budget': {settings.budget} of the bytes cannot be met; {least / whole:.4f} comes closest",
            hint=f"--budget {least / whole + 0.0001:.4f}, a larger --group, or prune and distill before",
        )
    costs = sensitivity(model, seen, candidates, lambda done: log.progress(done, len(found), "matrices rounded alone"))
    taken = spent(costs, room - rest)
    assert taken is not None, "there is room for the smallest of each"
    show(costs, taken, found, result)
    return {name: (choice.scheme, groups.get(choice.scheme, 0)) for name, choice in taken.items()}


def show(
    costs: Mapping[str, list[Choice]], taken: Mapping[str, Choice], found: Sequence[Weight], result: Result
) -> None:
    """Bars: the sensitivity of each matrix to each format, what was chosen, and the error of number formats on the numbers."""
    for scheme in CANDIDATES:
        rows = {name: option.error for name, options in costs.items() for option in options if option.scheme == scheme}
        if rows:
            result.bars[f"divergence of the outputs when one matrix is {scheme}"] = rows
    sizes = {weight.name: weight.matrix.numel() for weight in found}
    result.bars["bits for each number"] = {name: 8 * choice.bytes / sizes[name] for name, choice in taken.items()}
    result.bars |= {
        f"relative error of the numbers in {name}": errors for name, errors in relative_errors(found, GROUP).items()
    }


# -------------------------------------------------------------------------------------------------------- static ranges


def input_steps(model: Model, found: Sequence[Weight], plan: Plan, seen: Records) -> dict[str, Tensor]:
    """The step of what each layer multiplies that is to round it; a layer that no record reaches is not to."""
    static = [weight for weight in found if plan[weight.name][0] == "int8-static"]
    steps = {name: fitted_step(sizes) for name, sizes in input_sizes(model, seen, static).items()} if static else {}
    plan.update({weight.name: ("int8", 0) for weight in static if weight.name not in steps})
    return steps


def check_ranges(
    model: Model, steps: Mapping[str, Tensor], seen: Records, checked: Records, log: Log, result: Result
) -> None:
    """Warn where records that were not calibrated with go beyond the ranges far more often than those that were."""
    found = [weight for weight in weights(model.net) if weight.name in steps]
    before, now = (
        {name: cut_off(sizes, steps[name]) for name, sizes in input_sizes(model, records, found).items()}
        for records in (seen, checked)
    )
    result.bars["share of what a layer sees beyond its range, on the test records"] = now
    beyond = {name: share for name, share in now.items() if share > max(BEYOND, TIMES * before[name])}
    if beyond:
        name = max(beyond, key=beyond.__getitem__)
        log.warn(
            f"calibration: {len(beyond)} of {len(now)} layers see numbers beyond their range on the test records, {name} "
            f"{beyond[name]:.1%} of them and {before[name]:.1%} on the records that it was calibrated with; calibrate with "
            "records like those that will be asked, or use --scheme int8-dynamic"
        )


# ------------------------------------------------------------------------------------------------------------- promises


def worst_rounding(settings: Settings, inputs: dict, result: Result) -> float | None:
    """The largest |float - packed|, in distances of neighboring codes; 0.5 is what rounding to nearest allows."""
    assert result.model is not None
    if settings.method != "nearest":
        return None
    original = {weight.name: weight for weight in weights(inputs["model"].net)}
    worst = 0.0
    for name, (_, base) in packed_weights(result.model.net).items():
        codes = base.form.codes(base.codes)
        numbers = original[name].matrix.float() / spread(base.scale, codes.shape[2])
        worst = max(worst, float(((numbers - codes).abs() / base.form.step(numbers)).max()))
    return worst


def bytes_above_budget(settings: Settings, inputs: dict, result: Result) -> float | None:
    """As a share of the float model's bytes."""
    assert result.model is not None
    if not settings.budget:
        return None
    return tensor_bytes(result.model.net) / tensor_bytes(inputs["model"].net) - settings.budget


def change_of_outputs(settings: Settings, inputs: dict, result: Result) -> float | None:
    assert result.model is not None
    return measure.largest_difference(inputs["model"], result.model, inputs["data"].split("test").some(64))


def holds_four_bits(result: Result) -> bool:
    assert result.model is not None
    return any(base.form.bits == 4 for _, base in packed_weights(result.model.net).values())


def change_by_bytes(settings: Settings, inputs: dict, result: Result) -> float | None:
    return None if holds_four_bits(result) else change_of_outputs(settings, inputs, result)


def change_by_half_bytes(settings: Settings, inputs: dict, result: Result) -> float | None:
    return change_of_outputs(settings, inputs, result) if holds_four_bits(result) else None


OPERATION = Operation(
    "quantize",
    Settings,
    {"model": "model", "data": "data"},
    "model",
    apply,
    (
        Promise("largest rounding error, in steps of the row's scale", "at most", 0.51, worst_rounding),
        Promise("bytes above the budget, as a share of all", "at most", 0.0, bytes_above_budget),
        Promise("largest relative change of the outputs", "at most", 0.25, change_by_bytes),
        Promise("largest relative change of the outputs, 4 bits", "at most", 1.0, change_by_half_bytes),
    ),
    (
        Way("format", {"scheme": ("int8", "int8-dynamic", "int4", "fp8-e4m3", "bf16")}),
        Way("format", {"scheme": ("int4",), "method": ("gptq", "awq", "awq-gptq"), "group": (32, 16, 64)}),
        Way("format", {"budget": (0.15, 0.125, 0.2)}),
    ),
)
