"""Records: what a model is trained on and asked. Fields have kinds, one field is the answer, splits are made by hash.

A record is a dict of fields. The kinds of a field and the Python value that a record holds:
`number` float, int in a column of whole numbers, or None, `category` str or None, `text` str,
`image` numpy uint8 (height, width) or (height, width, 3), `audio` a Sound, `series` numpy float32 (times, channels).
Reading the formats is the work of `sources`.
"""

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, overload

import numpy as np

from .errors import BadInput, BadSettings, propose

Kind = Literal["number", "category", "text", "image", "audio", "series"]
Record = dict[str, Any]
Get = Callable[[Sequence[int], Collection[str]], list[Record]]
SPLITS = ("train", "validation", "test")
SHARES = (0.7, 0.1, 0.2)
ANSWER_NAMES = ("label", "labels", "target", "class", "answer", "y", "income")


class Sound(NamedTuple):
    """One channel of sound: samples (times,) float32 in -1..1, and how many of them make a second."""

    samples: np.ndarray
    rate: int


class Records(Sequence):
    """Rows that are decoded when asked for. `get`: (rows, names of the fields wanted) -> records; `fields`: {name:
    kind} in column order; `answer`: the answer's field; `table`: rows -> the table's own, where it is one that was read."""

    def __init__(
        self,
        get: "Get",
        rows: Sequence[int],
        fields: dict[str, Kind],
        answer: str | None,
        table: Callable[[Sequence[int]], Any] | None = None,
    ):
        self.get, self.rows, self.fields, self.answer, self.table = get, rows, fields, answer, table

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice | Sequence[int] | np.ndarray) -> "Records": ...
    def __getitem__(self, index):
        if isinstance(index, int):
            return self.get([self.rows[index]], self.fields)[0]
        rows = self.rows[index] if isinstance(index, slice) else [self.rows[i] for i in index]
        return Records(self.get, rows, self.fields, self.answer)

    def __iter__(self) -> Iterator[Record]:
        for start in range(0, len(self), 1024):
            yield from self.list(slice(start, start + 1024))

    def list(self, part: slice = slice(None)) -> list[Record]:
        """The records of `part` as a list; one read of the source."""
        return self.get(self.rows[part], self.fields)

    def some(self, most: int) -> "Records":
        """At most `most` records, evenly spaced: the first ones of a sorted source would all be alike."""
        return self if len(self) <= most else self[np.linspace(0, len(self) - 1, most).astype(int)]

    @property
    def questions(self) -> dict[str, Kind]:
        """The fields that are not the answer."""
        return {name: kind for name, kind in self.fields.items() if name != self.answer}

    def column(self, name: str) -> Iterator[Any]:
        """The values of one field, streamed; no other field is read or decoded."""
        for start in range(0, len(self), 4096):
            yield from (record[name] for record in self.get(self.rows[start : start + 4096], (name,)))


def records_of(rows: list[Record], fields: dict[str, Kind], answer: str | None) -> Records:
    """Records that already lie in memory."""

    def get(indices: Sequence[int], names: Collection[str]) -> list[Record]:
        if len(names) == len(fields):
            return [rows[i] for i in indices]
        return [{name: rows[i].get(name) for name in names} for i in indices]

    return Records(get, range(len(rows)), fields, answer)


def joined(one: Records, other: Records) -> Records:
    """The records of both, those of `one` first, with the fields of `one`."""

    def get(places: Sequence[int], names: Collection[str]) -> list[Record]:
        first = [one.rows[place] for place in places if place < len(one)]
        rest = [other.rows[place - len(one)] for place in places if place >= len(one)]
        found = iter(one.get(first, names) if first else []), iter(other.get(rest, names) if rest else [])
        return [next(found[place >= len(one)]) for place in places]

    return Records(get, range(len(one) + len(other)), one.fields, one.answer)


@dataclass(frozen=True)
class Data:
    """An opened source. `records`: with the columns that were chosen; `source`: with all of them; `official`: {split:
    rows} where the source itself says which rows are for testing, and perhaps which for validation."""

    name: str
    records: Records
    official: dict[str, Sequence[int]]
    source: Records
    whole: bool = False
    """Whether each record is a whole document, which is dear to read: its files tell it from others, not its rows."""

    @cached_property
    def row_digests(self) -> np.ndarray:
        """(rows,) uint64: a digest of each row's content, the same wherever the row stands, whatever row is near and
        whichever columns were chosen."""
        rows = self.source
        return np.fromiter((digest_of(record) for record in rows), dtype=np.uint64, count=len(rows))

    @cached_property
    def digest(self) -> str:
        """A digest of all rows and of the split that each is in, stable under row order; 64 hexadecimal digits."""
        state = hashlib.sha256()
        for name, rows in sorted(self.parts.items()):
            state.update(name.encode() + np.sort(self.row_digests[rows]).tobytes())
        return state.hexdigest()

    @cached_property
    def parts(self) -> dict[str, np.ndarray]:
        """{split: its rows}. Where these are not given, equal rows always fall into the same split: none leaks."""
        if "validation" in self.official:
            return {name: np.asarray(self.official[name]) for name in SPLITS}
        position = self.row_digests / 2.0**64
        if self.official:
            train = np.asarray(self.official["train"])
            held = position[train] < SHARES[1]
            return {"train": train[~held], "validation": train[held], "test": np.asarray(self.official["test"])}
        edges = np.cumsum(SHARES)
        return {
            name: np.flatnonzero((position >= edge - share) & (position < edge))
            for name, share, edge in zip(SPLITS, SHARES, edges)
        }

    def split(self, name: str) -> Records:
        """One split by name, or `all`. An empty one is an error that says how many rows there are."""
        if name not in (*SPLITS, "all"):
            raise BadSettings(f"no split is called '{name}'; {propose(name, (*SPLITS, 'all'))}")
        part = self.records if name == "all" else self.records[self.parts[name]]
        if not len(part):
            raise BadInput(
                f"{self.name}: the {name} split is empty ({len(self.records)} rows in all)", hint="more rows"
            )
        return part


def digest_of(record: Record) -> int:
    """64 bits of a record's content."""
    state = hashlib.blake2b(digest_size=8)
    for name in sorted(record):
        value = record[name]
        if isinstance(value, Sound):
            name, value = f"{name}{value.rate}", value.samples
        if type(value) is int:
            value = float(value)  # a column of whole numbers has points in one file and none in another
        if isinstance(value, np.ndarray):
            state.update(f"{name}{value.shape}".encode() + value.tobytes())
        else:
            state.update(f"{name}\0{value!r}\0".encode())
    return int.from_bytes(state.digest(), "little")


def guess_answer(fields: dict[str, Kind]) -> str | None:
    """The field that is probably the answer: a customary name; else the last one where none is free text."""
    named = [name for name in fields if name.lower() in ANSWER_NAMES]
    if named:
        return named[0]
    return list(fields)[-1] if "text" not in fields.values() and len(fields) > 1 else None


def check_fields(records: Records, question: dict[str, Kind], answer: tuple[str, Kind] | None) -> None:
    """Error unless every field asked for is there with its kind. All the faults at once, with the likely remedy."""
    wanted = question | (dict([answer]) if answer else {})
    faults = [
        f"the column '{name}' ({kind}) is missing; {propose(name, records.fields)}"
        for name, kind in wanted.items()
        if name not in records.fields
    ]
    faults += [
        f"the column '{name}' holds {records.fields[name]}, but this model asks for {kind}"
        for name, kind in wanted.items()
        if name in records.fields and not fits(records.fields[name], kind)
    ]
    if faults:
        windows = "series" in wanted.values() and "series" not in records.fields.values()
        hint = "--window PAST,FUTURE, or" if windows else "rename the columns, or say"
        raise BadInput(*faults, hint=f"{hint} --fields NAME=KIND,... and --answer NAME")


def fits(found: Kind, wanted: Kind) -> bool:
    """Whether values of one kind can be read as another: words may serve as text, numbers as categories."""
    return found == wanted or (found, wanted) in {("category", "text"), ("text", "category"), ("number", "category")}


def check_answers(records: Records, name: str, labels: Sequence[str]) -> None:
    """Error when an answer is missing or is a label that the model does not know."""
    values = [as_label(value) for value in records.column(name)]
    unseen = sorted({value for value in values if value is not None} - set(labels))
    faults = []
    if None in values:
        faults.append(missing_answers(records, name, values))
    if unseen:
        faults.append(
            f"'{name}' has labels that the model never saw: {', '.join(map(repr, unseen[:8]))}"
            f"{' ...' if len(unseen) > 8 else ''}; it knows {', '.join(map(repr, labels[:12]))}"
        )
    if faults:
        raise BadInput(*faults, hint="correct the rows, or train a new head with --new-head")


def missing_answers(records: Records, name: str, values: list) -> str:
    """A fault: how many answers are missing, and where the first of them stands in the source."""
    first = records.rows[values.index(None)]
    return f"'{name}' is empty in {values.count(None)} of {len(values)} rows, first in row {first}"


def check_numbers(records: Records, name: str) -> None:
    """Error when an answer that is a number is missing."""
    values = list(records.column(name))
    if None in values:
        raise BadInput(missing_answers(records, name, values), hint="fill in or drop those rows")


def labels_of(records: Records) -> list[str]:
    """The labels of a classification in sorted order. Error when none, one, or a missing one is found."""
    name = required_answer(records)
    if records.fields[name] not in ("category", "number", "text"):
        raise BadInput(f"'{name}' holds {records.fields[name]}; classes are words or numbers", hint="--answer NAME")
    values = [as_label(value) for value in records.column(name)]
    labels = sorted({value for value in values if value is not None}, key=numeric_first)
    if None in values:
        raise BadInput(missing_answers(records, name, values), hint="fill in or drop those rows")
    if len(labels) < 2:
        raise BadInput(
            f"'{name}' has only one class ({labels[0] if labels else 'none'}); nothing can be learnt",
            hint="data with two classes or more, or another column: --answer NAME",
        )
    return labels


def required_answer(records: Records) -> str:
    """The name of the answer's field; an error says how to name it."""
    if records.answer is None:
        raise BadInput(f"it is not clear which column is the answer: {', '.join(records.fields)}", hint="--answer NAME")
    return records.answer


def as_label(value: Any) -> str | None:
    """A category as text; None where it is missing. Whole floats lose their point, so that 1.0 and 1 are one label."""
    if value is None or value != value:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)


def numeric_first(label: str) -> tuple[bool, float, str]:
    """Sorting key: numbers by value, then words."""
    try:
        return (False, float(label), label)
    except ValueError:
        return (True, 0.0, label)
