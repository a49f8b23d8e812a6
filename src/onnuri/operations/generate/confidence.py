"""How sure a model is of an answer, and whether that is true: a temperature fitted so that of the answers given with 0.8, eight
of ten are right.

Guo et al. 2017 (arXiv:1706.04599), differing in two: 1. what is right or wrong is a whole answer, and its probability is the
product of its tokens'; 2. the temperature is the best of a grid, since the probabilities of an answer at each of its values are
summed while it is written.
Letters: N answers, K temperatures.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ... import draw

GRID = tuple(float(2.0**power) for power in np.linspace(-3, 5, 33))
"""1/8 to 32 in steps of 19 %: finer ones move a probability by less than the error of a hundred answers."""

BINS = 10
FEWEST = 20  # answers, below which a share of right ones says nothing


@dataclass(frozen=True)
class Calibration:
    """The temperature at which probabilities are nearest to the truth; {"right", "error"} of as many answers before and after, the
    expected calibration error being the mean distance between what is stated and what is true; and the points of both."""

    temperature: float
    answers: int
    right: float
    error: dict[str, float]
    points: dict[str, list[tuple[float, float]]]


def fitted(nats: np.ndarray, right: np.ndarray) -> Calibration:
    """`nats`: (N, K) of each answer at each temperature of GRID; `right`: (N,) bool."""
    stated = np.exp(-nats)
    found = int(np.argmin([surprise(column, right) for column in stated.T]))
    plain = GRID.index(1.0)
    columns = {"as it is": stated[:, plain], "fitted": stated[:, found]}
    return Calibration(
        temperature=GRID[found],
        answers=len(right),
        right=float(right.mean()),
        error={name: error(column, right) for name, column in columns.items()},
        points={name: points(column, right) for name, column in columns.items()},
    )


def surprise(stated: np.ndarray, right: np.ndarray) -> float:
    """The mean negative logarithm of the probability that was stated for what came: least where the statements are true."""
    held = np.clip(stated, 1e-9, 1 - 1e-9)
    return float(-np.where(right, np.log(held), np.log1p(-held)).mean())


def parts(stated: np.ndarray) -> list[np.ndarray]:
    """The answers in BINS parts of one size, from the least sure to the surest."""
    return [part for part in np.array_split(np.argsort(stated, kind="stable"), BINS) if len(part)]


def points(stated: np.ndarray, right: np.ndarray) -> list[tuple[float, float]]:
    """(mean stated, share right) of each part."""
    return [(float(stated[part].mean()), float(right[part].mean())) for part in parts(stated)]


def error(stated: np.ndarray, right: np.ndarray) -> float:
    """The expected calibration error over parts of one size."""
    gaps = [len(part) * abs(stated[part].mean() - right[part].mean()) for part in parts(stated)]
    return float(sum(gaps) / len(right))


def picture(found: Calibration) -> str:
    """The reliability diagram: what is true over what is stated."""
    series = {("true as stated", "말한 대로"): [(0.0, 0.0), (1.0, 1.0)]}
    series |= {(name, {"as it is": "보정 전", "fitted": "보정 후"}[name]): each for name, each in found.points.items()}
    return draw.curves(series, ("stated confidence", "표시한 확신"), ("share right", "정답 비율"))


def same(one: str, other: str) -> bool:
    """Whether two answers say the same, blanks aside."""
    return one.split() == other.split()


def confidence(nats: float) -> float:
    return math.exp(-nats)


def shares(found: Sequence[bool]) -> float:
    return sum(found) / len(found) if found else math.nan
