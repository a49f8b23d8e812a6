"""The machine's peaks: the arithmetic of the roofline, and memory that is known to have been taken."""

import itertools

import pytest
import torch

from onnuri.costs import peaks
from onnuri.costs.peaks import Peak, Peaks


def test_a_peak_is_the_best_and_its_spread_the_distance_to_the_worst(monkeypatch):
    clock = itertools.accumulate(itertools.chain([0.0], itertools.cycle([0.1, 0.0, 0.2, 0.0])))
    monkeypatch.setattr(peaks.time, "perf_counter", lambda: next(clock))
    peak = peaks.best_of(lambda: None, 10)
    assert (peak.best, peak.spread, peak.repeats) == (pytest.approx(100), pytest.approx(0.5), 3)


def test_the_roofline_takes_each_type_at_its_own_pace():
    def peak(best: float) -> Peak:
        return Peak(best, best, 0.0, 3)

    best = Peaks({torch.float32: peak(10), torch.int8: peak(40)}, peak(5), 1e-6, 1)
    assert best.seconds({torch.float32: 20, torch.int8: 40}, 15) == (3.0, 3.0)
    assert best.seconds({torch.float64: 20}, 0) == (2.0, 0.0), "a type that was not measured counts as fp32"


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.int8])
def test_every_type_has_a_product(kind):
    assert peaks.product(kind, 64)().shape == (64, 64)


def test_what_holds_a_piece_of_work_back():
    assert peaks.bottleneck(2.0, 1.0, 2.5) == "compute" and peaks.bottleneck(1.0, 2.0, None) == "memory bandwidth"
    assert peaks.bottleneck(2.0, 1.0, 20.0) == "overhead: measured 10 times the roofline"


def test_a_busy_machine_is_noticed():
    assert peaks.busy(1.0, 1.05) == "" and "20% longer" in peaks.busy(1.0, 1.2) and peaks.busy(1.2, 1.0)


def test_memory_that_a_piece_of_work_takes():
    size = 2**27
    rise = peaks.peak_of(lambda: torch.ones(size // 4).sum())
    if rise is None:
        pytest.skip("this system does not let a process forget its peak")
    assert abs(rise - size) < 2**24, "beside the array only what the allocator rounds up to"
