"""Where records come from: csv, parquet, jsonl, images or sounds in a folder per class, texts, `builtin:` and `toy:`.

A source larger than LARGE bytes is converted once, streaming, to a row store in the cache folder and memory-mapped from
there: rows are then read at random without holding the table in memory.
"""

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl
from PIL import Image, ImageOps, UnidentifiedImageError

from . import registry, sounds
from .data import Data, Kind, Record, Records, as_label, guess_answer, records_of
from .errors import BadInput, BadSettings, UnknownName, needs_extra, propose
from .windows import series_of, windowed

LARGE = 256 * 2**20
TABLES = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson")
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
TEXT_CHUNK = 2000  # characters: how long the paragraphs of a text file are joined to make one record
MOST_CLASSES = 30  # different whole numbers that an answer may have and still mean classes
BUILTIN = ("digits", "breast_cancer", "diabetes", "iris", "wine")
KINDS = get_args(Kind)


def open_data(
    source: str, answer: str | None = None, fields: dict[str, Kind] | None = None, window: Any = None
) -> Data:
    """Open `builtin:NAME`, `toy:FAMILY`, a file or a folder. `fields` keeps and retypes columns, `answer` names one;
    `window` cuts a table with a row per time step into a past and a future (`windows.windowed`).

    Raises BadInput for what cannot be read, and for an empty source.
    """
    scheme, _, name = source.partition(":")
    if scheme in ("builtin", "toy") and name:
        records, official = (builtin(name) if scheme == "builtin" else toy(name)), {}
    else:
        records, official = read_path(Path(source))
    if not len(records):
        raise BadInput(f"{source} holds no rows")
    if window:
        if official:
            raise BadInput(
                f"{source} is divided already; windows are cut from one table", hint="name one of its tables"
            )
        return windowed(source, records, window, answer, fields)
    return Data(source, choose(records, answer, fields), official, records)


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
        return as_label(value) if kind == "category" else str(value or "")
    return value


# ---------------------------------------------------------------------------------------------------- files, folders


def read_path(path: Path) -> tuple[Records, dict[str, Sequence[int]]]:
    """Records of a file or folder, and its own train/test division where it has one."""
    if not path.exists():
        raise BadInput(f"{path} does not exist", hint=f"builtin:{{{','.join(BUILTIN)}}}, a file or a folder")
    if path.is_file():
        return read_file(path), {}
    parts = {
        name: found[0]
        for name in ("train", "test")
        if (found := [path / f"{name}{end}" for end in TABLES if (path / f"{name}{end}").is_file()])
    }
    if len(parts) == 2:
        return read_parts([parts["train"], parts["test"]])
    if (path / "train").is_dir() and (path / "test").is_dir():
        return read_class_folders([path / "train", path / "test"])
    tables = sorted(p for p in path.iterdir() if p.suffix.lower() in TABLES and p.is_file())
    texts = sorted(path.rglob("*.txt"))
    if len(tables) == 1:
        return read_file(tables[0]), {}
    if tables:
        raise BadInput(
            f"{path} holds several tables: {', '.join(p.name for p in tables[:6])}",
            hint="name one of them, or call two of them train and test",
        )
    if any(p.is_dir() for p in path.iterdir()) and not texts:
        return read_class_folders([path])
    if texts:
        return text_records([piece for p in texts for piece in chunks(read_text(p))]), {}
    raise BadInput(
        f"{path} holds no table, no text and no folders of images or sounds",
        hint=f"files that end in {', '.join(TABLES)}, .txt, or one folder of images or sounds per class",
    )


def read_file(path: Path) -> Records:
    if path.suffix.lower() in TABLES:
        return from_table([scan(path)], path)
    if path.suffix.lower() in (".txt", ".md"):
        return text_records(chunks(read_text(path)))
    raise BadInput(f"{path} has an unknown ending", hint=f"one of {', '.join(TABLES)}, .txt")


def read_parts(paths: list[Path]) -> tuple[Records, dict[str, Sequence[int]]]:
    """A train and a test table as one, with the division kept."""
    tables = [scan(path) for path in paths]
    columns = [guarded(path, lambda table=table: table.collect_schema().names()) for path, table in zip(paths, tables)]
    if columns[0] != columns[1]:
        raise BadInput(f"{paths[0]} and {paths[1]} have unlike columns: {columns[0]} and {columns[1]}")
    records = from_table(tables, paths[0].parent)
    border = guarded(paths[0], lambda: tables[0].select(pl.len()).collect().item())
    return records, {"train": range(border), "test": range(border, len(records))}


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
    """What `read` gives; whatever the library cannot read becomes BadInput."""
    try:
        return read()
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        hint = f"iconv -f CP949 -t UTF-8 {path}, or whatever its encoding is" if "utf-8" in reason.lower() else ""
        raise BadInput(f"{path} cannot be read as a table: {reason}", hint=hint) from error


def from_table(parts: list[pl.LazyFrame], path: Path) -> Records:
    """Records of one table in one or more parts, with the kind of each column inferred."""
    table = pl.concat(parts, how="vertical_relaxed")
    head = guarded(path, lambda: table.head(1000).collect())
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

    return Records(get, range(count), fields, guess_answer(fields))


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


def decode_image(source: bytes | Path | None, path: Path) -> np.ndarray:
    """Pixels as uint8, (height, width) for grey, else (height, width, 3)."""
    if not isinstance(source, (bytes, Path)):
        raise BadInput(f"{path} holds a row without a picture", hint="drop that row")
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as stored:
            image = ImageOps.exif_transpose(stored)
            if image.mode.startswith("I"):  # 16 bits: the upper 8 say most
                return (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
            return np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    except (UnidentifiedImageError, OSError, ValueError, TypeError, Image.DecompressionBombError) as error:
        raise BadInput(f"{path} holds an image that cannot be read: {error}") from error


def read_class_folders(roots: list[Path]) -> tuple[Records, dict[str, Sequence[int]]]:
    """One folder of images or of sounds per class below each root; the classes' folder names are the labels."""
    endings: dict[Kind, tuple[str, ...]] = {"image": IMAGES, "audio": sounds.ENDINGS}
    kinds: dict[str, Kind] = {ending: kind for kind, group in endings.items() for ending in group}
    files = [[p for p in sorted(root.rglob("*")) if p.suffix.lower() in kinds] for root in roots]
    paths = [p for part in files for p in part]
    found: list[Kind] = list(dict.fromkeys(kinds[p.suffix.lower()] for p in paths))
    if len(found) != 1:
        what = "holds images and sounds at once" if found else "holds no images and no sounds"
        raise BadInput(f"{roots[0]} {what}", hint=f"one folder per class, files ending in {', '.join(kinds)}")
    kind = found[0]
    labels = [p.parent.name for p in paths]

    def get(rows: Sequence[int], names: Collection[str]) -> list[Record]:
        decode = decode_image if kind == "image" else sounds.decode_sound
        read = {kind: lambda i: decode(paths[i], paths[i]), "label": lambda i: labels[i]}
        return [{name: read[name](i) for name in names} for i in rows]

    fields: dict[str, Kind] = {kind: "image" if kind == "image" else "audio", "label": "category"}
    records = Records(get, range(len(paths)), fields, "label")
    if len(roots) == 1:
        return records, {}
    return records, {"train": range(len(files[0])), "test": range(len(files[0]), len(paths))}


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def chunks(text: str) -> list[str]:
    """Paragraphs, or lines where paragraphs are long, joined until they reach TEXT_CHUNK characters."""
    parts = [
        part
        for paragraph in text.split("\n\n")
        for part in (paragraph.split("\n") if len(paragraph) > TEXT_CHUNK else [paragraph])
    ]
    pieces, current = [], ""
    for part in parts:
        current = f"{current}\n\n{part}" if current else part
        if len(current) >= TEXT_CHUNK:
            pieces.append(current)
            current = ""
    return [piece for piece in [*pieces, current] if piece.strip()]


def text_records(texts: list[str]) -> Records:
    return records_of([{"text": text} for text in texts], {"text": "text"}, "text")


# ------------------------------------------------------------------------------------------------------ bundled, toys


def builtin(name: str) -> Records:
    """One of the real data sets that scikit-learn carries inside its package."""
    if name not in BUILTIN:
        raise UnknownName(f"no built-in data is called '{name}'; {propose(name, BUILTIN)}")
    try:
        from sklearn import datasets
    except ImportError:
        raise needs_extra("tabular", "scikit-learn") from None
    bunch = getattr(datasets, f"load_{name}")()
    if name == "digits":  # 8 x 8 pixels of 0..16
        images = np.round(bunch.images * (255 / 16)).astype(np.uint8)
        rows = [{"image": image, "label": str(label)} for image, label in zip(images, bunch.target)]
        return records_of(rows, {"image": "image", "label": "category"}, "label")
    answer = "target" if name == "diabetes" else "label"
    kind: Kind = "number" if name == "diabetes" else "category"
    values = (
        bunch.target.astype(float).tolist() if kind == "number" else [str(bunch.target_names[i]) for i in bunch.target]
    )
    columns = [str(column) for column in bunch.feature_names]
    fields: dict[str, Kind] = {**dict.fromkeys(columns, "number"), answer: kind}
    rows = [{**dict(zip(columns, map(float, row))), answer: value} for row, value in zip(bunch.data, values)]
    return records_of(rows, fields, answer)


def toy(name: str, n: int = 200) -> Records:
    """The generator of a family's own tests, as data."""
    return registry.family(name).toy(n, 0)
