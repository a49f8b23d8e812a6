"""How much the outputs mind that one matrix is rounded, and the formats on which a budget of bytes is best spent.

Sensitivity is measured, not estimated: one matrix is rounded, the net runs over the records, and its outputs are compared with
those of the float net. What several roundings do is taken as the sum of what each does alone; what they do together is
measured on the result. Bytes are spent where they take most from that sum (the greedy solution of a multiple-choice
knapsack on its convex hulls; Sinha & Zoltners 1979, Operations Research 27), as HAWQ-V3 (arXiv:2011.10680) spends bits.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data import Records
from ..family import Batch
from ..model import Model
from .calibration import batches_of
from .matrices import Weight
from .packed import FORMATS, nearest, packed_bytes, spread

FLOAT = "float"
"""Where the name of a scheme is asked for: the matrix as it is."""


@dataclass(frozen=True)
class Choice:
    """A format for one matrix: its bytes there, and the divergence of the outputs when it alone is in it."""

    scheme: str
    bytes: int
    error: float


Choices = dict[str, list[Choice]]
"""By the name of a matrix."""


@torch.no_grad()
def sensitivity(
    model: Model,
    records: Records,
    candidates: Mapping[str, tuple[Weight, Sequence[tuple[str, int]]]],
    done: Callable[[int], None],
) -> Choices:
    """What each matrix costs in each of its candidates (scheme, columns of a group), rounded to the nearest codes; as it is as
    well. `done`: told how many matrices were looked at."""
    batches = batches_of(model, records)
    wanted = [model.outputs(batch) for batch in batches]
    found: Choices = {}
    for number, (name, (weight, schemes)) in enumerate(candidates.items()):
        original, sizes = weight.value.detach().clone(), sizes_of(weight, schemes)
        found[name] = [Choice(FLOAT, sizes[FLOAT], 0.0)]
        for scheme, group in schemes:
            weight.value.copy_(weight.view.tensor(rounded(weight.matrix.float(), scheme, group), original.shape))
            found[name].append(Choice(scheme, sizes[scheme], divergence(model, batches, wanted)))
            weight.value.copy_(original)
        done(number + 1)
    return found


def sizes_of(weight: Weight, schemes: Sequence[tuple[str, int]]) -> dict[str, int]:
    """{scheme: bytes} of a matrix, as it is as well."""
    packed = {scheme: packed_bytes(weight.matrix.shape, FORMATS[scheme], group) for scheme, group in schemes}
    return {FLOAT: weight.value.nbytes, **packed}


def rounded(matrix: Tensor, scheme: str, group: int) -> Tensor:
    """The matrix as the nearest codes give it back."""
    codes, scale = nearest(matrix, FORMATS[scheme], group)
    return codes * spread(scale, matrix.shape[2])


def divergence(model: Model, batches: Sequence[Batch], wanted: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Mean over all places: of the Kullback-Leibler divergence of what logits say, or of the squared difference of values
    relative to their mean square. Infinite where the outputs are no numbers."""
    logits = model.family.kind(model.assets) == "logits"
    total = size = places = 0.0
    for batch, (values, mask) in zip(batches, wanted):
        given, old = (one.float()[mask.bool()].double() for one in (model.outputs(batch)[0], values))
        apart = kullback_leibler(old, given) if logits and old.shape[-1] > 1 else (given - old).square().mean(-1)
        total += float(apart.nan_to_num(nan=torch.inf).sum())
        size += float(old.square().mean(-1).sum())
        places += len(old)
    return total / max(places if logits else size, 1e-12)


def kullback_leibler(wanted: Tensor, given: Tensor) -> Tensor:
    """Of the distributions that two sets of logits (..., D) stand for; impossible classes add nothing."""
    p, log_q = F.log_softmax(wanted, -1), F.log_softmax(given, -1)
    return torch.where(p.isneginf(), 0.0, p.exp() * (p - log_q)).sum(-1).clamp_min(0)


# ------------------------------------------------------------------------------------------------------------ the budget


def spent(choices: Choices, budget: float) -> dict[str, Choice] | None:
    """The choice for each matrix whose bytes are at most `budget` in all and whose errors add up to little; None where even
    the smallest do not fit. At most one step of one matrix worse than the best that fractions of matrices could do."""
    ladders = {name: hull(options) for name, options in choices.items()}
    taken = {name: ladder[0] for name, ladder in ladders.items()}
    left = budget - sum(choice.bytes for choice in taken.values())
    if left < 0:
        return None
    steps = [
        ((low.error - high.error) / (high.bytes - low.bytes), name, high)
        for name, ladder in ladders.items()
        for low, high in pairwise(ladder)
    ]
    for _, name, high in sorted(steps, key=lambda step: -step[0]):  # stable: a ladder's steps stay in their order
        left -= stepped(taken, name, high, left)
    others = [(name, option) for name, options in choices.items() for option in options]
    for name, option in sorted(others, key=lambda one: one[1].error - taken[one[0]].error):
        left -= stepped(taken, name, option, left)
    return taken


def stepped(taken: dict[str, Choice], name: str, option: Choice, left: float) -> float:
    """Take an option that is better and fits in what is left; the bytes that it costs more."""
    more = option.bytes - taken[name].bytes
    if option.error >= taken[name].error or more > left:
        return 0
    taken[name] = option
    return more


def hull(options: Sequence[Choice]) -> list[Choice]:
    """The options from the smallest to the most exact, each step buying less for a byte than the one before."""
    found: list[Choice] = []
    for option in sorted(options, key=lambda one: (one.bytes, one.error)):
        if found and option.error >= found[-1].error:
            continue
        while len(found) > 1 and bought(found[-2], option) >= bought(found[-2], found[-1]):
            found.pop()
        found.append(option)
    return found


def bought(low: Choice, high: Choice) -> float:
    """The error that a byte more takes away."""
    return (low.error - high.error) / (high.bytes - low.bytes)
