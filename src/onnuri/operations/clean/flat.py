"""Texts as one flat array of characters: what is counted is counted in all of them at once.

Letters: D documents, C characters of all of them, N spans (words, or lines) of all of them.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import numpy as np

LETTER, HANGUL, LATIN, DIGIT, SPACE, MARK = (1 << bit for bit in range(6))
BEYOND = 2**16  # the entry of a table for every character above the basic plane: emoji, mostly
BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
INVERSE = pow(BASE, -1, 2**64)


@dataclass(frozen=True)
class Spans:
    """Parts of documents, in order: `first` and `last` (N,), where each begins and the place behind it; `owner` (N,), its
    document."""

    first: np.ndarray
    last: np.ndarray
    owner: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return self.last - self.first

    def chosen(self, mask: np.ndarray) -> "Spans":
        return Spans(self.first[mask], self.last[mask], self.owner[mask])


@dataclass(frozen=True)
class Flat:
    """`codes` (C,): code points of one document after the other; `starts` (D + 1,): where each begins, and the end."""

    codes: np.ndarray
    starts: np.ndarray
    runs: dict[int, Any] = field(default_factory=dict, repr=False, compare=False)
    """What `copies.runs_of` found of runs of so many words."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def kinds(self) -> np.ndarray:
        """(C,): LETTER, HANGUL, ... of each character, those that apply added up."""
        return kind_table()[np.minimum(self.codes, BEYOND)]

    @cached_property
    def words(self) -> Spans:
        """What stands between white space."""
        return self.spans(self.kinds & SPACE == 0)

    @cached_property
    def paragraphs(self) -> Spans:
        """What stands between empty lines."""
        breaks = self.codes == ord("\n")
        double = breaks & np.append(breaks[1:], False) | breaks & np.append(False, breaks[:-1])
        return self.spans(~double)

    @cached_property
    def lines(self) -> Spans:
        """Lines without the white space around them; empty ones are none."""
        breaks = self.codes == ord("\n")
        inner = self.spans(~breaks)
        solid = np.concatenate([[0], np.cumsum(self.kinds & SPACE == 0)])
        places = np.flatnonzero(self.kinds & SPACE == 0)
        full = inner.chosen(solid[inner.last] > solid[inner.first])
        first, last = places[solid[full.first]], places[solid[full.last] - 1] + 1
        return Spans(first, last, full.owner)

    def spans(self, inside: np.ndarray) -> Spans:
        """Runs of characters for which `inside` (C,) is true; none goes from one document into the next."""
        before, after = np.zeros_like(inside), np.zeros_like(inside)
        before[1:], after[:-1] = inside[:-1], inside[1:]
        edges = self.starts[(self.starts > 0) & (self.starts < len(inside))]
        before[edges], after[edges - 1] = False, False
        first, last = np.flatnonzero(inside & ~before), np.flatnonzero(inside & ~after) + 1
        return Spans(first, last, np.searchsorted(self.starts, first, side="right") - 1)

    def count(self, mask: np.ndarray) -> np.ndarray:
        """(D,): for how many characters of each document `mask` (C,) is true."""
        sums = np.concatenate([[0], np.cumsum(mask)])
        return sums[self.starts[1:]] - sums[self.starts[:-1]]

    def tally(self, spans: Spans, values: np.ndarray | None = None) -> np.ndarray:
        """(D,): how many spans each document has, or the sum of their `values` (N,)."""
        return np.bincount(spans.owner, values, minlength=len(self))

    @cached_property
    def sums(self) -> np.ndarray:
        """(C + 1,) uint64: the sums by which `hashes` works."""
        return np.concatenate(
            [np.zeros(1, np.uint64), np.cumsum(numbers_of(self.codes) * powers(len(self.codes), BASE))]
        )

    def hashes(self, spans: Spans) -> np.ndarray:
        """(N,) uint64: equal for equal spans. A polynomial over numbers drawn for each character, modulo 2^64 (Karp and
        Rabin), so that any span costs the same."""
        return mixed(
            (self.sums[spans.last] - self.sums[spans.first]) * powers(len(self.codes) + 1, INVERSE)[spans.first]
        )

    @cached_property
    def word_hashes(self) -> np.ndarray:
        """(W,) uint64, one for each of `words`."""
        return self.hashes(self.words)

    @cached_property
    def plain(self) -> "Flat":
        """As texts are compared for likeness: small letters without accents, each digit a 0, punctuation as blanks."""
        return Flat(plain_table()[np.minimum(self.codes, BEYOND)], self.starts)

    @property
    def whole(self) -> Spans:
        """Each document as one span."""
        return Spans(self.starts[:-1], self.starts[1:], np.arange(len(self)))


def flat(texts: Sequence[str]) -> Flat:
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    return Flat(codes, np.concatenate([[0], np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))]))


# ---------------------------------------------------------------------------------------------------------- numbers


def mixed(numbers: np.ndarray) -> np.ndarray:
    """(N,) uint64, every bit of which depends on every bit of what came in (the end of splitmix64)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def numbers_of(codes: np.ndarray) -> np.ndarray:
    """A number drawn for each character."""
    return number_table()[codes] if codes.max(initial=0) < BEYOND else mixed(codes.astype(np.uint64) + np.uint64(BASE))


@cache
def number_table() -> np.ndarray:
    return mixed(np.arange(BEYOND, dtype=np.uint64) + np.uint64(BASE))


POWERS: dict[int, np.ndarray] = {}


def powers(count: int, base: int) -> np.ndarray:
    """1, base, base^2, ... modulo 2^64, `count` of them."""
    known = POWERS.get(base)
    if known is None or len(known) < count:
        known = np.full(max(count, 1), base, np.uint64)
        known[0] = 1
        POWERS[base] = known = np.cumprod(known)
    return known[:count]


# ----------------------------------------------------------------------------------------------------------- tables


@cache
def kind_table() -> np.ndarray:
    """(BEYOND + 1,): the kind of each character of the basic plane, and of any other."""
    return np.array([kind_of(chr(code)) for code in range(BEYOND)] + [MARK], np.uint8)


def kind_of(letter: str) -> int:
    group = unicodedata.category(letter)[0]
    if letter.isspace() or group == "Z":
        return SPACE
    if group == "L":
        hangul = "\uac00" <= letter <= "\ud7a3" or "\u1100" <= letter <= "\u11ff" or "\u3131" <= letter <= "\u318e"
        latin = letter.isascii() or "\u00c0" <= letter <= "\u024f"
        return LETTER | HANGUL * hangul | LATIN * latin
    return DIGIT if group == "N" else MARK


@cache
def plain_table() -> np.ndarray:
    """(BEYOND + 1,): what each character becomes in a normalized text."""
    return np.array([plain_of(chr(code)) for code in range(BEYOND)] + [ord(" ")], np.uint32)


def plain_of(letter: str) -> int:
    kind = kind_of(letter)
    if kind & DIGIT:
        return ord("0")
    if not kind & LETTER:
        return ord(" ")
    lower = letter.lower()
    base = unicodedata.normalize("NFD", lower)[0] if kind & LATIN else lower[0]
    return ord(base)
