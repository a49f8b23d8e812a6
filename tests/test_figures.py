"""Figures in words, at the edges where a prefix or a unit changes."""

import pytest

from onnuri import figures


@pytest.mark.parametrize(
    "value,words",
    [(0, "0"), (0.25, "0.25"), (1500, "1500"), (20_000, "20k"), (3e6, "3M"), (0.1 + 0.2, "0.3"), (-40_000, "-40k")],
)
def test_ticks_in_words(value, words):
    assert figures.tick_text(value) == words


def test_ticks_of_bytes_in_words():
    assert [figures.byte_text(value) for value in (812, 38_400, 2e6)] == ["812\u00a0B", "38.4\u00a0kB", "2\u00a0MB"]


@pytest.mark.parametrize(
    "seconds,words",
    [
        (None, "–"),
        (0.0021, "2.10 ms"),
        (12.34, "12.3 s"),
        (252, "4 min 12 s"),
        (59.999, "60.0 s"),
        (3840, "1 h 04 min"),
        (float("nan"), "–"),
    ],
)
def test_times_in_words(seconds, words):
    assert figures.time_text(seconds).replace("\u00a0", " ") == words


@pytest.mark.parametrize(
    "value,words",
    [
        (None, "–"),
        (0, "0 B"),
        (1, "1 B"),
        (812, "812 B"),
        (999.6, "1.00 kB"),
        (38_400, "38.4 kB"),
        (999_999, "1.00 MB"),
        (1.5e15, "1,500 TB"),
    ],
)
def test_bytes_in_words(value, words):
    assert figures.size_text(value).replace("\u00a0", " ") == words
