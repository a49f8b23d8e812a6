"""This machine: what it is, the memory and energy that a piece of work took, the allocator setting that training needs.

Every energy figure names its method and its relative error, because most machines cannot be measured from inside.
"""

import ctypes
import os
import platform
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

RAPL = Path("/sys/class/powercap")
WATTS_PER_CORE = 5.0
"""Assumed draw of one busy core with its share of memory and package: server parts lie between 3 and 8 W."""


@dataclass(frozen=True)
class Energy:
    """Joules, how they were found, and the relative error to expect (0.5: half as much again, or half as little)."""

    joules: float
    method: str
    error: float

    def share(self, factor: float) -> "Energy":
        return Energy(self.joules * factor, self.method, self.error)


@cache
def describe() -> dict[str, Any]:
    """Processor, cores, memory and system, for the ledger."""
    return {
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_bytes() / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_memory() -> int:
    """Bytes: the largest resident size of this process since `forget_peak`; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return 0


def forget_peak() -> None:
    """Begin to look for the peak anew, where the system can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


@dataclass
class Meter:
    """Seconds and energy since it was made. Reads the processor's own counter (RAPL) where the system shows it, else
    multiplies processor time by an assumed draw and says so."""

    began: float = field(default_factory=time.perf_counter)
    processor_began: float = field(default_factory=time.process_time)
    counters: dict[Path, int] = field(default_factory=lambda: read_rapl())

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began

    def energy(self) -> Energy:
        now = read_rapl()
        if self.counters and now.keys() == self.counters.keys():
            joules = sum(wrapped(now[p] - self.counters[p], p) for p in now) / 1e6
            return Energy(joules, "measured by the processor's counter (RAPL, whole package)", 0.05)
        joules = (time.process_time() - self.processor_began) * WATTS_PER_CORE
        return Energy(joules, f"estimated: processor time x {WATTS_PER_CORE:g} W a core", 0.5)


def read_rapl() -> dict[Path, int]:
    """{counter: microjoules} of each processor package; {} where none can be read."""
    try:
        return {
            path: int(path.read_text())
            for path in sorted(RAPL.glob("intel-rapl:[0-9]/energy_uj"))
            if (path.parent / "name").read_text().startswith("package")  # `psys` would count them twice
        }
    except OSError:
        return {}


def wrapped(difference: int, path: Path) -> int:
    """The counter starts again at its range."""
    return difference if difference >= 0 else difference + int((path.parent / "max_energy_range_uj").read_text())


def as_dict(energy: Energy) -> dict[str, Any]:
    return asdict(energy)


@cache
def keep_memory() -> bool:
    """Tell glibc to keep freed memory instead of returning it to the system; True where that could be done.

    Training on a processor is otherwise bound by page faults: each step maps and unmaps its large temporaries. The price
    is that the process holds its peak memory until it ends. Other C libraries have no such switch.
    """
    mmap_threshold, trim_threshold, top_pad = -3, -1, -2
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(mmap_threshold, 2**30) and mallopt(trim_threshold, 2**31 - 1) and mallopt(top_pad, 2**28))
