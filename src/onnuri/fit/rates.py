"""A learning rate that is measured: short trainings at a few rates, and the one whose loss fell lowest is taken.

In place of the range test (Smith, arXiv:1506.01186), one run whose rate rises all the while, stand short real runs: each is the
training itself with fewer steps, warm-up and decay included, from the same tensors, which are put back bit by bit. Records,
noise and steps are the same, so that what is by chance in a loss falls out of the comparison.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from ..errors import BadSettings, BrokenPromise
from ..figures import finite, number, time_text
from . import checkpoint

if TYPE_CHECKING:
    from .loop import Loop

RATIO = math.sqrt(10)  # from one rate to the next
MOST = 5  # rates that are tried
SHARE = 0.2  # of the steps of the training: what all the short runs take together at most
FEWEST = 8  # steps of a short run; fewer say nothing
ENOUGH = 60  # steps; more only cost
LAST = 1 / 3  # of a short run: the losses that are judged
NOTHING = 0.01  # of the loss: a smaller gain than this is none


def settle(loop: "Loop") -> None:
    """Give a training its learning rate: the one that was measured, now or before it was killed, or the usual one."""
    if loop.settings.rate == "measured" and not loop.progress.rate:
        measure(loop)
    loop.rate = loop.progress.rate or loop.rate


def measure(loop: "Loop") -> None:
    """Find the rate, say what it cost, and keep the choice with the progress. The net is as it was before."""
    steps, usual, began = steps_of(loop.total), loop.rate, time.monotonic()
    tried: dict[int, float] = {}
    while (place := proposed(tried)) is not None:
        rate = usual * RATIO**place
        loop.log.progress(0, loop.total, f"trying a learning rate of {number(rate, 2)}")
        with put_back(loop):
            tried[place] = loss_at(loop, rate, steps)
    loop.progress.rate = usual * RATIO ** chosen(tried)
    curve = [(usual * RATIO**place, finite(tried[place])) for place in sorted(tried)]
    loop.progress.curves[f"loss by learning rate after {steps} steps"] = curve
    share = len(tried) * steps / loop.total
    found = ", ".join(f"{number(loss)} at {number(rate, 2)}" for rate, loss in curve)
    loop.log.warn(
        f"learning rate {number(loop.progress.rate, 2)}, measured by {len(tried)} runs of {steps} steps, {share:.0%} of the "
        f"training, {time_text(time.monotonic() - began)}: loss {found}"
    )
    checkpoint.save(loop)


def steps_of(total: int) -> int:
    """How many steps each run takes. BadSettings where the training is too short to spare them."""
    steps = min(ENOUGH, int(SHARE * total / MOST))
    if steps < FEWEST:
        raise BadSettings(
            f"'rate' measured needs a training of {math.ceil(FEWEST * MOST / SHARE)} steps or more, this one takes {total}",
            hint="--rate usual, more --epochs, or a smaller --batch-size",
        )
    return steps


def proposed(tried: dict[int, float]) -> int | None:
    """The next place on the ladder of rates, 0 being the usual one: the neighbors of the best one so far, the lower first, until
    both are known or MOST are tried. Where all left the range of numbers the lowest is the best."""
    if not tried:
        return 0
    best = min(tried, key=lambda place: (tried[place], place))
    near = [place for place in (best - 1, best + 1) if place not in tried]
    return near[0] if near and len(tried) < MOST else None


def chosen(tried: dict[int, float]) -> int:
    """The lowest rate whose loss is no more than NOTHING above the best: what is gained early by a higher one does not last."""
    least = min(tried.values())
    return min(place for place, loss in tried.items() if loss <= least + NOTHING * abs(least))


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
