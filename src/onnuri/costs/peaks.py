"""What this machine can do at its best, measured in about a second: products, memory, and the price of one call.

These are the ceilings of the roofline (Williams et al. 2009, Communications of the ACM 52): no net runs faster than its
FLOPs at the best product's pace, nor than its bytes at the memory's. All on as many threads as torch uses.
"""

import ctypes
import gc
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from .. import machine

BUDGET = 0.25  # seconds for each figure
REPEATS = (3, 12)  # at least, at most
CPU = torch.device("cpu")
SIDES = (128, 256, 512, 1024, 2048, 4096, 8192)
"""Of the square matrices, the first one of which a product takes long enough."""
REFERENCE = 1024  # side of the product by which a busy machine is told
LONG = 0.004  # seconds of one product: the clock and the call are then lost in it
ARRAY = 128 * 2**20  # bytes of an array that no cache holds
CALLS = 200
SECONDS = 0.5  # for which one piece of work is repeated to be timed
FAR = 3.0  # times the roofline from which neither ceiling explains what was measured
AGREE = 0.10  # share by which two timings of the same product may differ on a quiet machine


@dataclass(frozen=True)
class Peak:
    """The best of several repeats, and how far the slowest one lies below it as a share of the best."""

    best: float
    median: float
    spread: float
    repeats: int


@dataclass(frozen=True)
class Peaks:
    """`flops`: {type: FLOP/s of a square product}; `bandwidth`: bytes a second, the better of copy and triad; `call`:
    seconds of one small layer, which is the interpreter's price of an operator."""

    flops: dict[torch.dtype, Peak]
    bandwidth: Peak
    call: float
    threads: int

    def seconds(self, flops: dict[torch.dtype, float], moved: float) -> tuple[float, float]:
        """(seconds of the products, seconds of the memory) at the peaks. A type that was not measured counts as fp32."""
        fp32 = self.flops[torch.float32].best
        products = sum(n / (self.flops[kind].best if kind in self.flops else fp32) for kind, n in flops.items())
        return products, moved / self.bandwidth.best


def measure_peaks() -> Peaks:
    """Everything, in less than two seconds on a machine that does 5 GFLOP/s or more."""
    flops = {kind: product_peak(kind) for kind in (torch.float32, torch.bfloat16, torch.int8)}
    return Peaks(flops, bandwidth_peak(), call_seconds(), torch.get_num_threads())


def product_peak(kind: torch.dtype, device: torch.device = CPU) -> Peak:
    """FLOP/s of a square product of this type."""
    for side in SIDES:
        work = product(kind, side, device)
        work()
        if seconds(work) > LONG:
            break
    return best_of(work, 2 * side**3)


def native_bf16(device: torch.device = CPU) -> bool:
    """Whether products in bf16 are the processor's own; elsewhere they are slower than in fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def product(kind: torch.dtype, side: int, device: torch.device = CPU) -> Callable[[], Any]:
    a = torch.randint(-127, 127, (side, side), dtype=torch.int8, device=device)
    if kind == torch.int8:
        return lambda: torch._int_mm(a, a.t())  # type: ignore[attr-defined]
    a = a.to(kind)
    if device.type == "cuda":
        return lambda: (torch.mm(a, a), torch.cuda.synchronize(device))
    return lambda: torch.mm(a, a)


def bandwidth_peak() -> Peak:
    """Bytes a second of copy (one read, one written) or triad a + s b (two read, one written), as STREAM counts them."""
    n = max(2**20, min(ARRAY, free_memory() // 16)) // 4
    a, b, c = (torch.ones(n) for _ in range(3))
    copied = best_of(lambda: a.copy_(b), 2 * 4 * n)
    added = best_of(lambda: torch.add(b, c, alpha=2.0, out=a), 3 * 4 * n)
    return max(copied, added, key=lambda peak: peak.best)


@torch.no_grad()
def call_seconds() -> float:
    """Seconds of one call of a layer that has next to nothing to compute."""
    layer, x = nn.Linear(8, 8), torch.ones(1, 8)

    def calls() -> None:
        for _ in range(CALLS):
            layer(x)

    calls()
    return min(seconds(calls) for _ in range(5)) / CALLS


def best_of(work: Callable[[], Any], amount: float) -> Peak:
    """`amount` a second, over repeats that fill the budget; a first one does not count."""
    rates = sorted(amount / one for one in repeated(work, BUDGET, *REPEATS))
    return Peak(rates[-1], median(rates), 1 - rates[0] / rates[-1], len(rates))


def repeated(work: Callable[[], Any], budget: float, least: int, most: int) -> list[float]:
    """Seconds of each run, from `least` to `most` of them until they took the budget in all, after one that does not count."""
    work()
    times: list[float] = []
    while len(times) < least or (sum(times) < budget and len(times) < most):
        times.append(seconds(work))
    return times


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def bottleneck(products: float, memory: float, measured: float | None) -> str:
    """Which ceiling is the lower one, or that neither explains the time."""
    roofline = max(products, memory)
    if measured is not None and measured > FAR * roofline:
        return f"overhead: measured {measured / max(roofline, 1e-12):.3g} times the roofline"
    return "compute" if products >= memory else "memory bandwidth"


def timed(work: Callable[[], Any]) -> float:
    """Seconds, the median of as many runs as fit, two at least, after one that does not count."""
    return median(repeated(work, SECONDS, 2, 50))


def reference() -> float:
    """Seconds of a product that is the same each time: the median of several, since the best would hide a busy machine."""
    work = product(torch.float32, REFERENCE)
    work()
    work()
    return median(seconds(work) for _ in range(7))


def busy(first: float, last: float) -> str:
    """What to say when two references disagree; empty when the machine was quiet."""
    apart = max(first, last) / min(first, last) - 1
    return f"the machine was busy: the same product took {apart:.0%} longer at one time than at another" * (
        apart > AGREE
    )


def free_memory() -> int:
    """Bytes that a process can still take without anything being swapped out; all of it where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return machine.memory_bytes()


def resident_bytes() -> int:
    """Memory of this process now, after what was freed is given back; 0 where the system does not tell."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def peak_of(work: Callable[[], Any]) -> int | None:
    """Bytes by which the memory of this process rose at most during `work`; None where the system does not tell."""
    gc.collect()
    before = resident_bytes()
    machine.forget_peak()
    forgotten = machine.peak_memory() <= before * 1.02 + 2**22
    work()
    return max(0, machine.peak_memory() - before) if before and forgotten else None
