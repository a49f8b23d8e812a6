"""Figures in words: sizes, times, scores and energy as a page or a chart writes them.

A figure that is missing or not finite is a dash, never a zero. Where the languages differ, words are a pair
(English, Korean).
"""

import json
import math
from numbers import Integral, Real
from typing import Any

Pair = tuple[str, str]
DASH = "–"
SPACE = "\u00a0"  # between a figure and its unit: they stay on one line
SHARES = ("accuracy", "precision", "recall", "f1", "exact_match", "agreement")  # metrics written in percent
PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"), (1e-6, "µ"))
KOREAN = {
    "accuracy": "정확도",
    "loss": "손실",
    "validation": "검증",
    "training": "학습",
    "step": "스텝",
    "learning rate": "학습률",
    "gradient norm": "그래디언트 노름",
    "perplexity": "퍼플렉시티",
}


def finite(value: Any) -> float | None:
    """`value` as a float, or None where it is no finite number (above 1e100 an axis would overflow)."""
    if value is None or isinstance(value, (bool, str)):
        return None
    value = float(value)
    return value if math.isfinite(value) and abs(value) < 1e100 else None


def plain(value: Any) -> str:
    """A setting, a figure or an answer in one line."""
    if isinstance(value, Real) and not isinstance(value, Integral):
        return f"{value:.6g}"
    if isinstance(value, (dict, list, tuple, bool)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return DASH if value is None else str(value)


def number(value: float | None, count: int = 3) -> str:
    """`count` significant digits, but a whole digit is never rounded away: 1.23, 12.3, 1,234."""
    value = finite(value)
    if value is None:
        return DASH
    rounded = abs(float(f"{value:.{count}g}"))  # 9.996 has its digits from 10.0
    places = count - 1 - (math.floor(math.log10(rounded)) if value else 0)
    return f"{value:,.{max(0, min(places, 9))}f}"


def scaled(value: float | None, unit: str, count: int = 3, least: float = 1e-6) -> str:
    """38400 B -> 38.4 kB. `least`: the smallest prefix that makes sense (there is no millibyte)."""
    value = finite(value)
    if not value:
        return DASH if value is None else f"0{SPACE}{unit}".rstrip(SPACE)
    rounded = abs(float(f"{value:.{count}g}"))  # 999.9 becomes 1.00 k, not 1,000
    usable = [pair for pair in PREFIXES if pair[0] >= least]
    size, letter = next((pair for pair in usable if rounded >= pair[0]), usable[-1])
    figure = f"{value:.0f}" if size == least == 1 else number(value / size, count)
    return f"{figure}{SPACE}{letter}{unit}".rstrip(SPACE)


def size_text(value: float | None, count: int = 3) -> str:
    """Bytes with decimal prefixes, as disks and downloads count them."""
    return scaled(value, "B", count, least=1)


def time_text(seconds: float | None) -> str:
    """850 ms, 12.3 s, 4 min 12 s, 1 h 04 min."""
    value = finite(seconds)
    if value is None or value < 60:
        return scaled(value, "s")
    minutes, rest = divmod(round(value), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours}{SPACE}h {left:02d}{SPACE}min" if hours else f"{minutes}{SPACE}min {rest}{SPACE}s"


def ms_text(value: float | None) -> str:
    """Milliseconds stay milliseconds, so that a column compares at a glance."""
    return DASH if finite(value) is None else f"{number(value)}{SPACE}ms"


def joules_text(value: float | None) -> str:
    """195 J, 500 mJ."""
    return scaled(value, "J")


def energy_text(energy: dict | None) -> str:
    """1.20 J ± 50 %."""
    if not energy:
        return DASH
    joules, error = joules_text(energy.get("joules")), finite(energy.get("error"))
    return joules if error is None else f"{joules} ±{SPACE}{100 * error:.0f}{SPACE}%"


def percent(metric: str) -> bool:
    """Whether a metric is a share that people read in percent."""
    return any(word in metric for word in SHARES)


def score_text(metric: str, value: float | None) -> str:
    """A score as its field writes it."""
    value = finite(value)
    if value is None or not percent(metric):
        return number(value)
    return f"{100 * value:.1f}{SPACE}%"


def interval_text(metric: str, interval: Any) -> str:
    """95.7–98.9 %; empty when there is no interval."""
    if not interval or any(finite(end) is None for end in interval):
        return ""
    low, high = (score_text(metric, end) for end in interval)
    return f"{low.removesuffix(f'{SPACE}%')}–{high}"


def tick_text(value: float) -> str:
    """A tick of an axis: 0.25, 1500, 20k, 2e-05."""
    return thousands(value) if abs(value) >= 1e4 else f"{value:.6g}"


def byte_text(value: float) -> str:
    """A tick of bytes: 10 kB, 500 kB, 2 MB: decimal prefixes, as disks and downloads count."""
    return thousands(value, SPACE) + "B"


def thousands(value: float, space: str = "") -> str:
    """20000 -> 20k."""
    size, letter = next((pair for pair in PREFIXES if abs(value) >= pair[0] >= 1), (1, ""))
    return f"{value / size:.6g}{space}{letter}"


def words(name: str) -> Pair:
    """A metric or curve as both languages call it."""
    name = name.replace("_", " ")
    return name, KOREAN.get(name, name)


def counted(steps: int) -> Pair:
    """1 step, 2 steps."""
    return f"{steps} step{'s' * (steps != 1)}", f"총 {steps}단계"


def size_change(first: float | None, last: float | None) -> Pair:
    """From 1.2 MB to 38 kB: 31× smaller. One size when it hardly changed."""
    start, end, factor = size_text(first, 2), size_text(last, 2), change(first, last)
    if not factor:
        return (end, end) if last else ("", "")
    return f"From {start} to {end}: {factor[0]}", f"{start}에서 {end}로: {factor[1]}"


def change(first: float | None, last: float | None) -> Pair | None:
    """31× smaller; nothing below five percent."""
    if not first or not last or abs(math.log(first / last)) < 0.05:
        return None
    factor = number(max(first, last) / min(first, last), 2).removesuffix(".0")
    if first > last:
        return f"{factor}×{SPACE}smaller", f"{factor}분의{SPACE}1"
    return f"{factor}×{SPACE}larger", f"{factor}배"
