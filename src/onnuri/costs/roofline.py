"""How long work takes, what it draws and whether it fits on a device that is known by its data sheet.

Each task takes what its operations take at the peak of their number format, or what its bytes take at the bandwidth,
whichever is longer (Williams et al. 2009, 10.1145/1498765.1498785), at the share of the peak that tasks of its kind reach on
the machine at hand; and the price of a call. Three differences from the paper: the line is drawn task by task and not once
for all work, the ceilings are lowered to what kernels reach, and calls have a price.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import torch

from .count import Cost
from .efficiency import Efficiency
from .peaks import Peaks
from .targets import Target
from .tasks import Task

FORMS = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.int8: "int8", torch.uint8: "int8"}
BOUNDS = ("compute", "memory bandwidth", "calls of operators")
MOST_DEVICES = 2**20


@dataclass(frozen=True)
class Shares:
    """What is assumed of a target: `of` a task with FLOPs the share of the peak, `streaming` by kind that of the bandwidth."""

    of: Callable[[Task], float]
    streaming: Callable[[str], float]

    @staticmethod
    def here(found: Efficiency, best: Peaks) -> "Shares":
        """Those of this machine; more than all of a peak is no more than all of it."""
        return Shares(lambda task: min(1.0, found.share(task)), lambda kind: found.streaming(kind, best))


WHOLE = Shares(lambda task: 1.0, lambda kind: 1.0)
"""The roofline itself."""


@dataclass(frozen=True)
class Time:
    """`parts`: {kind of task: seconds}; `bounds`: {what held it back: seconds}."""

    parts: dict[str, float]
    bounds: dict[str, float]

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())

    @property
    def bottleneck(self) -> str:
        return max(self.bounds, key=lambda name: self.bounds[name])


def form_of(dtype: torch.dtype) -> str:
    return FORMS.get(dtype, "fp32")


def time_on(target: Target, cost: Cost, shares: Shares = WHOLE) -> Time:
    """Of all tasks of some work, one after the other."""
    parts, bounds = defaultdict[str, float](float), dict.fromkeys(BOUNDS, 0.0)
    for task in cost.tasks:
        computing, memory = task_seconds(target, task, shares)
        longer = max(computing, memory)
        parts[task.kind.removesuffix(" backward")] += longer
        parts["calls"] += target.call_seconds
        bounds[BOUNDS[computing < memory]] += longer
        bounds[BOUNDS[2]] += target.call_seconds
    return Time(dict(parts), {**bounds})


def task_seconds(target: Target, task: Task, shares: Shares) -> tuple[float, float]:
    """(of its operations, of its bytes)."""
    if not task.flops:
        return 0.0, task.moved / (target.bandwidth * shares.streaming(task.kind))
    return task.flops / (target.peak(form_of(task.dtype)) * shares.of(task)), task.moved / target.bandwidth


def all_reduce_seconds(size: float, devices: int, bandwidth: float) -> float:
    """Of so many bytes on each of the devices, in a ring: each sends and receives 2 (n - 1) / n of them (Patarasuk and Yuan
    2009, 10.1016/j.jpdc.2008.09.002)."""
    return 2 * (devices - 1) / devices * size / bandwidth


def devices_needed(target: Target, states: float, working: Callable[[int], float], records: int) -> int | None:
    """The fewest devices on which a batch is trained when each holds an even share of the states and of the records, whose
    bytes are `working`; None where no number of them is enough."""

    def enough(devices: int) -> bool:
        return states / devices + working(ceil(records / devices)) <= target.room

    if not enough(MOST_DEVICES):
        return None
    low, high = 1, MOST_DEVICES
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low
