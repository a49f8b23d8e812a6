"""One document after the other: which of them came before, whole, line by line or nearly. Then what stays and what goes.

A batch is decided on at once, and as if its documents had come one by one. What is left out of a document stands in one that stays:
lines belong to documents that are kept. Whether one is kept may depend on lines that it loses to another, so this is done again
until it holds; twice, as a rule.
"""

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import numpy as np

from ...operation import Part
from ...unfinished import bytes_of, tensor_of
from .copies import Owners, earlier
from .edits import tidy
from .flat import Flat, Spans, flat
from .judging import Judged, Reason, faults_of, orders
from .language import languages
from .settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

LONG_LINE = 30  # characters; shorter ones are headings, names, and what people say alike


@dataclass
class Memory:
    """What is known of the documents before: keys of their texts, of their long lines, of bands of their signatures."""

    texts: Owners = field(default_factory=Owners)
    lines: Owners = field(default_factory=Owners)
    bands: Owners = field(default_factory=Owners)

    def tensors(self) -> "dict[str, Tensor]":
        """As a state holds it."""
        return {
            f"{each.name}.{part}": tensor_of(array)
            for each in fields(self)
            for part, array in getattr(self, each.name).arrays().items()
        }

    def take_up(self, tensors: "dict[str, Tensor]") -> None:
        for each in fields(self):
            keys, documents = (bytes_of(tensors[f"{each.name}.{part}"]) for part in ("keys", "documents"))
            owners: Owners = getattr(self, each.name)
            owners.take_up(np.frombuffer(keys, np.uint64), np.frombuffer(documents, np.uint32))


@dataclass
class Decided:
    """`reasons`: {place: why it goes}, copies among them; `shortened`: how many of those that stay lost lines to others."""

    part: Part
    reasons: dict[int, Reason]
    shortened: int


@dataclass
class Settled:
    """Documents without the lines that belong to others. `changed`: {place: its text}; `reasons`: {place: why it goes};
    `wholes` (D,) and `keys` (D, bands) of the texts as they are now."""

    changed: dict[int, str]
    reasons: dict[int, Reason]
    wholes: np.ndarray
    keys: np.ndarray


def decided(batch: Judged, column: str, memory: Memory, settings: Settings) -> Decided:
    reasons, numbers = dict(batch.reasons), np.asarray(batch.rows)
    alive = living(reasons, len(numbers))
    mark(reasons, alive, earlier(memory.texts, batch.wholes[alive], numbers[alive]), "copy", "the same text")
    first = living(reasons, len(numbers))
    near = near_copies(batch.keys, first[batch.worded[first]], numbers, memory)
    mark(reasons, first[batch.worded[first]], near, "near_copy", "much the same words")
    alive = living(reasons, len(numbers))
    lines = long_lines(batch.texts, alive) if settings.lines else batch.texts.lines.chosen(np.zeros(0, np.int64))
    keys = batch.texts.hashes(lines)
    failed = np.zeros(len(numbers), bool)
    while True:
        owners = earlier(memory.lines, keys, numbers[lines.owner], ~failed[lines.owner])
        found = settled(batch, alive, without(batch.texts, lines.chosen(owners >= 0)), memory, settings)
        now = np.zeros(len(numbers), bool)
        now[list(found.reasons)] = True
        here = owners[owners >= batch.rows.start] - batch.rows.start
        if not now[here].any() and not (failed & ~now)[lines.owner].any():
            break
        failed = now
    reasons |= found.reasons
    remember(memory, batch, living(reasons, len(numbers)), first, lines, keys, found)
    changed = {place: text for place, text in found.changed.items() if place not in reasons}
    return Decided(part_of(batch, column, changed, reasons), reasons, len(changed))


def living(reasons: dict[int, Reason], count: int, among: np.ndarray | None = None) -> np.ndarray:
    """The places of those that nothing speaks against so far."""
    mask = np.ones(count, bool)
    mask[list(reasons)] = False
    return np.flatnonzero(mask) if among is None else among[mask[among]]


def near_copies(keys: np.ndarray, places: np.ndarray, numbers: np.ndarray, memory: Memory) -> np.ndarray:
    """(P,): an earlier document that each of `places` (P,) is much like, -1 where none is. `keys` (D, bands)."""
    bands = keys.shape[1]
    if not bands:
        return np.full(len(places), -1)
    owners = earlier(memory.bands, keys[places].ravel(), np.repeat(numbers[places], bands))
    return owners.reshape(-1, bands).max(1)


def mark(reasons: dict[int, Reason], places: np.ndarray, owners: np.ndarray, name: str, detail: str) -> None:
    for one in np.flatnonzero(owners >= 0).tolist():
        reasons.setdefault(int(places[one]), Reason(name, detail, int(owners[one])))


def settled(batch: Judged, alive: np.ndarray, changed: dict[int, str], memory: Memory, settings: Settings) -> Settled:
    """What becomes of the living documents when some are `changed`: judged again, and compared as they are now."""
    numbers, reasons = np.asarray(batch.rows), dict[int, Reason]()
    wholes, keys, spoken = batch.wholes.copy(), batch.keys.copy(), batch.worded.copy()
    if changed:
        texts, places = flat(list(changed.values())), np.array(list(changed))
        wholes[places], spoken[places] = texts.hashes(texts.whole), texts.tally(texts.plain.words) > 0
        if settings.bands:
            keys[places] = orders(settings).keys(texts)
    both = np.concatenate([batch.wholes[alive], wholes[alive]])  # as it came, or as it is now
    owners = earlier(memory.texts, both, np.tile(numbers[alive], 2)).reshape(2, -1).max(0)
    mark(reasons, alive, owners, "copy", "the same text but for repeated lines")
    if changed:
        for place, one in faults_of(texts, languages(texts), settings).items():
            reasons.setdefault(int(places[place]), Reason(one.name, f"{one.detail}, without its repeated lines"))
        able = living(reasons, len(numbers), alive)
        able = able[spoken[able]]
        near = near_copies(keys, able, numbers, memory)
        new = np.isin(able, places)
        mark(reasons, able[new], near[new], "near_copy", "much the same words but for repeated lines")
    return Settled(changed, reasons, wholes, keys)


def remember(
    memory: Memory, batch: Judged, kept: np.ndarray, first: np.ndarray, lines: Spans, keys: np.ndarray, found: Settled
) -> None:
    """What later documents are compared with: texts as they came, and of those that are `kept` as they are now, and their lines;
    bands of the near copies of these as well. `first`: places of all that are no copies word for word."""
    numbers, bands = np.asarray(batch.rows), found.keys.shape[1]
    memory.texts.first(batch.wholes[first], numbers[first])
    memory.texts.first(found.wholes[kept], numbers[kept])
    stay = np.isin(lines.owner, kept)
    memory.lines.first(keys[stay], numbers[lines.owner[stay]])
    lost = [place for place, one in found.reasons.items() if one.name != "near_copy"]
    like = np.setdiff1d(first, lost)
    like = like[batch.worded[like]]
    memory.bands.first(batch.keys[like].ravel(), np.repeat(numbers[like], bands))
    if found.changed:
        memory.bands.first(found.keys[kept].ravel(), np.repeat(numbers[kept], bands))


# --------------------------------------------------------------------------------------------------------------- lines


def long_lines(texts: Flat, alive: np.ndarray) -> Spans:
    """Those of living documents that have several lines: a text of one line is compared as a whole."""
    several = (texts.tally(texts.lines) > 1) & np.isin(np.arange(len(texts)), alive)
    return texts.lines.chosen(several[texts.lines.owner] & (texts.lines.lengths >= LONG_LINE))


def without(texts: Flat, gone: Spans) -> dict[int, str]:
    """{place: the document without these lines} of all that have any."""
    if not len(gone.first):
        return {}
    edges = np.zeros(len(texts.codes) + 2, np.int64)
    np.add.at(edges, gone.first, 1)
    np.add.at(edges, np.minimum(gone.last + 1, texts.starts[gone.owner + 1]), -1)  # the end of the line goes as well
    stays = np.cumsum(edges)[: len(texts.codes)] == 0
    return {place: cut(texts, stays, place) for place in np.unique(gone.owner).tolist()}


def cut(texts: Flat, stays: np.ndarray, place: int) -> str:
    part = slice(texts.starts[place], texts.starts[place + 1])
    return tidy(texts.codes[part][stays[part]].tobytes().decode("utf-32-le", "surrogatepass"))


# --------------------------------------------------------------------------------------------------------------- parts


def part_of(batch: Judged, column: str, changed: dict[int, str], reasons: dict[int, Reason]) -> Part:
    """The batch divided. What is removed is told with its row, the reason, and the row that it is like."""
    texts = [{**one, column: changed[place]} if place in changed else one for place, one in enumerate(batch.texts_of)]
    kept = [place for place in range(len(texts)) if place not in reasons]
    removed = [
        {
            **texts[place],
            "removed_row": batch.rows[place],
            "removed_reason": one.name,
            "removed_detail": one.detail,
            "removed_like": one.like,
        }
        for place, one in sorted(reasons.items())
    ]
    return Part([batch.rows[place] for place in kept], [texts[place] for place in kept], removed)
