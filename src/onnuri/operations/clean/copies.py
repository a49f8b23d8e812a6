"""Copies of what came before: of a document, of a line, or nearly; and texts that also stand in an evaluation set.

1. Near copies by MinHash (Broder 1997): a document's shingles, runs of some words of the normalized text, under many random
   orders; the least of each order is its signature; documents that agree in a whole band of it are near copies. A pair of
   likeness s (of their sets of shingles, after Jaccard) is found with probability 1 - (1 - s^rows)^bands.
2. An order is x -> ax + b modulo 2^32 with an odd a, of one half of a shingle's 64 bits, in place of a prime modulus: two
   operations for each shingle.
3. The first of several copies stays. A document is compared with those before it that were kept, and with their near copies:
   what is like a near copy goes with it.
4. A document of fewer words than a shingle has is its own shingle.

Letters: D documents, N keys, S shingles, P orders.
"""

from dataclasses import dataclass, field

import numpy as np

from .flat import BASE, Flat, Spans, mixed, powers

Run = tuple[np.ndarray, np.ndarray]
PIECE = 64


@dataclass
class Owners:
    """Which document had a key first. Keys lie sorted in runs, each at least twice as long as the one behind it: 12 bytes a key."""

    runs: list[Run] = field(default_factory=list)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """(N,) int64: the document that had each key, -1 where none had."""
        order = np.argsort(keys, kind="stable")  # sorted keys are looked up in one sweep
        ordered, owners = keys[order], np.full(len(keys), -1, np.int64)
        for known, theirs in self.runs:
            places = np.minimum(np.searchsorted(known, ordered), len(known) - 1)
            hit = known[places] == ordered
            owners[order[hit]] = theirs[places[hit]]
        return owners

    def first(self, keys: np.ndarray, documents: np.ndarray) -> np.ndarray:
        """(N,) int64: the document that had each key first, which may be its own; `documents` (N,) ascending. New keys are
        kept."""
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        new = np.ones(len(keys), bool)
        new[1:] = ordered[1:] != ordered[:-1]
        unique, owners = ordered[new], documents[order][new].astype(np.int64)
        known = self.find(unique)
        self.add(unique[known < 0], owners[known < 0])
        found = np.empty(len(keys), np.int64)
        found[order] = np.where(known < 0, owners, known)[np.cumsum(new) - 1]
        return found

    def arrays(self) -> dict[str, np.ndarray]:
        """All `keys` (N,) uint64 and the `documents` (N,) uint32 that had them first."""
        keys, documents = zip((np.zeros(0, np.uint64), np.zeros(0, np.uint32)), *self.runs)
        return {"keys": np.concatenate(keys), "documents": np.concatenate(documents)}

    def take_up(self, keys: np.ndarray, documents: np.ndarray) -> None:
        """What `arrays` gave, where nothing is known yet."""
        order = np.argsort(keys, kind="stable")
        self.add(keys[order], documents[order])

    def add(self, keys: np.ndarray, owners: np.ndarray) -> None:
        """`keys` sorted, none of them known."""
        if not len(keys):
            return
        self.runs.append((keys, owners.astype(np.uint32)))
        while len(self.runs) > 1 and len(self.runs[-2][0]) < 2 * len(self.runs[-1][0]):
            (one, its), (other, theirs) = self.runs.pop(), self.runs.pop()
            both = np.concatenate([other, one])
            order = np.argsort(both, kind="stable")  # two runs that are sorted already: one pass
            self.runs.append((both[order], np.concatenate([theirs, its])[order]))


def earlier(seen: Owners, keys: np.ndarray, documents: np.ndarray, able: np.ndarray | None = None) -> np.ndarray:
    """(N,) int64: the first document before each key's own (N,) that has it, -1 where none has: one that was `seen`, or one of
    these, if it is `able` (N,) to have any."""
    unique, place = np.unique(keys, return_inverse=True)
    first = np.full(len(unique), np.iinfo(np.int64).max)
    mask = slice(None) if able is None else able
    np.minimum.at(first, place[mask], documents[mask])
    known = seen.find(unique)
    owners = np.where(known >= 0, known, first)[place]
    return np.where(owners < documents, owners, -1)


def grams(hashes: np.ndarray, owners: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(hashes of `count` words in a row, their documents) from those of words; none goes from one document into the next."""
    if len(hashes) < count:
        return np.zeros(0, np.uint64), np.zeros(0, owners.dtype)
    length = len(hashes) - count + 1
    total = np.zeros(length, np.uint64)
    for place, power in enumerate(powers(count, BASE)):
        total += hashes[place : place + length] * power
    inside = owners[:length] == owners[count - 1 :]
    return mixed(total[inside]), owners[:length][inside]


def sums_of(words: Spans, hashes: np.ndarray, documents: int) -> np.ndarray:
    """(D,) uint64: one hash of all the words of a document, in their order."""
    counts = np.bincount(words.owner, minlength=documents)
    starts = np.cumsum(counts) - counts
    place = np.arange(len(hashes)) - starts[words.owner]
    weighted = hashes * powers(int(counts.max(initial=0)), BASE)[place]
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(weighted)])
    return mixed(sums[starts + counts] - sums[starts])


@dataclass(frozen=True)
class Runs:
    """Runs of words that come more than once in their document, equal ones side by side: the word that each begins with, and
    whether it is the first of its kind."""

    starts: np.ndarray
    first: np.ndarray


def runs_of(texts: Flat, count: int) -> Runs:
    """Of `count` words, two at least. A longer run can only come again where its beginning does, so few are looked at."""
    if count not in texts.runs:
        words, hashes = texts.plain.words, texts.plain.word_hashes
        starts = np.sort(runs_of(texts, count - 1).starts) if count > 2 else np.arange(len(hashes))
        starts = starts[starts + count <= len(hashes)]
        starts = starts[words.owner[starts] == words.owner[starts + count - 1]]
        keys = words.owner[starts].astype(np.uint64)
        for place, power in enumerate(powers(count, BASE)):
            keys += hashes[starts + place] * power
        order = np.argsort(mixed(keys), kind="stable")
        keys, starts = keys[order], starts[order]
        first, last = np.ones((2, len(keys)), bool)
        first[1:] = last[:-1] = keys[1:] != keys[:-1]
        texts.runs[count] = Runs(starts[~(first & last)], first[~(first & last)])
    return texts.runs[count]


@dataclass(frozen=True)
class Orders:
    """Random orders of shingles, and how their least ones make the keys of bands."""

    bands: int
    rows: int
    shingle: int

    @property
    def likeness(self) -> float:
        """About where pairs begin to be found: the likeness at which the curve of note 1 is steepest."""
        return (1 / self.bands) ** (1 / self.rows)

    def keys(self, texts: Flat) -> np.ndarray:
        """(D, bands) uint64; those of a text without a word mean nothing."""
        plain = texts.plain
        hashes, documents = shingles(plain.words, plain.word_hashes, len(texts), self.shingle)
        least = self.signatures(hashes, documents, len(texts)).reshape(len(texts), self.bands, self.rows)
        keys = (least.astype(np.uint64) * powers(self.rows, BASE)).sum(-1, dtype=np.uint64)
        return mixed(keys + np.arange(1, self.bands + 1, dtype=np.uint64) * np.uint64(BASE))

    def signatures(self, shingles: np.ndarray, documents: np.ndarray, count: int) -> np.ndarray:
        """(D, P) uint32: the least shingle of each document under each order."""
        orders = self.bands * self.rows
        least = np.full((count, orders), 2**32 - 1, np.uint32)
        if not len(shingles):
            return least
        factors, shifts = mixed(np.arange(1, 2 * orders + 1, dtype=np.uint64)).astype(np.uint32).reshape(2, orders)
        columns = columns_of(documents)
        halves = np.ascontiguousarray(shingles[columns.order].view(np.uint32).reshape(-1, 2).T)
        for place in range(orders):
            ranks = halves[place % 2] * (factors[place] | np.uint32(1)) + shifts[place]
            least[columns.documents, place] = columns.least(ranks)
        return least


@dataclass(frozen=True)
class Columns:
    """Shingles laid so that many documents are looked through at once: these are cut into pieces of PIECE shingles, and a column
    holds one shingle of each piece that is so long, the longest piece first. (Piece by piece it takes six times as long.)

    `order` (S,): the shingles column by column; `heights`: of the columns; `pieces`: where in the first column each piece is, in
    the documents' order; `starts`: the first piece of each of `documents`."""

    order: np.ndarray
    heights: list[int]
    pieces: np.ndarray
    starts: np.ndarray
    documents: np.ndarray

    def least(self, ranks: np.ndarray) -> np.ndarray:
        """The least of `ranks` (S,), laid in columns, of each document."""
        found, at = ranks[: self.heights[0]].copy(), self.heights[0]
        for height in self.heights[1:]:
            np.minimum(found[:height], ranks[at : at + height], out=found[:height])
            at += height
        found = found[self.pieces]
        return np.minimum.reduceat(found, self.starts) if len(self.starts) < len(found) else found


def columns_of(documents: np.ndarray) -> Columns:
    """`documents` (S,): that of each shingle, ascending."""
    starts = np.flatnonzero(np.diff(documents, prepend=-1))
    place = np.arange(len(documents)) - np.repeat(starts, np.diff(starts, append=len(documents)))
    begins = np.flatnonzero(place % PIECE == 0)
    lengths = np.diff(begins, append=len(documents))
    tallest = np.argsort(-lengths, kind="stable")
    pieces = np.empty(len(begins), np.int64)
    pieces[tallest] = np.arange(len(begins))
    heights = (len(lengths) - np.searchsorted(np.sort(lengths), np.arange(int(lengths.max())), side="right")).tolist()
    order = np.concatenate([begins[tallest[:height]] + column for column, height in enumerate(heights)])
    return Columns(order, heights, pieces, np.searchsorted(begins, starts), documents[starts])


def shingles(words: Spans, hashes: np.ndarray, documents: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(shingles (S,), their documents, ascending)."""
    found, owners = grams(hashes, words.owner, length)
    counts = np.bincount(words.owner, minlength=documents)
    short = np.flatnonzero((counts > 0) & (counts < length))
    if not len(short):
        return found, owners
    both, theirs = np.concatenate([found, sums_of(words, hashes, documents)[short]]), np.concatenate([owners, short])
    order = np.argsort(theirs, kind="stable")
    return both[order], theirs[order]


# -------------------------------------------------------------------------------------------------- an evaluation set


@dataclass(frozen=True)
class Held:
    """What may not be learnt: runs of `count` words of an evaluation set, and its shorter texts as wholes."""

    count: int
    runs: Owners = field(default_factory=Owners)
    wholes: Owners = field(default_factory=Owners)

    def add(self, texts: Flat, rows: np.ndarray) -> None:
        """`rows` (D,): the numbers of these texts in the evaluation set."""
        words = texts.plain.words
        keys, owners = grams(texts.plain.word_hashes, words.owner, self.count)
        self.runs.first(keys, rows[owners])
        counts = texts.tally(words)
        short = (counts > 0) & (counts < self.count)
        self.wholes.first(sums_of(words, texts.plain.word_hashes, len(texts))[short], rows[short])

    def rows(self, texts: Flat) -> np.ndarray:
        """(D,) int64: a row of the evaluation set that stands in each text, in whole or in part; -1 where none does."""
        words = texts.plain.words
        keys, owners = grams(texts.plain.word_hashes, words.owner, self.count)
        found = self.wholes.find(sums_of(words, texts.plain.word_hashes, len(texts)))
        np.maximum.at(found, owners, self.runs.find(keys))
        return found
