"""Facts of forecasts that no design changes: lengths and scales learnt from records, tensors, scores.

Letters: B records, P steps of past, F of future, C channels, D of them forecast (the last ones).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import Kind, Record, Records, records_of, required_answer
from ..errors import BadInput
from ..family import Batch
from ..windows import CHANNELS
from .tables import faults_of

LENGTHS = {"past": (1, 10**6), "future": (1, 10**6)}
FAR = 1e6  # deviations: keeps float32 finite


@dataclass(frozen=True)
class Series:
    """What a model knows of its series: fields, lengths, and per channel of the past mean, deviation and the mean
    absolute change from step to step, all of the training records."""

    question: str
    answer: str
    past: int
    future: int
    num_forecast: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    change: tuple[float, ...]
    channels: str = ""
    """The names of the past's columns, as the windows of a table state them; "" where nothing states them."""


def series_from(config: dict) -> Series:
    """The series of a config.json. BadInput unless names, lengths and scales are there and fit each other."""
    found = config.get("series")
    if isinstance(found, dict):
        found = {CHANNELS: "", **found}  # folders of before had none
    if not isinstance(found, dict) or found.keys() != {field.name for field in fields(Series)}:
        raise BadInput("config.json: 'series' must hold the fields, lengths and scales of the series")
    faults = faults_of(found, LENGTHS)
    scales = {name: found[name] for name in ("mean", "deviation", "change")}
    faults += [
        f"'{name}' must be a text" for name in ("question", "answer", CHANNELS) if not isinstance(found[name], str)
    ]
    faults += [f"'{name}' must list a finite number per channel" for name in scales if not are_numbers(scales[name])]
    if not faults:
        count = len(scales["mean"])
        faults = faults_of(found, {"num_forecast": (1, count)})
        faults += [
            f"'{name}' lists {len(values)} of {count}" for name, values in scales.items() if len(values) != count
        ]
        faults += ["'deviation' must be above 0"] if min(scales["deviation"]) <= 0 else []
    if faults:
        raise BadInput(*(f"config.json: series: {fault}" for fault in faults))
    return Series(**{**found, **{name: tuple(map(float, values)) for name, values in scales.items()}})


def are_numbers(values: Any) -> bool:
    if not isinstance(values, list) or not values:
        return False
    return all(type(value) in (int, float) and math.isfinite(value) for value in values)


def learn(records: Records, past: int) -> Series:
    """Fields, lengths and scales of the records. BadInput where they are no series of one form."""
    answer = required_answer(records)
    questions = [name for name, kind in records.questions.items() if kind == "series"]
    if not questions or records.fields[answer] != "series":
        found = ", ".join(f"{name} ({kind})" for name, kind in records.fields.items())
        raise BadInput(
            f"a forecast needs a past and a future of kind series; found {found}",
            hint="--window PAST,FUTURE for a table with a row per time step, or --answer NAME",
        )
    shapes = [(record[questions[0]].shape, record[answer].shape) for record in records]
    (_, channels), (future, forecast) = shapes[0]
    shortest = min(seen[0] for seen, _ in shapes)
    wrong = [row for row, (seen, to_come) in enumerate(shapes) if (seen[1], *to_come) != (channels, future, forecast)]
    faults = [f"row {records.rows[row]} has other channels or another length of '{answer}'" for row in wrong[:1]]
    if forecast > channels:
        faults.append(f"'{answer}' has {forecast} channels, but continues the last of the {channels} in the past")
    names = (
        sorted({str(name) for name in records.column(CHANNELS)}) if records.fields.get(CHANNELS) == "category" else [""]
    )
    if len(names) > 1:
        faults.append(f"the channels are not the same in every row: {' and '.join(names[:2])}")
    if past > shortest:
        faults.append(f"config past={past}: the shortest past has {shortest} steps")
    if faults:
        raise BadInput(*faults)
    scales = [scales_of(steps(records, questions[0], answer, forecast))]
    if channels > forecast:
        scales.insert(0, scales_of(steps(records, questions[0], None, channels), channels - forecast))
    mean, deviation, change = (tuple(np.concatenate(part).tolist()) for part in zip(*scales))
    return Series(questions[0], answer, past or shortest, future, forecast, mean, deviation, change, names[0])


def steps(records: Records, question: str, answer: str | None, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(new steps, the changes to them), float64, of the last `count` channels of each record, past and answer joined.
    Where a record is the one before moved by one step, as windows are, only its last step is new."""
    before = np.empty((0, 0))
    for record in records:
        parts = [record[question][:, -count:], *([record[answer]] if answer else [])]
        whole = np.concatenate(parts).astype(np.float64)
        moved = before.shape == whole.shape and np.array_equal(before[1:], whole[:-1])
        before = whole
        yield (whole[-1:], whole[-1:] - whole[-2:-1]) if moved else (whole, np.diff(whole, axis=0))


def scales_of(
    parts: Iterator[tuple[np.ndarray, np.ndarray]], count: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, deviation (1 where a channel stands still) and mean absolute change of the first `count` channels."""
    origin: Any = None
    sums: Any = 0.0
    for values, changes in parts:
        values, changes = values[:, :count], changes[:, :count]
        origin = values[0] if origin is None else origin  # sums around it: far from zero squares lose digits
        moved = values - origin
        row = [moved.sum(0), (moved**2).sum(0), np.full(len(origin), len(values))]
        sums = sums + np.stack([*row, np.abs(changes).sum(0), np.full(len(origin), len(changes))])
    mean = sums[0] / sums[2]
    deviation = np.sqrt(np.maximum(sums[1] / sums[2] - mean**2, 0))
    still = deviation <= 1e-7 * np.abs(origin + mean)
    return origin + mean, np.where(still, 1.0, deviation), sums[3] / np.maximum(sums[4], 1)


def questions(records: Sequence[Record], series: Series) -> Batch:
    if other := [seen for record in records if series.channels and (seen := record.get(CHANNELS)) != series.channels]:
        raise BadInput(
            f"this model was made for the channels {series.channels}; found {other[0]}",
            hint="the same columns under the same names, and the same --answer",
        )
    found = [np.asarray(record[series.question]) for record in records]
    for value in found:
        if value.ndim != 2 or len(value) < series.past or value.shape[1] != len(series.mean):
            raise misfit(value, "past", f"{series.past} steps or more", len(series.mean))
    return {"past": standard(np.stack([value[len(value) - series.past :] for value in found]), series)}


def futures(records: Sequence[Record], series: Series) -> np.ndarray:
    """The answers of the records, (B, F, D). BadInput for one of another shape."""
    found = [np.asarray(record[series.answer]) for record in records]
    for value in found:
        if value.shape != (series.future, series.num_forecast):
            raise misfit(value, "future", f"{series.future} steps", series.num_forecast)
    return np.stack(found)


def misfit(value: np.ndarray, what: str, wanted: str, channels: int) -> BadInput:
    return BadInput(
        f"this model asks for a {what} of {wanted} and {channels} channels; found {' and '.join(map(str, value.shape))}",
        hint="cut the series as the model's were: --window PAST,FUTURE",
    )


def scale_of(series: Series, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of the last `count` channels."""
    return np.array(series.mean[-count:]), np.array(series.deviation[-count:])


def standard(values: np.ndarray, series: Series) -> Tensor:
    mean, deviation = scale_of(series, values.shape[2])
    return torch.from_numpy(((values - mean) / deviation).clip(-FAR, FAR)).float()


def score(records: Sequence[Record], answers: Sequence[Record], series: Series) -> dict[str, float]:
    """mse and mae in standard units, as the literature has them; mae in the data's; mase: the mean absolute error in
    units of the mean change from step to step in training (Hyndman and Koehler 2006), over channels that change."""
    error = np.abs(futures(answers, series) - futures(records, series))
    absolute = error.mean((0, 1), dtype=np.float64)  # per channel
    squared = np.square(error, dtype=np.float64).mean((0, 1))
    unit = scale_of(series, series.num_forecast)[1]
    means = {"mse": squared / unit**2, "mae": absolute / unit, "mae_in_units": absolute}
    change = np.array(series.change[-series.num_forecast :])
    if (change > 0).any():
        means["mase"] = absolute[change > 0] / change[change > 0]
    return {name: float(values.mean()) for name, values in means.items()}


def fields_of(series: Series) -> tuple[dict[str, Kind], tuple[str, Kind]]:
    stated: dict[str, Kind] = {CHANNELS: "category"} if series.channels else {}
    return {series.question: "series", **stated}, (series.answer, "series")


def axis(series: Series) -> tuple:
    """Forecasts mean the same where steps, channels and their units do."""
    units = [f"{value:.4g}" for part in scale_of(series, series.num_forecast) for value in part]
    return ("series", series.future, series.num_forecast, *units)


def toy(n: int, seed: int) -> Records:
    """Two channels far from zero, each the sum of two sines with a little noise; 24 steps, and the next 6."""
    draw = np.random.default_rng(seed)
    turns = 2 * np.pi * (np.arange(30)[:, None, None] / np.array([[12, 8], [5, 9]]))  # (times, channels, sines)
    begins = draw.uniform(0, 2 * np.pi, (n, 1, 2, 2))
    values = np.sin(turns + begins).sum(3) + draw.normal(0, 0.1, (n, 30, 2))
    whole = (values * [1.0, 40.0] + [5.0, -300.0]).astype(np.float32)
    rows: list[Record] = [{"past": one[:24], "future": one[24:]} for one in whole]
    return records_of(rows, {"past": "series", "future": "series"}, "future")
