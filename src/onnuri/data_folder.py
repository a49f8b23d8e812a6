"""A folder of data that an operation gave: the records in parquet pieces, and those that were taken out beside them.

`data/train-00000.parquet` and on is what opens as data, here and in the Hub's own library; `removed/removed-00000.parquet` has what
was taken out, each record with its row and why.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl

from .data import Data, Record, Records
from .files import fresh_folder
from .operation import Part

PIECE = 2**26  # bytes of records in a file, about
REASONS = {"row": pl.Int64, "reason": pl.String, "detail": pl.String, "like": pl.Int64}
KINDS = {"number": pl.Float64}


def write_parts(parts: Iterable[Part], source: Data, folder: Path) -> None:
    """Write all parts as they come: the rows of `source`, with the types that they have there, and what was changed in them."""
    kept = Pieces(folder / "data", "train")
    removed = Pieces(folder / "removed", "removed")
    for part in parts:
        kept.add(changed(source.records, part.rows, part.kept, {}))
        rows = [one["removed_row"] for one in part.removed]
        removed.add(
            changed(source.records, rows, part.removed, {f"removed_{name}": of for name, of in REASONS.items()})
        )
    kept.write()
    removed.write()


def changed(records: Records, rows: list[int], fields: list[Record], added: dict[str, Any]) -> pl.DataFrame:
    """Rows of the source with other values in the fields that each record names; `added`: {field that is new: its type}."""
    names = [name for name in (fields[0] if fields else ()) if name not in added]
    frame = records.table(rows) if records.table else beside(records, rows, names)
    missing = {name: frame[name].is_null() for name in names}
    kinds = dict.fromkeys(names, pl.String) | added
    found = {name: pl.Series(name, [one[name] for one in fields], kind) for name, kind in kinds.items()}
    found |= {name: found[name].set(missing[name] & (found[name] == ""), None) for name in names}
    return frame.with_columns(*found.values())


def beside(records: Records, rows: list[int], names: list[str]) -> pl.DataFrame:
    """The columns of records that lie in no table, those in `names` empty: a document would be read a second time for them."""
    others = [name for name in records.fields if name not in names]
    found = records.get([records.rows[row] for row in rows], others) if others else [{} for _ in rows]
    schema = {name: KINDS.get(kind, pl.String) for name, kind in records.fields.items()}
    return pl.DataFrame([{name: one.get(name) for name in schema} for one in found], schema=schema)


class Pieces:
    """Files of one table in a folder that is made for the first, each begun when the one before is large enough."""

    def __init__(self, folder: Path, split: str):
        self.folder, self.split, self.number = folder, split, 0
        self.frames = list[pl.DataFrame]()

    def add(self, frame: pl.DataFrame) -> None:
        if len(frame):
            self.frames.append(frame)
        if sum(frame.estimated_size() for frame in self.frames) >= PIECE:
            self.write()

    def write(self) -> None:
        if self.frames:
            folder = self.folder if self.number else fresh_folder(self.folder)
            pl.concat(self.frames).write_parquet(
                folder / f"{self.split}-{self.number:05d}.parquet", compression_level=3
            )
            self.frames, self.number = [], self.number + 1
