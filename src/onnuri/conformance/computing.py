"""Facts of a family about numbers: batches, losses and outputs, each record for itself."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import Record, Records, Sound, records_of
from ..errors import OnnuriError
from ..family import Batch, Generators
from ..fit.batches import numbers_in
from ..model import Model
from ..padding import parted
from .subject import ANSWER, TOLERANCE, Subject, batch_gap, chance, gap, require, trained

KEYS = (3, 11, 7, 5)
"""The numbers of four records: their generators are made from these, wherever they stand in a batch."""

TOGETHER = 8
"""Records of a batch in which it is seen how much is padded."""

LONGER = 1.5
"""Times as many places as before: from there on a sum and a mean can be told apart."""


def batches(subject: Subject) -> str:
    """One generator per record, B first, the answer may be absent."""
    model, rows = subject.model, four(subject)
    batch = model.collate(rows, keys=KEYS)
    for name, value in batch.items():
        require(isinstance(value, Tensor) and value.shape[:1] == (4,), f"'{name}' must be a tensor with B first")
    with chance(5):
        again = model.collate(rows, keys=KEYS)
    require(batch_gap(batch, again) == 0, "the same records with the same generators give another batch")
    for i, key in enumerate(KEYS):
        apart = shared_gap(batch, i, model.collate(rows[i : i + 1], keys=[key]))
        require(apart == 0, f"a record's part of a batch depends on the others (difference {apart:.2g})")
    asked = model.collate(model.asked(rows), keys=KEYS)
    for name, value in asked.items():
        require(value.shape[:1] == (4,), f"'{name}' must have B first where no answer is given")
    noise = batch_gap(batch, model.collate(rows, seed=1, keys=KEYS)) > 0
    return f"{', '.join(batch)}; without answers {', '.join(asked)}; {'with' if noise else 'without'} noise"


def four(subject: Subject) -> list[Record]:
    """Four records, as unlike in length as the toy has them."""
    rows = sorted(subject.rows, key=lambda row: (sum(map(size_of, row.values())), str(row.get(ANSWER))))
    return [rows[i] for i in (0, len(rows) // 3, 2 * len(rows) // 3, len(rows) - 1)]


def size_of(value: Any) -> int:
    return (
        np.size(value.samples) if isinstance(value, Sound) else len(value) if isinstance(value, str) else np.size(value)
    )


def shared_gap(batch: Batch, i: int, alone: Batch) -> float:
    """The largest difference of record i in a batch from it alone, where both reach (alone it is padded less)."""
    worst = 0.0 if batch.keys() == alone.keys() else math.inf
    for name in batch.keys() & alone.keys():
        part = batch[name][i : i + 1][tuple(slice(0, n) for n in (1, *alone[name].shape[1:]))]
        worst = max(worst, gap(alone[name], part))
    return worst


def shapes(subject: Subject) -> str:
    """values (B, T, D) and mask (B, T) bool; D is as long as the labels; answers are not read."""
    model, rows = subject.model, four(subject)
    axis = subject.family.axis(model.assets)
    hash(axis)
    kind = subject.family.kind(model.assets)
    require(kind in ("logits", "values"), f"kind must be logits or values, found {kind!r}")
    batch = model.collate(rows, keys=KEYS)
    values, mask = model.outputs(batch)
    found = f"values {tuple(values.shape)}, mask {tuple(mask.shape)} {mask.dtype}"
    require(values.dim() == 3 and values.is_floating_point() and len(values) == 4, f"values must be (B, T, D): {found}")
    require(mask.dtype == torch.bool and mask.shape == values.shape[:2], f"mask must be (B, T) bool: {found}")
    require(mask.any(1).all(), "a record has no place at all in its mask")
    require(values[mask].isfinite().all(), "values are not finite")
    labels = axis if isinstance(axis, tuple) and all(isinstance(label, str) for label in axis) else ()
    depth = values.shape[2]
    require(len(labels) in (0, depth), f"axis names {len(labels)} labels, the last axis of outputs has {depth}")
    answers = batch.keys() - model.collate(model.asked(rows), keys=KEYS).keys()
    unread, _ = model.outputs({name: value for name, value in batch.items() if name not in answers})
    require(torch.equal(unread, values), f"outputs read {', '.join(answers)}, which only answers give")
    return f"{found}, {kind}" + (f", {len(labels)} labels" if labels else "")


def each_for_itself(subject: Subject) -> str:
    """Alone, in company and in another order: the same outputs, and the same loss of every player."""
    model, rows = subject.model, four(subject)
    order = [2, 0, 3, 1]
    turned, keys = [rows[i] for i in order], [KEYS[i] for i in order]
    values, mask = model.outputs(model.collate(rows, keys=KEYS))
    other, other_mask = model.outputs(model.collate(turned, keys=keys))
    worst = gap(values[order][mask[order]], other[other_mask])
    for i, key in enumerate(KEYS):
        alone, alone_mask = model.outputs(model.collate(rows[i : i + 1], keys=[key]))
        worst = max(worst, gap(values[i][mask[i]], alone[alone_mask]))
    require(
        worst <= TOLERANCE, f"outputs of a record depend on the other records of its batch (difference {worst:.2g})"
    )
    losses = {player: loss_gap(subject, player, rows, turned, keys) for player in model.players}
    for player, apart in losses.items():
        require(
            apart <= TOLERANCE,
            f"loss of {player}: the totals or counts of a batch are not those of its records alone "
            f"(difference {apart:.2g}); is a mean taken, or a record changed by another?",
        )
    return f"outputs differ by {worst:.1g}, losses by {max(losses.values(), default=0):.1g}"


def loss_gap(subject: Subject, player: str, rows: list[Record], turned: list[Record], keys: list[int]) -> float:
    """The largest relative difference of totals and counts: of four records together, turned, and one by one."""
    together = torch.stack(loss_of(subject.model, player, rows, KEYS))
    again = torch.stack(loss_of(subject.model, player, turned, keys))
    back = [keys.index(key) for key in KEYS]
    alone = [torch.stack(loss_of(subject.model, player, [row], [key])) for row, key in zip(rows, KEYS)]
    return max(gap(together, again[:, back]), gap(together, torch.cat(alone, 1)))


@torch.no_grad()
def loss_of(model: Model, player: str, rows: list[Record], keys: Any) -> tuple[Tensor, Tensor]:
    """(total (B,), count (B,)) in float64, checked to be that."""
    total, count = model.family.loss(model.net, model.collate(rows, keys=keys), player)
    for name, value in (("total", total), ("count", count)):
        require(
            value.shape == (len(rows),),
            f"loss of {player}: {name} must be (B,) = ({len(rows)},), is {tuple(value.shape)}",
        )
        require(value.isfinite().all(), f"loss of {player}: {name} is not finite")
    require((count > 0).all(), f"loss of {player}: a record with an answer counts nothing")
    return total.double(), count.double()


def laid_out(subject: Subject) -> str:
    """Pieces ask for no less than their records; in shared rows they cost what they cost in rows of their own."""
    model, family = subject.model, subject.family
    whole = records_of(four(subject), subject.records.fields, ANSWER)
    parts = family.pieces(whole, model.assets)
    require(len(parts) >= len(whole), f"{len(whole)} records have {len(parts)} pieces: one of them is not learnt")
    rows, keys = parts.list(), KEYS if len(parts) == len(whole) else range(len(parts))
    packed, told = family.packed(model.net, model.assets), []
    for player in model.players:
        alone = torch.stack(loss_of(model, player, rows, keys)).sum(1)
        with torch.no_grad():
            sums = family.loss(model.net, packed(rows, model.assets, Generators(0, keys)), player)
        together = torch.stack([part.double().sum() for part in sums])
        apart = gap(alone, together)
        require(apart <= TOLERANCE, f"loss of {player}: packed it is another (relative difference {apart:.2g})")
        least = loss_of(model, player, whole.list(), KEYS)[1].sum()
        require(float(alone[1]) >= float(least), f"loss of {player}: pieces count less than their records")
        told.append(f"{player} {apart:.1g}")
    return f"{len(whole)} records in {len(parts)} pieces; packed, losses differ by {', '.join(told) or 'nothing'}"


# ------------------------------------------------------------------------------------------------------- a sum, not a mean


def sums(subject: Subject) -> str:
    """Where a record has more places, its total grows with its count: the mean loss of a place stays in its range.

    Places are multiplied by longer data and by each whole number of the config doubled. Of a new model, which knows nothing,
    a place costs the same however many there are; a mean in the place of a sum would divide it by their number.
    """
    told = []
    base = per_place(subject.new(), subject.rows[:16])
    for what, model, rows in variations(subject):
        for player, (mean, count) in per_place(model, rows).items():
            before, places = base[player]
            if count / places < LONGER:
                continue
            wanted, found = math.sqrt(count / places), before / max(mean, 1e-30)
            require(
                1 / wanted < found < wanted,
                f"loss of {player}: {places:.3g} places cost {before:.3g} each, {count:.3g} places ({what}) "
                f"{mean:.3g} each: the total must be a sum over what count counts",
            )
            told.append(f"{what}: {before:.3g} at {places:.3g} places, {mean:.3g} at {count:.3g}")
    return "; ".join(told) or "every record counts the same, whatever its size"


def per_place(model: Model, rows: list[Record]) -> dict[str, tuple[float, float]]:
    """{player: (mean loss of a place, places of a record)}."""
    found = {player: loss_of(model, player, rows, range(len(rows))) for player in model.players}
    return {p: (float(total.sum() / count.sum()), float(count.mean())) for p, (total, count) in found.items()}


def variations(subject: Subject) -> Iterator[tuple[str, Model, list[Record]]]:
    """New models with more places: (what was changed, model, records)."""
    choices: list[tuple[str, dict, Records]] = [("longer data", {}, longer(subject.records))]
    for name, value in subject.family.tiny().items():
        if type(value) is int and value > 0:
            choices.append((f"{name} {2 * value}", {name: 2 * value}, subject.records))
    for what, config, records in choices:
        try:
            model = subject.new(0, records, **config)
        except OnnuriError:  # not every number of a config can be doubled alone
            continue
        yield what, model, records.list(slice(0, 16))


def longer(records: Records) -> Records:
    """The records with everything that has a length repeated: texts, sounds and series four times, pictures twice a side."""
    grow: dict[str, Callable] = {
        "text": lambda text: " ".join([text] * 4),
        "audio": lambda sound: Sound(np.tile(sound.samples, 4), sound.rate),
        "series": lambda series: np.tile(series, (4, 1)),
        "image": lambda image: image.repeat(2, axis=0).repeat(2, axis=1),
    }
    kinds = records.fields
    rows = [{name: grow.get(kinds[name], lambda value: value)(value) for name, value in row.items()} for row in records]
    return records_of(rows, kinds, records.answer)


def learning(subject: Subject) -> str:
    """Every player's loss reaches its own parameters, all of them together all that is trained, and falls."""
    model = subject.new(2)
    if not model.players:
        return f"nothing follows a gradient{judged(subject, model)}"
    covered = {id(p) for module in model.players.values() for p in module.parameters()}
    missed = [name for name, p in model.net.named_parameters() if p.requires_grad and id(p) not in covered]
    require(not missed, f"players leave out {len(missed)} parameters that are trained: {', '.join(missed[:5])}")
    for player, module in model.players.items():
        reaches(model, player, list(module.parameters()), subject.rows[:8])
    rows = subject.rows[:32]
    before, (first, *others) = per_place(model, rows), model.players
    trained(model, subject.records, steps=60, learning_rate=3e-3)
    after = per_place(model, rows)
    if not others:
        require(
            after[first][0] < before[first][0], f"loss {before[first][0]:.4g} rose to {after[first][0]:.4g} in 60 steps"
        )
    told = ", ".join(f"{player} {before[player][0]:.3g} -> {after[player][0]:.3g}" for player in before)
    return f"loss of {told} in 60 steps{judged(subject, model)}"


def reaches(model: Model, player: str, parameters: list, rows: list[Record]) -> None:
    """Require that the loss of a player has a gradient in its parameters."""
    total, _ = model.family.loss(model.net, model.collate(rows), player)
    require(total.requires_grad, f"the loss of {player} follows no gradient")
    total.sum().backward()
    moved = sum(p.grad is not None and bool((p.grad != 0).any()) for p in parameters)
    model.net.zero_grad(set_to_none=True)
    require(moved, f"the loss of {player} moves none of its {len(parameters)} parameters")


def judged(subject: Subject, model: Model) -> str:
    """The headline after learning; it must not be better where answers are judged by other records' truths."""
    metric, direction = model.headline
    rows = subject.rows
    answers = model.sample(rows)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    true, turned = (
        subject.family.score(truth, answers, model.assets)[metric] for truth in (rows, [rows[i] for i in order])
    )
    worse = turned - true if direction == "up" else true - turned
    require(
        worse <= TOLERANCE * max(1.0, abs(true)),
        f"{metric} is {true:.3g}, and {turned:.3g} by the truths of other records: are labels in another order?",
    )
    return f"; {metric} {true:.3g}"


def told_apart(subject: Subject) -> str:
    """`lengths` says which records take much of a batch: in its order less is padded than as they stand."""
    model, rows = subject.model, subject.rows
    asked, found = (subject.family.lengths(some, model.assets) for some in (model.asked(rows), rows))
    require(len(asked) == len(found) == len(rows), f"lengths gives {len(found)} numbers for {len(rows)} records")
    require(all(type(n) is int and n >= 0 for n in found), f"a length is a whole number, found {found[0]!r}")
    alone, in_order, as_they_stand = (
        sum(numbers_in(model.collate([rows[i] for i in part])) for part in parts)
        for parts in (parted(found, 1), parted(found, TOGETHER), parted([1] * len(rows), TOGETHER))
    )
    require(
        in_order <= as_they_stand, f"in the order of lengths {in_order} numbers are held, as they stand {as_they_stand}"
    )
    require(in_order < as_they_stand or alone == in_order, "records are padded, and lengths does not tell which")
    return f"{alone} numbers, {in_order} with padding in the order of lengths, {as_they_stand} as they stand"


COMPUTING = {
    "collate": batches,
    "lengths": told_apart,
    "outputs": shapes,
    "each record for itself": each_for_itself,
    "pieces and packed": laid_out,
    "loss is a sum": sums,
    "players and learning": learning,
}
