"""Where records come from: csv, parquet, jsonl, images in a folder per class, text files, `builtin:` and `toy:`.

A source larger than LARGE bytes is converted once, streaming, to an uncompressed Arrow file in the cache folder and
memory-mapped from there: rows are then read at random without holding the table in memory.
"""

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image, UnidentifiedImageError

from . import registry
from .data import Data, Kind, Record, Records, as_label, guess_answer, records_of
from .errors import BadInput, BadSettings, UnknownName, needs_extra, propose

LARGE = 256 * 2**20
TABLES = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson")
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
TEXT_CHUNK = 2000  # characters: how long the paragraphs of a text file are joined to make one record
BUILTIN = ("digits", "breast_cancer", "diabetes", "iris", "wine")
KINDS = ("number", "category", "text", "image")


def open_data(source: str, answer: str | None = None, fields: dict[str, Kind] | None = None) -> Data:
    """Open `builtin:NAME`, `toy:FAMILY`, a file or a folder. `fields` keeps and retypes columns, `answer` names one.

    Raises BadInput for what cannot be read, and for an empty source.
    """
    scheme, _, name = source.partition(":")
    if scheme in ("builtin", "toy") and name:
        records, official = (builtin(name) if scheme == "builtin" else toy(name)), {}
    else:
        records, official = read_path(Path(source))
    if not len(records):
        raise BadInput(f"{source} holds no rows")
    return Data(source, choose(records, answer, fields), official)


def choose(records: Records, answer: str | None, fields: dict[str, Kind] | None) -> Records:
    """Apply the user's own choice of columns; the columns not chosen are dropped, the answer always stays."""
    if fields and (bad := [f"'{kind}' is no kind; {propose(kind, KINDS)}" for kind in fields.values() if kind not in KINDS]):
        raise BadSettings(*bad)
    missing = [name for name in [*(fields or {}), *([answer] if answer else [])] if name not in records.fields]
    if missing:
        raise BadInput(*(f"there is no column '{name}'; {propose(name, records.fields)}" for name in missing))
    kinds = {**records.fields, **(fields or {})}
    answer = answer or records.answer or guess_answer(kinds)
    kept = {name: kind for name, kind in kinds.items() if not fields or name in fields or name == answer}

    def get(rows: Sequence[int]) -> list[Record]:
        return [{name: coerce(record[name], kind, name) for name, kind in kept.items()} for record in records.get(rows)]

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
    parts = {name: found[0] for name in ("train", "test")
             if (found := [path / f"{name}{end}" for end in TABLES if (path / f"{name}{end}").is_file()])}
    if len(parts) == 2:
        return read_parts([parts["train"], parts["test"]])
    if (path / "train").is_dir() and (path / "test").is_dir():
        return read_image_folders([path / "train", path / "test"])
    tables = sorted(p for p in path.iterdir() if p.suffix in TABLES)
    texts = sorted(path.rglob("*.txt"))
    if len(tables) == 1:
        return read_file(tables[0]), {}
    if tables:
        raise BadInput(f"{path} holds several tables: {', '.join(p.name for p in tables[:6])}",
                       hint="name one of them, or call two of them train and test")
    if any(p.is_dir() for p in path.iterdir()) and not texts:
        return read_image_folders([path])
    if texts:
        return text_records([text for p in texts for text in [read_text(p)] if text.strip()]), {}
    raise BadInput(f"{path} holds no table, no text and no folders of images",
                   hint=f"files that end in {', '.join(TABLES)}, .txt, or one folder of images per class")


def read_file(path: Path) -> Records:
    if path.suffix in TABLES:
        return from_frame(read_table(path), path)
    if path.suffix in (".txt", ".md"):
        return text_records(chunks(read_text(path)))
    raise BadInput(f"{path} has an unknown ending", hint=f"one of {', '.join(TABLES)}, .txt")


def read_parts(paths: list[Path]) -> tuple[Records, dict[str, Sequence[int]]]:
    """A train and a test table as one, with the division kept."""
    frames = [read_table(p) for p in paths]
    if frames[0].columns != frames[1].columns:
        raise BadInput(f"{paths[0]} and {paths[1]} have unlike columns: {frames[0].columns} and {frames[1].columns}")
    rows = range(len(frames[0])), range(len(frames[0]), len(frames[0]) + len(frames[1]))
    return from_frame(pl.concat(frames, how="vertical_relaxed"), paths[0]), {"train": rows[0], "test": rows[1]}


def read_table(path: Path) -> pl.DataFrame:
    """The table as a frame; memory-mapped from the cache where it is LARGE."""
    if path.stat().st_size == 0:
        raise BadInput(f"{path} is empty")
    scan: dict[str, Callable[[], pl.LazyFrame]] = {
        ".csv": lambda: pl.scan_csv(path, infer_schema_length=10_000),
        ".tsv": lambda: pl.scan_csv(path, separator="\t", infer_schema_length=10_000),
        ".parquet": lambda: pl.scan_parquet(path),
    }
    lines: Callable[[], pl.LazyFrame] = lambda: pl.scan_ndjson(path, infer_schema_length=10_000)  # noqa: E731
    try:
        lazy = scan.get(path.suffix, lines)()
        return lazy.collect() if path.stat().st_size < LARGE else mapped(lazy, path)
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read as {path.suffix[1:]}: {str(error).splitlines()[0]}") from error


def mapped(lazy: pl.LazyFrame, path: Path) -> pl.DataFrame:
    """The frame as a memory map of an Arrow file in the cache, written once by streaming."""
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()}{stat.st_size}{stat.st_mtime_ns}".encode()).hexdigest()[:24]
    target = cache_folder() / f"{key}.arrow"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, suffix=".partial", delete=False) as partial:
            lazy.sink_ipc(partial.name, compression="uncompressed")
        os.replace(partial.name, target)
    return pl.read_ipc(target, memory_map=True)


def cache_folder() -> Path:
    """Where converted tables are kept; safe to delete at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "onnuri"


def from_frame(frame: pl.DataFrame, path: Path) -> Records:
    """Records of a frame, with the kind of each column inferred."""
    sample = frame.head(1000)
    fields = {name: kind_of(sample[name], name) for name in frame.columns}
    answer = guess_answer(fields)
    if answer and fields[answer] == "number" and looks_categorical(frame[answer]):
        fields[answer] = "category"
    numbers = [name for name, kind in fields.items() if kind == "number"]
    for name in numbers:
        column = frame[name].cast(pl.Float64)
        if column.is_infinite().any():
            raise BadInput(f"{path}: the column '{name}' holds infinite numbers")

    def get(rows: Sequence[int]) -> list[Record]:
        columns = {name: read_column(frame[name][list(rows)], kind, path) for name, kind in fields.items()}
        return [dict(zip(columns, values)) for values in zip(*columns.values())]

    return Records(get, range(len(frame)), fields, answer)


def kind_of(column: pl.Series, name: str) -> Kind:
    if column.dtype.is_numeric():
        return "number"
    if column.dtype == pl.Binary or column.dtype == pl.Struct:
        return "image"
    if column.dtype != pl.String:
        return "category"
    words = column.drop_nulls()
    long = (words.str.len_chars().mean() or 0) > 20  # type: ignore[operator]
    many = words.n_unique() > 0.5 * max(len(words), 1) and len(words) >= 20
    return "text" if long or many or name.lower() in ("text", "document", "sentence", "prompt") else "category"


def looks_categorical(column: pl.Series) -> bool:
    """Whole numbers of few values are classes, not quantities."""
    values = column.drop_nulls().unique()
    return len(values) <= 30 and bool((values.cast(pl.Float64) % 1 == 0).all()) and len(values) < 0.2 * len(column)


def read_column(column: pl.Series, kind: Kind, path: Path) -> list:
    if kind == "number":
        return [None if v is None or v != v else float(v) for v in column.to_list()]
    if kind == "image":
        return [decode_image(v["bytes"] if isinstance(v, dict) else v, path) for v in column.to_list()]
    if kind == "category":
        return [as_label(v) for v in column.to_list()]
    return [v or "" for v in column.to_list()]


def decode_image(source: bytes | Path, path: Path) -> np.ndarray:
    """Pixels as uint8, (height, width) for grey, else (height, width, 3)."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return np.asarray(image.convert("L" if image.mode in ("1", "L", "I", "I;16", "LA") else "RGB"))
    except (UnidentifiedImageError, OSError, ValueError, TypeError, Image.DecompressionBombError) as error:
        raise BadInput(f"{path} holds an image that cannot be read: {error}") from error


def read_image_folders(roots: list[Path]) -> tuple[Records, dict[str, Sequence[int]]]:
    """One folder per class below each root; the classes' folder names are the labels."""
    files = [[p for p in sorted(root.rglob("*")) if p.suffix.lower() in IMAGES] for root in roots]
    paths = [p for part in files for p in part]
    if not paths:
        raise BadInput(f"{roots[0]} holds no images", hint=f"one folder per class, files ending in {', '.join(IMAGES)}")
    labels = [p.parent.name for p in paths]

    def get(rows: Sequence[int]) -> list[Record]:
        return [{"image": decode_image(paths[i], paths[i]), "label": labels[i]} for i in rows]

    records = Records(get, range(len(paths)), {"image": "image", "label": "category"}, "label")
    if len(roots) == 1:
        return records, {}
    return records, {"train": range(len(files[0])), "test": range(len(files[0]), len(paths))}


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def chunks(text: str) -> list[str]:
    """Paragraphs joined until they reach TEXT_CHUNK characters."""
    pieces, current = [], ""
    for paragraph in text.split("\n\n"):
        current = f"{current}\n\n{paragraph}" if current else paragraph
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
    answer, kind = ("target", "number") if name == "diabetes" else ("label", "category")
    values = bunch.target.astype(float).tolist() if kind == "number" else [str(bunch.target_names[i]) for i in bunch.target]
    columns = [str(column) for column in bunch.feature_names]
    rows = [{**dict(zip(columns, map(float, row))), answer: value} for row, value in zip(bunch.data, values)]
    return records_of(rows, {**dict.fromkeys(columns, "number"), answer: kind}, answer)


def toy(name: str, n: int = 200) -> Records:
    """The generator of a family's own tests, as data."""
    return registry.family(name).toy(n, 0)
