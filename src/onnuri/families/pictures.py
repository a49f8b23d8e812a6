"""How pictures enter our own ConvNet, and what is learnt of that from the records.

A picture is brought to the net's channels (grey by ITU-R 601, color by repeating grey) and, where it differs, size. In
training it may be shifted, and mirrored where that does not change what is seen. Nobody is asked whether it does: the
mean picture of each class is learnt from half of some records, and tried on the other half, as they stand and mirrored.
A mirrored digit is recognized clearly worse, a mirrored photo as well as before.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data import Record, as_label

LARGEST = 64  # pixels of the longer side that a new ConvNet takes unless told otherwise
SHIFTED = 1 / 14  # of the shorter side: how far pictures are shifted in training
SURE = 3.0  # standard deviations that count as clear


@dataclass(frozen=True)
class Pixels:
    """How pictures enter a ConvNet: (height, width), mean and deviation of each channel, scaled to 0..1; in training
    `shift` pixels each way at most, and mirrored or not."""

    size: tuple[int, int]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    shift: int
    flip: bool


def faults_of(shift: object, flip: object, size: tuple[int, int]) -> list[str]:
    """What is wrong with the disturbance."""
    faults = [] if type(flip) is bool else [f"flip must be true or false, found {flip!r}"]
    if type(shift) is not int or not 0 <= shift < min(size):
        faults.append(f"shift must be a whole number of pixels from 0 to {min(size) - 1}, found {shift!r}")
    return faults


# ------------------------------------------------------------------------------------------------------- what is learnt


def usual_size(images: Sequence[np.ndarray]) -> tuple[int, int]:
    """The commonest (height, width), shrunk until its longer side is LARGEST."""
    height, width = Counter(image.shape[:2] for image in images).most_common(1)[0][0]
    shrink = min(1.0, LARGEST / max(height, width))
    return max(1, round(height * shrink)), max(1, round(width * shrink))


def usual_shift(size: tuple[int, int]) -> int:
    """2 pixels of 28 and of 32, none of 8."""
    return int(SHIFTED * min(size))


def mean_and_deviation(values: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of each channel of (N, H, W, C) uint8, scaled to 0..1; a deviation of zero becomes 1."""
    scaled = values.astype(np.float64) / 255
    deviation = scaled.std((0, 1, 2))
    deviation = np.where(deviation > 0, deviation, 1.0)
    return tuple(scaled.mean((0, 1, 2)).tolist()), tuple(deviation.tolist())


def same_when_mirrored(values: np.ndarray, labels: Sequence[str]) -> bool:
    """Whether pictures (N, H, W, C) clearly show their labels, and show them as well when mirrored. False in doubt."""
    pictures = values.astype(np.float32)
    names, classes = np.unique(np.asarray(labels), return_inverse=True)
    learnt, asked = slice(0, None, 2), slice(1, None, 2)
    seen = [name for name in range(len(names)) if (classes[learnt] == name).any()]
    means = np.stack([pictures[learnt][classes[learnt] == name].mean(0).ravel() for name in seen])
    truth = classes[asked]
    standing = np.take(seen, nearest(pictures[asked], means)) == truth
    mirrored = np.take(seen, nearest(pictures[asked][:, :, ::-1], means)) == truth
    guessed = np.bincount(truth).max() if len(truth) else 0
    known = min(standing.sum(), mirrored.sum()) > guessed + SURE * np.sqrt(guessed)
    lost, won = (standing & ~mirrored).sum(), (mirrored & ~standing).sum()
    return bool(known and lost - won <= SURE * np.sqrt(lost + won))


def nearest(pictures: np.ndarray, means: np.ndarray) -> np.ndarray:
    """The row of `means` at the least distance from each picture."""
    rows = pictures.reshape(len(pictures), -1)
    return (np.square(means).sum(1) - 2 * rows @ means.T).argmin(1)


# ------------------------------------------------------------------------------------------------------ pictures in


def stacked(images: Sequence[np.ndarray], size: tuple[int, int], channels: int) -> np.ndarray:
    """Pictures as (B, height, width, channels) uint8."""
    return np.stack([resized(image, size, channels) for image in images])


def resized(image: np.ndarray, size: tuple[int, int], channels: int) -> np.ndarray:
    """A picture as (height, width, channels) uint8. Its rows first: which of both Pillow would take first depends on its
    version, and with it the rounding."""
    if image.shape[:2] != size:
        rows = Image.fromarray(image).resize((size[1], image.shape[0]), Image.Resampling.BILINEAR)
        image = np.asarray(rows.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return with_channels(image, channels)


def with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """A picture as (H, W, channels) uint8."""
    if channels == 1:
        return (image if image.ndim == 2 else np.asarray(Image.fromarray(image).convert("L")))[..., None]
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image


def normalized(values: np.ndarray, pixels: Pixels) -> Tensor:
    """(B, H, W, C) uint8 as (B, C, H, W) float32, of mean 0 and deviation 1 over the first records."""
    scale = 1 / (255 * np.array(pixels.deviation))
    offset = np.array(pixels.mean) / np.array(pixels.deviation)
    return torch.from_numpy(values * scale.astype(np.float32) - offset.astype(np.float32)).permute(0, 3, 1, 2)


def encoding(pixels: Pixels, channels: int) -> list[dict[str, Any]]:
    """What `resized` and `normalized` do, as the steps of `encoding.py`."""
    by = [1 / (255 * deviation) for deviation in pixels.deviation]
    minus = [mean / deviation for mean, deviation in zip(pixels.mean, pixels.deviation)]
    return [
        {"do": "resize", "height": pixels.size[0], "width": pixels.size[1], "filter": "bilinear"},
        {"do": "channels", "channels": channels},
        {"do": "scale", "by": by, "minus": minus},
    ]


FILTERS = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}
SAID = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")


def processor_encoding(settings: dict[str, Any], channels: int) -> list[dict[str, Any]]:
    """What a processor of transformers does, as the steps of `encoding.py`; [] where it does something else as well."""
    size, crop = settings.get("size") or {}, settings.get("crop_size") or {}
    does = {name for name, value in settings.items() if name.startswith("do_") and value}
    fixed, shortest = {"height", "width"}, {"shortest_edge"}
    strange = does - set(SAID) or "crop_pct" in settings or ("do_center_crop" in does and not fits(crop, size))
    if strange or ("do_resize" in does and (set(size) not in (fixed, shortest) or settings["resample"] not in FILTERS)):
        return []
    steps: list[dict[str, Any]] = [{"do": "channels", "channels": channels}]
    if "do_resize" in does:
        to = {"shortest": size["shortest_edge"]} if set(size) == shortest else {name: size[name] for name in fixed}
        steps.append({"do": "resize", **to, "filter": FILTERS[settings["resample"]]})
    if "do_center_crop" in does:
        steps.append({"do": "crop", "height": crop["height"], "width": crop["width"]})
    factor = settings["rescale_factor"] if "do_rescale" in does else 1.0
    mean, deviation = ([0.0], [1.0]) if "do_normalize" not in does else (settings["image_mean"], settings["image_std"])
    by, minus = [factor / each for each in deviation], [m / d for m, d in zip(mean, deviation)]
    return [*steps, {"do": "scale", "by": by, "minus": minus}]


def fits(crop: dict[str, int], size: dict[str, int]) -> bool:
    """Whether every picture of this size is large enough for the crop: others are padded."""
    return bool(crop) and max(crop.values()) <= min(size.values(), default=0)


def moves_of(generators: Sequence[torch.Generator], pixels: Pixels) -> Tensor:
    """How each picture is moved in training (B, 3) int64: pixels down, pixels right, 1 where it is mirrored."""
    rows = []
    for i in range(len(generators)):
        down, right, side = torch.rand(3, generator=generators[i]).tolist()
        ways = 2 * pixels.shift + 1
        rows.append((int(down * ways) - pixels.shift, int(right * ways) - pixels.shift, pixels.flip and side < 0.5))
    return torch.tensor(rows, dtype=torch.int64)


def labels_in(records: Sequence[Record], answer: str) -> list[str]:
    return [str(as_label(record[answer])) for record in records]
