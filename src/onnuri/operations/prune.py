"""Set the least important weights to zero, or take out whole channels, heads, experts or blocks.

magnitude: the smallest numbers (Han et al., arXiv:1506.02626). wanda: the smallest products of number and input (Sun et al.,
arXiv:2306.11695; its authors rank within rows: `--scope row`). sparsegpt: those that cost least, and what is left makes up for
them (Frantar & Alistarh, arXiv:2301.00774). What no layer of the net multiplies its input with in the plain way (experts,
recurrent nets) goes by size. Zeros alone make a model smaller only when it is compressed, and no faster here; training onward
keeps them. Two of four in a row is what the sparse units of some accelerators take.

`--units` takes out whole units: the result is a smaller net of the same design without any zeros. Which slices make up a
unit is found by looking (`weights/units.py`), how units are ranked says `weights/ranking.py`. Wherever a net has such units
each place loses the same share of them, its own least important ones, since a description has one number for all places.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..blocks import even, rows_of, with_blocks
from ..data import Data, Records
from ..errors import BadSettings, Refusal
from ..family import Size
from ..model import Model
from ..observe import reestimated_statistics
from ..operation import Log, Operation, Promise, Result, Way
from ..operation import Settings as Base
from ..weights.attach import require_plain
from ..weights.calibration import in_turn, looked_at, second_moments
from ..weights.gptq import BLOCK, sparse
from ..weights.matrices import Weight, weights
from ..weights.ranking import by_change, by_cost, by_input, by_load, by_size
from ..weights.sharing import block_ties, unshared_numbers
from ..weights.units import (
    TOLERANCE,
    Cut,
    Place,
    apart,
    behavior,
    chosen,
    cut_of,
    put_back,
    set_to_zero,
    taken_out,
    tensors_of,
)

ROLES = ("linear", "conv", "expert")
FOUR = 4  # columns in a row, of which "2:4" keeps two
TRIED = 2  # records on which it is tried which slices belong together
MOST_TRIED = 32  # numbers of units of which a net is looked for


class Settings(Base):
    share: float = Field(
        0.5, gt=0, lt=1, description="share of each matrix's numbers that becomes zero, or of the units"
    )
    units: Literal["numbers", "channels", "heads", "experts", "blocks"] = Field(
        "numbers",
        description="what goes: single numbers become zero; whole units are taken out, and the net is smaller",
    )
    method: Literal["magnitude", "wanda", "sparsegpt"] = Field(
        "magnitude", description="by size, by size times input, or so that what is left makes up for it"
    )
    scope: Literal["matrix", "row"] = Field(
        "matrix", description="rank the numbers within a matrix, or within each of its rows"
    )
    pattern: Literal["any", "2:4"] = Field("any", description="2:4: two of every four columns in a row, in every row")
    calibration: int = Field(128, ge=1, description="records that wanda, sparsegpt and the choice of blocks look at")

    @model_validator(mode="after")
    def have_an_effect(self) -> "Settings":
        if self.pattern == "2:4" and (self.changed("share") or self.changed("scope")):
            raise ValueError("pattern 2:4 sets half of each four to zero: share and scope have no effect")
        if self.units != "numbers" and (self.changed("pattern") or self.changed("scope")):
            raise ValueError("pattern and scope have no effect on whole units")
        if self.units == "blocks" and self.changed("method"):
            raise ValueError("method has no effect on blocks: those go that change least what flows through them")
        if self.units == "experts" and self.method == "sparsegpt":
            raise ValueError("method sparsegpt has no effect on experts: no layer reads them side by side")
        if self.method == "magnitude" and self.units != "blocks" and self.changed("calibration"):
            raise ValueError("calibration has no effect on method magnitude")
        return self


def apply(settings: Settings, log: Log, model: Model, data: Data) -> Result:
    """The model with `share` of every matrix at zero, or with that share of its units taken out."""
    require_plain(model.net, "prune")
    if not weights(model.net, *ROLES):
        raise Refusal(
            "nothing to prune: this model holds no weight matrices", "predict, evaluate, or the teacher of distill"
        )
    records = data.split("train")
    looks = settings.method != "magnitude" or settings.units == "blocks"
    seen = looked_at(records, settings.calibration, log) if looks else None
    if settings.units == "numbers":
        result = Result(model=with_zeros(settings, log, model, seen))
    elif settings.units == "blocks":
        assert seen is not None, "blocks are looked at"
        result = Result(model=shallower(settings, log, model, seen))
    else:
        result = narrower(settings, log, model, records, seen)
    assert result.model is not None
    result.model = reestimated_statistics(result.model, records, log)
    return result


# ------------------------------------------------------------------------------------------------------------- numbers


def with_zeros(settings: Settings, log: Log, model: Model, seen: Records | None) -> Model:
    """The model with zeros in its matrices."""
    found = weights(model.net, *ROLES)
    fitting = [weight for weight in found if settings.pattern == "any" or weight.matrix.shape[2] % FOUR == 0]
    if len(fitting) < len(found):
        log.warn(f"{len(found) - len(fitting)} matrices have columns that four does not divide, and stay as they are")
    for number, (weight, moments) in enumerate(in_turn(model, fitting, seen)):
        with torch.no_grad():
            matrix = pruned(weight.matrix, settings, moments)
            weight.value.copy_(weight.view.tensor(matrix, weight.value.shape))
        log.progress(number + 1, len(fitting), "matrices pruned")
    known = dict.fromkeys([*model.pruned, *(weight.name for weight in fitting)])
    shared = [name for name, first in block_ties(model.net).items() if first in known]
    names = tuple(dict.fromkeys([*known, *shared]))
    return replace(model, pruned=names, baked={})  # an update taken out would fill the zeros


def pruned(matrix: Tensor, settings: Settings, moments: Tensor | None) -> Tensor:
    """(units, rows, columns) with its zeros. `moments`: of what it is multiplied with, where that is known."""
    if moments is None:
        return matrix * keep(matrix.abs(), settings)
    if settings.method == "wanda":
        return matrix * keep(matrix.abs() * moments.diagonal().sqrt(), settings)
    run = FOUR if settings.pattern == "2:4" else BLOCK
    return sparse(matrix.float(), lambda costs: keep(costs, settings), run, moments)


def keep(scores: Tensor, settings: Settings) -> Tensor:
    """1 for the numbers of (units, rows, columns) that stay: the highest scores of each unit, each row or each four."""
    if settings.pattern == "2:4":
        flat = scores.unflatten(2, (-1, FOUR))
    else:
        flat = scores.flatten(1) if settings.scope == "matrix" else scores
    count = round(settings.share * flat.shape[-1])
    kept = torch.ones_like(flat)
    kept.scatter_(-1, flat.argsort(dim=-1, stable=True)[..., :count], 0)
    return kept.reshape(scores.shape)


# -------------------------------------------------------------------------------------------------------------- blocks


def shallower(settings: Settings, log: Log, model: Model, seen: Records) -> Model:
    """The model without the blocks that change least what flows through them, so many of each row; evenly spaced ones
    where the design lets none go alone."""
    changes, less, refusals = by_change(model, seen), model, list[Refusal]()
    rows = [row for row in rows_of(list(model.blocks)) if less_by(settings.share, len(row))]
    if not rows:
        raise BadSettings(
            f"'share' {settings.share:g} has no effect: no row has so many blocks", hint="a larger --share"
        )
    names = list(model.blocks)
    for row in rows:
        most = sorted(row, key=changes.__getitem__)[less_by(settings.share, len(row)) :]
        for stay in (most, even(row, 1 - settings.share)):
            fewer = [name for name in names if name not in row or name in stay]
            try:
                less = with_blocks(model, fewer)
            except Refusal as refusal:
                refusals.append(refusal)
                continue
            if stay is not most:
                log.warn(f"evenly spaced blocks stay, not those that change most: {refusals[-1].why}")
            names = fewer
            break
    if less is model:
        raise refusals[0]
    return less


def less_by(share: float, count: int) -> int:
    """How many of `count` go: at least one stays."""
    return min(round(share * count), count - 1)


# ------------------------------------------------------------------------------------------- channels, heads and experts


def narrower(settings: Settings, log: Log, model: Model, records: Records, seen: Records | None) -> Result:
    """The model with fewer units in each place, and in the report which stayed."""
    cuts = cuts_of(settings, log, model, records)
    report: list[tuple[Cut, dict[str, Tensor]]] = []
    for number, cut in enumerate(cuts):
        if report:  # what went before has other tensors
            cut = cut_of(model, same_size(model, cut.size), cut.left, some(model, records))
        kept = ranked(settings, model, cut, seen)
        model = replace(model, net=taken_out(model.net, cut, kept), baked={})
        report.append((cut, kept))
        log.progress(number + 1, len(cuts), f"{cut.size.name}: {cut.size.count} -> {cut.left}")
    return Result(model=model, report={"cuts": report})


def cuts_of(settings: Settings, log: Log, model: Model, records: Records) -> list[Cut]:
    """All that can be cut: units whose zeros are as good as their absence; where there are none, those that a norm takes
    together. Refusal or BadSettings where there is nothing."""
    sizes = [size for size in model.family.sizes(model.net, model.assets) if size.units == settings.units]
    if not sizes:
        raise Refusal(
            f"the description of this model states no number of {settings.units}", "--units blocks, or distill --size"
        )
    found, refusals, idle = list[Cut](), list[Refusal](), list[str]()
    for size in sizes:
        left = left_of(size, settings.share)
        if left == size.count:
            idle.append(f"{size.name} is {size.count}, in steps of {size.step}")
            continue
        try:
            found.append(cut_of(model, size, possible(size, left), some(model, records)))
        except Refusal as refusal:
            refusals.append(refusal)
    exact = [cut for cut in found if cut.exact]
    for cut in exact or found:
        if cut.left < left_of(cut.size, settings.share):
            log.warn(f"{cut.size.name}: {cut.left} stay, since no more of at most the share asked for fit this design")
    if found and not exact and settings.units == "channels":
        log.warn(
            "a norm takes these channels together, so that those that stay change as well: train the result onward"
        )
    if not found and refusals:
        raise best_reason(refusals, settings.units)
    if not found:
        raise BadSettings(f"'share' {settings.share:g} has no effect: {'; '.join(idle)}", hint="a larger --share")
    return exact or found


def left_of(size: Size, share: float) -> int:
    """How many units stay: the nearest multiple of the step. BadSettings for fewer than can answer."""
    left = round(size.count * (1 - share) / size.step) * size.step
    if left < size.least and size.units != "channels":
        raise BadSettings(
            f"'share' {share:g} would leave {left} of {size.count} {size.units} ({size.name}); at least {size.least} are asked",
            hint=f"--share {1 - size.least / size.count:g} or less",
        )
    return max(left, size.step, size.least)


def possible(size: Size, left: int) -> int:
    """The largest number up to `left` of which the design has a net: heads, say, may have to divide its width. The Refusal of
    `left` itself where there is none."""
    reasons = []
    for number in range(left, size.least - 1, -size.step)[:MOST_TRIED]:
        try:
            size.made(number)
            return number
        except Refusal as refusal:
            reasons.append(refusal)
    raise reasons[0]


def best_reason(refusals: Sequence[Refusal], units: str) -> Refusal:
    """One refusal for all: of heads that leave no trace in the shapes it is known why."""
    if units == "heads" and all("no tensor" in refusal.why for refusal in refusals):
        return Refusal(
            "no heads can be left out: the config of this design has no entry for the width of a head (head_dim), so that "
            "fewer heads would be wider ones",
            "--units channels",
        )
    reasons = [refusal.why for refusal in refusals if "no tensor" not in refusal.why] or [refusals[0].why]
    return Refusal(
        f"the description of this model states no {units} that can go alone; {reasons[0]}", refusals[0].instead
    )


def same_size(model: Model, size: Size) -> Size:
    return next(one for one in model.family.sizes(model.net, model.assets) if one.name == size.name)


def some(model: Model, records: Records):
    """A batch on which it is tried what belongs together."""
    return model.collate(records.some(TRIED).list())


def ranked(settings: Settings, model: Model, cut: Cut, seen: Records | None) -> dict[str, Tensor]:
    """{place: the numbers of the units that stay}. Looked at in the order of the net: what is taken out of a place is seen by
    the later ones. Sparsegpt changes the matrices that read the units."""
    if settings.units == "experts" and seen is not None:
        loads = by_load(model, cut.places, seen)
        return {place.name: chosen(place, loads[place.name]) for place in cut.places}
    order, kept = {name: i for i, name in enumerate(tensors_of(model.net))}, dict[str, Tensor]()
    for place in sorted(cut.places, key=lambda place: min(order[axis.tensor] for axis in place.axes)):
        kept[place.name] = staying(settings, model, place, seen)
        if seen is not None and cut.exact:
            set_to_zero(model.net, [place], kept)
    return kept


def staying(settings: Settings, model: Model, place: Place, seen: Records | None) -> Tensor:
    """The numbers of the units of one place that stay."""
    if seen is None:
        return chosen(place, by_size(model, place))
    names = {axis.tensor for axis in place.axes}
    moments = second_moments(model, seen, [weight for weight in weights(model.net, *ROLES) if weight.name in names])
    if settings.method == "wanda":
        return chosen(place, by_input(model, place, moments))
    return by_cost(model, place, moments)


# ------------------------------------------------------------------------------------------------------------- promises


def matrices(model: Model, names: tuple[str, ...]) -> list[Tensor]:
    return [weight.matrix for weight in weights(model.net, *ROLES) if weight.name in names]


def missing_zeros(settings: Settings, inputs: dict, result: Result) -> float | None:
    assert result.model is not None
    if settings.units != "numbers":
        return None
    found = matrices(result.model, result.model.pruned)
    return settings.share - sum(int((m == 0).sum()) for m in found) / max(sum(m.numel() for m in found), 1)


def change_of_the_rest(settings: Settings, inputs: dict, result: Result) -> float | None:
    """The largest change of a number that was not set to zero; sparsegpt means to change them."""
    assert result.model is not None
    if settings.method == "sparsegpt" or settings.units != "numbers":
        return None
    pairs: list[tuple[Weight, Weight]] = list(
        zip(weights(inputs["model"].net, *ROLES), weights(result.model.net, *ROLES))
    )
    return max(
        float((b.matrix - a.matrix)[b.matrix != 0].abs().max()) if bool((b.matrix != 0).any()) else 0.0
        for a, b in pairs
    )


def crowded_fours(settings: Settings, inputs: dict, result: Result) -> float | None:
    """How many of the fours in a row hold more than two numbers."""
    assert result.model is not None
    if settings.pattern != "2:4":
        return None
    fitting = [m for m in matrices(result.model, result.model.pruned) if m.shape[2] % FOUR == 0]
    return sum(int(((m.unflatten(2, (-1, FOUR)) != 0).sum(-1) > 2).sum()) for m in fitting)


def parameters_left(settings: Settings, inputs: dict, result: Result) -> float | None:
    assert result.model is not None
    if settings.units == "numbers":
        return None
    return unshared_numbers(result.model.net) / unshared_numbers(inputs["model"].net)


def units_too_many(settings: Settings, inputs: dict, result: Result) -> float | None:
    """How many more units are left than were asked for, in steps of the design."""
    cuts = (result.report or {}).get("cuts", [])
    return max(((cut.left - cut.size.count * (1 - settings.share)) / cut.size.step for cut, _ in cuts), default=None)


def unlike_zeros(settings: Settings, inputs: dict, result: Result) -> float | None:
    """How far the answers are from those of the large net with the same numbers, and zeros where units were."""
    cuts = (result.report or {}).get("cuts", [])
    assert result.model is not None
    if not cuts or not all(cut.exact for cut, _ in cuts):
        return None
    batch = some(inputs["model"], inputs["data"].split("train"))
    nets = [inputs["model"].net]
    for cut, kept in cuts[:-1]:
        nets.append(taken_out(nets[-1], cut, kept))
    smaller = result.model.net
    for net, (cut, kept) in reversed(list(zip(nets, cuts))):
        put_back(net, smaller, cut, kept)
        smaller = net
    return apart(behavior(inputs["model"], batch), behavior(result.model, batch))


OPERATION = Operation(
    "prune",
    Settings,
    {"model": "model", "data": "data"},
    "model",
    apply,
    (
        Promise("share of zeros below what was asked for", "at most", 0.02, missing_zeros),
        Promise("largest change of a number that was kept", "at most", 0.0, change_of_the_rest),
        Promise("fours in a row with more than two numbers", "at most", 0.0, crowded_fours),
        Promise("parameters left, as a share of the original's", "at most", 0.9999, parameters_left),
        Promise("units left besides the share asked for, in steps of the design", "at most", 1.0, units_too_many),
        Promise("answers unlike those with zeros in the units' place, relative", "at most", TOLERANCE, unlike_zeros),
    ),
    (  # single numbers are no search's matter: zeros take as many bytes
        Way("weights", {"units": ("channels",), "share": (0.5, 0.25, 0.75), "method": ("wanda", "magnitude")}),
        Way("weights", {"units": ("heads",), "share": (0.5, 0.25, 0.75), "method": ("wanda", "magnitude")}),
        Way("weights", {"units": ("experts",), "share": (0.5, 0.25, 0.75)}),
        Way("weights", {"units": ("blocks",), "share": (0.5, 0.25)}),
    ),
)
