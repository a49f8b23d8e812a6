"""Keep some of a model's blocks and drop the rest, without training.

Evenly spaced, the first and the last among them (`onnuri.blocks` says why), or those that are named. Train or distill
onward to win back what was lost.
"""

import re
from collections.abc import Sequence

import torch
from pydantic import Field

from onnuri.blocks import row_of, rows_of, spaced, with_blocks
from onnuri.data import Data
from onnuri.errors import BadSettings, propose
from onnuri.model import Model
from onnuri.operation import Log, Operation, Promise, Result
from onnuri.operation import Settings as Base

RANGE = re.compile(r"(?<=\d)-(?=[^-]*\d$)")


class Settings(Base):
    keep: float = Field(0.5, gt=0, lt=1, description="share of the blocks of each row that stays, evenly spaced")
    blocks: str = Field("", description="the blocks that stay, by number or name, as 0-3,7; then not --keep")


def apply(settings: Settings, log: Log, model: Model, data: Data) -> Result:
    """The model with the chosen blocks, their weights as they were; the report says which."""
    if settings.blocks and "keep" in settings.model_fields_set:
        raise BadSettings("'keep' has no effect beside 'blocks'", hint="leave one of them out")
    names = named(settings.blocks, list(model.blocks)) if settings.blocks else spaced(model, settings.keep)
    if len(names) == len(model.blocks):
        raise BadSettings("this keeps every block: nothing would change", hint="a smaller --keep, or other --blocks")
    log.progress(1, 1, f"{len(names)} of {len(model.blocks)} blocks stay")
    return Result(model=with_blocks(model, names), report={"kept": names})


def named(text: str, blocks: Sequence[str]) -> list[str]:
    """The blocks of `0-3,7`, of names, or of both, in the model's order; a number is a place in the only row. Blocks that
    stand in no row (an embedding) always stay. BadSettings with all that is unknown."""
    rows = rows_of(blocks)
    known = {str(place): name for row in rows for place, name in enumerate(row) if len(rows) == 1}
    known |= {name: name for name in blocks}
    words = [[end.strip() for end in RANGE.split(part.strip())] for part in text.split(",")]
    if unknown := [word for ends in words for word in ends if word not in known]:
        faults = (f"there is no block '{word}'; {propose(word, known)}" for word in unknown)
        raise BadSettings(*faults, hint="--blocks 0-3,7 or names of blocks")
    spans = [[blocks.index(known[end]) for end in (ends[0], ends[-1])] for ends in words]
    return [
        name
        for place, name in enumerate(blocks)
        if not row_of(name) or any(first <= place <= last for first, last in spans)
    ]


def missing_blocks(settings: Settings, inputs: dict, result: Result) -> float:
    """How many blocks more or less than those that were chosen."""
    assert result.model is not None and result.report is not None
    return abs(len(result.model.blocks) - len(result.report["kept"]))


def changed_tensors(settings: Settings, inputs: dict, result: Result) -> float:
    """Tensors of the kept blocks that differ from the original's."""
    assert result.model is not None and result.report is not None
    before = (inputs["model"].blocks[name] for name in result.report["kept"])
    return sum(
        not torch.equal(old, new)
        for (one, _), (other, _) in zip(before, result.model.blocks.values())
        for old, new in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


OPERATION = Operation(
    "slice",
    Settings,
    {"model": "model", "data": "data"},
    "model",
    apply,
    (
        Promise("blocks more or less than were asked for", "at most", 0, missing_blocks),
        Promise("tensors of kept blocks that changed", "at most", 0, changed_tensors),
    ),
)
