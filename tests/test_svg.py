"""Axes: ticks are round, few and inside."""

import pytest

from onnuri import svg
from onnuri.figures import tick_text


@pytest.mark.parametrize("low,high", [(0, 1), (0.95, 0.99), (-3, 1e6), (1e-9, 2e-9), (12.3, 12.4), (0, 1e99)])
def test_ticks_are_round_and_inside(low, high):
    ticks = svg.even_ticks(low, high)
    assert 2 <= len(ticks) <= 12
    assert all(low - 1e-6 * (high - low) <= tick <= high + 1e-6 * (high - low) for tick in ticks)
    assert len({tick_text(tick) for tick in ticks}) == len(ticks)


@pytest.mark.parametrize("low,high", [(1, 1e12), (35_000, 39_000), (8e3, 4e5), (1, 2), (1e-8, 1e8)])
def test_logarithmic_ticks_are_few_and_inside(low, high):
    ticks = svg.log_ticks(low, high)
    assert 2 <= len(ticks) <= 7
    assert all(low <= tick <= high for tick in ticks)
