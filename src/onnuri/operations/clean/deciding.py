"""One document after the other: which of them came before, whole, line by line or nearly. Then what stays and what goes."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...operation import Part
from .copies import Owners, repeated
from .flat import Flat, Spans, flat
from .judging import Judged, Reason, faults_of, orders
from .language import languages
from .settings import Settings

LONG_LINE = 30  # characters; shorter ones are headings, names, and what people say alike


@dataclass
class Memory:
    """What is known of the documents before: keys of their texts, of their long lines, of bands of their signatures."""

    texts: Owners = field(default_factory=Owners)
    lines: Owners = field(default_factory=Owners)
    bands: Owners = field(default_factory=Owners)


@dataclass
class Decided:
    """`reasons`: {place: why it goes}, copies among them; `shortened`: how many documents lost lines that others have."""

    part: Part
    reasons: dict[int, Reason]
    shortened: int


def decided(batch: Judged, column: str, memory: Memory, settings: Settings) -> Decided:
    reasons, numbers = dict(batch.reasons), np.asarray(batch.rows)
    alive = living(reasons, len(numbers))
    mark(reasons, alive, repeated(memory.texts, batch.wholes[alive], numbers[alive]), "copy", "the same text")
    changed, keys = dict[int, str](), batch.keys
    if settings.lines:
        changed = without_lines(batch.texts, living(reasons, len(numbers)), numbers, memory)
    if changed:
        again, places = flat(list(changed.values())), np.array(list(changed))
        owners = repeated(memory.texts, again.hashes(again.whole), numbers[places])
        mark(reasons, places, owners, "copy", "the same text but for repeated lines")
        for place, one in faults_of(again, languages(again), settings).items():
            reasons[int(places[place])] = Reason(one.name, f"{one.detail}, without its repeated lines")
        if settings.bands:
            keys = keys.copy()
            keys[places] = orders(settings).keys(again)
    if settings.bands:
        alive = living(reasons, len(numbers))
        owners = repeated(memory.bands, keys[alive].ravel(), np.repeat(numbers[alive], settings.bands))
        mark(reasons, alive, owners.reshape(-1, settings.bands).max(1), "near_copy", "much the same words")
    return Decided(part_of(batch, column, changed, reasons), reasons, len(changed))


def living(reasons: dict[int, Reason], count: int) -> np.ndarray:
    """The places of those that nothing speaks against so far."""
    mask = np.ones(count, bool)
    mask[list(reasons)] = False
    return np.flatnonzero(mask)


def mark(reasons: dict[int, Reason], places: np.ndarray, owners: np.ndarray, name: str, detail: str) -> None:
    for one in np.flatnonzero(owners >= 0).tolist():
        reasons[int(places[one])] = Reason(name, detail, int(owners[one]))


def without_lines(texts: Flat, alive: np.ndarray, numbers: np.ndarray, memory: Memory) -> dict[int, str]:
    """{place: the text without long lines that stand in an earlier document}, of those that have any. Texts of one line are
    compared as wholes already."""
    lines = texts.lines
    several = (texts.tally(lines) > 1) & np.isin(np.arange(len(texts)), alive)
    long = lines.chosen(several[lines.owner] & (lines.lengths >= LONG_LINE))
    seen = repeated(memory.lines, texts.hashes(long), numbers[long.owner]) >= 0
    gone = long.chosen(seen)
    return {int(place): cut(texts, gone, int(place)) for place in np.unique(gone.owner)}


def cut(texts: Flat, gone: Spans, place: int) -> str:
    """A document without some of its lines."""
    stays = np.ones(texts.starts[place + 1] - texts.starts[place], bool)
    for first, last in zip(gone.first[gone.owner == place], gone.last[gone.owner == place]):
        stays[first - texts.starts[place] : last - texts.starts[place] + 1] = False  # the end of the line as well
    codes = texts.codes[texts.starts[place] : texts.starts[place + 1]][stays]
    return codes.tobytes().decode("utf-32-le", "surrogatepass").strip()


def part_of(batch: Judged, column: str, changed: dict[int, str], reasons: dict[int, Reason]) -> Part:
    """The batch divided. What is removed is told with its row, the reason, and the row that it is like."""
    records: list[dict[str, Any]] = [
        {**record, column: changed[place]} if place in changed else record for place, record in enumerate(batch.records)
    ]
    kept = [record for place, record in enumerate(records) if place not in reasons]
    removed = [{**records[place], **removed_for(batch.rows[place], one)} for place, one in sorted(reasons.items())]
    return Part(kept, removed)


def removed_for(row: int, reason: Reason) -> dict[str, Any]:
    """What is told of a removal, beside the document."""
    told = {"row": row, "reason": reason.name, "detail": reason.detail, "like": reason.like}
    return {f"removed_{name}": value for name, value in told.items()}
