"""A folder of data that an operation gave: the records in parquet pieces, and those that were taken out beside them.

`data/train-00000.parquet` and on is what opens as data, here and in the Hub's own library; `removed/removed-00000.parquet` has what
was taken out, each record with its row and why.
"""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl

from .data import Data, Record, Records
from .files import clear, fresh_folder, sync
from .operation import Log, Part
from .unfinished import Saving, bytes_of, interruptible, tensor_of

PIECE = 2**26  # bytes of records in a file, about
REASONS = {"row": pl.Int64, "reason": pl.String, "detail": pl.String, "like": pl.Int64}
KINDS = {"number": pl.Float64}


def write_parts(parts: Iterable[Part], source: Data, folder: Path, log: Log) -> None:
    """Write all parts as they come: the rows of `source`, with the types that they have there, and what was changed in them.
    `parts` begins where an interrupted run of the same work kept its state, and so do the pieces."""
    kept, removed = both = Pieces(folder / "data", "train"), Pieces(folder / "removed", "removed")
    take_up(both, folder, log)
    saving = Saving()
    with interruptible() as interrupted:
        for part in parts:
            kept.add(changed(source.records, part.rows, part.kept, {}))
            rows = [one["removed_row"] for one in part.removed]
            removed.add(
                changed(source.records, rows, part.removed, {f"removed_{name}": of for name, of in REASONS.items()})
            )
            if part.state and (saving.due() or interrupted):
                with saving.timed():
                    keep(both, part, log)
            if interrupted:
                raise KeyboardInterrupt
    for pieces in both:
        pieces.write()


def keep(both: Iterable["Pieces"], part: Part, log: Log) -> None:
    """The state of the operation behind this part, with what is in no file yet."""
    assert part.state is not None
    tensors, facts = part.state()
    waiting = {f"waiting.{pieces.split}": tensor_of(ipc(pl.concat(pieces.frames))) for pieces in both if pieces.frames}
    written = {pieces.split: [pieces.number, pieces.size] for pieces in both}
    log.save_state(tensors | waiting, facts | {"written": written})


def take_up(both: Iterable["Pieces"], folder: Path, log: Log) -> None:
    """Pieces as they were when the state was kept; in an empty folder where none was."""
    found = log.load_state()
    if found is None:
        fresh_folder(folder)
        return
    tensors, facts = found
    clear(folder, *(pieces.folder.name for pieces in both))  # evidence that was written before the folder could appear
    for pieces in both:
        waiting = tensors.get(f"waiting.{pieces.split}")
        number, size = facts["written"][pieces.split]
        pieces.go_on(number, size, [] if waiting is None else [pl.read_ipc(bytes_of(waiting))])


def ipc(frame: pl.DataFrame) -> bytes:
    """A frame as Arrow's file."""
    buffer = io.BytesIO()
    frame.write_ipc(buffer)
    return buffer.getvalue()


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
        self.folder, self.split, self.number, self.size = folder, split, 0, 0
        self.frames = list[pl.DataFrame]()

    def go_on(self, number: int, size: int, frames: list[pl.DataFrame]) -> None:
        """From where file `number` would be begun, with `frames` to come into it; files from there on are of work done anew."""
        self.number, self.size, self.frames = number, size, frames
        for path in self.folder.glob(f"{self.split}-*.parquet"):
            if int(path.stem.rpartition("-")[2]) >= number:
                path.unlink()

    def add(self, frame: pl.DataFrame) -> None:
        if len(frame):
            self.frames.append(frame)
            self.size += int(frame.estimated_size())
        if self.size >= PIECE:
            self.write()

    def write(self) -> None:
        if self.frames:
            folder = self.folder if self.number else fresh_folder(self.folder)
            path = folder / f"{self.split}-{self.number:05d}.parquet"
            pl.concat(self.frames, rechunk=True).write_parquet(path, compression_level=3)
            sync(path)  # a state that counts it may be on the disk before the folder is
            self.frames, self.number, self.size = [], self.number + 1, 0
