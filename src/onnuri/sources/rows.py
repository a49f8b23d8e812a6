"""Rows at random: from memory, or where a table is larger than LARGE bytes from a row store on disk.

The store is written once, streaming, into the cache folder and memory-mapped from there, so that the table never lies in
memory.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl

LARGE = 256 * 2**20
Take = Callable[[Sequence[int]], pl.DataFrame]


def rows_of(table: pl.LazyFrame, path: Path) -> tuple[int, Take]:
    """How many rows there are, and a function that takes some of them: from memory, or from a row store on disk."""
    size = sum(p.stat().st_size for p in ([path] if path.is_file() else path.iterdir()))
    if size < LARGE:
        frame = table.collect()
        return len(frame), lambda rows: frame[list(rows)]
    return row_store(table, path)


def row_store(table: pl.LazyFrame, path: Path) -> tuple[int, Take]:
    """Rows as JSON lines in the cache, written once by streaming, found by their offsets, read through a memory map."""
    stats = [p.stat() for p in ([path] if path.is_file() else sorted(path.iterdir()))]
    state = f"{path.resolve()}{[(stat.st_size, stat.st_mtime_ns) for stat in stats]}"
    store = cache_folder() / f"{hashlib.sha256(state.encode()).hexdigest()[:24]}.jsonl"
    schema = table.collect_schema()
    if not store.exists():
        store.parent.mkdir(parents=True, exist_ok=True)
        coded = table.with_columns(pl.col(pl.Binary).bin.encode("base64"))
        with tempfile.NamedTemporaryFile(dir=store.parent, suffix=".partial", delete=False) as partial:
            coded.sink_ndjson(partial.name)
        os.replace(partial.name, store)
    lines = np.memmap(store, np.uint8, mode="r")
    ends = np.concatenate(
        [np.flatnonzero(lines[start : start + 2**26] == ord("\n")) + start for start in range(0, len(lines), 2**26)]
    )
    starts = np.concatenate([[0], ends[:-1] + 1])
    binary = [name for name, kind in schema.items() if kind == pl.Binary]
    text = pl.Schema({name: pl.String() if name in binary else kind for name, kind in schema.items()})

    def take(rows: Sequence[int]) -> pl.DataFrame:
        found = [json.loads(lines[starts[i] : ends[i]].tobytes()) for i in rows]
        return pl.DataFrame(found, schema=text).with_columns(pl.col(binary).str.decode("base64"))

    return len(ends), take


def cache_folder() -> Path:
    """Where row stores are kept; safe to delete at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "onnuri"
