"""How the loss falls with the size of a net and the amount of data: L(N, D) = E + A / N^a + B / D^b, fitted to short trainings.

Hoffmann et al., arXiv:2203.15556, approach 3: the Huber loss of the logarithms, from many starts. Differences:
1. each start goes down by Levenberg and Marquardt's steps, not by L-BFGS: five numbers need no line search;
2. N and D are taken in units of their geometric mean, so that the same starts serve nets of any size;
3. exponents are at most STEEPEST, and what cannot be told from a few points, such as E, is what the best start says;
4. the range of a prediction is that of the fits which leave one training out each (the jackknife's parts).
Letters: S starts, P points, K numbers of the law, all as logarithms: E, A, a, B, b, or three where only one of N, D varies.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np

HUBER = 1e-3  # of the logarithm of the loss: beyond it a point weighs less, as in the paper
STEPS = 300
STEEPEST = 3.0
SHARES = (0.05, 0.4, 0.75, 0.95)  # of the lowest loss that E begins with
EXPONENTS = (0.1, 0.3, 0.8)
Points = np.ndarray
"""(P, axes): N, D, or both."""


@dataclass(frozen=True)
class Law:
    """`numbers` (1 + 2 axes,): logarithms of E, then of a factor and an exponent for each axis, in units of `unit`."""

    numbers: np.ndarray
    unit: np.ndarray

    def loss(self, points: Points) -> np.ndarray:
        return np.exp(predicted(self.numbers[None], np.log(points / self.unit))[0])

    @property
    def least(self) -> float:
        """E: what no size and no data bring down."""
        return float(np.exp(self.numbers[0]))

    def term(self, axis: int) -> tuple[float, float]:
        """(factor, exponent) of an axis, in its own units."""
        exponent = float(np.exp(self.numbers[2 + 2 * axis]))
        return float(np.exp(self.numbers[1 + 2 * axis]) * self.unit[axis] ** exponent), exponent


def fit_law(points: Points, losses: np.ndarray) -> Law:
    """The law nearest to the `losses` (P,), each above 0, of these `points`, of which there are more than the law has numbers."""
    unit = np.exp(np.log(points).mean(0))
    where, wanted = np.log(points / unit), np.log(losses)
    found = descended(starts(losses, points.shape[1]), where, wanted)
    errors = huber(predicted(found, where) - wanted).sum(1)
    return Law(found[np.nanargmin(errors)], unit)


def left_out(law: Law, points: Points, losses: np.ndarray) -> list[Law]:
    """The laws of all points but one, each gone downhill from the law of all."""
    rows, where = np.arange(len(points)), np.log(points / law.unit)
    kept = [(where[rows != row], np.log(losses[rows != row])) for row in rows]
    return [Law(descended(law.numbers[None], *one)[0], law.unit) for one in kept]


def starts(losses: np.ndarray, axes: int) -> np.ndarray:
    """(S, K): every share of the lowest loss with every exponent of each axis."""
    found = []
    for share, exponents in product(SHARES, product(EXPONENTS, repeat=axes)):
        rest = np.log((np.mean(losses) - share * losses.min()) / axes)
        found.append([np.log(share * losses.min()), *(x for one in exponents for x in (rest, np.log(one)))])
    return np.array(found)


def terms(numbers: np.ndarray, where: np.ndarray) -> np.ndarray:
    """(S, P, 1 + axes): the logarithm of each summand."""
    fixed = np.broadcast_to(numbers[:, None, :1], (len(numbers), len(where), 1))
    return np.concatenate([fixed, numbers[:, None, 1::2] - np.exp(numbers[:, None, 2::2]) * where], 2)


def predicted(numbers: np.ndarray, where: np.ndarray) -> np.ndarray:
    """(S, P): the logarithm of the loss."""
    return np.logaddexp.reduce(terms(numbers, where), 2)


def slopes(numbers: np.ndarray, where: np.ndarray) -> np.ndarray:
    """(S, P, K): how `predicted` changes with each number."""
    parts = terms(numbers, where)
    weight = np.exp(parts - np.logaddexp.reduce(parts, 2, keepdims=True))
    found = np.empty((*weight.shape[:2], numbers.shape[1]))
    found[:, :, 0] = weight[:, :, 0]
    found[:, :, 1::2] = weight[:, :, 1:]
    found[:, :, 2::2] = -weight[:, :, 1:] * np.exp(numbers[:, None, 2::2]) * where
    return found


def huber(gaps: np.ndarray) -> np.ndarray:
    size = np.abs(gaps)
    return np.where(size < HUBER, 0.5 * size**2, HUBER * (size - 0.5 * HUBER))


def descended(numbers: np.ndarray, where: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Each start gone downhill by damped Gauss-Newton steps, points reweighted at each; one that does not help is taken back."""
    eye, damping = np.eye(numbers.shape[1]), np.full(len(numbers), 1e-2)
    gaps = predicted(numbers, where) - wanted
    for _ in range(STEPS):
        slope, weight = slopes(numbers, where), 1 / np.maximum(1, np.abs(gaps) / HUBER)
        bent = np.einsum("spk,sp,spl->skl", slope, weight, slope)
        downhill = np.einsum("spk,sp,sp->sk", slope, weight, gaps)
        grown = bent + damping[:, None, None] * (eye * np.maximum(bent, 1e-12))
        step = np.clip(np.linalg.solve(grown + 1e-15 * eye, downhill[:, :, None])[:, :, 0], -1, 1)
        tried = numbers - step
        tried[:, 2::2] = np.minimum(tried[:, 2::2], np.log(STEEPEST))
        others = predicted(tried, where) - wanted
        better = huber(others).sum(1) < huber(gaps).sum(1)
        numbers, gaps = np.where(better[:, None], tried, numbers), np.where(better[:, None], others, gaps)
        damping = np.clip(np.where(better, damping / 3, damping * 4), 1e-12, 1e12)
        if (damping >= 1e10).all():
            break
    return numbers
