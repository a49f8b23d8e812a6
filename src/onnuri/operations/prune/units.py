"""Whole units that are taken out: channels, heads, experts, blocks."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from ...blocks import even, rows_of, with_blocks
from ...data import Records
from ...errors import BadSettings, Refusal
from ...family import Size
from ...model import Model
from ...operation import Log, Result
from ...weights.calibration import second_moments
from ...weights.matrices import weights
from ...weights.ranking import by_change, by_cost, by_input, by_load, by_size
from ...weights.units import Cut, Place, apart, behavior, chosen, cut_of, put_back, set_to_zero, taken_out, tensors_of
from .settings import ROLES, Settings

TRIED = 2  # records on which it is tried which slices belong together
MOST_TRIED = 32  # numbers of units of which a net is looked for


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


# ------------------------------------------------------------------------------------------------------------- promises


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
