"""The trainings that a law is fitted to: what each will cost, and how it is carried out or taken up again."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ...data import Records
from ...family import mix
from ...figures import number
from ...fit import speed
from ...fit.loop import FitSettings, fit
from ...fit.objective import objective_of
from ...model import Model
from ...operation import Log
from ...weights.matrices import weights

PARTS = 1000  # of the whole work, as it is told


@dataclass(frozen=True)
class Net:
    """A net of the design at `scale` times its widths. `parameters`: those outside of embeddings; `seconds`: of a step, about."""

    scale: float
    parameters: int
    seconds: float


@dataclass(frozen=True)
class Run:
    """One training: on how many records, with how many steps, and what came of it; a loss of 0 is not known yet."""

    scale: float
    parameters: int
    records: int
    steps: int
    loss: float = 0.0
    learning_rate: float = 0.0
    seconds: float = 0.0


Make = Callable[[float], Model]


def net_at(make: Make, scale: float, records: Records, settings: FitSettings) -> Net:
    """What a net of this scale weighs, and what a step of it takes, seen in a few passes over one batch."""
    model = make(scale)
    speed.widen(model.net)
    model.net.train()
    batch = model.collate(records.list(slice(settings.batch_size)), settings.seed)
    parts = objective_of(model)
    with torch.random.fork_rng():
        seconds = speed.seconds(parts.loss, batch, next(iter(parts.parts)))
    return Net(scale, outside_embeddings(model), seconds)


def outside_embeddings(model: Model) -> int:
    """Trained numbers that are no rows of a table, as Kaplan et al. (arXiv:2001.08361) count: rows are looked up."""
    tables = sum(weight.matrix.numel() for weight in weights(model.net, "embedding"))
    return sum(parameter.numel() for parameter in model.net.parameters() if parameter.requires_grad) - tables


class Part:
    """The log of one run among several: its progress is a part of the whole, its state stands beside what is finished."""

    def __init__(self, log: Log, done: list[Run], name: str, before: float, share: float):
        self.log, self.done, self.name, self.before, self.share = log, done, name, before, share

    def progress(self, done: int, total: int, text: str = "") -> None:
        along = self.before + self.share * done / total
        self.log.progress(round(PARTS * along), PARTS, f"{self.name}, {text}")

    def warn(self, text: str) -> None:
        self.log.warn(f"{self.name}: {text}")

    def save_state(self, tensors: dict, facts: dict) -> None:
        self.log.save_state(tensors, {"runs": [asdict(run) for run in self.done], "facts": facts})

    def load_state(self) -> tuple[dict, dict] | None:
        """The state of this very run; not that of one before."""
        kept = self.log.load_state()
        if kept is None or kept[1]["facts"] is None or len(kept[1]["runs"]) != len(self.done):
            return None
        return kept[0], kept[1]["facts"]


def carried_out(
    planned: list[Run], cost: list[float], make: Make, train: Records, held: Records, settings: FitSettings, log: Log
) -> list[Run]:
    """Each planned run with its loss; those that an earlier process finished are not done again."""
    kept = log.load_state()
    done = [Run(**facts) for facts in kept[1]["runs"]] if kept else []
    for place in range(len(done), len(planned)):
        run = planned[place]
        name = f"run {place + 1} of {len(planned)}: {number(run.parameters)} parameters, {run.records:,} records"
        part = Part(log, done, name, sum(cost[:place]) / sum(cost), cost[place] / sum(cost))
        done.append(trained(run, make, train, held, settings, part))
        log.save_state({}, {"runs": [asdict(one) for one in done], "facts": None})
    return done


def trained(run: Run, make: Make, train: Records, held: Records, settings: FitSettings, log: Log) -> Run:
    """A run with the loss of its net on the records held out, its own when it is done or, with patience, its best one."""
    began, model = time.perf_counter(), make(run.scale)
    changes: dict[str, Any] = {"steps": run.steps}
    progress = fit(objective_of(model), train.some(run.records), held, settings.model_copy(update=changes), log, True)
    loss = progress.best if settings.patience else progress.curves["validation"][-1][1]
    rate = max(rate for _, rate in progress.curves["learning_rate"])
    seconds = time.perf_counter() - began
    return Run(**{**asdict(run), "loss": loss, "learning_rate": rate, "seconds": round(seconds, 2)})


def seed_of(settings: FitSettings) -> torch.Generator:
    return torch.Generator().manual_seed(mix(settings.seed, 5))
