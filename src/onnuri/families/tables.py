"""What the table net and the forest share: columns learnt from records, arrays, losses, scores.

Letters: B records, N number columns, C category columns, D labels (1 where the answer is a number).
"""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .. import hub
from ..data import Kind, Record, Records, as_label, labels_of, numeric_first, records_of, required_answer
from ..errors import BadInput, BadSettings
from ..family import Batch, Outputs
from . import labels

MISSING, UNKNOWN = 0, 1  # the codes before those of the known categories
MAX_CATEGORIES = 1000  # a column keeps its most frequent ones, the others are unknown
MAX_ROWS = 200_000  # columns are learnt from that many rows, evenly spaced
CHUNK = 8192  # records that are read or answered at once


@dataclass(frozen=True)
class Column:
    """A question column. Numbers: mean, scale and the `edges` of bins. Categories: the known ones."""

    name: str
    kind: Literal["number", "category"]
    mean: float = 0.0
    scale: float = 1.0
    edges: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()

    @cached_property
    def codes(self) -> dict[str, int]:
        return {category: code for code, category in enumerate(self.categories, start=UNKNOWN + 1)}

    @property
    def num_codes(self) -> int:
        return len(self.categories) + UNKNOWN + 1


@dataclass(frozen=True)
class Table:
    """The assets of a model of tables. Without `labels` the answer is a number with that mean and scale."""

    columns: tuple[Column, ...]
    answer: str
    labels: tuple[str, ...] = ()
    mean: float = 0.0
    scale: float = 1.0

    @cached_property
    def numbers(self) -> list[Column]:
        return [column for column in self.columns if column.kind == "number"]

    @cached_property
    def categories(self) -> list[Column]:
        return [column for column in self.columns if column.kind == "category"]

    @property
    def num_outputs(self) -> int:
        return len(self.labels) or 1


def to_json(table: Table) -> dict:
    return asdict(table)


def from_json(found: dict) -> Table:
    """The inverse of `to_json`. Raises KeyError, TypeError or ValueError for what is no table."""
    columns = tuple(
        Column(
            str(column["name"]),
            column["kind"],
            float(column["mean"]),
            float(column["scale"]),
            tuple(map(float, column["edges"])),
            tuple(map(str, column["categories"])),
        )
        for column in found["columns"]
    )
    table = Table(
        columns, str(found["answer"]), tuple(map(str, found["labels"])), float(found["mean"]), float(found["scale"])
    )
    if not columns or any(column.kind not in ("number", "category") for column in columns):
        raise ValueError("its table must have columns, each a number or a category")
    if len({column.name for column in columns}) < len(columns) or len(set(table.labels)) < len(table.labels):
        raise ValueError("a column or a label occurs twice in its table")
    numbers = [part for each in (table, *columns) for part in (each.mean, each.scale)]
    rising = all((np.diff(column.edges) > 0).all() for column in columns)
    if not np.isfinite(numbers).all() or min(numbers[1::2]) <= 0 or not rising:
        raise ValueError("a mean, a scale or the edges of bins in its table are wrong")
    return table


def configured(defaults: dict, config: dict, bounds: Mapping[str, tuple[float, float]]) -> dict:
    """The defaults overridden by the config; BadSettings where an entry is unknown or out of its bounds."""
    settings = hub.merged(defaults, config)
    if faults := faults_of(settings, bounds):
        raise BadSettings(*faults)
    return settings


def faults_of(config: dict, bounds: Mapping[str, tuple[float, float]]) -> list[str]:
    """What is wrong with entries of a config, in words. Bounds that are whole ask for whole numbers."""
    faults = []
    for name, (low, high) in bounds.items():
        value, kinds = config.get(name), (int,) if isinstance(low, int) else (int, float)
        if type(value) not in kinds or not low <= value <= high:  # type: ignore[operator]
            wanted = "whole number" if len(kinds) == 1 else "number"
            faults.append(f"'{name}' must be a {wanted} from {low} to {high}, found {value!r}")
    return faults


# --------------------------------------------------------------------------------------------------- learning


def learn(records: Records, num_bins: int) -> Table:
    """The columns of the question and the answer. Text and images are left out; BadInput when none remain."""
    kinds = {name: kind for name, kind in records.questions.items() if kind in ("number", "category")}
    answer = required_answer(records)
    if not kinds:
        found = ", ".join(f"{name} ({kind})" for name, kind in records.questions.items()) or "none"
        raise BadInput(
            f"a table needs numbers or categories; the columns besides '{answer}': {found}",
            hint="--fields NAME=category or NAME=number, or a text or image classifier",
        )
    rows = records[:: max(1, -(-len(records) // MAX_ROWS))].list()
    columns = tuple(
        learn_number(name, rows, num_bins) if kind == "number" else learn_category(name, rows)
        for name, kind in kinds.items()
    )
    return with_answer_of(Table(columns, answer), records)


def with_answer_of(table: Table, records: Records) -> Table:
    """The same columns, the answer of the records: its labels, or its mean and scale if it is a number."""
    name = required_answer(records)
    if records.fields[name] == "image":
        raise BadInput(
            f"the answer '{name}' holds images; a table model answers with a category or a number", hint="--answer NAME"
        )
    if records.fields[name] != "number":
        return replace(table, answer=name, labels=tuple(labels_of(records)), mean=0.0, scale=1.0)
    values = as_floats(list(records.column(name)))
    empty = np.isnan(values)
    if empty.any():
        raise BadInput(
            f"'{name}' is empty in {empty.sum()} of {len(values)} rows, first in row {empty.argmax()}",
            hint="fill in or drop those rows",
        )
    return replace(table, answer=name, labels=(), mean=float(values.mean()), scale=scale_of(values))


def learn_number(name: str, rows: Sequence[Record], num_bins: int) -> Column:
    values = as_floats([row[name] for row in rows])
    values = values[~np.isnan(values)]
    if not len(values):
        return Column(name, "number")
    edges = tuple(edges_of(values, num_bins).tolist())
    return Column(name, "number", float(values.mean()), scale_of(values), edges)


NARROWEST = 1e-5  # of a column's range: below, float32 cannot tell the borders of a bin apart


def edges_of(values: np.ndarray, num_bins: int) -> np.ndarray:
    """Rising borders of at most `num_bins` bins: half of them at equal shares of the rows, half at equal
    shares of the distinct values, so that a column that is mostly zero still has bins where it is not."""
    if num_bins == 0:
        return values[:0]
    by_row, by_value = (np.linspace(0, 1, part + 1) for part in (num_bins - num_bins // 2, num_bins // 2))
    edges = np.unique([*np.quantile(values, by_row), *np.quantile(np.unique(values), by_value)])
    apart = np.diff(edges, prepend=-np.inf) > NARROWEST * (edges[-1] - edges[0])
    return edges[apart]  # quantiles that differ by rounding alone would make a bin without width


def learn_category(name: str, rows: Sequence[Record]) -> Column:
    """Keeps categories seen twice and in one row of 10,000; the rare ones teach the code for unknown ones."""
    counts = Counter(as_label(row[name]) for row in rows)
    often = sorted(
        (-count, label) for label, count in counts.items() if label is not None and count >= max(2, len(rows) / 10_000)
    )
    kept = sorted((label for _, label in often[:MAX_CATEGORIES]), key=numeric_first)
    return Column(name, "category", categories=tuple(kept))


def scale_of(values: np.ndarray) -> float:
    """The standard deviation; 1 where it is nothing but rounding."""
    scale = float(values.std())
    return scale if scale > 1e-12 * float(np.abs(values).max()) else 1.0


# ----------------------------------------------------------------------------------------------------- arrays


def as_floats(values: Sequence[Any]) -> np.ndarray:
    """float64; NaN for what is missing or not finite."""
    array = np.array(values, dtype=np.float64)
    array[~np.isfinite(array)] = np.nan
    return array


def number_array(records: Sequence[Record], table: Table) -> np.ndarray:
    """(B, N) float64 in the columns' own units, NaN where missing."""
    return np.stack([as_floats([record.get(column.name) for record in records]) for column in table.numbers], axis=1)


def code_array(records: Sequence[Record], table: Table) -> np.ndarray:
    """(B, C) int64: MISSING, UNKNOWN or a known category of the column."""
    return np.stack(
        [codes_of([record.get(column.name) for record in records], column.codes) for column in table.categories], axis=1
    )


def codes_of(values: Sequence[Any], codes: Mapping[str, int]) -> np.ndarray:
    """(B,) int64. A value that is no known category as it stands is looked up as a label: 1.0 as '1'."""
    return np.array(
        [
            codes[value]
            if value in codes
            else MISSING
            if (label := as_label(value)) is None
            else codes.get(label, UNKNOWN)
            for value in values
        ],
        dtype=np.int64,
    )


def code_of(column: Column, start: int) -> dict[str, Any]:
    """How a category becomes its code, counted from `start`, in the words of `encoding.py`."""
    codes = {"missing": start + MISSING, "unknown": start + UNKNOWN, "first": start + UNKNOWN + 1}
    return {"field": column.name, "as": "code", "categories": list(column.categories), **codes}


def answer_tensors(records: Sequence[Record], table: Table) -> Batch:
    """{} unless every record has its answer. {labels (B,)}, or {answer (B,), unit (B,)}: the number and its
    spread in training, so that a loss has no unit."""
    if table.labels:
        return labels.label_batch(records, table.answer, table.labels)
    numbers = as_floats([record.get(table.answer) for record in records])
    if np.isnan(numbers).any():
        return {}
    return {"answer": torch.from_numpy(numbers).float(), "unit": torch.full((len(numbers),), table.scale)}


def loss(outputs: Outputs, batch: Batch) -> tuple[Tensor, Tensor]:
    """(total (B,), count (B,)): cross entropy in nats, or the squared error in units of the spread."""
    if "labels" in batch:
        return labels.cross_entropy(outputs, batch["labels"])
    total = ((outputs[0][:, 0, 0] - batch["answer"]) / batch["unit"]).square()
    return total, torch.ones_like(total)


# ------------------------------------------------------------------------------------------------------ facts


def fields(table: Table) -> tuple[dict[str, Kind], tuple[str, Kind]]:
    return (
        {column.name: column.kind for column in table.columns},
        (table.answer, "category" if table.labels else "number"),
    )


def kind(table: Table) -> Literal["logits", "values"]:
    return "logits" if table.labels else "values"


def axis(table: Table) -> Hashable:
    return table.labels or (table.answer,)


def headline(table: Table) -> tuple[str, Literal["up", "down"]]:
    return ("accuracy", "up") if table.labels else ("rmse", "down")


def answered(
    outputs_of: Callable[[Sequence[Record]], Outputs], table: Table, records: Sequence[Record]
) -> list[Record]:
    """The records with their answers. ANSWER_scores is {label: probability}, or the number itself."""
    found: list[Record] = []
    for begin in range(0, len(records), CHUNK):
        part = records[begin : begin + CHUNK]
        outputs = outputs_of(part)
        found += (
            labels.answered(part, outputs, table.answer, table.labels)
            if table.labels
            else [
                {**record, table.answer: value, f"{table.answer}_scores": value}
                for record, value in zip(part, outputs[0][:, 0, 0].tolist())
            ]
        )
    return found


def score(records: Sequence[Record], answers: Sequence[Record], table: Table) -> dict[str, float]:
    """A classifier's standard scores and auc; or rmse, mae and r2. auc and r2 are left out where the records
    do not define them: answers of one class only, or all alike."""
    name = table.answer
    if not table.labels:
        return number_scores(as_floats([r[name] for r in records]), as_floats([a[name] for a in answers]))
    truth = np.array([as_label(record[name]) for record in records])
    chances = np.array([[answer[f"{name}_scores"][label] for label in table.labels] for answer in answers])
    return labels.label_scores(records, answers, name) | mean_auc(truth, chances, table.labels)


def number_scores(truth: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """truth (B,), found (B,)."""
    error, spread = found - truth, float(((truth - truth.mean()) ** 2).sum())
    scores = {"rmse": float(np.sqrt((error**2).mean())), "mae": float(np.abs(error).mean())}
    return scores | ({"r2": 1 - float((error**2).sum()) / spread} if spread else {})


def mean_auc(truth: np.ndarray, chances: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """truth (B,) labels, chances (B, D). Of the second label of two, else the mean of one against the rest
    over the labels that occur; {} where all the records are of one class."""
    if len(np.unique(truth)) < 2:
        return {}
    judged = [place for place, name in enumerate(names) if name in truth][-1 if len(names) == 2 else 0 :]
    return {"auc": float(np.mean([auc(truth == names[place], chances[:, place]) for place in judged]))}


def auc(positive: np.ndarray, chances: np.ndarray) -> float:
    """The share of pairs (positive, negative) in the right order, ties half: Mann and Whitney 1947."""
    _, place, counts = np.unique(chances, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    above = ranks[positive].sum() - num_positive * (num_positive + 1) / 2
    return float(above / (num_positive * num_negative))


# -------------------------------------------------------------------------------------------------------- toy


def toy(n: int, seed: int) -> Records:
    """Two classes in turn, drawn around unlike means and habits; one value in ten is missing."""
    draw = np.random.default_rng(seed)
    rows: list[Record] = []
    for i in range(n):
        positive = i % 2
        colors = [0.2, 0.2, 0.6] if positive else [0.5, 0.3, 0.2]
        row = {
            "height": float(draw.normal(positive, 0.8)),
            "weight": float(draw.normal(50 - 20 * positive, 15)),
            "color": str(draw.choice(["red", "green", "blue"], p=colors)),
            "shape": str(draw.choice(["round", "square"])),
        }
        rows.append(
            {
                **{name: None if draw.random() < 0.1 else value for name, value in row.items()},
                "label": "yes" if positive else "no",
            }
        )
    kinds: dict[str, Kind] = {
        "height": "number",
        "weight": "number",
        "color": "category",
        "shape": "category",
        "label": "category",
    }
    return records_of(rows, kinds, "label")
