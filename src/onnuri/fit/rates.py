"""A learning rate that is measured: short trainings at a few rates, and the one whose loss fell lowest is taken.

In place of the range test (Smith, arXiv:1506.01186), one run whose rate rises all the while, stand short real runs: each is the
training itself with fewer steps, warm-up and decay included, from the same tensors, which are put back bit by bit. Records,
noise and steps are the same, so that what is by chance in a loss falls out of the comparison.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ..errors import BadSettings, BrokenPromise
from ..figures import finite, number, time_text
from . import checkpoint

if TYPE_CHECKING:
    from .loop import Loop

RATIO = math.sqrt(10)  # from one rate to the next
SHARE = 0.5  # of the steps of the training: what all the short ones take together at most
LEAST, MOST = 3, 5  # rates that are tried
FEWEST, ENOUGH = 24, 64  # steps of a short training: fewer mislead, more only cost
LAST = 1 / 3  # of a short training: the losses that are judged


def settle(loop: "Loop") -> None:
    """Give a training its learning rate: the one that was measured, now or before it was killed, or the usual one."""
    if loop.settings.rate == "measured" and not loop.progress.rate:
        measure(loop)
    loop.rate = loop.progress.rate or loop.rate


def measure(loop: "Loop") -> None:
    """Find the rate, say what it cost, and keep the choice with the progress. The net is as it was before."""
    (steps, most), usual, began = afforded(loop.total), loop.rate, time.monotonic()
    tried: dict[int, float] = {}
    while len(tried) < most and (place := proposed(tried)) is not None:
        rate = rate_at(usual, place)
        loop.log.progress(0, loop.total, f"trying a learning rate of {number(rate, 2)}")
        with put_back(loop):
            tried[place] = loss_at(loop, rate, steps)
    loop.progress.rate = rate_at(usual, best_of(tried))
    curve: list[Any] = [(rate_at(usual, place), finite(tried[place])) for place in sorted(tried)]
    loop.progress.curves[f"loss by learning rate after {steps} steps"] = curve
    share = len(tried) * steps / loop.total
    found = ", ".join(f"{number(loss, 4)} at {number(rate, 2)}" for rate, loss in curve)
    loop.log.warn(
        f"learning rate {number(loop.progress.rate, 2)}, measured by {len(tried)} trainings of {steps} steps, {share:.0%} of the "
        f"steps of this one, {time_text(time.monotonic() - began)}: loss {found}"
    )
    checkpoint.save(loop)


def afforded(total: int) -> tuple[int, int]:
    """(steps of each short training, how many there may be). BadSettings where a training is too short to spare them."""
    spared = int(SHARE * total)
    steps = min(ENOUGH, spared // LEAST)
    if steps < FEWEST:
        raise BadSettings(
            f"'rate' measured needs a training of {math.ceil(FEWEST * LEAST / SHARE)} steps or more, this one takes {total}",
            hint="--rate usual, more --epochs, or a smaller --batch-size",
        )
    return steps, min(MOST, spared // steps)


def rate_at(usual: float, place: int) -> float:
    """The rate at a place on the ladder, in the two digits that are shown: given by hand it is the same."""
    return float(f"{usual * RATIO**place:.2g}")


def proposed(tried: dict[int, float]) -> int | None:
    """The next place on the ladder of rates, 0 being the usual one: the neighbors of the best one so far, the lower first; None
    where both are known."""
    if not tried:
        return 0
    best = best_of(tried)
    return next((place for place in (best - 1, best + 1) if place not in tried), None)


def best_of(tried: dict[int, float]) -> int:
    """The place with the lowest loss, of equals the lowest: where all left the range of numbers it goes down from there."""
    return min(tried, key=lambda place: (tried[place], place))


def loss_at(loop: "Loop", rate: float, steps: int) -> float:
    """The mean loss of the last of the first `steps`; infinite where it left the range of numbers."""
    trial = loop.again(rate="usual", learning_rate=rate, steps=steps)
    try:
        for step in range(steps):
            trial.step(ahead=step + 1 < steps)
            trial.progress.step += 1
        trial.read()
    except BrokenPromise:
        return math.inf
    finally:
        trial.batches.close()
    last = [loss for _, loss in trial.progress.curves["loss"]][-max(1, round(LAST * steps)) :]
    return sum(last) / len(last)


@contextmanager
def put_back(loop: "Loop") -> Iterator[None]:
    """Afterwards all tensors that a training changes are what they were, bit by bit."""
    kept = {name: value.detach().clone() for name, value in checkpoint.stored(loop).items()}
    try:
        yield
    finally:
        loop.objective.net.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, value in checkpoint.stored(loop).items():
                value.copy_(kept[name])
