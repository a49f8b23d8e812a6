"""Measure a model: score with its confidence interval, bytes, latency, energy."""

from typing import Literal

from pydantic import Field

from .. import measure
from ..data import Data
from ..model import Model
from ..operation import Log, Operation, Result
from ..operation import Settings as Base


class Settings(Base):
    split: Literal["auto", "all", "train", "validation", "test"] = Field(
        "auto", description="which records; auto: the test split of data that the model was trained on, else all"
    )
    batch_size: int = Field(64, ge=1, description="records answered at once")
    seed: int = Field(0, ge=0, description="seed of whatever the model draws")


def apply(settings: Settings, log: Log, model: Model, data: Data) -> Result:
    """The measurement as a report."""
    return Result(report=measure.measure(model, data.split(settings.split), settings.seed, settings.batch_size))


OPERATION = Operation("evaluate", Settings, {"model": "model", "data": "data"}, "report", apply)
