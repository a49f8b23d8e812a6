"""The texts of `encoding.py`: n-grams by their bits, tokens by merging pairs.

`ngrams`: the field. The text is brought to NFC and to lower case, white space becomes single spaces, `most` characters are read and
a space put at each end; the bits of each run of 1 to `longest` characters are looked up among `prints` (uint32 in base64, of which
the first has number 1). `families/ngrams.py` says how the bits are made.

`tokens`: the field. `marks` {text: number} stand for themselves. Between them the text is brought to NFC, a space becomes
`space` and one stands before it; it is cut before each `space` and around each mark of punctuation, each part into characters,
which are merged by `merges`, those first that stand first (Sennrich et al. 2016). `vocabulary`: in order of the tokens' numbers;
`unknown`: the number of any other character. The numbers `before` and `after` stand around them; `most` is how many there may
be in all.
"""

import base64
import re
import string
import unicodedata
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

WORD = (1 << 64) - 1
STEP, SPREAD, MIX = 0x100000001B3, 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9


# ------------------------------------------------------------------------------------------------------------- n-grams


def ngrams(text: str, entry: Mapping[str, Any]) -> np.ndarray:
    """Numbers of the n-grams that are known, short ones first; one zero where none is."""
    numbers = numbers_of(entry["prints"])
    plain = f" {' '.join(unicodedata.normalize('NFC', text).lower().split())[: entry['most']]} "
    found = [numbers[bits] for bits in runs(plain, entry["longest"]) if bits in numbers]
    return np.array(found or [0])


@lru_cache(maxsize=2)
def numbers_of(prints: str) -> dict[int, int]:
    """{bits: number}."""
    return {bits: number for number, bits in enumerate(np.frombuffer(base64.b64decode(prints), "<u4").tolist(), 1)}


def runs(text: str, longest: int) -> Iterator[int]:
    """The bits of each run of characters."""
    spread = [(ord(letter) + 1) * SPREAD & WORD for letter in text]
    sums = [0] * len(text)
    for n in range(1, longest + 1):
        sums = [(total * STEP + one) & WORD for total, one in zip(sums, spread[n - 1 :])]
        yield from (((bits ^ (bits >> 29)) * MIX & WORD) >> 32 for bits in sums)


# -------------------------------------------------------------------------------------------------------------- tokens


def tokens(text: str, entry: Mapping[str, Any]) -> np.ndarray:
    """Their numbers, (T,)."""
    marks = entry["marks"]
    parts = re.split("(" + "|".join(map(re.escape, sorted(marks, key=len, reverse=True))) + ")", text)
    found = [
        number
        for part in parts
        for number in ([marks[part]] if part in marks else numbered(part, entry) if part else [])
    ]
    room = entry["most"] - len(entry["before"]) - len(entry["after"])
    return np.array([*entry["before"], *found[:room], *entry["after"]])


def numbered(text: str, entry: Mapping[str, Any]) -> list[int]:
    """The numbers of a text without marks."""
    plain = unicodedata.normalize("NFC", text).replace(" ", entry["space"])
    plain = plain if plain.startswith(entry["space"]) else entry["space"] + plain
    unknown: int = entry["unknown"]
    found, (places, ranks) = list[int](), tables(tuple(entry["vocabulary"]), tuple(entry["merges"]))
    for part in split(plain, entry["space"]):
        found += [places.get(token, unknown) for token in merged(list(part), ranks, places)]
    return found


@lru_cache(maxsize=2)
def tables(vocabulary: tuple[str, ...], merges: tuple[str, ...]) -> tuple[dict[str, int], dict[str, int]]:
    """{token: number}, {pair with a space between: how soon}."""
    return {token: number for number, token in enumerate(vocabulary)}, {pair: rank for rank, pair in enumerate(merges)}


def split(text: str, space: str) -> Iterator[str]:
    part = ""
    for letter in text:
        alone = letter in string.punctuation or unicodedata.category(letter)[0] == "P"
        if part and (alone or letter == space):
            yield part
            part = ""
        if alone:
            yield letter
        else:
            part += letter
    if part:
        yield part


def merged(letters: list[str], ranks: Mapping[str, int], places: Mapping[str, int]) -> list[str]:
    """The tokens of one part. A character that is no token merges with nothing, as no pair holds it."""
    while len(letters) > 1:
        best = min(range(len(letters) - 1), key=lambda i: ranks.get(f"{letters[i]} {letters[i + 1]}", len(ranks)))
        if f"{letters[best]} {letters[best + 1]}" not in ranks:
            break
        letters[best : best + 2] = [letters[best] + letters[best + 1]]
    return letters
