"""A folder of data that an operation gave: the records in parquet pieces, those that were taken out beside them, and a card.

`data/train-00000.parquet` and on is what opens as data, here and in the Hub's own library; `removed/removed-00000.parquet` has what
was taken out, each record with its row and why. The card is written from the ledger and from nothing else.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl

from .card import cell, life
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


# ------------------------------------------------------------------------------------------------------------------ card


def card(lines: list[dict[str, Any]]) -> str:
    """Markdown with the front matter that the Hugging Face Hub reads. `lines`: the ledger, the newest last."""
    found = lines[-1]["found"]
    spoken = [name for name in found["languages"] if len(name) == 2]
    edited = [f"- {name}: {count:,}" for name, count in found["edited"].items()]
    return "\n".join(
        [
            "---",
            *(["language:", *(f"- {name}" for name in spoken)] if spoken else []),
            "configs:",
            "- config_name: default",
            "  data_files: data/*.parquet",
            "---",
            "",
            f"# Data, {lines[-1]['operation']}",
            "",
            f"**{found['summary']}**. From: {', '.join(cell(one['path']) for one in lines[-1]['inputs'])}.",
            "",
            *table(
                "score, 0 to 1", "value", {name: value for name, value in found["scores"].items() if value is not None}
            ),
            *table("removed for", "documents", found["removed"]),
            *table("rule", "bounds", found["rules"]["bounds"]),
            *(["## Changed in what was kept", "", *edited, ""] if edited else []),
            "Whoever uses these data needs the right to: no license is known here, and none is given.",
            "",
            "## Life",
            "",
            "| # | operation | data | score | seconds | energy |",
            "|---|---|---|---|---|---|",
            *(life(number, line) for number, line in enumerate(lines, 1)),
            "",
            "What was removed, and why, record by record: `removed/`. Evidence: `onnuri/ledger.jsonl`. Check it with "
            "`onnuri verify`.",
            "",
        ]
    )


def table(name: str, value: str, rows: dict[str, Any]) -> list[str]:
    """Nothing where there are no rows."""
    if not rows:
        return []
    texts = [
        f"| {cell(key)} | {json.dumps(one) if not isinstance(one, str) else cell(one)} |" for key, one in rows.items()
    ]
    return [f"| {name} | {value} |", "|---|---|", *texts, ""]
