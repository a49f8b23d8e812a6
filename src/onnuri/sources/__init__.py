"""Where records come from: csv, parquet, jsonl, images or sounds in a folder per class, documents, `builtin:` and `toy:`.

`tables` reads the tables, `rows` keeps the large ones on disk, `folders` reads pictures, sounds and documents, `documents`
one document with `office` and `pages`, `bundled` has what needs no file.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ..data import Data, Kind, Record, Records, as_label, guess_answer
from ..errors import BadInput, BadSettings, propose
from ..windows import windowed
from .bundled import BUILTIN, builtin, toy
from .documents import ENDINGS, unknown_ending
from .folders import chunk_records, document_records, documents_in, read_class_folders
from .tables import TABLES, from_table, holds_classes, read_parts, read_shards, scan, shards_of

KINDS = get_args(Kind)
Gather = Callable[[list[Path], Path], Records]
"""(documents, their folder) -> records: chunks to train on, or one for each document."""


def open_data(
    source: str, answer: str | None = None, fields: dict[str, Kind] | None = None, window: Any = None
) -> Data:
    """Open `builtin:NAME`, `toy:FAMILY`, a file or a folder. `fields` keeps and retypes columns, `answer` names one;
    `window` cuts a table with a row per time step into a past and a future (`windows.windowed`).

    Raises BadInput for what cannot be read, and for an empty source.
    """
    records, official = read_source(source, chunk_records)
    if window:
        if official:
            raise BadInput(
                f"{source} is divided already; windows are cut from one table", hint="name one of its tables"
            )
        return windowed(source, records, window, answer, fields)
    return Data(source, choose(records, answer, fields), official, records)


def open_documents(source: str) -> Data:
    """The documents of a file or folder, one record each: `text`, and `source`, the path below the folder.

    A document is read when its text is asked for: BadInput that names it comes only then. Every other source gives the
    records of `open_data`, with all columns as they are.
    """
    records, official = read_source(source, document_records)
    return Data(source, records, official, records, whole=True)


def choose(records: Records, answer: str | None, fields: dict[str, Kind] | None) -> Records:
    """Apply the user's own choice of columns; the columns not chosen are dropped, the answer always stays."""
    if bad := [
        f"'{kind}' is no kind; {propose(str(kind), KINDS)}" for kind in (fields or {}).values() if kind not in KINDS
    ]:
        raise BadSettings(*bad)
    missing = [name for name in [*(fields or {}), *([answer] if answer else [])] if name not in records.fields]
    if missing:
        raise BadInput(*(f"there is no column '{name}'; {propose(name, records.fields)}" for name in missing))
    unlike = {name: kind for name, kind in (fields or {}).items() if kind != records.fields[name]}
    if bad := [name for name, kind in unlike.items() if {kind, records.fields[name]} & {"image", "audio", "series"}]:
        raise BadInput(*(f"'{name}' holds {records.fields[name]}, not {unlike[name]}" for name in bad))
    kinds: dict[str, Kind] = dict(records.fields)
    kinds.update(fields or {})
    answer = answer or records.answer or guess_answer(kinds)
    if answer and answer not in (fields or {}) and kinds[answer] == "number" and holds_classes(records.column(answer)):
        kinds[answer] = "category"
    kept = dict(kinds)
    for name in [name for name in kinds if fields and name not in fields and name != answer]:
        del kept[name]

    def get(rows: Sequence[int], names: Collection[str]) -> list[Record]:
        found = records.get(rows, names)
        return [{name: coerce(record[name], kept[name], name) for name in names} for record in found]

    return Records(get if kept != records.fields else records.get, records.rows, kept, answer)


def coerce(value, kind: Kind, name: str):
    """One value as another kind, where the user said so."""
    if kind == "number" and isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise BadInput(f"'{value}' in column '{name}' is no number", hint=f"--fields {name}=category") from None
    if kind in ("category", "text") and not isinstance(value, np.ndarray):
        label = as_label(value)
        return label if kind == "category" else label or ""
    return value


# ---------------------------------------------------------------------------------------------------- files, folders


def read_source(source: str, gather: Gather) -> tuple[Records, dict[str, Sequence[int]]]:
    """Records of a source, at least one, and its own train/test division where it has one."""
    scheme, _, name = source.partition(":")
    if scheme in ("builtin", "toy") and name:
        records, official = (builtin(name) if scheme == "builtin" else toy(name)), {}
    else:
        records, official = read_path(Path(source), gather)
    if not len(records):
        raise BadInput(f"{source} holds no rows")
    return records, official


def read_path(path: Path, gather: Gather) -> tuple[Records, dict[str, Sequence[int]]]:
    """Records of a file or folder, and its own train/test division where it has one."""
    if not path.exists():
        raise BadInput(f"{path} does not exist", hint=f"builtin:{{{','.join(BUILTIN)}}}, a file or a folder")
    if path.is_file():
        return read_file(path, gather), {}
    parts = {
        name: found[0]
        for name in ("train", "test")
        if (found := [path / f"{name}{end}" for end in TABLES if (path / f"{name}{end}").is_file()])
    }
    if len(parts) == 2:
        return read_parts([parts["train"], parts["test"]])
    if (path / "train").is_dir() and (path / "test").is_dir():
        return read_class_folders([path / "train", path / "test"])
    if shards := shards_of(path):
        if others := [one.name for one in sorted(path.iterdir()) if is_data_beside(one, shards)]:
            raise BadInput(
                f"{path} holds a table in pieces and other data: {', '.join(others[:6])}",
                hint="name one of them, or the folder of the pieces",
            )
        return read_shards(shards)
    tables = sorted(p for p in path.iterdir() if p.suffix.lower() in TABLES and p.is_file())
    if len(tables) == 1:
        return read_file(tables[0], gather), {}
    if tables:
        raise BadInput(
            f"{path} holds several tables: {', '.join(p.name for p in tables[:6])}",
            hint="name one of them, or call two of them train and test",
        )
    if documents := documents_in(path):
        return gather(documents, path), {}
    if any(p.is_dir() for p in path.iterdir()):
        return read_class_folders([path])
    raise BadInput(
        f"{path} holds no table, no document and no folders of images or sounds",
        hint=f"files that end in {', '.join((*TABLES, *ENDINGS))}, or one folder of images or sounds per class",
    )


def is_data_beside(path: Path, shards: dict[str, list[Path]]) -> bool:
    """Whether a file is data, and none of these pieces, nor what is told about them."""
    told = path.stem.lower() in ("readme", "license", "notice")
    pieces = [piece for pieces in shards.values() for piece in pieces]
    return path.is_file() and path.suffix.lower() in (*TABLES, *ENDINGS) and not told and path not in pieces


def read_file(path: Path, gather: Gather) -> Records:
    if path.suffix.lower() in TABLES:
        return from_table([scan(path)], path)
    if path.suffix.lower() in ENDINGS:
        return gather([path], path.parent)
    raise unknown_ending(path, (*TABLES, *ENDINGS))
