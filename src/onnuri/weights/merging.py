"""Ways to make one tensor out of two, told as what is added up: base + first * (a - base) + second * (b - base).

Without a base: linear, (1 - w) a + w b (Wortsman et al., arXiv:2203.05482); slerp, along the arc between the two (Shoemake, 1985).
From a base that both were trained onward from, what each has learned is a difference (task arithmetic: Ilharco et al.,
arXiv:2212.04089). ties keeps each one's largest differences and of these those of the sign that outweighs the other (Yadav et
al., arXiv:2306.01708); dare keeps random ones and makes up for the lost (Yu et al., arXiv:2311.03099), dare-ties both.

As mergekit defines them: slerp puts its factors to the tensors at their own lengths; where |cos t| > 0.9995 it is linear; a
tensor shorter than 1e-8 counts as being at a right angle to every other; ties is divided by the weights of those that are
kept at each place, dare is not. Unlike there: 1. differences as large as the last one kept are all kept; 2. dare divides by
the density, as its authors do, not by what brings the sum of sizes back.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

PARALLEL = 0.9995  # |cosine| above which the arc is taken for a line
SHORTEST = 1e-8  # length below which a tensor has no direction
CHUNK = 2**17  # numbers that are widened to fp64 at once: as many as stay in a core's cache
FROM_A_BASE = ("task-arithmetic", "ties", "dare", "dare-ties")


@dataclass(frozen=True)
class Way:
    """`weight`: share of the second tensor; `density`: of the differences that are kept; `scale`: of what is added to the base."""

    method: str
    weight: float
    density: float = 0.5
    scale: float = 1.0


def factors(a: Tensor, b: Tensor, way: Way) -> tuple[float, float]:
    """What each tensor is multiplied with where there is no base: on the way from a base, that of a mean."""
    w = way.weight
    if way.method != "slerp":
        return 1 - w, w
    lengths = [math.sqrt(product(x, x)) for x in (a, b)]
    scale = math.prod(length if length > SHORTEST else 1.0 for length in lengths)
    cosine = max(-1.0, min(1.0, product(a, b) / scale))
    if abs(cosine) > PARALLEL:
        return 1 - w, w
    angle = math.acos(cosine)
    return math.sin((1 - w) * angle) / math.sin(angle), math.sin(w * angle) / math.sin(angle)


def product(a: Tensor, b: Tensor) -> float:
    """The inner product of the flattened tensors, in fp64."""
    parts = zip(a.detach().reshape(-1).split(CHUNK), b.detach().reshape(-1).split(CHUNK))
    return sum(float(x.double() @ y.double()) for x, y in parts)


def from_base(deltas: Tensor, way: Way, draw: torch.Generator) -> Tensor:
    """What is added to the base. `deltas` (2, ...): the differences of the two to it, in fp64, so that a sign is no
    matter of rounding."""
    weights = deltas.new_tensor([1 - way.weight, way.weight]).reshape(2, *[1] * (deltas.dim() - 1))
    if way.method == "ties":
        deltas = torch.stack([largest(delta, way.density) for delta in deltas])
    elif way.method.startswith("dare"):
        deltas = torch.stack([some(delta, way.density, draw) for delta in deltas])
    weighted = weights * deltas
    if not way.method.endswith("ties"):
        return way.scale * weighted.sum(0)
    agreeing = weighted.sign() == torch.where(weighted.sum(0) >= 0, 1, -1)
    total = (weighted * agreeing).sum(0)
    if way.method == "ties":
        shares = (weights * agreeing).sum(0)
        total = total / torch.where(shares == 0, 1, shares)
    return way.scale * total


def largest(delta: Tensor, density: float) -> Tensor:
    """Zero but for this share of the numbers, those of largest size."""
    sizes = delta.abs().flatten()
    least = sizes.kthvalue(len(sizes) - max(1, int(density * len(sizes))) + 1).values
    return torch.where(delta.abs() >= least, delta, 0)


def some(delta: Tensor, density: float, draw: torch.Generator) -> Tensor:
    """Each number with this probability, divided by it; else zero."""
    kept = torch.rand(delta.shape, generator=draw) < density
    return torch.where(kept, delta / density, 0)
