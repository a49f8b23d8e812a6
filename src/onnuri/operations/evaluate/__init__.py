"""Measure a model: score with its confidence interval, bytes, latency, energy; or what it does on tasks of lm-evaluation-harness.

The tasks are YAML files of that program (Gao et al., github.com/EleutherAI/lm-evaluation-harness) whose data lie here: it asks,
filters and scores, and `tokens.py` answers from what a family says of writing token by token.
"""

from typing import Any, Literal

import torch
from pydantic import Field

from ... import measure
from ...data import Data
from ...errors import BadSettings, Refusal
from ...family import Writing
from ...model import Model
from ...operation import Log, Operation, Result
from ...operation import Settings as Base


class Settings(Base):
    split: Literal["auto", "all", "train", "validation", "test"] = Field(
        "auto", description="which records; auto: the test split of data that the model was trained on, else all"
    )
    batch_size: int = Field(64, ge=1, description="records answered at once")
    seed: int = Field(0, ge=0, description="seed of whatever the model draws")
    tasks: str = Field(
        "",
        description="in place of --data: a YAML file or folder of tasks of lm-evaluation-harness, and names as PATH,NAME,...",
    )
    limit: int = Field(0, ge=0, description="documents of each task; 0: all")


def apply(settings: Settings, log: Log, model: Model, data: Data | None = None) -> Result:
    """The measurement, or the scores of tasks, as a report."""
    if settings.tasks:
        if data is not None:
            raise BadSettings("'tasks' bring their own data", hint="leave --data out")
        idle = [name for name in ("split", "seed") if getattr(settings, name) != Settings.model_fields[name].default]
        if idle:
            raise BadSettings(*(f"'{name}' has no effect with 'tasks'" for name in idle))
        return Result(report=asked(settings, log, model))
    if settings.limit:
        raise BadSettings("'limit' has no effect without 'tasks'")
    if data is None:
        raise BadSettings("nothing to measure on", hint="--data DATA, or --tasks FOLDER_OR_YAML")
    return Result(report=measure.measure(model, data.split(settings.split), settings.seed, settings.batch_size, log))


def asked(settings: Settings, log: Log, model: Model) -> dict[str, Any]:
    """The scores of tasks. Refusal for a model whose answers come at once."""
    from . import harness, tasks

    writing = model.family.writing(model.net, model.assets)
    if writing is None:
        raise Refusal(
            "tasks ask for texts token by token, and this model's answers come at once", "its own metrics: --data"
        )
    if not one_text(writing):
        raise Refusal(
            "tasks judge answers as the text that goes on from the question, and this model reads the two apart",
            "its own metrics: --data",
        )
    found = tasks.chosen(settings.tasks)
    return harness.scored(writing, found, settings.batch_size, settings.limit, log)


def one_text(writing: Writing) -> bool:
    """Is a question with its answer one row of tokens, so that nothing hangs on where the one ends and the other begins?"""
    early, late = (writing.batch([[0] * n], [[0] * (3 - n)]) for n in (1, 2))
    return all(torch.equal(early[name], late[name]) for name in early)


OPERATION = Operation("evaluate", Settings, {"model": "model", "data": "data?"}, "report", apply)
