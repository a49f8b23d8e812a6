"""Answers as files: jsonl, csv or parquet by the ending of the name; a folder of pictures where answers are images."""

import base64
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .data import Record, Sound
from .errors import BadInput
from .files import whole_file

ENDINGS = (".jsonl", ".csv", ".parquet")


def require_ending(out: Path) -> None:
    """BadInput for an ending that is not known."""
    if out.suffix not in ENDINGS:
        raise BadInput(
            f"answers are written as {', '.join(ENDINGS)}; found '{out.suffix}'", hint=f"--out {out.stem}.jsonl"
        )


def write_records(records: list[Record], out: Path) -> None:
    """Write all of them, whole or not at all. BadInput for an ending that is not known."""
    require_ending(out)
    rows = [{name: jsonable(value) for name, value in record.items()} for record in records]
    with whole_file(out) as partial:
        write_rows(rows, partial, out.suffix)


def write_rows(rows: list[dict[str, Any]], path: Path, ending: str) -> None:
    """Rows of plain values; in the columns of csv and parquet a dict or a list stands as JSON. Vectors in a dict have columns of
    their own in parquet, NAME.ENTRY, of lists of numbers."""
    if ending == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return
    import polars as pl

    if ending == ".parquet":
        rows = list(map(with_vectors, rows))
    flat = [
        {name: v if is_plain(v, ending) else json.dumps(v, ensure_ascii=False) for name, v in row.items()}
        for row in rows
    ]
    frame = pl.DataFrame(flat, infer_schema_length=None)
    frame.write_csv(path) if ending == ".csv" else frame.write_parquet(path)


def is_plain(value: Any, ending: str) -> bool:
    """Whether a column can hold it."""
    return not isinstance(value, (dict, list)) or (ending == ".parquet" and is_vector(value))


def is_vector(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(number, float) for number in value)


def with_vectors(row: dict[str, Any]) -> dict[str, Any]:
    """The row, each vector inside one of its dicts in a column of its own."""
    found = {}
    for name, value in row.items():
        inside = {key for key, each in value.items() if is_vector(each)} if isinstance(value, dict) else set()
        rest = {key: each for key, each in value.items() if key not in inside} if inside else value
        found |= {f"{name}.{key}": value[key] for key in value if key in inside} if inside else {}
        found |= {} if inside and not rest else {name: rest}
    return found


def jsonable(value: Any) -> Any:
    """A value as JSON can hold it; a picture becomes {"png": base64}, a number that is none becomes null. Of a sound only
    its length is kept."""
    if isinstance(value, Sound):
        return {"seconds": round(len(value.samples) / value.rate, 3), "rate": value.rate}
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim in (2, 3):
        buffer = io.BytesIO()
        Image.fromarray(value).save(buffer, "PNG")
        return {"png": base64.b64encode(buffer.getvalue()).decode()}
    if isinstance(value, (np.ndarray, np.generic)):
        return jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    return value


def picture_of(value: Any) -> Any:
    """The inverse of `jsonable` for pictures: uint8 pixels; anything else as it is."""
    if isinstance(value, dict) and value.keys() == {"png"}:
        with Image.open(io.BytesIO(base64.b64decode(value["png"]))) as image:
            return np.asarray(image)
    return value
