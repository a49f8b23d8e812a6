"""Truncated SVD of weight matrices: what each rank leaves over, and which ranks are worth their numbers.

The rank-r matrix nearest to W (Eckart & Young 1936) is W seen along its r leading left singular vectors, U U^T W. Where the
`moments` of its inputs are known, the mean M of x x^T, those of W M^(1/2) stand in their place: then what W gives on the inputs
changes least, which is what SVD-LLM (Wang et al., arXiv:2403.07378) whitens for. Two differences: 1. M^(1/2) is only read, never
inverted, so that inputs which were not seen need no damping; 2. ranks are not one share for all matrices: a rank is worth what
it keeps per number stored, and one threshold on that worth serves the whole net.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

HALVINGS = 100  # of the interval in which the threshold is sought
SMALLEST = 1e-30  # of its values


@dataclass(frozen=True)
class Spectrum:
    """`directions` (units, rows, K): orthonormal, those that matter most first. `left_over` (units, K + 1): the energy of what
    is given that rank 0, 1, ... K leaves out."""

    directions: Tensor
    left_over: Tensor

    @property
    def shares(self) -> Tensor:
        """`left_over` of all that there is."""
        return self.left_over / self.left_over[:, :1].clamp_min(torch.finfo(torch.float64).tiny)


def spectrum(matrix: Tensor, moments: Tensor | None = None) -> Spectrum:
    """Of (units, rows, columns). `moments`: of its inputs, (columns, columns), or (columns,) where they are apart; None: all
    inputs are alike."""
    directions, singular, _ = torch.linalg.svd(weighted(matrix, moments), full_matrices=False)
    energy = singular.double().square()
    return Spectrum(directions, torch.cat([energy.flip(1).cumsum(1).flip(1), energy.new_zeros(len(energy), 1)], 1))


def weighted(matrix: Tensor, moments: Tensor | None) -> Tensor:
    """The matrix times a root of the moments: as long as what it gives."""
    if moments is None:
        return matrix.float()
    if moments.dim() == 1:
        return matrix.float() * moments.sqrt()
    values, vectors = torch.linalg.eigh(moments.double())
    return matrix.float() @ (vectors * values.clamp_min(0).sqrt()).float()


def factors(matrix: Tensor, directions: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(left (units, rows, rank), right (units, rank, columns)): the matrix along its first directions. Both of a pair have the
    same size, so that one learning rate and one number format suit both."""
    left = directions[..., :rank]
    right = left.mT @ matrix.float()
    size = right.norm(dim=2, keepdim=True).clamp_min(SMALLEST).sqrt()
    return left * size.mT, right / size


def most(matrix: Tensor) -> int:
    """The largest rank whose factors are fewer numbers than the matrix itself; 0 where none is."""
    _, rows, columns = matrix.shape
    return (rows * columns - 1) // (rows + columns)


def rank_within(found: Spectrum, error: float) -> int:
    """The least rank, from 1 on, that changes what each unit gives by at most `error`, relative to it."""
    within = (found.shares <= error * error).all(0)
    return max(1, int(within.float().argmax()))


@dataclass(frozen=True)
class Curve:
    """What a matrix costs in numbers, and what is lost, at rank 1, 2, ... and last as a whole."""

    costs: np.ndarray
    losses: np.ndarray

    @staticmethod
    def of(losses: Tensor, matrix: Tensor) -> "Curve":
        """`losses` (units, K + 1) of rank 0, 1, ..."""
        units, rows, columns = matrix.shape
        last = most(matrix)
        costs = np.append(np.arange(1, last + 1) * units * (rows + columns), matrix.numel())
        return Curve(costs, np.append(losses.sum(0)[1 : last + 1].numpy(), 0.0))

    def best(self, price: float) -> int:
        """The place where the loss and the price of the numbers together are least."""
        return int((self.losses + price * self.costs).argmin())

    def worth(self, place: int) -> float:
        """What the next place gains for each number that it takes more."""
        return (self.losses[place] - self.losses[place + 1]) / (self.costs[place + 1] - self.costs[place])


def choose(curves: list[Curve], budget: float) -> list[int]:
    """The place on each curve, all of them together at most `budget` numbers: where one price for all of them leads, and what
    is left then given to those that gain most by it."""

    def spent(places: list[int]) -> int:
        return sum(int(curve.costs[place]) for curve, place in zip(curves, places))

    cheap, dear = (
        SMALLEST,
        1.0 + sum(float(curve.losses.max()) for curve in curves),
    )  # a number costs more than can be lost
    for _ in range(HALVINGS):
        price = (cheap * dear) ** 0.5
        fits = spent([curve.best(price) for curve in curves]) <= budget
        cheap, dear = (cheap, price) if fits else (price, dear)
    places = [curve.best(dear) for curve in curves]
    left = budget - spent(places)
    while True:
        steps = [
            (curve.worth(place), number)
            for number, (curve, place) in enumerate(zip(curves, places))
            if place + 1 < len(curve.costs) and curve.costs[place + 1] - curve.costs[place] <= left
        ]
        if not steps:
            return places
        _, number = max(steps)
        left -= int(curves[number].costs[places[number] + 1] - curves[number].costs[places[number]])
        places[number] += 1
