"""What a student is taught beside its answers: what its blocks put out, and how its attention relates the places.

Blocks: FitNets (Romero et al., arXiv:1412.6550), all along the net. Attention: the relations of MiniLMv2 (Wang et al.,
arXiv:2012.15828), which ask for no equal number of heads. Differences:
1. as many pairs of blocks as the shallower net has, evenly over the depth, the last with the last; the error is counted in
   the teacher's own variance, so that 0 says alike and 1 that no more than the mean is known, in any net (FAINT excepted);
2. a learned linear map leads from the student's features to the teacher's, unless both nets are of one class and a block as
   wide in one as in the other. It begins as the least squares fit on some records, and is thrown away at last;
3. where both do not have the same places, as a transformer and a convolution, features are averaged over all places;
4. padding is left out where it is found, which is where attention may not see it: a record then counts for the same in
   any batch;
5. attention of the last layer with attention of the last, of queries, keys and values.
Letters: B records, P or T places, D features, H heads, R heads of relations.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .data import Records
from .errors import Refusal
from .family import seeded
from .model import Model
from .observe import Seen, inside

LOOKED_AT = 64  # records on which variances are measured, maps fitted and places compared
BATCH = 16
FAINT = 1e-2  # of the mean square: variances below it are taken for it, or features that hardly move would decide all
NEVER = -1e9  # a score of relations that is to count for nothing


@dataclass(frozen=True)
class Pair:
    """A block of the student and the teacher's that it is compared with. `spread`: the teacher's mean variance of a feature;
    `pooled`: over all places."""

    student: str
    teacher: str
    spread: float
    pooled: bool


@dataclass(frozen=True)
class Hints:
    """`maps`: one of each pair, from the student's features to the teacher's."""

    pairs: tuple[Pair, ...]
    maps: nn.ModuleList
    hidden: float
    attention: float

    def __call__(self, student: Seen, teacher: Seen) -> Tensor:
        """(B,): the weighted sum of both terms."""
        found = []
        if self.hidden:
            terms = [
                block_gap(pair, map_, student, teacher)
                for pair, map_ in zip(self.pairs, self.maps)
                if pair.student in student.blocks and pair.teacher in teacher.blocks  # some nets skip layers by chance
            ]
            if not terms:
                raise in_parts()
            found.append(self.hidden * torch.stack(terms).mean(0))
        if self.attention:
            found.append(self.attention * relation_gap(student, teacher))
        return torch.stack(found).sum(0)


# ------------------------------------------------------------------------------------------------------------ the terms


def block_gap(pair: Pair, map_: nn.Module, student: Seen, teacher: Seen) -> Tensor:
    """(B,): the mean squared error of the mapped features over the places, in the teacher's variance."""
    given, wanted = features(pair.student, student, pair.pooled), features(pair.teacher, teacher, pair.pooled)
    if given.shape[1] != wanted.shape[1]:
        raise unlike_places()
    error = (map_(given).float() - wanted).square().mean(2)
    return average(error, None if pair.pooled else teacher.real.get(wanted.shape[1])) / pair.spread


def features(name: str, seen: Seen, pooled: bool) -> Tensor:
    """(B, P, D), or (B, 1, D) where they are pooled."""
    found = seen.blocks[name].float()
    return average(found, seen.real.get(found.shape[1])).unsqueeze(1) if pooled else found


def average(values: Tensor, real: Tensor | None) -> Tensor:
    """The mean over the places of (B, P, ...), padding left out."""
    if real is None:
        return values.mean(1)
    weight = real.float() / real.sum(1, keepdim=True).clamp_min(1)
    return torch.einsum("bp,bp...->b...", weight, values)


def relation_gap(student: Seen, teacher: Seen) -> Tensor:
    """(B,): the divergence of the student's relations from the teacher's in nats, a mean over queries, keys and values, over
    heads of relations and over places."""
    if not student.attention or not teacher.attention:
        raise in_parts()
    given, wanted = student.attention[-1], teacher.attention[-1]
    length = wanted[0].shape[2]
    if given[0].shape[2] != length:
        raise unlike_places()
    real, found = teacher.real.get(length), []
    for one, other in zip(given, wanted):
        heads = common_heads(one, other)
        p, q = relations(other, heads, real), relations(one, heads, real)
        found.append(average((p.exp() * (p - q)).sum(3).mean(1), real))
    return torch.stack(found).mean(0)


def common_heads(one: Tensor, other: Tensor) -> int:
    """The most heads of relations, not more than there are of attention, that divide both widths."""
    common = math.gcd(one.shape[1] * one.shape[3], other.shape[1] * other.shape[3])
    return max(n for n in range(1, min(one.shape[1], other.shape[1]) + 1) if common % n == 0)


def relations(vectors: Tensor, heads: int, real: Tensor | None) -> Tensor:
    """(B, R, T, T): the log of the softened scaled products of the vectors (B, H, T, D) of all places with each other."""
    joined = vectors.transpose(1, 2).flatten(2).unflatten(2, (heads, -1)).transpose(1, 2).float()
    scores = joined @ joined.transpose(2, 3) / math.sqrt(joined.shape[3])
    if real is not None:
        scores = scores.masked_fill(~real[:, None, None], NEVER)
    return functional.log_softmax(scores.float(), 3)


def unlike_places() -> Refusal:
    return Refusal(
        "teacher and student have unlike places inside for these records",
        "a student that cuts its records as the teacher does (max_length)",
    )


def in_parts() -> Refusal:
    return Refusal(
        "the net takes batches apart: its inside never shows all records together", "--hidden 0 --attention 0"
    )


# -------------------------------------------------------------------------------------------------------- how they begin


def hints_of(hidden: float, attention: float, teacher: Model, student: Model, records: Records) -> Hints:
    """Pairs and maps from a look at some records. Refusal where there is nothing to compare."""
    some = records.some(LOOKED_AT)
    parts = [some.list(slice(start, start + BATCH)) for start in range(0, len(some), BATCH)]
    as_trained = replace(student, net=copy.deepcopy(student.net).train())  # a fresh batch norm has no statistics yet
    with seeded(torch.Generator().manual_seed(0)):
        shown = [(seen_in(as_trained, rows), seen_in(teacher, rows)) for rows in parts]
    if attention:
        require_attention(shown)
    found = [begun(names, shown, teacher, student) for names in paired(shown[0])] if hidden else []
    if hidden and not found:
        raise Refusal("teacher or student has no blocks that show all records of a batch together", "--hidden 0")
    return Hints(tuple(pair for pair, _ in found), nn.ModuleList(map_ for _, map_ in found), hidden, attention)


def seen_in(model: Model, rows: Sequence[dict]) -> Seen:
    with inside(model.blocks, len(rows)) as seen:
        model.outputs(model.collate(rows))
    return seen


def require_attention(shown: Sequence[tuple[Seen, Seen]]) -> None:
    for number, which in ((1, "teacher"), (0, "student")):
        if not all(pair[number].attention for pair in shown):
            raise Refusal(f"the {which} attends nowhere that could be watched", "--hidden 1, which compares blocks")
    if any(one.attention[-1][0].shape[2] != other.attention[-1][0].shape[2] for one, other in shown):
        raise unlike_places()


def paired(shown: tuple[Seen, Seen]) -> list[tuple[str, str]]:
    """Names of blocks of student and teacher, evenly over the depth, the last with the last."""
    names = [list(seen.blocks) for seen in shown]
    count = min(map(len, names))
    return [
        (names[0][round((i + 1) * len(names[0]) / count) - 1], names[1][round((i + 1) * len(names[1]) / count) - 1])
        for i in range(count)
    ]


def begun(
    names: tuple[str, str], shown: Sequence[tuple[Seen, Seen]], teacher: Model, student: Model
) -> tuple[Pair, nn.Module]:
    """A pair and its map."""
    pooled = not all(same_places(names, pair) for pair in shown)
    given, wanted = (
        torch.cat([rows_of(name, pair[number], pooled) for pair in shown]) for number, name in enumerate(names)
    )
    spread = float(torch.maximum(wanted.var(0, unbiased=False).mean(), FAINT * wanted.square().mean()).clamp_min(1e-12))
    alike = type(student.net) is type(teacher.net) and given.shape == wanted.shape
    return Pair(*names, spread, pooled), nn.Identity() if alike else fitted(given, wanted)


def same_places(names: tuple[str, str], shown: tuple[Seen, Seen]) -> bool:
    lengths = [seen.blocks[name].shape[1] for name, seen in zip(names, shown)]
    one, other = (seen.real.get(length) for seen, length in zip(shown, lengths))
    if one is None or other is None:
        return lengths[0] == lengths[1] and one is other
    return torch.equal(one, other)


def rows_of(name: str, seen: Seen, pooled: bool) -> Tensor:
    """(places of all records, D), padding left out."""
    found = features(name, seen, pooled)
    real = None if pooled else seen.real.get(found.shape[1])
    return (found.flatten(0, 1) if real is None else found[real]).double()


def fitted(given: Tensor, wanted: Tensor) -> nn.Linear:
    """The linear layer of least squares from rows (N, D) to rows (N, D'), FAINT of the mean square added to each variance."""
    x, y = given - given.mean(0), wanted - wanted.mean(0)
    gram = x.T @ x
    gram.diagonal().add_(FAINT * len(x) * given.square().mean().clamp_min(1e-12))
    weight = torch.linalg.solve(gram, x.T @ y).T
    layer: Any = nn.utils.skip_init(nn.Linear, given.shape[1], wanted.shape[1])
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(wanted.mean(0) - weight @ given.mean(0))
    return layer
