"""Unigram language models of pieces of words, learnt by expectation and maximization, the same in every process.

Kudo 2018, arXiv:1804.10959: a word is cut into the pieces of the highest product of probabilities. Differing in:
1. seeds are all substrings of at most LONGEST characters that occur twice, found length by length, without a suffix array;
2. what a piece is worth is how often the likeliest cuts use it, times the nats that its own likeliest parts would cost more;
3. sums run in one order, over sorted words, and scores are rounded: the trainer of `tokenizers` takes words in another order in
   each process and gives other scores, and another order of its pieces, every time.

Letters: W words, N nodes (the places between characters), E edges (pieces where they stand), V pieces.
"""

import itertools
import math
import re
from array import array
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

LONGEST = 16  # characters of a piece
CHUNK = 24  # characters of a word: the product of their probabilities is still a number
MOST_WORDS = 300_000  # the commonest
SEEDS = 8  # for each piece that is wanted
KEPT = 0.75  # of the pieces, each time that some are let go
ROUNDS = 2  # of expectation and maximization between
COVERAGE = 0.9995  # of the characters have a piece of their own
LETTERS = 0.75  # of the pieces, at most, are characters
RARE = 0.5  # a piece that is expected less often is gone


def learnt(words: Mapping[str, int], size: int, needed: Sequence[str]) -> list[tuple[str, float]]:
    """At most `size` (piece, its log probability), the likeliest first, all of `needed` among them. `words`: {word: how often it
    occurs}; a character that is no piece has to be known otherwise."""
    letters = covered(words, needed, size)
    counts = chunks(words, letters)
    found = seeds(counts, letters, SEEDS * size)
    pieces, often = list(found), np.array(list(counts.values()), float)
    weight = np.array(list(found.values()), float)
    chance, whole = weight / weight.sum(), lattice(list(counts), pieces)
    while True:
        for _ in range(ROUNDS):
            single = np.array([len(piece) == 1 for piece in pieces])
            chance = maximized(whole.expected(chance, often), single)
        if len(pieces) <= size:
            break
        worth = worths(pieces, whole, chance, often)
        kept = np.sort(np.argsort(-worth, kind="stable")[: max(size, int(KEPT * len(pieces)))])
        pieces, chance, whole = [pieces[place] for place in kept], chance[kept], whole.only(kept, len(pieces))
    pairs = [(piece, round(math.log(each), 6)) for piece, each in zip(pieces, chance) if each > 0]
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))


# ---------------------------------------------------------------------------------------------------------- where it begins


def covered(words: Mapping[str, int], needed: Sequence[str], size: int) -> list[str]:
    """The characters that get a piece: `needed`, and the commonest up to COVERAGE."""
    often = Counter[str]()
    for word, count in words.items():
        for letter in word:
            often[letter] += count
    found, seen, total = dict.fromkeys(needed), 0, sum(often.values())
    for letter, count in sorted(often.items(), key=lambda pair: (-pair[1], pair[0])):
        if seen >= COVERAGE * total or len(found) >= max(len(needed), LETTERS * size):
            break
        found[letter], seen = None, seen + count
    return list(found)


def chunks(words: Mapping[str, int], letters: Collection[str]) -> dict[str, int]:
    """The commonest words, cut where a character has no piece, and where they are too long."""
    others = re.compile("[^" + re.escape("".join(letters)) + "]+")
    found = Counter[str]()
    for word, count in words.items():
        for part in others.split(word):
            for begin in range(0, len(part), CHUNK):
                found[part[begin : begin + CHUNK]] += count
    return dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))[:MOST_WORDS])


def seeds(counts: Mapping[str, int], letters: Sequence[str], most: int) -> dict[str, int]:
    """{piece: how often it occurs}: the characters, and the longer ones that cover most."""
    single, longer = Counter[str](dict.fromkeys(letters, 1)), Counter[str]()
    for word, count in counts.items():
        for letter in word:
            single[letter] += count
    words, before = counts, {letter for letter, count in single.items() if count > 1}
    for length in range(2, LONGEST + 1):
        found, words = Counter[str](), {word: count for word, count in words.items() if len(word) >= length}
        for word, count in words.items():
            for begin in range(len(word) - length + 1):
                piece = word[begin : begin + length]
                if piece[1:] in before and piece[:-1] in before:
                    found[piece] += count
        longer |= (again := Counter({piece: count for piece, count in found.items() if count > 1}))
        before = set(again)
    best = sorted(longer.items(), key=lambda pair: (-pair[1] * len(pair[0]), pair[0]))
    return dict(single) | dict(best[: max(0, most - len(single))])


# ----------------------------------------------------------------------------------------------------------- ways of cutting


@dataclass(frozen=True)
class Lattice:
    """All ways to cut some words into pieces. Edges `starts`, `ends`, `pieces` (E,) are ordered by how deep in its word one ends;
    `steps`: those of each depth. `first`, `last` (W,): the nodes of a word's ends."""

    starts: np.ndarray
    ends: np.ndarray
    pieces: np.ndarray
    depths: np.ndarray
    first: np.ndarray
    last: np.ndarray

    @property
    def steps(self) -> list[slice]:
        bounds = np.searchsorted(self.depths, np.arange(1, CHUNK + 2))
        return [slice(begin, end) for begin, end in itertools.pairwise(bounds) if end > begin]

    @property
    def num_nodes(self) -> int:
        return int(self.last[-1]) + 1 if len(self.last) else 0

    def expected(self, chance: np.ndarray, often: np.ndarray) -> np.ndarray:
        """(V,): how often each piece is used in words that occur `often` (W,), over all ways to cut them (Baum 1972)."""
        before, behind = np.zeros(self.num_nodes), np.zeros(self.num_nodes)
        before[self.first] = 1
        edge = chance[self.pieces]
        for step in self.steps:
            np.add.at(before, self.ends[step], before[self.starts[step]] * edge[step])
        behind[self.last] = often / before[self.last]
        for step in reversed(self.steps):
            np.add.at(behind, self.starts[step], behind[self.ends[step]] * edge[step])
        used = before[self.starts] * edge * behind[self.ends]
        return np.bincount(self.pieces, used, len(chance))

    def likeliest(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(the best sum of scores of each word (W,), the last edge of the best way to each node (N,)) (Viterbi 1967)."""
        value, choice = np.full(self.num_nodes, -np.inf), np.zeros(self.num_nodes, int)
        value[self.first] = 0
        for step in self.steps:
            found, ends = value[self.starts[step]] + scores[self.pieces[step]], self.ends[step]
            np.maximum.at(value, ends, found)
            hits = found == value[ends]
            choice[ends[hits]] = np.flatnonzero(hits) + step.start
        return value[self.last], choice

    def used(self, scores: np.ndarray, often: np.ndarray) -> np.ndarray:
        """(V,): how often each piece is used in the likeliest way to cut each word."""
        choice, node, first = self.likeliest(scores)[1], self.last, self.first
        counts = np.zeros(len(scores))
        while len(node):
            edge = choice[node]
            counts += np.bincount(self.pieces[edge], often, len(scores))
            node = self.starts[edge]
            going = node > first
            node, first, often = node[going], first[going], often[going]
        return counts

    def only(self, kept: np.ndarray, count: int) -> "Lattice":
        """With these pieces of `count`, numbered anew."""
        new = np.full(count, -1)
        new[kept] = np.arange(len(kept))
        there = new[self.pieces] >= 0
        edges = {name: getattr(self, name)[there] for name in ("starts", "ends", "depths")}
        return replace(self, pieces=new[self.pieces[there]], **edges)


def lattice(words: Sequence[str], pieces: Sequence[str], whole: bool = True) -> Lattice:
    """`whole`: a piece may be all of a word."""
    known = {piece: place for place, piece in enumerate(pieces)}
    starts, ends, found, depths = (array("i") for _ in range(4))
    first, last, node = array("i"), array("i"), 0
    for word in words:
        for end in range(1, len(word) + 1):
            for begin in range(max(0, end - LONGEST), end):
                place = known.get(word[begin:end])
                if place is not None and (whole or end - begin < len(word)):
                    starts.append(node + begin)
                    ends.append(node + end)
                    found.append(place)
                    depths.append(end)
        first.append(node)
        last.append(node + len(word))
        node += len(word) + 1
    order = np.argsort(np.array(depths), kind="stable")
    return Lattice(
        *(np.array(each, np.int64)[order] for each in (starts, ends, found, depths)),
        first=np.array(first, np.int64),
        last=np.array(last, np.int64),
    )


# ------------------------------------------------------------------------------------------------------- which pieces remain


def maximized(expected: np.ndarray, single: np.ndarray) -> np.ndarray:
    """(V,): the probabilities, by the mean of their logarithm under a Dirichlet prior of none (variational Bayes), which makes what
    is rare rarer. Characters stay."""
    counts = np.where(single, np.maximum(expected, RARE), np.where(expected < RARE, 0, expected))
    found = torch.digamma(torch.from_numpy(counts)).exp().numpy()
    return np.where(counts > 0, found, 0) / found.sum()


def worths(pieces: Sequence[str], whole: Lattice, chance: np.ndarray, often: np.ndarray) -> np.ndarray:
    """(V,): nats that the words would cost more without a piece. Characters are worth all."""
    with np.errstate(divide="ignore"):
        scores = np.log(chance)
    without = lattice(pieces, pieces, whole=False).likeliest(scores)[0]
    lost = np.where(chance > 0, scores - without, 0)
    uses = whole.used(scores, often)
    return np.where(np.isfinite(without), np.where(uses > 0, uses, 0) * np.where(np.isfinite(lost), lost, 0), np.inf)
