"""A folder of data that an operation gave: the records in parquet pieces, and those that were taken out beside them.

`data/train-00000.parquet` and on is what opens as data, here and in the Hub's own library; `removed/removed-00000.parquet` has what
was taken out, each record with its row and why.
"""

from collections.abc import Iterable
from pathlib import Path

import polars as pl

from .data import Record
from .files import fresh_folder
from .operation import Part

PIECE = 2**26  # bytes of records in a file, about
PLACES = {"kept": ("data", "train"), "removed": ("removed", "removed")}


def write_parts(parts: Iterable[Part], folder: Path) -> None:
    """Write all parts as they come."""
    pieces = {name: Pieces(fresh_folder(folder / place), split) for name, (place, split) in PLACES.items()}
    for part in parts:
        pieces["kept"].add(part.kept)
        pieces["removed"].add(part.removed)
    for one in pieces.values():
        one.write()
    if not pieces["removed"].number:
        pieces["removed"].folder.rmdir()


class Pieces:
    """Files of one table, each begun when the one before is large enough."""

    def __init__(self, folder: Path, split: str):
        self.folder, self.split, self.number = folder, split, 0
        self.frames = list[pl.DataFrame]()

    def add(self, records: list[Record]) -> None:
        if records:
            self.frames.append(pl.DataFrame(records, infer_schema_length=None))
        if sum(frame.estimated_size() for frame in self.frames) >= PIECE:
            self.write()

    def write(self) -> None:
        if self.frames:
            frame = with_whole_numbers(pl.concat(self.frames, how="vertical_relaxed"))
            frame.write_parquet(self.folder / f"{self.split}-{self.number:05d}.parquet", compression_level=3)
            self.frames, self.number = [], self.number + 1


def with_whole_numbers(frame: pl.DataFrame) -> pl.DataFrame:
    """Columns of whole numbers as such: records hold every number as a float."""
    floats = [name for name, kind in frame.schema.items() if kind == pl.Float64]
    whole = [name for name in floats if (frame[name].drop_nulls() % 1 == 0).all()]
    return frame.with_columns(pl.col(whole).cast(pl.Int64))
