"""How near to its peaks this machine comes, by kind of task: small pieces of work timed in some seconds, before any model.

A roofline alone is a floor. What is added here are, for each kind of task (`tasks.py`), the share of the peak that its
kernels reach, by the sizes on which that depends; the seconds that bytes take where they lie in a cache, in memory, or in
pages that the system has yet to give; and the price of a call: of the interpreter, of an operator, of one that is recorded
for its gradient. Nothing that is timed here has a model's shapes. On another device the shares are assumed to be the same.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import peaks
from .count import Cost, watched
from .peaks import Peaks
from .tasks import INNERMOST, STREAM, Task

NUMBERS = (2**4, 2**12, 2**16, 2**19, 2**22)  # of a piece of work done value by value: from one call to pages of memory
TURNED = 2**21  # numbers on which it is done in turn
NARROW = (1, 4, 16, 64)  # of one side of a product whose others are WIDE
WIDE = 512
CHANNELS = (3, 16, 64)
PLACES = (16, 64, 256)
WIDTHS = (32, 256)
REPEATS = (3, 100)  # at least, at most
LONG_ENOUGH = 0.01  # seconds in all: another program's burst lasts a few milliseconds
COLD = 9  # calls that are timed one by one
FLUSHED = 2**23  # bytes that are touched before a call is timed
NEAR = 2**20  # bytes of weights that leave room for other things in the caches of a core
READ = (2**18, 2**21, 2**24, 2**26)  # bytes of weights that are read in turn
aten = torch.ops.aten


@dataclass(frozen=True)
class Curve:
    """Points (x, y), both above 0; between them a straight line of the logarithms, beyond them the nearest y."""

    points: tuple[tuple[float, float], ...]

    def at(self, x: float) -> float:
        xs, ys = (np.log([point[i] for point in self.points]) for i in (0, 1))
        return float(np.exp(np.interp(math.log(max(x, 1e-12)), xs, ys)))

    def along(self, x: float) -> float:
        """As `at`, but beyond the last point y grows with x: seconds that bytes take."""
        last = self.points[-1]
        return last[1] * x / last[0] if x > last[0] else self.at(x)


@dataclass(frozen=True)
class Efficiency:
    """`streams`: {kind: seconds by bytes}; `narrow`: share of a wide product's pace by rows, inner and columns; `shares`: {kind:
    share of the peak by size}; `fixed`: {kind: seconds of a call with nothing to compute}; `weights`: seconds of a
    byte of them by the bytes that are read in turn; `python`: seconds of one call of the interpreter, `cold` where weights
    drive its own data from the caches; `recorded`: seconds that an operator takes longer where a gradient will be asked for."""

    streams: dict[str, Curve]
    narrow: tuple[Curve, Curve, Curve]
    shares: dict[str, Curve]
    fixed: dict[str, float]
    weights: Curve
    python: float = 0.0
    cold: float = 0.0
    recorded: float = 0.0

    def share(self, task: Task) -> float:
        """Of the peak of products, that a task with FLOPs reaches."""
        if task.kind == "product":
            return math.prod(curve.at(size) for curve, size in zip(self.narrow, task.sizes))
        return self.shares[task.kind.removesuffix(" backward") if task.kind not in self.shares else task.kind].at(
            task.sizes[0]
        )

    def seconds(self, task: Task, best: Peaks, reading: float) -> float:
        """Of one task on this machine. `reading`: seconds of a byte that is read, from where the weights lie."""
        if not task.flops:
            return self.streams[task.kind].along(task.moved)
        computing = best.seconds({task.dtype: task.flops}, 0)[0] / self.share(task)
        return self.fixed.get(task.kind, self.fixed["product"]) + computing + reading * task.read

    def streaming(self, kind: str, best: Peaks) -> float:
        """Share of the bandwidth that large work of this kind reaches."""
        moved, seconds = self.streams[kind].points[-1]
        return min(1.0, moved / seconds / best.bandwidth.best)


def predicted(cost: Cost, best: Peaks, found: Efficiency, calls: float, recorded: bool) -> dict[str, float]:
    """{what the time goes into: seconds} of a piece of work on this machine. `calls`: of the interpreter."""
    reading = found.weights.at(cost.known)
    python = found.python if cost.known < NEAR else found.cold
    parts: dict[str, float] = {}
    for task in cost.tasks:
        kind = task.kind.removesuffix(" backward")
        parts[kind] = parts.get(kind, 0.0) + found.seconds(task, best, reading)
    parts["calls"] = calls * python + recorded * len(cost.tasks) * found.recorded
    return parts


def python_calls(work: Callable[[], Any]) -> int:
    """How often the interpreter calls a function of Python during `work`."""
    count, before = 0, sys.getprofile()

    def note(frame: Any, event: str, value: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


# ------------------------------------------------------------------------------------------------------------- measuring


def best_seconds(work: Callable[[], Any]) -> float:
    """The shortest of some runs after one that does not count, so that a busy machine misleads least."""
    return min(peaks.repeated(work, LONG_ENOUGH, *REPEATS))


MEASURED: dict[int, Efficiency] = {}


def efficiency_of(best: Peaks) -> Efficiency:
    """What `measure_efficiency` finds, measured once in a process for its number of threads."""
    if best.threads not in MEASURED:
        MEASURED[best.threads] = measure_efficiency(best)
    return MEASURED[best.threads]


@torch.no_grad()
def measure_efficiency(best: Peaks) -> Efficiency:
    """All of it, for fp32 and the threads of this process."""
    generator = torch.Generator().manual_seed(0)
    peak = best.flops[torch.float32].best
    streams = {kind: stream(work, generator) for kind, work in STREAMS.items()}
    narrow = tuple(narrowed(place) for place in range(3))
    shares = {kind: Curve(tuple(share(make(size), size, peak) for size in sizes)) for kind, sizes, make in KERNELS}
    fixed = {kind: best_seconds(make(0)) for kind, _, make in KERNELS}
    fixed |= {"product": best_seconds(product(1, 1, 1))}
    weights = Curve(tuple((float(size), reading_seconds(size)) for size in READ))
    return priced(Efficiency(streams, narrow, shares, fixed, weights), best)  # type: ignore[arg-type]


def stream(work: Callable[[Tensor], Any], generator: torch.Generator) -> Curve:
    """Seconds by the bytes that the watch counts."""
    points = []
    for n in NUMBERS:
        x = torch.rand(n, generator=generator)
        with watched() as watch:
            work(x)
        moved = sum(task.moved for task in watch.tasks)
        others = [
            x.clone() for _ in range(min(64, max(1, TURNED // n)))
        ]  # what a net computes on has long left the cache
        points.append((moved, best_seconds(lambda others=others: [work(x) for x in others]) / len(others)))
    return Curve(tuple(points))


def rows_of(x: Tensor) -> Tensor:
    return x.view(-1, min(256, x.numel()))


def planes_of(x: Tensor) -> Tensor:
    return x.view(-1, 4, 2, 2) if x.numel() < 2**10 else x.view(-1, 16, 8, 8)


STREAMS: dict[str, Callable[[Tensor], Any]] = {
    STREAM: lambda x: x + x,
    "random": lambda x: torch.empty_like(x).bernoulli_(0.5),
    "gather": lambda x: rows_of(x)[:, torch.arange(rows_of(x).shape[1] // 2)],
    "error function": F.gelu,
    "hyperbolic": torch.tanh,
    "exponential function": torch.sigmoid,
    "norm": lambda x: F.layer_norm(rows_of(x), rows_of(x).shape[1:]),
    "pool": lambda x: F.max_pool2d(planes_of(x), 2),
    INNERMOST: lambda x: F.max_pool2d(planes_of(x).to(memory_format=torch.channels_last), 2),
    "reduction": lambda x: rows_of(x).mean(1),
}
"""{kind: what stands for it}."""


def product(rows: int, inner: int, columns: int) -> Callable[[], Any]:
    a, b = torch.ones(rows, inner), torch.ones(inner, columns)
    return lambda: torch.mm(a, b)


def narrowed(place: int) -> Curve:
    """Share of a wide product's pace where one side of a product is narrow. The wide one is timed beside the narrow ones: three
    such shares are multiplied, and a machine that has slowed down since its peak was measured would count three times."""
    rates = {}
    for size in (*NARROW, WIDE):
        sides = [WIDE] * 3
        sides[place] = size
        rates[size] = 2 * math.prod(sides) / best_seconds(product(*sides))
    return Curve(tuple((float(size), min(1.0, rate / rates[WIDE])) for size, rate in rates.items()))


def reading_seconds(size: int) -> float:
    """Of a byte of weights, of layers that are each asked for one row, in turn, until so many bytes are read."""
    x = torch.ones(1, WIDE)
    weights = [torch.ones(WIDE // 4, WIDE) for _ in range(size // (WIDE * WIDE))]
    empty = best_seconds(lambda: [F.linear(x[:, :8], weight[:8, :8]) for weight in weights])
    return max(1e-12, best_seconds(lambda: [F.linear(x, weight) for weight in weights]) - empty) / size


def share(work: Callable[[], Any], size: int, peak: float) -> tuple[float, float]:
    """(size, share of the peak) of a kernel, whose FLOPs the watch counts."""
    with watched() as watch:
        work()
    return float(size), watch.total_flops / best_seconds(work) / peak


def convolution(form: str, backward: bool) -> Callable[[int], Callable[[], Any]]:
    """Of so many channels; of 0, next to nothing. The places become fewer where channels are many, as in nets."""

    def make(channels: int) -> Callable[[], Any]:
        side, wide = (16, 64) if channels else (2, 1)
        kernel = {"line": (3,), "pointwise": (1, 1), "strided": (4, 4)}.get(form, (3, 3))
        groups = wide if form == "depthwise" else 1
        x = torch.ones(8, wide, *((side * side,) if form == "line" else (side, side)))
        weight = torch.ones(max(1, channels) if groups == 1 else wide, wide // groups, *kernel)
        ones = [1] * len(kernel)
        how = (
            [2, 2] if form == "strided" else ones,
            [size // 2 for size in kernel],
            ones,
            False,
            [0] * len(kernel),
            groups,
        )
        if not backward:
            return lambda: aten.convolution(x, weight, None, *how)
        gradient = torch.ones_like(aten.convolution(x, weight, None, *how))
        return lambda: aten.convolution_backward(gradient, x, weight, None, *how, [True, True, False])

    return make


def attention(backward: bool) -> Callable[[int], Callable[[], Any]]:
    def make(places: int) -> Callable[[], Any]:
        q = torch.ones(4, 4, places, 64) if places else torch.ones(1, 1, 1, 8)
        out, sums = aten._scaled_dot_product_flash_attention_for_cpu(q, q, q)
        if not backward:
            return lambda: aten._scaled_dot_product_flash_attention_for_cpu(q, q, q)
        return lambda: aten._scaled_dot_product_flash_attention_for_cpu_backward(q, q, q, q, out, sums, 0.0, False)

    return make


def recurrent(width: int) -> Callable[[], Any]:
    layer = nn.LSTM(max(width, 1), max(width, 1), batch_first=True)
    x = torch.ones(32, 16, width) if width else torch.ones(1, 1, 1)
    return lambda: layer(x)


FORMS = ("plain", "line", "pointwise", "strided", "depthwise")
Kernel = tuple[str, tuple[int, ...], Callable[[int], Callable[[], Any]]]
KERNELS: list[Kernel] = [
    *(
        (f"{form} convolution{' backward' * backward}", CHANNELS, convolution(form, backward))
        for form in FORMS
        for backward in (False, True)
    ),
    *((f"attention{' backward' * backward}", PLACES, attention(backward)) for backward in (False, True)),
    ("recurrent", WIDTHS, recurrent),
]
"""(kind, sizes at which its share is measured, size -> a piece of work)."""


# ------------------------------------------------------------------------------------------------------- prices of a call


def priced(found: Efficiency, best: Peaks) -> Efficiency:
    """With the prices of a call, from a layer of torch's own with next to nothing to compute: what its forward pass takes
    beside its tasks is the interpreter's, what its backward pass takes beside that is the recording's."""
    layer, x = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True), torch.ones(1, 8, 32)
    net = nn.Sequential(layer, nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))

    def step() -> None:
        with torch.enable_grad():
            net(x).sum().backward()

    def left(work: Callable[[], Any], seconds: float, price: float = 0.0) -> float:
        """Of these seconds what is not foretold."""
        with watched(net.parameters()) as watch:
            work()
        known = sum(predicted(watch.each(), best, found, 0, False).values())
        return max(0.0, seconds - known - python_calls(work) * price)

    def forward() -> Any:
        return net(x)

    calls = python_calls(forward)
    python = left(forward, best_seconds(forward)) / calls
    cold = left(forward, median(cold_seconds(forward) for _ in range(COLD))) / calls
    with watched() as watch:
        step()
    recorded = left(step, best_seconds(step), python) / watch.calls
    return replace(found, python=python, cold=max(cold, python), recorded=recorded)


def cold_seconds(work: Callable[[], Any]) -> float:
    """Of one run after which and before which other things filled the caches, as the weights of a net do."""
    torch.ones(FLUSHED // 4).sum()
    return peaks.seconds(work)
