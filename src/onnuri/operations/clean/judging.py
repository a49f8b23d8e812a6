"""Each document by itself: edited, judged by the rules, compared with the evaluation set, and its keys made.

Nothing here knows of the documents before, so that batches are judged side by side.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from ...data import ANSWER_NAMES, Data, Record
from ...errors import BadInput
from .copies import Held, Orders
from .edits import edited
from .flat import Flat, flat
from .language import LANGUAGES, languages
from .reading import Read, batches
from .rules import broken, chosen
from .settings import Settings

WORKERS = 2  # two batches at once: numpy lets others compute meanwhile


@dataclass
class Reason:
    """Why a document is removed; `like`: the row of an earlier document, or of the evaluation set, that it is like."""

    name: str
    detail: str
    like: int | None = None


@dataclass(frozen=True)
class Judged:
    """A batch, D documents, of those that were read `together`. `texts_of`: {column: edited text} of each, `texts` of the column
    that is judged; `reasons`: {place: why it goes}; `languages` (D,); `wholes` (D,): a hash of each text; `worded` (D,): whether
    it has a word; `keys` (D, bands) of its signature; `counts`: {place: what was edited}."""

    rows: range
    together: range
    records: list[Record]
    texts_of: list[dict[str, str]]
    texts: Flat
    reasons: dict[int, Reason]
    languages: np.ndarray
    wholes: np.ndarray
    worded: np.ndarray
    keys: np.ndarray
    counts: dict[int, Counter[str]]


def judged(settings: Settings, columns: list[str], held: Held | None, read: Read) -> Judged:
    """`columns`: those of texts, the one that is judged first."""
    counts: dict[int, Counter[str]] = {}
    found = {name: edited([one[name] for one in read.records], settings, counts) for name in columns}
    whole = flat(found[columns[0]])
    spoken = languages(whole)
    reasons = {place: Reason("unreadable", fault) for place, fault in read.faults.items()}
    reasons = faults_of(whole, spoken, settings) | reasons
    if held is not None:
        for place in np.flatnonzero((rows := held.rows(whole)) >= 0).tolist():
            reasons.setdefault(place, Reason("held_out", "stands in the evaluation set", int(rows[place])))
    keys = orders(settings).keys(whole) if settings.bands else np.zeros((len(whole), 0), np.uint64)
    texts_of = [dict(zip(columns, texts)) for texts in zip(*found.values())]
    worded = whole.tally(whole.plain.words) > 0
    wholes = whole.hashes(whole.whole)
    return Judged(
        read.rows, read.together, read.records, texts_of, whole, reasons, spoken, wholes, worded, keys, counts
    )


def faults_of(texts: Flat, spoken: np.ndarray, settings: Settings) -> dict[int, Reason]:
    """{place: the first rule that a document breaks}."""
    found: dict[int, Reason] = {}
    for place in np.flatnonzero(np.diff(texts.starts) == 0).tolist():
        found[place] = Reason("empty", "no text")
    kept = range(len(LANGUAGES)) if settings.languages == "all" else map(LANGUAGES.index, settings.languages.split(","))
    for place in np.flatnonzero(~np.isin(spoken, list(kept))).tolist():
        found.setdefault(place, Reason("language", LANGUAGES[spoken[place]]))
    for rule, bad, figures in broken(texts, spoken, chosen(settings.rules, settings.limits)):
        for place in np.flatnonzero(bad).tolist():
            found.setdefault(place, Reason(rule.name, rule.told(figures[place], spoken[place])))
    return found


def orders(settings: Settings) -> Orders:
    return Orders(settings.bands, settings.rows, settings.shingle)


def judged_ahead(settings: Settings, columns: list[str], held: Held | None, read: Iterable[Read]) -> Iterator[Judged]:
    """Batches in their order, judged while those before are decided on."""
    judge = partial(judged, settings, columns, held)
    with ThreadPoolExecutor(WORKERS) as threads:
        ahead = deque()
        for batch in read:
            ahead.append(threads.submit(judge, batch))
            if len(ahead) > WORKERS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def held_of(data: Data, settings: Settings) -> Held:
    """The texts of an evaluation set, of all its columns of words but labels, and of all splits, edited as the documents are.
    BadInput where a part of it cannot be read, or it holds none."""
    fields = data.records.fields
    labels = [name for name, kind in fields.items() if kind == "category" and name.lower() in ANSWER_NAMES]
    columns = [name for name, kind in fields.items() if kind in ("text", "category") and name not in labels]
    held, words = Held(settings.overlap), 0
    for batch in batches(data.records, columns[0]) if columns else ():
        if batch.faults:
            raise BadInput(*(f"of the evaluation set {fault}" for fault in batch.faults.values()))
        for column in columns:
            texts = flat(edited([record[column] for record in batch.records], settings, {}))
            words += len(texts.plain.words.first)
            held.add(texts, np.asarray(batch.rows))
    if not words:
        raise BadInput(
            f"{data.name} holds no texts, so nothing of it can be kept out", hint="an evaluation set of texts"
        )
    return held
