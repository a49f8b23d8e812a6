"""What a training lowers, and how far it has come."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..data import Record, Records
from ..family import of_one_length
from ..model import Model
from ..operation import Log
from .batches import Collate, Lengths
from .speed import Loss


@dataclass(frozen=True)
class Objective:
    """What `fit` lowers. `parts`: {player: module} trained in turn; `collate`: (records, generators) -> batch;
    `loss`: (batch, player) -> (total (B,), count (B,)); `pruned`: names of weights whose zeros must stay; `companions`:
    nets that the loss asks and that are not trained; `blocks`: names of the modules between the first layer and the last;
    `pieces`: records -> what is learnt from one at a time; `lengths` of these, see Family.lengths."""

    net: nn.Module
    parts: dict[str, nn.Module]
    collate: Collate
    loss: Loss
    pruned: tuple[str, ...] = ()
    companions: tuple[nn.Module, ...] = ()
    blocks: tuple[str, ...] = ()
    pieces: Callable[[Records], Records] = lambda records: records
    lengths: Lengths = lambda records: of_one_length(records, None)


def objective_of(model: Model) -> Objective:
    """The family's own loss, player by player."""
    collate = model.family.packed(model.net, model.assets)
    return Objective(
        model.net,
        model.players,
        lambda records, generators: collate(records, model.assets, generators),
        lambda batch, player: model.family.loss(model.net, batch, player),
        model.pruned,
        blocks=tuple(model.blocks),
        pieces=lambda records: model.family.pieces(records, model.assets),
        lengths=lambda records: model.family.lengths(records, model.assets),
    )


def pieces_of(objective: Objective, records: Records, log: Log) -> Records:
    """Its pieces of the records; how many records were read for them is told meanwhile, since that may take minutes."""
    done, reading = 0, True

    def get(rows: Sequence[int], names: Collection[str]) -> list[Record]:
        nonlocal done
        if reading:
            done += len(rows)
            log.progress(0, 1, f"{done:,} of {len(records):,} records read before the first step")
        return records.get(rows, names)

    told = Records(get, records.rows, records.fields, records.answer)
    pieces, reading = objective.pieces(told), False
    return records if pieces is told else pieces


@dataclass
class Progress:
    """All that a resumed run needs beside the tensors."""

    step: int = 0
    best: float = float("inf")
    since_best: int = 0
    stopped: bool = False
    curves: dict[str, list[tuple[int, float]]] = field(
        default_factory=lambda: {"loss": [], "validation": [], "learning_rate": [], "gradient_norm": []}
    )
    findings: dict[str, tuple[str, str]] = field(default_factory=dict)
    rate: float = 0.0
    """The learning rate that was measured; 0 where none was."""

    pace: dict[str, Any] = field(default_factory=dict)
    """What `speed.Pace.facts` tells of the run."""

    bars: dict[str, dict[str, float]] = field(default_factory=dict)
    """What is drawn of the net: the load of its experts."""
