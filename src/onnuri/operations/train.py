"""Train a model from scratch or onward, or adopt another folder's body for your own labels."""

from contextlib import nullcontext
from typing import Literal

import torch
from pydantic import Field, model_validator

from ..data import Data, Records
from ..errors import BadInput, BadSettings
from ..family import Family, mix
from ..figures import scaled
from ..fit.loop import FitSettings, Progress, fit
from ..fit.objective import objective_of
from ..model import Model, count_parameters
from ..operation import Finding, Log, Operation, Result, Way
from ..registry import family as find_family
from ..weights.fake_quantization import rounding


class NewModel(FitSettings):
    """Settings of a training that may begin with a model of a kind and a design; what cannot be made is known from them alone."""

    family: str = Field("", description="the kind of a new model")
    config: dict = Field({}, description="the new model's design, as NAME=VALUE,...; onnuri families NAME lists them")

    @model_validator(mode="after")
    def can_be_made(self) -> "NewModel":
        if self.family:
            require_design(find_family(self.family), self.config)
        return self


def require_design(family: Family, config: dict) -> None:
    """BadSettings where the family makes no such model, whatever the records are."""
    try:
        family.configured(config)
    except BadSettings as error:
        error.found_in("config")
        raise


class Settings(NewModel):
    family: str = Field("", description="the kind of a new model, or of the body to adopt")
    new_head: bool = Field(False, description="keep the model's body and learn a new head for the labels of the data")
    quantized: Literal["", "int8", "int4", "fp8-e4m3", "fp8-e5m2"] = Field(
        "", description="compute with matrices rounded so, to be packed by quantize --scheme afterwards"
    )


def apply(settings: Settings, log: Log, data: Data, model: Model | None = None) -> Result:
    """A model fitted to the train split of `data`. Without `model`, or with only the body of one, it begins anew."""
    train = data.split("train")
    fresh = model is None
    if fresh and settings.new_head:
        raise BadSettings(
            "'new_head' has no effect without a model whose body is kept", hint="name the MODEL, or leave it out"
        )
    if model is None:
        model = started(settings, train)
        model.check(data.records)  # a label that only the other splits have is known now, not when all is done
        if settings.config and model.players:
            log.warn(described(model))
    elif settings.config:
        raise BadSettings("'config' has no effect on a model that exists", hint="leave --config or MODEL out")
    if settings.quantized and model.pruned:
        raise BadSettings("'quantized' does not keep the zeros of a pruned model", hint="leave it out")
    if (
        fresh and not model.players and not settings.quantized
    ):  # a forest is grown by its start; nothing is left to descend
        return Result(model=model)
    model.require_players()
    with rounding(model.net, settings.quantized) if settings.quantized else nullcontext():
        progress = fit(objective_of(model), train, validation_of(data), settings, log, fresh)
    return trained(model, progress)


def trained(model: Model, progress: Progress) -> Result:
    """What a training hands back: the model, and what was seen on the way."""
    findings = [Finding(name, *texts) for name, texts in progress.findings.items()]
    return Result(model=model, curves=progress.curves, findings=findings, pace=progress.pace, bars=progress.bars)


def started(settings: NewModel, records: Records) -> Model:
    """A new model of the family that was asked for."""
    if not settings.family:
        raise BadSettings("a new model needs to know its kind", hint="--family NAME; onnuri families lists them")
    family = find_family(settings.family)
    generator = torch.Generator().manual_seed(mix(settings.seed, 0))
    return Model(family, *family.start(settings.config, records, generator))


def described(model: Model) -> str:
    """What a new model became, in one line."""
    known = model.family.vocabulary(model.net, model.assets)
    numbers = [f"{size.name} {size.count}" for size in model.family.sizes(model.net, model.assets)]
    numbers += [f"{len(model.blocks)} blocks"] if model.blocks else []
    numbers += [f"{len(known.rows)} tokens"] if known else []
    return f"a new {model.family.name} of {scaled(count_parameters(model.net), '', least=1)} parameters: {', '.join(numbers)}"


def validation_of(data: Data) -> Records | None:
    """The validation split; None where the data are too few to have one."""
    try:
        return data.split("validation")
    except BadInput:
        return None


OPERATION = Operation(
    "train",
    Settings,
    {"model": "body?", "data": "data"},
    "model",
    apply,
    shrinks=(Way("repair", {"epochs": (3, 10), "learning_rate": (0.0005, 0.002)}),),
)
