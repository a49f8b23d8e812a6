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
    """Rows of plain values; in the columns of csv and parquet a dict or a list stands as JSON."""
    if ending == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return
    import polars as pl

    flat = [
        {name: json.dumps(v, ensure_ascii=False) if isinstance(v, (dict, list)) else v for name, v in row.items()}
        for row in rows
    ]
    frame = pl.DataFrame(flat, infer_schema_length=None)
    frame.write_csv(path) if ending == ".csv" else frame.write_parquet(path)


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
