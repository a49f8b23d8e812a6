"""Predict the loss of a net before it is trained, from a few small ones of its design: a scaling law, drawn and checked.

Hoffmann et al., arXiv:2203.15556: L(N, D) = E + A / N^a + B / D^b, N being the parameters outside of embeddings and D the records
that a training sees. Each small training is a whole one, with warm-up and decay of its own length, as in the paper. Differences:
1. D is counted in records, which are all different and seen `epochs` times each; tokens are as many times more for every run.
2. The nets differ in width alone, whatever the family calls it; layers, vocabulary and labels are those of the design.
3. With one net, or one amount of records, the term of the other axis is left out.
How it is fitted, says `law.py`. The design itself is trained only where the prediction is to be checked.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from ...data import Data, Records
from ...errors import BadSettings, Refusal
from ...figures import number, time_text
from ...fit.objective import objective_of
from ...model import Model
from ...operation import Log, Operation, Result
from ...weights.attach import plain_copy
from ..train import NewModel, started
from .law import Law, fit_law, left_out
from .picture import drawn
from .runs import Make, Net, Run, carried_out, net_at, outside_embeddings, seed_of

ALIKE = 1.02  # times the parameters of another net: no other size
FLAT = 1e-3  # an exponent below it: a thousand times as much brings the loss's term down by less than a hundredth


class Settings(NewModel):
    family: str = Field("", description="the kind of the net, where no MODEL gives the design")
    config: dict = Field({}, description="the design whose loss is predicted, as NAME=VALUE,...")
    nets: int = Field(4, ge=1, description="small nets to train; 1: the design itself, on less data only")
    amounts: int = Field(3, ge=1, description="amounts of records for each net, each half the next one")
    smallest: float = Field(
        0.05, gt=0, lt=1, description="share of the design's parameters that the smallest net has, about"
    )
    largest: float = Field(0.4, gt=0, lt=1, description="share that the largest of the small nets has, about")
    check: bool = Field(False, description="train the design as well and say by how much the prediction was off")
    epochs: float = Field(1, gt=0, description="passes over the records of a run")

    @model_validator(mode="after")
    def the_nets_lie_between_two_sizes(self) -> "Settings":
        if idle := [name for name in ("smallest", "largest") if self.nets == 1 and self.changed(name)]:
            raise ValueError(f"{' and '.join(idle)} say nothing of one net, which is the design itself")
        if self.smallest >= self.largest:
            raise ValueError(f"'smallest' {self.smallest:g} must be below 'largest' {self.largest:g}")
        return self


def apply(settings: Settings, log: Log, data: Data, model: Model | None = None) -> Result:
    """The law, the runs that it stands on, and the loss that it predicts for the design on all train records, as a report."""
    train, held = data.split("train"), data.split("validation")
    make = maker(settings, train, model, data)
    whole, nets = ladder(settings, make, train)
    share = len(objective_of(make(1.0)).pieces(train)) / len(train)
    planned, target = plan(settings, whole, nets, len(train), share)
    wanted = [*planned, target] if settings.check else planned
    cost = costs(wanted, [*nets, whole])
    log.warn(f"{len(wanted)} trainings, about {time_text(sum(cost))} on this machine at its pace of now")
    runs = carried_out(wanted, cost, make, train, held, settings, log)
    known, axes = runs[: len(planned)], axes_of(planned)
    law, losses = fitted(known, axes)
    report = told(law, losses, known, runs[len(planned) :], target, axes, settings)
    for doubt in doubts(law, losses, report["largest_error_of_the_fit"], axes):
        log.warn(
            f"{doubt}: the prediction is no better than the losses that it was fitted to, however narrow its range"
        )
    report["training_the_design_would_take_seconds"] = round(costs([target], [*nets, whole])[0], 1)
    return Result(report=report, charts=[drawn(report, law, axes)])


# ------------------------------------------------------------------------------------------------------------ what is run


def maker(settings: Settings, train: Records, model: Model | None, data: Data) -> Make:
    """scale -> a fresh net of the design. Refusal for a design that follows no gradient, or two against each other."""
    if model is None:
        model = started(settings, train)
        model.check(data.records)
    elif settings.family or settings.config:
        raise BadSettings("'family' and 'config' have no effect beside a MODEL, whose design is taken")
    if len(model.require_players()) > 1:
        raise Refusal(
            "the losses of players against each other say nothing of quality, so that no law holds for them",
            "train nets of several sizes and compare their scores",
        )
    plain, of = plain_copy(model.net), model

    def make(scale: float) -> Model:
        return Model(of.family, *of.family.like(plain, of.assets, scale, seed_of(settings)))

    return make


def ladder(settings: Settings, make: Make, train: Records) -> tuple[Net, list[Net]]:
    """(the design, the small nets by size). Widths go with the root of the parameters. BadSettings where they are too few."""
    whole = net_at(make, 1.0, train, settings)
    if settings.nets == 1:
        return whole, [whole]
    nets: list[Net] = []
    for scale in np.geomspace(settings.smallest, settings.largest, settings.nets) ** 0.5:
        least = ALIKE * nets[-1].parameters if nets else 0
        if least < outside_embeddings(make(float(scale))) < whole.parameters / ALIKE:
            nets.append(net_at(make, float(scale), train, settings))
    return whole, nets


def plan(settings: Settings, whole: Net, nets: list[Net], records: int, share: float = 1.0) -> tuple[list[Run], Run]:
    """(the small trainings, cheapest first; the one whose loss is predicted). `share`: pieces that a record is learnt in.
    BadSettings where they cannot tell a law."""
    smaller = int(settings.nets == 1)  # one net: the whole of the data is what is predicted
    amounts = [round(records / 2**power) for power in range(settings.amounts - 1 + smaller, smaller - 1, -1)]
    amounts = [amount for amount in dict.fromkeys(amounts) if amount]
    planned = [run_of(net, amount, records, share, settings) for net in nets for amount in amounts]
    least = 1 + 2 * len(axes_of(planned))
    if settings.nets > 1 and len(nets) < 2:
        raise Refusal(
            "smaller nets of this design are as large as it, since widths are whole numbers",
            "a wider --config, or --nets 1",
        )
    if len(nets) == 2:
        raise BadSettings(
            "two sizes of nets do not tell a floor from a slope: any least loss fits them with some exponent",
            hint="--nets 3 or more, of a design wide enough that widths, whole numbers, differ; or --nets 1 --amounts 4",
        )
    if len(planned) <= least:
        raise BadSettings(
            f"{len(nets)} sizes of nets on {len(amounts)} amounts of records are too few: the law has {least} numbers to find",
            hint="more --nets or --amounts, or a smaller --smallest: widths are whole numbers, and nets of one size count once",
        )
    return planned, run_of(whole, records, records, share, settings)


def run_of(net: Net, amount: int, records: int, share: float, settings: Settings) -> Run:
    """A training with its share of the steps; a record is learnt in `share` pieces."""
    steps = settings.steps * amount / records or settings.epochs * amount * share / settings.batch_size
    return Run(net.scale, net.parameters, amount, max(1, round(steps)))


def axes_of(runs: Sequence[Run]) -> list[str]:
    """What differs between the runs: the axes of the law."""
    return [name for name in ("parameters", "records") if len({getattr(run, name) for run in runs}) > 1]


def costs(runs: Sequence[Run], nets: Sequence[Net]) -> list[float]:
    """Seconds of each, about."""
    pace = {net.scale: net.seconds for net in nets}
    return [run.steps * pace[run.scale] for run in runs]


# --------------------------------------------------------------------------------------------------------- what came of it


def points_of(runs: Sequence[Run], axes: list[str]) -> np.ndarray:
    return np.array([[getattr(run, name) for name in axes] for run in runs], float)


def fitted(runs: list[Run], axes: list[str]) -> tuple[Law, np.ndarray]:
    losses = np.array([run.loss for run in runs])
    if not (np.isfinite(losses).all() and losses.min() > 0):
        raise Refusal(
            "its losses are not all above 0, so that no power law holds for them", "compare the scores of several sizes"
        )
    return fit_law(points_of(runs, axes), losses), losses


def doubts(law: Law, losses: np.ndarray, error: float, axes: list[str]) -> Iterator[str]:
    """Why the law explains nothing, where it does not. `error`: the largest of the fit."""
    spread = float(losses.max() / losses.min() - 1)
    if error >= spread:
        yield f"the law explains nothing, since it is off by up to {error:.1%} from losses that differ by {spread:.1%}"
    for place, name in enumerate(axes):
        exponent = law.term(place)[1]
        if exponent < FLAT:
            yield f"the law explains nothing by {name}, whose exponent is {exponent:.1g}"


def told(
    law: Law, losses: np.ndarray, runs: list[Run], checked: list[Run], target: Run, axes: list[str], settings: Settings
) -> dict[str, Any]:
    """The report."""
    points, there = points_of(runs, axes), points_of([target], axes)
    loss = float(law.loss(there)[0])
    others = [float(other.loss(there)[0]) for other in left_out(law, points, losses)]
    terms = {name: dict(zip(("factor", "exponent"), law.term(place))) for place, name in enumerate(axes)}
    found: dict[str, Any] = {
        "law": {"least_loss": law.least, **terms},
        "largest_error_of_the_fit": float(np.abs(law.loss(points) / losses - 1).max()),
        "runs": [asdict(run) for run in runs],
        "predicted": {**asdict(target), "loss": loss, "low": min([loss, *others]), "high": max([loss, *others])},
    }
    summary = f"loss {loss:.4g} predicted for {number(target.parameters)} parameters on {target.records:,} records"
    if checked:
        error = loss / checked[0].loss - 1
        found["checked"] = {**asdict(checked[0]), "error_of_the_prediction": error}
        summary += f", measured {checked[0].loss:.4g}: {error:+.1%}"
    return {"summary": summary, **found}


OPERATION = Operation("extrapolate", Settings, {"model": "model?", "data": "data"}, "report", apply)
