"""Which new tokens texts want: the commonest pair of tokens in a row becomes one, again and again.

Sennrich et al. 2016, arXiv:1508.07909, begun with the tokens that a model has instead of characters. Words, not texts, are gone
through, each as often as it occurs.
"""

import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from ...family import Segmentation

Pair = tuple[int, int]
Words = Mapping[tuple[int, ...], int]
"""{tokens of a word: how often it occurs}"""


@dataclass
class Corpus:
    """The words as they are cut by now, how often each pair stands in them, and in which."""

    words: list[list[int]]
    often: list[int]
    counts: Counter[Pair]
    places: defaultdict[Pair, set[int]]

    def add(self, place: int, sign: int) -> None:
        """Count the pairs of a word, or take them back."""
        word = self.words[place]
        for pair in itertools.pairwise(word):
            self.counts[pair] += sign * self.often[place]
            self.places[pair].add(place)

    def join(self, pair: Pair, number: int) -> set[Pair]:
        """Put `number` wherever `pair` stands; the pairs that there are more of now."""
        grown = set[Pair]()
        for place in sorted(self.places.pop(pair)):
            self.add(place, -1)
            self.words[place] = word = joined(self.words[place], pair, number)
            self.add(place, 1)
            grown |= {each for each in itertools.pairwise(word) if number in each}
        del self.counts[pair]
        return grown


def corpus_of(words: Words) -> Corpus:
    order = sorted(words)
    found = Corpus([list(word) for word in order], [words[word] for word in order], Counter(), defaultdict(set))
    for place in range(len(order)):
        found.add(place, 1)
    return found


def joined(word: list[int], pair: Pair, number: int) -> list[int]:
    """The word with `number` wherever `pair` stood, from the left."""
    made: list[int] = []
    place = 0
    while place < len(word):
        hit = tuple(word[place : place + 2]) == pair
        made.append(number if hit else word[place])
        place += 1 + hit
    return made


def learnt(words: Words, how: Segmentation, first: int, most: int, least: int) -> list[Pair]:
    """At most `most` pairs, each of which occurs `least` times when its turn comes; the i-th makes token `first` + i. Pairs that
    are written as a token that is there are passed over."""
    corpus, spelled = corpus_of(words), dict(how.spelled)
    known, alone = set(spelled.values()), set(how.alone)
    heap = [(-count, pair) for pair, count in corpus.counts.items() if count >= least]
    heapq.heapify(heap)
    found: list[Pair] = []
    while heap and len(found) < most:
        count, pair = heapq.heappop(heap)
        now = corpus.counts.get(pair, 0)
        if now != -count:  # it was counted before others were joined
            if now >= least:
                heapq.heappush(heap, (-now, pair))
            continue
        if alone & set(pair) or not all(each in spelled for each in pair):
            continue
        written = how.join(spelled[pair[0]], spelled[pair[1]])
        if written in known:
            continue
        number = first + len(found)
        found.append(pair)
        spelled[number] = written
        known.add(written)
        for each in sorted(corpus.join(pair, number)):
            if corpus.counts[each] >= least:
                heapq.heappush(heap, (-corpus.counts[each], each))
    return found
