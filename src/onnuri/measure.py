"""The yardsticks: score with its confidence interval, bytes, latency, energy, agreement of two models.

Nothing here asks what kind of model it measures; the facts of its family are enough.
"""

import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch

from . import machine, tokens
from .data import Record, Records
from .family import Generators, Session
from .model import Model, count_parameters
from .operation import Log

Z = NormalDist().inv_cdf(0.975)
PROPORTION_PROBES = 200  # records scored alone to see whether the headline is a mean of zeros and ones
RESAMPLED = 4096  # records in one of them
RESAMPLES = 200  # bootstrap samples of the records
DRAWN = 2000  # pictures that a model makes to be judged: a distance needs no more, and each may take seconds
WARM_UPS, LATENCY_RUNS = 3, 50  # at most
FEWEST_RUNS = 3  # where one takes seconds
WEIGHTS = (".safetensors", ".onnx", ".gguf", ".txt", ".xml", ".bin", ".js", ".pte")
LATENCY_SECONDS = 1.0


def measure(
    model: Model, records: Records, seed: int = 0, batch_size: int = 64, log: Log | None = None
) -> dict[str, Any]:
    """Everything that a ledger line says of a model on these records, or DRAWN of them where it makes pictures."""
    if model.family.fields(model.assets)[1][1] == "image":
        records = records.some(DRAWN)
    meter = machine.Meter()
    answers = answer(model, records, seed, batch_size, log)
    energy = meter.energy().share(1000 / len(records))
    asked = records.list()
    scores = model.family.score(asked, answers, model.assets)
    low, high, method = interval(model, asked, answers, scores[model.headline[0]], seed)
    return {
        "headline": list(model.headline),
        "scores": scores,
        "interval": [low, high],
        "interval_method": method,
        "records": len(records),
        "parameters": count_parameters(model.net),
        "bytes": model_bytes(model),
        "latency_ms": latency(model, asked, seed),
        "energy_per_1000": machine.as_dict(energy),
        **({"tokens": found} if (found := tokens.quality(model, asked)) else {}),
        "runtime": model.net.runtime if isinstance(model.net, Session) else "torch",
    }


def answer(model: Model, records: Records, seed: int = 0, batch_size: int = 64, log: Log | None = None) -> list[Record]:
    """The model's answers, record by record; each record has its own noise, so the batch size changes nothing."""
    answers: list[Record] = []

    def told(done: int) -> None:
        if log:
            log.progress(len(answers) + done, len(records), "records judged")

    for start in range(0, len(records), window := model.window(batch_size)):
        part = records.list(slice(start, start + window))
        answers += model.answers(part, seed, range(start, start + len(part)), batch_size, told)
    return answers


# ------------------------------------------------------------------------------------------------------- how sure it is


def interval(
    model: Model, records: Sequence[Record], answers: Sequence[Record], value: float, seed: int
) -> tuple[float, float, str]:
    """A 95 % confidence interval of the headline: Wilson's where it is seen to be a share of right answers, else the
    bootstrap over records, centered on the value since some metrics (a distance of samples) are biased by resampling."""
    metric, n = model.headline[0], len(records)

    def score(rows: Sequence[int]) -> float:
        return model.family.score([records[i] for i in rows], [answers[i] for i in rows], model.assets).get(
            metric, math.nan
        )

    alone = [score([i]) for i in range(0, n, max(1, n // PROPORTION_PROBES))]
    if all(one in (0.0, 1.0) for one in alone) and abs(value * n - round(value * n)) < 1e-6 and 0 <= value <= 1:
        return (*wilson(value, n), "Wilson, 95 %")
    draw, size = np.random.default_rng(seed), min(n, RESAMPLED)
    values = np.array([score(draw.integers(n, size=size).tolist()) for _ in range(RESAMPLES)])
    values = values[np.isfinite(values)]
    if len(values) < RESAMPLES // 2 or not math.isfinite(value):
        return value, value, "none: too few records"
    away = (values - values.mean()) * math.sqrt(size / n)  # resamples smaller than the records spread more widely
    low, high = value - np.quantile(away, 0.975), value - np.quantile(away, 0.025)
    return float(low), float(high), f"bootstrap over records, {len(values)} samples, 95 %"


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion (1927); right also near 0 and 1."""
    center = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return max(0.0, center - half), min(1.0, center + half)


# ---------------------------------------------------------------------------------------------------------- what it costs


def latency(model: Model, records: Sequence[Record], seed: int) -> dict[str, float]:
    """Milliseconds from one record to its answer: median and 95th percentile, after a warm-up."""

    def seconds(number: int) -> float:
        record = model.asked([records[number % len(records)]])
        began = time.perf_counter()
        model.sample(record, seed)
        return time.perf_counter() - began

    spent(map(seconds, range(WARM_UPS)), 1)
    times = [1e3 * each for each in spent(map(seconds, range(LATENCY_RUNS)), FEWEST_RUNS)]
    return {
        "p50": float(np.quantile(times, 0.5)),
        "p95": float(np.quantile(times, 0.95)),
        "batch": 1,
        "runs": len(times),
    }


def spent(runs: Iterable[float], fewest: int) -> list[float]:
    """The seconds of runs, of which none begins when `fewest` and LATENCY_SECONDS are over."""
    found: list[float] = []
    for seconds in runs:
        found.append(seconds)
        if len(found) >= fewest and sum(found) > LATENCY_SECONDS:
            break
    return found


def model_bytes(model: Model) -> int | None:
    """Bytes of what answers: an adapter needs its base as well. None for a model that was never stored."""
    folders = [folder for folder in (model.folder, model.base and model.base.folder) if folder]
    return sum(map(folder_bytes, folders)) if folders else None


def folder_bytes(folder: Path) -> int:
    """Bytes of the weights in a model folder: the files that hold numbers, without ledger, reports and processors."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and p.suffix in WEIGHTS and is_weights(p))


def is_weights(path: Path) -> bool:
    """Models in a text, a script or another format that holds anything; no other such files."""
    return path.suffix in (".safetensors", ".onnx", ".gguf") or path.stem == "model"


# -------------------------------------------------------------------------------------------------------------- two models


def largest_difference(one: Model, other: Model, records: Records, seed: int = 0) -> float | None:
    """The largest absolute difference of outputs over all records and unmasked places, relative to the largest output
    of `one` (at least 1). Infinite where the masks differ or only one output is a finite number; None where no record
    has a place to compare."""
    worst, size, compared = 0.0, 1.0, 0
    for start in range(0, len(records), 32):
        part = records.list(slice(start, start + 32))
        keys = range(start, start + len(part))
        a, mask = outputs(one, part, seed, keys)
        b, other_mask = outputs(other, part, seed, keys)
        if not torch.equal(mask, other_mask):
            return math.inf
        a, b = a[mask], b[mask]
        gaps = torch.where(a == b, 0.0, (a - b).abs()).nan_to_num(nan=math.inf)
        if gaps.numel():
            worst = max(worst, float(gaps.max()))
            size = max(size, largest(a))
            compared += gaps.numel()
    return worst / size if compared else None


def largest(values: torch.Tensor) -> float:
    """The largest absolute value of those that are finite, 0 where none is."""
    return float(values.abs().nan_to_num(nan=0.0, posinf=0.0).max())


def outputs(
    model: Model, records: Sequence[Record], seed: int, keys: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values (B, T, D) in fp32 and mask (B, T) for these records, answers withheld where the question suffices."""
    batch = model.family.collate(records, model.assets, Generators(seed, keys))
    values, mask = model.outputs(batch)
    return values.float(), mask.bool()
