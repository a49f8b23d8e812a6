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
    records, size = data.split(settings.split), settings.batch_size
    writes = model.family.writing(model.net, model.assets) is not None  # then each takes long, and few are kept at once
    window = size if writes else model.window(size)

    def answering(places: range):
        part = model.asked(records.list(slice(places.start, places.stop)))
        return model.answers(part, settings.seed, places, size), {}

    return Result(records=answered(len(records), window, answering, log, "records answered")[0])


OPERATION = Operation("predict", Settings, {"model": "model", "data": "data"}, "records", apply)
