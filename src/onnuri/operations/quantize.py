"""Store the weights in short number formats, packed on disk, and optionally compute with them.

int8, int4, fp8-e4m3, fp8-e5m2: codes with one scale for each row, or for each group of its columns; bf16: the numbers cut short.
int8-dynamic: the codes of int8, and every Linear also rounds its input to int8 per row on the fly, so that its product runs
on the processor's integer units. method gptq rounds the matrices of linear layers and convolutions so that what they give on the
data changes least, block after block, each seeing what the packed ones before it give; every other matrix is rounded to the
nearest code.
"""

from functools import partial
from typing import Literal

from pydantic import Field, model_validator

from .. import measure
from ..attach import pack, packed_weights, require_plain
from ..calibration import in_turn, looked_at
from ..data import Data
from ..errors import BadSettings, Refusal
from ..gptq import gptq
from ..model import Model
from ..operation import Log, Operation, Promise, Result
from ..operation import Settings as Base
from ..packed import FORMATS, nearest, spread
from ..weights import Weight, weights

ROLES = ("linear", "conv", "expert", "embedding")
GROUP = 32  # columns, for codes of 4 bits


class Settings(Base):
    scheme: Literal["int8", "int8-dynamic", "int4", "fp8-e4m3", "fp8-e5m2", "bf16"] = Field(
        "int8", description="the number format; int8-dynamic: activations of Linear layers too"
    )
    group: int = Field(0, ge=0, description="columns that share a scale; 0: whole rows, and 32 for int4")
    method: Literal["nearest", "gptq"] = Field("nearest", description="gptq: by what the layers see of the data")
    calibration: int = Field(128, ge=1, description="records that gptq looks at")
    embeddings: bool = Field(True, description="pack embedding tables as well")

    @model_validator(mode="after")
    def have_an_effect(self) -> "Settings":
        if self.scheme == "bf16" and (self.group or self.method == "gptq"):
            raise ValueError("bf16 has no scales: group and method have no effect")
        if self.scheme == "int8-dynamic" and self.group:
            raise ValueError("int8-dynamic multiplies whole rows of integers: group has no effect")
        if self.method != "gptq" and self.changed("calibration"):
            raise ValueError("calibration has no effect without method gptq")
        return self


def apply(settings: Settings, log: Log, model: Model, data: Data) -> Result:
    """The model with its matrices packed."""
    require_plain(model.net, "quantize")
    found = weights(model.net, *(ROLES if settings.embeddings else ROLES[:-1]))
    if not found:
        raise Refusal(
            "nothing to quantize: this model holds no weight matrices", "predict, evaluate, or the teacher of distill"
        )
    whole = [weight for weight in found if not divides(weight, settings)]
    if len(whole) == len(found):
        raise BadSettings(
            f"setting 'group': no matrix of this model has columns that {group_of(settings)} divides",
            hint="a smaller --group, or --scheme int8",
        )
    if whole:
        log.warn(
            f"{len(whole)} matrices whose columns {group_of(settings)} does not divide are int8: {names_of(whole)}"
        )
    seen = looked_at(data.split("train"), settings.calibration, log) if settings.method == "gptq" else None
    for number, (weight, moments) in enumerate(in_turn(model, found, seen)):
        rounding = nearest if moments is None else partial(gptq, moments=moments)
        scheme, group = ("int8", 0) if weight in whole else (settings.scheme, group_of(settings))
        pack(weight, scheme, group, rounding)
        log.progress(number + 1, len(found), "matrices packed")
    return Result(model=model)


def group_of(settings: Settings) -> int:
    return settings.group or (GROUP if FORMATS[settings.scheme].bits == 4 else 0)


def divides(weight: Weight, settings: Settings) -> bool:
    """Whether its columns are whole groups, and whole bytes."""
    columns, group = weight.matrix.shape[2], group_of(settings)
    return (not group or columns % group == 0) and columns * FORMATS[settings.scheme].bits % 8 == 0


def names_of(found: list[Weight]) -> str:
    return ", ".join(weight.name for weight in found[:3]) + (" ..." if len(found) > 3 else "")


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


def change_of_outputs(settings: Settings, inputs: dict, result: Result) -> float | None:
    assert result.model is not None
    return measure.largest_difference(inputs["model"], result.model, inputs["data"].split("test").some(64))


def change_by_bytes(settings: Settings, inputs: dict, result: Result) -> float | None:
    return change_of_outputs(settings, inputs, result) if FORMATS[settings.scheme].bits >= 8 else None


def change_by_half_bytes(settings: Settings, inputs: dict, result: Result) -> float | None:
    return change_of_outputs(settings, inputs, result) if FORMATS[settings.scheme].bits == 4 else None


OPERATION = Operation(
    "quantize",
    Settings,
    {"model": "model", "data": "data"},
    "model",
    apply,
    (
        Promise("largest rounding error, in steps of the row's scale", "at most", 0.51, worst_rounding),
        Promise("largest relative change of the outputs", "at most", 0.25, change_by_bytes),
        Promise("largest relative change of the outputs, 4 bits", "at most", 1.0, change_by_half_bytes),
    ),
)
