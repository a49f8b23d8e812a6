"""Tables: csv, tsv, parquet and jsonl as records, with the kind of each column inferred."""

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from .. import sounds
from ..data import SPLITS, Kind, Record, Records, as_label, guess_answer
from ..errors import BadInput
from ..windows import series_of
from .folders import decode_image
from .rows import rows_of

TABLES = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson")
SHARD = re.compile(r"(?P<split>[A-Za-z_]+)-\d{5}(?:-of-\d{5})?\.parquet")
MOST_CLASSES = 30  # different whole numbers that an answer may have and still mean classes


def read_parts(paths: list[Path]) -> tuple[Records, dict[str, Sequence[int]]]:
    """A train and a test table as one, with the division kept."""
    tables = [scan(path) for path in paths]
    columns = [guarded(path, lambda table=table: table.collect_schema().names()) for path, table in zip(paths, tables)]
    if columns[0] != columns[1]:
        raise BadInput(f"{paths[0]} and {paths[1]} have unlike columns: {columns[0]} and {columns[1]}")
    records = from_table(tables, paths[0].parent)
    border = guarded(paths[0], lambda: tables[0].select(pl.len()).collect().item())
    return records, {"train": range(border), "test": range(border, len(records))}


def shards_of(folder: Path) -> dict[str, list[Path]]:
    """{split: its parquet files} of a folder whose tables are cut in pieces, NAME-00000.parquet or, as the Hub has them,
    NAME-00000-of-00007.parquet, in itself or in its folder `data`; {} where it holds none."""
    for place in (folder / "data", folder):
        found: dict[str, list[Path]] = {}
        for path in sorted(place.glob("*.parquet")) if place.is_dir() else ():
            if named := SHARD.fullmatch(path.name):
                found.setdefault(named["split"], []).append(path)
        if found:
            return found
    return {}


def read_shards(shards: dict[str, list[Path]]) -> tuple[Records, dict[str, Sequence[int]]]:
    """All splits as one table; divided as they are where there are data to train with and to test with."""
    order = [name for name in SPLITS if name in shards]
    order += [name for name in shards if name not in order]
    tables = {name: [scan(path) for path in shards[name]] for name in order}
    folder = shards[order[0]][0].parent
    records = from_table([table for name in order for table in tables[name]], folder)
    if not {"train", "test"} <= shards.keys():
        return records, {}
    lengths = [
        guarded(folder, lambda name=name: pl.concat(tables[name]).select(pl.len()).collect().item()) for name in order
    ]
    ends = np.cumsum(lengths).tolist()
    return records, {
        name: range(end - length, end) for name, length, end in zip(order, lengths, ends) if name in SPLITS
    }


def scan(path: Path) -> pl.LazyFrame:
    """The table, not read yet."""
    if path.stat().st_size == 0:
        raise BadInput(f"{path} is empty")
    ending = path.suffix.lower()
    if ending == ".parquet":
        return guarded(path, lambda: pl.scan_parquet(path, glob=False))
    if ending in (".csv", ".tsv"):
        separator = "\t" if ending == ".tsv" else ","
        return guarded(path, lambda: pl.scan_csv(path, separator=separator, infer_schema_length=10_000, glob=False))
    return guarded(path, lambda: pl.scan_ndjson([path], infer_schema_length=10_000))


def guarded(path: Path, read: Callable[[], Any]) -> Any:
    """What `read` gives; whatever the library cannot read becomes BadInput, a panic of its native code too."""
    try:
        with silenced():
            return read()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        hint = f"iconv -f CP949 -t UTF-8 {path}, or whatever its encoding is" if "utf-8" in reason.lower() else ""
        raise BadInput(f"{path} cannot be read as a table: {reason}", hint=hint) from error


@contextmanager
def silenced() -> Iterator[None]:
    """Native code writes to no stderr: a panic tells there where it happened, before we can say what it means. For the
    opening of a source alone, while nothing else speaks."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def from_table(parts: list[pl.LazyFrame], path: Path) -> Records:
    """Records of one table in one or more parts, with the kind of each column inferred."""
    table = pl.concat(parts, how="vertical_relaxed")
    head = guarded(path, lambda: table.head(1000).collect())
    if not head.columns:
        raise BadInput(f"{path} has no columns")
    if any("\0" in name or "\ufffd" in name for name in head.columns):  # the header alone is read forgivingly
        raise BadInput(f"{path}: the names of its columns are not UTF-8", hint=f"iconv -f CP949 -t UTF-8 {path}")
    fields: dict[str, Kind] = {name: kind_of(head[name], name) for name in head.columns}
    numbers = [name for name, kind in fields.items() if kind == "number"]
    infinite = guarded(path, lambda: table.select(pl.col(numbers).cast(pl.Float64).is_infinite().any()).collect())
    if faults := [f"{path}: the column '{name}' holds infinite numbers" for name in numbers if infinite[name].any()]:
        raise BadInput(*faults)
    count, take = guarded(path, lambda: rows_of(table, path))

    def get(rows: Sequence[int], names: Collection[str]) -> list[Record]:
        frame = take(rows)
        columns = [read_column(frame[name], fields[name], path, rows) for name in names]
        return [dict(zip(names, values)) for values in zip(*columns)]

    return Records(get, range(count), fields, guess_answer(fields), take)


# ---------------------------------------------------------------------------------------------------- columns


def kind_of(column: pl.Series, name: str) -> Kind:
    if column.dtype.is_numeric():
        return "number"
    if column.dtype == pl.Binary or (isinstance(column.dtype, pl.Struct) and "bytes" in column.struct.fields):
        files = bytes_of(column).drop_nulls()
        return "audio" if len(files) and sounds.is_sound(files[0]) else "image"
    if holds_series(column.dtype):
        return "series"
    if column.dtype != pl.String:
        return "category"
    words = column.drop_nulls()
    long = (words.str.len_chars().mean() or 0) > 20  # type: ignore[operator]
    many = words.n_unique() > 0.5 * max(len(words), 1) and len(words) >= 20
    return "text" if long or many or name.lower() in ("text", "document", "sentence", "prompt") else "category"


def holds_series(kind: pl.DataType) -> bool:
    """Whether a cell is a list of numbers, or of lists of them."""
    inner = kind.inner if isinstance(kind, (pl.List, pl.Array)) else None
    return inner is not None and (inner.is_numeric() or holds_series(inner))  # type: ignore[union-attr, arg-type]


def holds_classes(values: Iterable[float | None]) -> bool:
    """Whole numbers of few different values are classes, not quantities."""
    seen, count = set(), 0
    for value in values:
        count += 1
        if value is not None and (value % 1 or len(seen) > MOST_CLASSES):
            return False
        seen.add(value)
    return len(seen) < 0.2 * count


def bytes_of(column: pl.Series) -> pl.Series:
    """The content of files, which a column holds itself or in its member `bytes`."""
    return column if column.dtype == pl.Binary else column.struct.field("bytes")


def read_column(column: pl.Series, kind: Kind, path: Path, rows: Sequence[int]) -> list:
    """The values of a part of a column; `rows`: where they stand in the table."""
    if kind == "number" and column.dtype.is_integer():
        return column.to_list()
    if kind == "number":
        return [None if v is None or v != v else float(v) for v in column.to_list()]
    if kind == "image":
        return [decode_image(v, path) for v in bytes_of(column).to_list()]
    if kind == "audio":
        return [sounds.decode_sound(v, f"{path}, row {row},") for v, row in zip(bytes_of(column).to_list(), rows)]
    if kind == "series":
        return [series_of(v, f"{path}, row {row},") for v, row in zip(column.to_list(), rows)]
    if kind == "category":
        return [as_label(v) for v in column.to_list()]
    return [v or "" for v in column.to_list()]
