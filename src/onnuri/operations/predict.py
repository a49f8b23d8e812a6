"""Answer every record and write the answers beside the questions."""

from typing import Literal

from pydantic import Field

from ..data import Data
from ..model import Model
from ..operation import Log, Operation, Result
from ..operation import Settings as Base
from ..unfinished import answered


class Settings(Base):
    split: Literal["all", "train", "validation", "test"] = Field("all", description="which records")
    batch_size: int = Field(64, ge=1, description="records answered at once; changes no answer")
    seed: int = Field(0, ge=0, description="seed of whatever the model draws")


def apply(settings: Settings, log: Log, model: Model, data: Data) -> Result:
    """The records with the model's answer in place of their own, and its scores."""
    records = data.split(settings.split)

    def answering(places: range):
        part = records.list(slice(places.start, places.stop))
        return model.sample(model.asked(part), settings.seed, places), {}

    return Result(records=answered(len(records), settings.batch_size, answering, log, "records answered")[0])


OPERATION = Operation("predict", Settings, {"model": "model", "data": "data"}, "records", apply)
