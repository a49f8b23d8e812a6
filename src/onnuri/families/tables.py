"""Tables: what the table net and the forest share. Columns learnt from records, arrays made of records, standard scores.

Letters: B records, N number columns, C category columns, L labels.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..data import Kind, Record, Records, as_label, labels_of, numeric_first, records_of, required_answer
from ..errors import BadInput
from ..family import Batch

MISSING, UNKNOWN = 0, 1  # the codes before those of the known categories
MAX_CATEGORIES = 1000  # a column keeps its most frequent ones, the others are unknown
MAX_ROWS = 200_000  # columns are learnt from that many rows, evenly spaced
CHUNK = 8192  # records that are decoded, or predicted, at once


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
        return len(self.categories) + 2


@dataclass(frozen=True)
class Table:
    """The assets of a model of tables. No `labels`: the answer is a number, `mean` and `scale` are its own."""

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

    @cached_property
    def label_codes(self) -> dict[str, int]:
        return {label: code for code, label in enumerate(self.labels)}

    @property
    def num_outputs(self) -> int:
        return len(self.labels) or 1


def to_json(table: Table) -> dict:
    return asdict(table)


def from_json(found: dict) -> Table:
    """The inverse of `to_json`. Raises KeyError, TypeError or ValueError for what is no table."""
    columns = tuple(Column(column["name"], column["kind"], float(column["mean"]), float(column["scale"]),
                           tuple(map(float, column["edges"])), tuple(map(str, column["categories"])))
                    for column in found["columns"])
    table = Table(columns, str(found["answer"]), tuple(map(str, found["labels"])), float(found["mean"]),
                  float(found["scale"]))
    scales = [table.scale, *(column.scale for column in columns)]
    if not columns or any(column.kind not in ("number", "category") for column in columns):
        raise ValueError("its table must have columns, each a number or a category")
    if any(not np.isfinite(scale) or scale <= 0 for scale in scales):
        raise ValueError("a scale in its table is not positive")
    return table


def faults_of(config: dict, bounds: Mapping[str, tuple[float, float]]) -> list[str]:
    """What is wrong with entries of a config, in words. Bounds that are whole numbers ask for whole numbers."""
    faults = []
    for name, (low, high) in bounds.items():
        value, whole = config.get(name), isinstance(low, int)
        number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not (number and low <= value <= high):
            faults.append(f"'{name}' must be a {'whole ' if whole else ''}number from {low} to {high}, found {value!r}")
    return faults


# ------------------------------------------------------------------------------------------------------------ learning

def learn(records: Records, num_bins: int) -> Table:
    """The columns of the records' question and the answer. Text and images are left out; BadInput when none remain."""
    kinds = {name: kind for name, kind in records.questions.items() if kind in ("number", "category")}
    answer = required_answer(records)
    if not kinds:
        raise BadInput(f"a table model asks for numbers or categories; the columns besides '{answer}' are: "
                       f"{', '.join(f'{name} ({kind})' for name, kind in records.questions.items()) or 'none'}",
                       hint="say --fields NAME=category or NAME=number, or train a text or image classifier")
    step = max(1, -(-len(records) // MAX_ROWS))
    rows = records[::step].list()
    columns = tuple(learn_number(name, rows, num_bins) if kind == "number" else learn_category(name, rows)
                    for name, kind in kinds.items())
    return with_answer_of(Table(columns, answer), records)


def with_answer_of(table: Table, records: Records) -> Table:
    """The same columns with the answer of the records: its labels, or its mean and scale when it is a number."""
    name = required_answer(records)
    if records.fields[name] == "image":
        raise BadInput(f"the answer '{name}' holds images; a table model answers with a category or a number",
                       hint="--answer NAME")
    if records.fields[name] != "number":
        return replace(table, answer=name, labels=tuple(labels_of(records)), mean=0.0, scale=1.0)
    values = as_floats(list(records.column(name)))
    if empty := int(np.isnan(values).sum()):
        raise BadInput(f"'{name}' is empty in {empty} of {len(values)} rows, first in row "
                       f"{int(np.isnan(values).argmax())}", hint="fill in or drop those rows")
    return replace(table, answer=name, labels=(), mean=float(values.mean()), scale=scale_of(values))


def learn_number(name: str, rows: list[Record], num_bins: int) -> Column:
    values = as_floats([row[name] for row in rows])
    values = values[~np.isnan(values)]
    if not len(values):
        return Column(name, "number")
    return Column(name, "number", float(values.mean()), scale_of(values), tuple(edges_of(values, num_bins).tolist()))


def edges_of(values: np.ndarray, num_bins: int) -> np.ndarray:
    """Rising borders of at most `num_bins` bins: half of them at equal shares of the rows, half at equal shares of the
    distinct values, so that a column that is mostly zero still has bins where it is not."""
    if not num_bins:
        return values[:0]
    shares = [np.linspace(0, 1, part + 1) for part in (num_bins - num_bins // 2, num_bins // 2)]
    return np.unique([*np.quantile(values, shares[0]), *np.quantile(np.unique(values), shares[1])])


def learn_category(name: str, rows: list[Record]) -> Column:
    """Keeps categories seen twice and in one row of 10,000; the rare ones teach the code for unknown ones."""
    counts = Counter(as_label(row[name]) for row in rows)
    counts.pop(None, None)
    often = sorted((-count, label) for label, count in counts.items() if count >= max(2, len(rows) / 10_000))
    kept = sorted((label for _, label in often[:MAX_CATEGORIES]), key=numeric_first)
    return Column(name, "category", categories=tuple(kept))


def scale_of(values: np.ndarray) -> float:
    """The standard deviation; 1 where there is none."""
    scale = float(values.std())
    return scale if np.isfinite(scale) and scale > 1e-12 * float(np.abs(values).max()) else 1.0


# -------------------------------------------------------------------------------------------------------------- arrays

def as_floats(values: Sequence[Any]) -> np.ndarray:
    """float64; NaN for what is missing or not finite."""
    array = np.array(values, dtype=np.float64)
    array[~np.isfinite(array)] = np.nan
    return array


def number_array(records: Sequence[Record], table: Table) -> np.ndarray:
    """(B, N) float64 in the columns' own units, NaN where missing."""
    columns = [as_floats([record.get(column.name) for record in records]) for column in table.numbers]
    return np.stack(columns, axis=1)


def code_array(records: Sequence[Record], table: Table) -> np.ndarray:
    """(B, C) int64: MISSING, UNKNOWN or a known category."""
    columns = [codes_of([record.get(column.name) for record in records], column.codes) for column in table.categories]
    return np.stack(columns, axis=1)


def codes_of(values: list, codes: dict[str, int]) -> np.ndarray:
    """(B,) int64. A value that is not itself a known category is looked up as a label: 1.0 is '1', NaN is missing."""
    return np.array([codes[value] if value in codes else
                     MISSING if (label := as_label(value)) is None else codes.get(label, UNKNOWN)
                     for value in values], dtype=np.int64)


def answer_tensors(records: Sequence[Record], table: Table) -> Batch:
    """{} unless every record has the answer. `answer` (B,): the label's place, or the number; with a number goes
    `unit` (B,), its standard deviation in training, so that a loss has no unit."""
    values = [as_label(record.get(table.answer)) for record in records]
    if None in values:
        return {}
    if table.labels:
        return {"answer": torch.tensor([table.label_codes[value] for value in values])}
    numbers = as_floats([record[table.answer] for record in records])
    return {"answer": torch.from_numpy(numbers).float(), "unit": torch.full((len(numbers),), table.scale)}


def loss(values: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """values (B, 1, D) -> (total (B,), count (B,)): cross entropy, or the squared error in units of the spread."""
    if "unit" in batch:
        total = ((values[:, 0, 0] - batch["answer"]) / batch["unit"]).square()
    else:
        total = nn.functional.cross_entropy(values[:, 0], batch["answer"], reduction="none")
    return total, torch.ones_like(total)


# --------------------------------------------------------------------------------------------------------------- facts

def fields(table: Table) -> tuple[dict[str, Kind], tuple[str, Kind]]:
    return ({column.name: column.kind for column in table.columns},
            (table.answer, "category" if table.labels else "number"))


def kind(table: Table) -> Literal["logits", "values"]:
    return "logits" if table.labels else "values"


def axis(table: Table) -> Hashable:
    return table.labels or (table.answer,)


def headline(table: Table) -> tuple[str, Literal["up", "down"]]:
    return ("accuracy", "up") if table.labels else ("rmse", "down")


def answered(values_of: Callable[[Sequence[Record]], Tensor], table: Table, records: Sequence[Record]) -> list[Record]:
    """The records with the answer and its scores: {label: probability}, or the number itself. `values_of` gives
    (B, 1, D)."""
    filled: list[Record] = []
    for start in range(0, len(records), CHUNK):
        part = records[start:start + CHUNK]
        values = values_of(part)[:, 0].double()
        if table.labels:
            scores = [dict(zip(table.labels, row)) for row in values.softmax(-1).tolist()]
            answers = [table.labels[place] for place in values.argmax(-1).tolist()]
        else:
            scores = answers = values[:, 0].tolist()
        filled += [{**record, table.answer: answer, f"{table.answer}_scores": score}
                   for record, answer, score in zip(part, answers, scores)]
    return filled


def toy(n: int, seed: int) -> Records:
    """Two classes in turn, drawn around unlike means and habits; one value in ten is missing."""
    draw = np.random.default_rng(seed)
    rows: list[Record] = []
    for i in range(n):
        positive = i % 2
        row = {"height": float(draw.normal(positive, 0.8)), "weight": float(draw.normal(50 - 20 * positive, 15)),
               "color": str(draw.choice(["red", "green", "blue"], p=[0.2, 0.2, 0.6] if positive else [0.5, 0.3, 0.2])),
               "shape": str(draw.choice(["round", "square"]))}
        rows.append({**{name: None if draw.random() < 0.1 else value for name, value in row.items()},
                     "label": "yes" if positive else "no"})
    kinds: dict[str, Kind] = {"height": "number", "weight": "number", "color": "category", "shape": "category",
                              "label": "category"}
    return records_of(rows, kinds, "label")


# -------------------------------------------------------------------------------------------------------------- scores

def score(records: Sequence[Record], answers: Sequence[Record], table: Table) -> dict[str, float]:
    """accuracy, log_loss, macro_f1, auc; or rmse, mae, r2. auc and r2 are left out where the records do not define
    them: one class only, or no spread."""
    name = table.answer
    if not table.labels:
        return number_scores(as_floats([r[name] for r in records]), as_floats([a[name] for a in answers]))
    truth = codes_of_labels(records, table)
    chances = np.array([[answer[f"{name}_scores"][label] for label in table.labels] for answer in answers])
    return label_scores(truth, codes_of_labels(answers, table), chances)


def codes_of_labels(records: Sequence[Record], table: Table) -> np.ndarray:
    return np.array([table.label_codes[str(as_label(record[table.answer]))] for record in records])


def number_scores(truth: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """truth, found (B,)."""
    error, spread = found - truth, float(((truth - truth.mean()) ** 2).sum())
    scores = {"rmse": float(np.sqrt((error**2).mean())), "mae": float(np.abs(error).mean())}
    return scores | ({"r2": 1 - float((error**2).sum()) / spread} if spread else {})


def label_scores(truth: np.ndarray, found: np.ndarray, chances: np.ndarray) -> dict[str, float]:
    """truth, found (B,) label places; chances (B, L) probabilities. macro_f1 is over the labels that occur in either,
    auc is of the second label of two, else the mean of one against the rest over the labels that occur."""
    own = np.clip(chances[np.arange(len(truth)), truth], 1e-15, 1)
    scores = {"accuracy": float((truth == found).mean()), "log_loss": float(-np.log(own).mean()),
              "macro_f1": float(np.mean([f1(truth == place, found == place) for place in np.union1d(truth, found)]))}
    places = np.unique(truth)
    if len(places) < 2:
        return scores
    judged = places[-1:] if chances.shape[1] == 2 else places
    return scores | {"auc": float(np.mean([auc(truth == place, chances[:, place]) for place in judged]))}


def f1(truth: np.ndarray, found: np.ndarray) -> float:
    """truth, found (B,) bool, at least one of them true somewhere."""
    return 2 * float((truth & found).sum()) / float(truth.sum() + found.sum())


def auc(positive: np.ndarray, chances: np.ndarray) -> float:
    """The share of pairs (positive, negative) in the right order, ties half: Mann and Whitney 1947, by mean ranks."""
    _, place, counts = np.unique(chances, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))
