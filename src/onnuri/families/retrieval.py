"""How well vectors serve to find: recall, reciprocal rank, rank correlation; alignment and uniformity.

A query finds its own among all candidates when no other text is as near (cosine): where all vectors are one, nothing is found.
Texts that equal the one sought do not count as others. recall@k, MRR: Manning et al. 2008, Introduction to Information Retrieval.
Alignment, uniformity: Wang & Isola 2020, arXiv:2005.10242, with alpha 2 and t 2; uniformity over at most MOST vectors.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 1024  # queries at once
MOST = 2048


def ranks(queries: Tensor, candidates: Tensor, own: Tensor, texts: Tensor) -> Tensor:
    """(Q,): how many other texts are as near as a query's own, from queries (Q, D), candidates (C, D), the place of each query's
    own (Q,) and a number for the text of each candidate (C,). All others are, where a vector is no number."""
    queries, candidates = (F.normalize(each, dim=1) for each in (queries, candidates))
    found = [torch.zeros(0, dtype=torch.int64)]
    for asked, mine in zip(queries.split(CHUNK), own.split(CHUNK)):
        near = asked @ candidates.T
        other = texts[None, :] != texts[mine][:, None]
        found.append((~(near < near.gather(1, mine[:, None])) & other).sum(1))
    return torch.cat(found)


def found_scores(places: Tensor) -> dict[str, float]:
    """Of ranks, NaN where there is none."""
    if not len(places):
        return dict.fromkeys(("recall_at_1", "recall_at_10", "mrr"), math.nan)
    return {
        "recall_at_1": float((places < 1).double().mean()),
        "recall_at_10": float((places < 10).double().mean()),
        "mrr": float((1 / (1 + places.double())).mean()),
    }


def alignment(one: Tensor, other: Tensor) -> float:
    """The mean squared distance of vectors that belong together, brought to length 1; NaN where there are none."""
    return float((F.normalize(one, dim=1) - F.normalize(other, dim=1)).square().sum(1).mean()) if len(one) else math.nan


def uniformity(vectors: Tensor, texts: Tensor) -> float:
    """The logarithm of the mean of exp(-2 d^2) over all pairs of unlike texts, brought to length 1: the lower, the more evenly
    they fill the sphere; NaN where there are no two."""
    chosen = texts.argsort()[:MOST]  # whatever order they came in
    points, names = F.normalize(vectors[chosen], dim=1), texts[chosen]
    other = names[:, None] != names[None]
    distances = (2 - 2 * points @ points.T)[other]
    return float(distances.mul(-2).exp().mean().log()) if len(distances) else math.nan


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """The correlation of ranks, equal values sharing theirs; NaN where one side has one value only."""
    a, b = (mean_ranks(np.asarray(each, dtype=np.float64)) for each in (one, other))
    return pearson(a, b)


def pearson(one: Sequence[float] | np.ndarray, other: Sequence[float] | np.ndarray) -> float:
    a, b = (np.asarray(each, dtype=np.float64) for each in (one, other))
    a, b = a - a.mean(), b - b.mean()
    size = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / size if size else math.nan


def mean_ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
