"""A vocabulary of n-grams of characters, learnt from texts: those of 1 to N characters that occur more than once or so.

Of each n-gram 32 bits are kept, and not its text: a million of them fit into 4 MB, and nobody reads them back. Two n-grams
with the same bits count as one; with a million known, one in 4,000 unknown ones is taken for a known one. Texts are brought to
NFC and to lower case, each run of white space becomes a space, and one space stands at each end, so that a word's
beginning and end can be told from its middle.
Letters: B texts, T characters of a text with its two spaces, N the longest n-gram, V n-grams.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ..errors import BadInput

FILE = "ngrams.safetensors"
TEXTS_AT_ONCE = 4096
STEP, SPREAD, MIX = (np.uint64(number) for number in (0x100000001B3, 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9))


class Ngrams:
    """The n-grams that are known, by number: 1 is the most frequent one, 0 stands for all that are not known."""

    def __init__(self, prints: np.ndarray, longest: int):
        """`prints`: (V,) uint32, unlike, the most frequent first."""
        self.prints, self.longest = prints, longest
        order = np.argsort(prints, kind="stable")
        self.shift = np.uint32(31 - max(1, len(prints)).bit_length())  # two slots or more for each n-gram
        slots = prints[order] >> self.shift
        self.first = np.searchsorted(slots, np.arange((0xFFFFFFFF >> int(self.shift)) + 2, dtype=np.uint64))
        self.deepest = int(np.diff(self.first).max())
        self.sorted = np.append(prints[order], np.zeros(self.deepest, np.uint32))  # the last slots are read beyond
        self.numbers = np.append(order + 1, np.zeros(self.deepest, order.dtype)).astype(np.int32)

    def __len__(self) -> int:
        return len(self.prints)

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.prints.tobytes()).hexdigest()

    def numbers_of(self, prints: np.ndarray) -> np.ndarray:
        """Fingerprints (...) to numbers (...) int32, 0 where unknown."""
        place, found = self.first[prints >> self.shift], np.zeros(prints.shape, np.int32)
        for _ in range(self.deepest):
            np.copyto(found, self.numbers[place], where=self.sorted[place] == prints)
            place += 1
        return found

    def encode(self, texts: Sequence[str], most: int) -> np.ndarray:
        """(B, M) int32: the numbers of the known n-grams of each text, short ones first, zeros behind them. At most `most`
        characters of a text are read."""
        prints, text = fingerprints(texts, self.longest, most)
        numbers = self.numbers_of(prints)
        known = np.flatnonzero(numbers)
        known = known[np.argsort(text[known], kind="stable")]
        sizes = np.bincount(text[known], minlength=len(texts))
        made = np.zeros((len(texts), max(1, sizes.max(initial=0))), np.int32)
        made[np.arange(made.shape[1]) < sizes[:, None]] = numbers[known]
        return made


def learnt(texts: Iterable[str], longest: int, least: int, most: int) -> Ngrams:
    """Those that occur `least` times or more in the texts, up to `longest` characters; `most` of a text are read."""
    parts = [fingerprints(part, longest, most)[0] for part in batched(texts, TEXTS_AT_ONCE)]
    together = np.sort(np.concatenate([np.zeros(0, np.uint32), *parts]))
    first = np.flatnonzero(np.diff(together, prepend=~together[:1]))
    counts = np.diff(first, append=len(together))
    often = counts >= least
    order = np.argsort(-counts[often], kind="stable")
    return Ngrams(together[first[often]][order], longest)


def counted(ngrams: Ngrams, texts: Iterable[str], most: int) -> np.ndarray:
    """(V + 1,) int64: how often each n-gram occurs in the texts; 0 for those that are not known."""
    found = np.zeros(len(ngrams) + 1, np.int64)
    for part in batched(texts, TEXTS_AT_ONCE):
        found += np.bincount(ngrams.numbers_of(fingerprints(part, ngrams.longest, most)[0]), minlength=len(found))
    found[0] = 0
    return found


def telling(counts: Sequence[np.ndarray]) -> np.ndarray:
    """(V + 1,) float32: how much each n-gram tells of the label, from its counts under each label (V + 1,).

    The log-count ratio of Wang & Manning 2012 (Baselines and Bigrams), of each label against all others; where there are
    more than two, their root mean square by the labels' shares. Its mean square over all that occurs is 1."""
    whole = np.sum(counts, axis=0)
    squares = np.zeros(len(whole))
    for mine in counts:
        part = np.clip(mine.sum() / max(whole.sum(), 1), 1e-6, 1 - 1e-6)
        ratio = (mine / part + 2) / ((whole - mine) / (1 - part) + 2)  # each count begins with one, shared out
        squares += part * np.log(ratio) ** 2
    typical = (whole * squares).sum() / max(whole.sum(), 1)
    return np.sqrt(squares / typical if typical > 0 else np.ones_like(squares)).astype(np.float32)


def batched(values: Iterable[str], size: int) -> Iterator[list[str]]:
    """Lists of `size` values, the last one shorter."""
    rest = iter(values)
    while part := list(islice(rest, size)):
        yield part


def fingerprints(texts: Sequence[str], longest: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """(fingerprints (P,) uint32 of all n-grams, the number of the text that each is from (P,)). By a polynomial (Karp &
    Rabin 1987) over 64 bits, mixed as splitmix64 does."""
    points, text = characters(texts, most)
    spread = (points.astype(np.uint64) + np.uint64(1)) * SPREAD
    prints, owners, sums = [], [], np.zeros(len(points), np.uint64)
    for n in range(1, longest + 1):
        many = max(0, len(points) - n + 1)
        sums = sums[:many] * STEP + spread[n - 1 :]
        places = np.flatnonzero(text[:many] == text[n - 1 :])
        bits = sums[places]
        bits = (bits ^ (bits >> np.uint64(29))) * MIX
        prints.append((bits >> np.uint64(32)).astype(np.uint32))
        owners.append(text[places])
    return np.concatenate(prints), np.concatenate(owners)


def characters(texts: Sequence[str], most: int) -> tuple[np.ndarray, np.ndarray]:
    """All characters one behind the other (P,) uint32, and the number of the text that each is from (P,)."""
    plain = [f" {' '.join(unicodedata.normalize('NFC', text).lower().split())[:most]} " for text in texts]
    points = np.frombuffer("".join(plain).encode("utf-32-le", "surrogatepass"), np.uint32)
    return points, np.repeat(np.arange(len(plain)), [len(text) for text in plain])


# ------------------------------------------------------------------------------------------------------------------ folders


def write(ngrams: Ngrams, folder: Path) -> None:
    """Into FILE: the bits as int32, which every tool of safetensors knows."""
    save_file({"prints": ngrams.prints.view(np.int32)}, folder / FILE, metadata={"longest": str(ngrams.longest)})


def read(folder: Path, longest: int) -> Ngrams:
    """The inverse of `write`; BadInput where the file is missing or holds something else."""
    try:
        prints = load_file(folder / FILE)["prints"]
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise BadInput(f"{folder} holds no list of n-grams that can be read: {FILE}: {error}") from error
    if prints.dtype != np.int32 or prints.ndim != 1 or len(np.unique(prints)) < len(prints):
        raise BadInput(f"{folder / FILE} must hold one row of unlike int32 numbers")
    return Ngrams(prints.view(np.uint32), longest)
