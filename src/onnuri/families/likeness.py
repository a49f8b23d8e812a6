"""How like the texts that a model wrote are to those that were wanted: exact match, chrF and ROUGE-L.

chrF is Popović 2015 (https://aclanthology.org/W15-3049) as sacrebleu 2 computes it (its chrF2: n-grams of up to 6 characters
without white space, recall counted twice as heavily, counts of all texts together, 0 to 100), with one reference for each text.
ROUGE-L is the F1 of Lin 2004 (https://aclanthology.org/W04-1013), the mean over the texts, differing in: 1. a word is whatever
stands between white space, in its own case, since stemming and the usual pattern for words know English alone.
"""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

ORDER = 6  # characters of the longest n-grams
BETA = 2  # how much more recall weighs than precision
KEPT = 2**16  # pairs of texts: an interval of confidence asks for the same ones again and again


def scores(found: Sequence[str], wanted: Sequence[str]) -> dict[str, float]:
    """exact_match (white space around does not count) and rouge_l from 0 to 1, chrf from 0 to 100. NaN where there is no text."""
    if not found:
        return dict.fromkeys(("chrf", "exact_match", "rouge_l"), float("nan"))
    pairs = list(zip(found, wanted))
    return {
        "chrf": chrf(np.array([ngram_counts(*pair) for pair in pairs]).sum(0)),
        "exact_match": sum(one.strip() == other.strip() for one, other in pairs) / len(pairs),
        "rouge_l": sum(rouge_l(*pair) for pair in pairs) / len(pairs),
    }


def chrf(counts: np.ndarray) -> float:
    """(ORDER, 3) counts of n-grams found, wanted and both -> 0 to 100. An order of which one side has none is left out."""
    found, wanted, both = counts[(counts[:, 0] > 0) & (counts[:, 1] > 0)].T
    if not both.sum():
        return 0.0
    precision, recall = (both / found).mean(), (both / wanted).mean()
    return float(100 * (1 + BETA**2) * precision * recall / (BETA**2 * precision + recall))


@lru_cache(KEPT)
def ngram_counts(found: str, wanted: str) -> np.ndarray:
    """(ORDER, 3): for each length how many n-grams were found, wanted, and both. None were found where none could be wanted."""
    texts = ["".join(text.split()) for text in (found, wanted)]
    counts = np.zeros((ORDER, 3))
    for n in range(1, ORDER + 1):
        one, other = (Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in texts)
        counts[n - 1] = one.total() if other else 0, other.total(), (one & other).total()
    return counts


@lru_cache(KEPT)
def rouge_l(found: str, wanted: str) -> float:
    """The F1 of the longest common subsequence of their words; 0 where either has none, unless both have."""
    one, other = found.split(), wanted.split()
    if not one or not other:
        return float(one == other)
    return 2 * common(one, other) / (len(one) + len(other))


def common(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence, by bits (Hyyrö 2004: one sum for each word of `other`)."""
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << place
    row = all_bits = (1 << len(one)) - 1
    for word in other:
        here = row & places.get(word, 0)
        row = (row + here | row - here) & all_bits
    return (row ^ all_bits).bit_count()
