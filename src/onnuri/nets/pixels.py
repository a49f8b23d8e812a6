"""Images as tensors and back, and a distance between two sets of images that needs no downloaded network.

`frechet_pixels` is the Frechet distance of Heusel et al. 2017 (arXiv:1706.08500, equation 6) with one
difference: the features are the pixels themselves, averaged down to at most 8 x 8, and not activations of an
Inception network. It sees brightness, color, and how far pixels vary and vary together, so it notices a set
that is blurred and modes that are missing; it is blind to fine texture. Its figures must not be compared with
a published FID.

Letters: B images, C channels, H and W height and width.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data import Records
from ..errors import BadInput

Shape = tuple[int, int, int]
"""(channels, height, width); channels is 1 for grey or 3 for color."""

LARGEST_GUESS = 64  # pixels a side: what a processor of two cores still learns within hours
FEATURE_SIDE = 8  # 64 features a channel: a covariance that some hundred images already determine


def image_field(records: Records) -> str:
    """The column of images: the answer if that holds images, else the only one. BadInput when not clear."""
    images = [name for name, kind in records.fields.items() if kind == "image"]
    if records.answer in images:
        return records.answer
    if len(images) == 1:
        return images[0]
    raise BadInput(
        f"{len(images)} columns hold images, one is needed: {', '.join(records.fields)}",
        hint="--answer NAME, where NAME is the column of images",
    )


def shaped(settings: dict, channels: int, size: int) -> dict:
    """The settings of a net that makes images, of this shape where they leave it open."""
    return {**settings, "size": settings["size"] or size, "channels": settings["channels"] or channels}


def guess_shape(image: np.ndarray, multiple: int = 4) -> Shape:
    """A square for images like this one: the longer side rounded up to `multiple`, at most LARGEST_GUESS."""
    side = min(-(-max(image.shape[:2]) // multiple) * multiple, LARGEST_GUESS)
    return (1 if image.ndim == 2 else 3, side, side)


def resized(image: np.ndarray, shape: Shape) -> np.ndarray:
    """uint8 (H, W) or (H, W, 3) in the channels (grey is luma) and the size (bilinear) of `shape`."""
    picture = Image.fromarray(image).convert("L" if shape[0] == 1 else "RGB")
    if picture.size != (shape[2], shape[1]):
        picture = picture.resize((shape[2], shape[1]), Image.Resampling.BILINEAR)
    return np.array(picture)


def to_tensor(image: np.ndarray, shape: Shape) -> Tensor:
    """uint8 (H, W) or (H, W, 3) -> float (C, H, W) of `shape`, 0..255 mapped to -1..1."""
    pixels = torch.from_numpy(resized(image, shape)).reshape(shape[1], shape[2], shape[0])
    return pixels.permute(2, 0, 1).float() / 127.5 - 1


def to_images(values: Tensor, shape: Shape) -> list[np.ndarray]:
    """float (B, ..., C * H * W) around -1..1 -> B images, uint8 (H, W) for grey or (H, W, 3)."""
    pixels = values.detach().float().cpu().reshape(-1, *shape).permute(0, 2, 3, 1)
    whole = ((pixels + 1) * 127.5).nan_to_num().round().clamp(0, 255).to(torch.uint8).numpy()
    return [image[..., 0] if shape[0] == 1 else image for image in whole]


def pixel_features(images: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
    """(images, features) in 0..1: each image in `shape`, then averaged down to FEATURE_SIDE pixels a side."""
    grey = shape[0] == 1
    fits = all(image.shape == (shape[1:] if grey else (*shape[1:], 3)) for image in images)
    pixels = np.stack(images if fits else [resized(image, shape) for image in images]).reshape(-1, *shape[1:], shape[0])
    down, across = (averaging(min(FEATURE_SIDE, side), side) for side in shape[1:])
    rows = np.tensordot(pixels.astype(np.float32), down, ((1,), (1,)))  # (B, W, C, h)
    return np.tensordot(rows, across, ((1,), (1,))).reshape(len(pixels), -1).astype(np.float64) / 255


def averaging(few: int, many: int) -> np.ndarray:
    """(few, many): `many` values in a row averaged to `few`, each over an equal part of the row; rows sum to 1."""
    edges = np.linspace(0, many, few + 1)
    places = np.arange(many)
    inside = np.minimum(edges[1:, None], places + 1) - np.maximum(edges[:-1, None], places)
    return (inside.clip(min=0) * (few / many)).astype(np.float32)


def root(matrix: np.ndarray) -> np.ndarray:
    """The symmetric square root of a positive semi-definite matrix; eigenvalues below zero are rounding."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """Squared Frechet distance between the Gaussians fitted to two sets of rows, (n, D) and (m, D).

    One row alone has spread 0. The trace of the root of the covariances' product is taken as the sum of the
    singular values of the product of their roots, which stays real.
    """
    mean = ((first.mean(0) - second.mean(0)) ** 2).sum()
    spreads = [np.atleast_2d(np.cov(rows, rowvar=False, bias=True)) for rows in (first, second)]
    overlap = np.linalg.svd(root(spreads[0]) @ root(spreads[1]), compute_uv=False).sum()
    return float(max(mean + np.trace(spreads[0]) + np.trace(spreads[1]) - 2 * overlap, 0.0))


def score_images(
    records: Sequence[dict[str, Any]], answers: Sequence[dict[str, Any]], field: str, shape: Shape
) -> dict[str, float]:
    """{"frechet_pixels": ...} between the images of `records` and those of `answers`; 0 is best."""
    real, made = ([row[field] for row in rows] for rows in (records, answers))
    return {"frechet_pixels": frechet(pixel_features(real, shape), pixel_features(made, shape))}


def toy_patterns(n: int, seed: int) -> list[np.ndarray]:
    """n images, uint8 (8, 8): a bright bar, lying or standing, at any place, on a dark and slightly noisy
    ground."""
    draw = np.random.default_rng(seed)
    images = []
    for _ in range(n):
        image = draw.normal(16, 6, (8, 8))
        image[draw.integers(0, 8)] = draw.normal(220, 12)
        image = image if draw.random() < 0.5 else image.T
        images.append(image.round().clip(0, 255).astype(np.uint8))
    return images
