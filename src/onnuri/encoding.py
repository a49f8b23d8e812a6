"""How a record becomes a batch, as data: what a program without Python needs to ask a model's graph.

A family states it as its fact `encoding`: {entry of the batch: how it is made}, of JSON values only. `encode` follows it here;
`runtimes/page/encode.js` follows it in a browser, number for number. Each entry has a `type` (of its numbers) and one of:
- `columns`: one number for each, (1, columns). `as` number: (value - mean) / scale, kept within +- limit, or `missing` (null: not
  a number) where there is none; `as` missing: 1 where there is none, else 0; `as` code: first + the place of the value
  among the `categories`, or `unknown`, or `missing`.
- `image`: the field; `steps` in order, from bytes (H, W) or (H, W, 3) to (1, C, H, W). `channels`: grey repeated, or color made
  grey by ITU-R 601 in whole numbers; `resize`: as Pillow does; `crop`: from the middle; `scale`: times `by`, less `minus`.
- `ngrams`: the field, a text; the numbers of its n-grams.
- `tokens`: the field, a text; both are told in `encoding_text.py`.
- `fill`: a number, as often as the entry `like` has numbers.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .data import Record, as_label
from .encoding_text import ngrams, tokens

Array = np.ndarray
FILTERS: dict[str, tuple[float, Callable[[Array], Array]]] = {
    "bilinear": (1.0, lambda x: np.maximum(0, 1 - x)),
    "bicubic": (
        2.0,
        lambda x: np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2) * (x < 2),
    ),
}
"""{name: (how far it reaches, weight of a distance)}; bicubic with a = -0.5 (Keys 1981)."""

BITS = 22  # behind the point of Pillow's weights for bytes


def encode(description: Mapping[str, Any], record: Record) -> dict[str, Array]:
    """The batch of this one record."""
    found = {name: made(entry, record) for name, entry in description.items() if "fill" not in entry}
    found |= {
        name: np.full_like(found[entry["like"]], entry["fill"])
        for name, entry in description.items()
        if "fill" in entry
    }
    return {name: found[name].astype(entry["type"])[None] for name, entry in description.items()}


def apart(made: Mapping[str, Array], batch: Mapping[str, Any]) -> float:
    """The largest difference from a batch of tensors; infinite where a shape, a type, a whole number or what is not a number
    differs."""
    worst = 0.0
    for name, values in made.items():
        other = np.asarray(batch[name])
        if values.shape != other.shape or values.dtype != other.dtype:
            return math.inf
        same = (values == other) | ((values != values) & (other != other))
        if not same.all() and values.dtype.kind != "f":
            return math.inf
        gaps = np.where(same, 0.0, np.abs(values - other))
        worst = max(worst, float(np.nan_to_num(gaps, nan=math.inf).max(initial=0.0)))
    return worst


def made(entry: Mapping[str, Any], record: Record) -> Array:
    """An entry of the batch, without its first axis."""
    if "columns" in entry:
        return np.array([cell(column, record.get(column["field"])) for column in entry["columns"]], dtype=np.float64)
    if "image" in entry:
        return picture(record[entry["image"]], entry["steps"])
    kind, follow = ("ngrams", ngrams) if "ngrams" in entry else ("tokens", tokens)
    return follow(record[entry[kind]] or "", entry)


# ------------------------------------------------------------------------------------------------------------- columns


def cell(column: Mapping[str, Any], value: Any) -> float:
    """The number that stands for a value of a field."""
    if column["as"] == "code":
        label = as_label(value)
        if label is None:
            return column["missing"]
        places = column["categories"]
        return column["first"] + places.index(label) if label in places else column["unknown"]
    missing = value is None or not math.isfinite(value)
    if column["as"] == "missing":
        return float(missing)
    if missing:
        return math.nan if column["missing"] is None else column["missing"]
    found, limit = (value - column["mean"]) / column["scale"], column["limit"]
    return found if limit is None else min(max(found, -limit), limit)


# ------------------------------------------------------------------------------------------------------------ pictures


def picture(image: Array, steps: list) -> Array:
    """uint8 (H, W) or (H, W, 3) to (C, H, W)."""
    pixels = image[..., None] if image.ndim == 2 else image
    for step in steps:
        pixels = STEPS[step["do"]](pixels, step)
    return pixels.transpose(2, 0, 1)


def channels(pixels: Array, step: Mapping[str, Any]) -> Array:
    if pixels.shape[2] == step["channels"]:
        return pixels
    if step["channels"] == 3:
        return np.repeat(pixels, 3, axis=2)
    return ((pixels.astype(np.int64) @ [19595, 38470, 7471] + 0x8000) >> 16).astype(np.uint8)[..., None]


def resize(pixels: Array, step: Mapping[str, Any]) -> Array:
    """Rows of pixels first, then columns, rounded to bytes in between. `shortest`: of its sides, the other in proportion."""
    height, width = size_after(pixels.shape[0], pixels.shape[1], step)
    if width != pixels.shape[1]:
        pixels = blended(pixels.swapaxes(0, 1), width, step["filter"]).swapaxes(0, 1)
    return blended(pixels, height, step["filter"]) if height != pixels.shape[0] else pixels


def size_after(height: int, width: int, step: Mapping[str, Any]) -> tuple[int, int]:
    if "shortest" not in step:
        return step["height"], step["width"]
    short, long = step["shortest"], step["shortest"] * max(height, width) // min(height, width)
    return (short, long) if height <= width else (long, short)


def blended(pixels: Array, size: int, name: str) -> Array:
    """(P, Q, C) bytes to (size, Q, C) bytes."""
    sums = np.einsum("sp,pqc->sqc", weights(len(pixels), size, name), pixels.astype(np.int64))
    return np.clip((sums + (1 << BITS - 1)) >> BITS, 0, 255).astype(np.uint8)


def weights(before: int, after: int, name: str) -> Array:
    """(after, before) whole numbers, each row 2**BITS in all or nearly so: the share of each pixel in each new one."""
    reach, curve = FILTERS[name]
    scale = before / after
    wide = max(scale, 1.0)
    found = np.zeros((after, before), np.int64)
    for place in range(after):
        center = (place + 0.5) * scale
        low, high = max(0, int(center - reach * wide + 0.5)), min(before, int(center + reach * wide + 0.5))
        shares = curve(np.abs((np.arange(low, high) - center + 0.5) * (1 / wide)))
        shares = shares / shares.sum() * (1 << BITS)
        found[place, low:high] = np.where(shares < 0, shares - 0.5, shares + 0.5).astype(np.int64)
    return found


def crop(pixels: Array, step: Mapping[str, Any]) -> Array:
    top, left = (pixels.shape[0] - step["height"]) // 2, (pixels.shape[1] - step["width"]) // 2
    return pixels[top : top + step["height"], left : left + step["width"]]


def scale(pixels: Array, step: Mapping[str, Any]) -> Array:
    by, minus = (np.array(step[name], np.float32) for name in ("by", "minus"))
    return pixels.astype(np.float32) * by - minus


STEPS = {"channels": channels, "resize": resize, "crop": crop, "scale": scale}
