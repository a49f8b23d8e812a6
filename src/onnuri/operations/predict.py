"""Answer every record and write the answers beside the questions."""

from typing import Literal

from pydantic import Field

from ..data import Data, Record
from ..model import Model
from ..operation import Log, Operation, Result
from ..operation import Settings as Base


class Settings(Base):
    split: Literal["all", "train", "validation", "test"] = Field("all", description="which records")
    batch_size: int = Field(64, ge=1, description="records answered at once; changes no answer")
    seed: int = Field(0, ge=0, description="seed of whatever the model draws")


def apply(settings: Settings, log: Log, model: Model, data: Data) -> Result:
    """The records with the model's answer in place of their own, and its scores."""
    records, answers = data.split(settings.split), list[Record]()
    for start in range(0, len(records), settings.batch_size):
        part = records.list(slice(start, start + settings.batch_size))
        answers += model.sample(model.asked(part), settings.seed, range(start, start + len(part)))
        log.progress(len(answers), len(records), "records answered")
    return Result(records=answers)


OPERATION = Operation("predict", Settings, {"model": "model", "data": "data"}, "records", apply)
