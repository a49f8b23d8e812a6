"""Documents in batches of about a million characters, in their order; one that cannot be read is told of, and is not the end."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate

from ...data import Record, Records
from ...errors import BadInput, BadSettings, MissingExtra, Refusal, propose
from ...sources.documents import LONGEST

CHARACTERS = 2**20  # of a batch: what is computed of each then lies in a cache
FIRST, MOST = 64, 16_384  # documents of the first batch, and of any
PLAIN = ("text", "category", "number")
NAMES = ("text", "document", "content", "body")
SAMPLE, FAR = 100, 3


@dataclass(frozen=True)
class Read:
    """Documents as they were read. `faults`: {place in the batch: why it could not be read}; its text is "" then. `together`: the
    rows that were read at once, of which these are some."""

    rows: range
    records: list[Record]
    faults: dict[int, str]
    together: range


def column_of(records: Records, asked: str) -> str:
    """The column that holds the texts. Refusal where these data hold none, or something that is no text besides."""
    if odd := [f"'{name}' ({kind})" for name, kind in records.fields.items() if kind not in PLAIN]:
        raise Refusal(
            f"only texts can be cleaned; these data hold {', '.join(odd)}",
            "data of texts, with labels or figures beside",
        )
    texts = text_columns(records)
    if "removed_reason" in records.fields:
        raise BadInput("these data were removed by a cleaning", hint="the folder of data that is above them")
    if asked and asked not in records.fields:
        raise BadSettings(f"there is no column '{asked}'; {propose(asked, records.fields)}")
    if asked and records.fields[asked] == "number":
        raise BadSettings(
            f"the column '{asked}' holds numbers", hint=f"--text {texts[0]}" if texts else "a column of texts"
        )
    if not texts and not asked:
        raise Refusal(
            "these data hold no column of texts", "documents, or --text NAME where a column of words is meant"
        )
    return asked or longest(records, texts)


def text_columns(records: Records) -> list[str]:
    return [name for name, kind in records.fields.items() if kind == "text"]


def longest(records: Records, texts: list[str]) -> str:
    """Of several columns the one that is called as texts are, or whose texts are far longer than the others'."""
    if named := [name for name in texts if name.lower() in NAMES] if len(texts) > 1 else texts:
        return named[0]
    some = read(records.some(SAMPLE), range(min(SAMPLE, len(records)))).records
    lengths = sorted((sum(len(record[name]) for record in some), name) for name in texts)
    if lengths[-1][0] < FAR * lengths[-2][0]:
        raise BadInput(f"these data hold several columns of texts: {', '.join(texts)}", hint=f"--text {texts[0]}")
    return lengths[-1][1]


def batches(records: Records, column: str, first: range = range(FIRST)) -> Iterator[Read]:
    """All documents from the `first` that are read together, some CHARACTERS of them at once, one at least; how many are read
    together follows from those before."""
    start, size = first.start, len(first)
    while start < len(records):
        rows = range(start, min(start + size, len(records)))
        found = shortened(read(records, rows), column)
        yield from cut(found, column)
        long = sum(len(record[column]) for record in found.records) / len(rows)
        start, size = rows.stop, max(1, min(MOST, 4 * size, int(CHARACTERS / max(long, 1))))


def cut(batch: Read, column: str) -> Iterator[Read]:
    """The same in parts of CHARACTERS, but for a document that has more by itself."""
    ends = list(accumulate(len(record[column]) for record in batch.records))
    first = 0
    while first < len(ends):
        before = ends[first - 1] if first else 0
        last = max(first + 1, bisect_right(ends, before + CHARACTERS))
        faults = {place - first: fault for place, fault in batch.faults.items() if first <= place < last}
        yield replace(batch, rows=batch.rows[first:last], records=batch.records[first:last], faults=faults)
        first = last


def shortened(batch: Read, column: str) -> Read:
    """The same, without the texts that are too long for any document."""
    lengths = {place: len(record[column]) for place, record in enumerate(batch.records)}
    faults = {
        place: f"{length:,} characters, at most {LONGEST:,}" for place, length in lengths.items() if length > LONGEST
    }
    records = [{**one, column: ""} if place in faults else one for place, one in enumerate(batch.records)]
    return replace(batch, records=records, faults=batch.faults | faults) if faults else batch


def read(records: Records, rows: range) -> Read:
    """Some documents; where one cannot be read, each by itself. BadInput where a library is missing: all would be lost."""
    try:
        return Read(rows, texts_alone(records.list(slice(rows.start, rows.stop)), records), {}, rows)
    except MissingExtra:
        raise
    except BadInput:
        each = [read_one(records, row) for row in rows]
    faults = {place: fault for place, (_, fault) in enumerate(each) if fault}
    return Read(rows, texts_alone([record for record, _ in each], records), faults, rows)


def read_one(records: Records, row: int) -> tuple[Record, str]:
    """(a record, ""), or (what can be had of it, why it could not be read)."""
    try:
        return records[row], ""
    except MissingExtra:
        raise
    except BadInput as error:
        return {name: beside(records, row, name) for name in records.fields}, " ".join(error.faults)


def beside(records: Records, row: int, name: str):
    """A field of a record of which another cannot be read."""
    try:
        return records.get([records.rows[row]], (name,))[0][name]
    except BadInput:
        return None


def texts_alone(found: list[Record], records: Records) -> list[Record]:
    """The same with "" for a text that is not there."""
    texts = [name for name, kind in records.fields.items() if kind != "number"]
    return [{**record, **{name: record[name] or "" for name in texts}} for record in found]
