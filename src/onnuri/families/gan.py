"""gan: a generator of images learnt against a discriminator, the nets of `nets/dcgan.py` in a folder of ours.

Loss: relativistic pairs with zero-centered gradient penalties on real and made images, R3GAN (Huang et al.
2024, arXiv:2501.05441), with one difference: the penalty's gradient is a finite difference along one random
direction, whose square has the same mean (Lin et al. 2025, arXiv:2501.08316), so that no second derivative is
needed. A pair is one record's image and the image made from that record's own latent: no record changes
another's loss.

Letters: B records, L the latent size, C channels, S pixels a side.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from .. import hub
from ..data import Kind, Record, Records, records_of
from ..errors import BadInput, BadSettings, Refusal
from ..family import (
    Batch,
    Family,
    Outputs,
    Size,
    at_once,
    no_tokens,
    of_one_length,
    on_any_runtime,
    one_a_row,
    reads_all,
    seeded,
    uncut,
    undivided,
)
from ..nets.dcgan import GROUPS, Gan, faults_of
from ..nets.pixels import Shape, guess_shape, image_field, score_images, shaped, to_images, to_tensor, toy_patterns
from . import depth, sizes

MODEL_TYPE = "onnuri_gan"
DEFAULTS = {"size": None, "channels": None, "width": 32, "latent": 64}
"""size (pixels a side, a multiple of 4) and channels (1 or 3): None takes them from the first record."""

STEP = 0.1  # of the finite difference, in pixels of -1..1: large against the rounding of bf16
PENALTY = 0.5  # weight of the squared gradient: 5 left digits of MNIST a third farther from real ones


@dataclass(frozen=True)
class Assets:
    """`answer`: the column of images. `shape`: of what is generated. `latent`: numbers drawn for an image."""

    answer: str
    shape: Shape
    latent: int


# --------------------------------------------------------------------------------------------------- folders


def claims(folder: Path) -> bool:
    return hub.peek(folder).get("model_type") == MODEL_TYPE


def build(config: dict) -> Gan:
    """The net that a folder's config.json describes; BadInput lists every bad entry."""
    faults = faults_of(config)
    if not isinstance(config.get("answer"), str):
        faults.append(f"'answer' must name the column of images, found {config.get('answer')!r}")
    if faults:
        raise BadInput(*(f"config.json: {fault}" for fault in faults))
    return Gan(config)


def read(folder: Path, empty: bool) -> tuple[nn.Module, Assets]:
    net = hub.read_own(build, folder, empty)
    return net, assets_of(net, hub.read_json(folder / "config.json")["answer"])


def write(net: Any, assets: Assets, folder: Path, weights: bool) -> None:
    config = {"model_type": MODEL_TYPE, "architectures": ["Gan"], "answer": assets.answer, **net.config}
    hub.write_own(net, config, folder, weights)


def assets_of(net: Any, answer: str) -> Assets:
    size = net.config["size"]
    return Assets(answer, (net.config["channels"], size, size), net.config["latent"])


# ---------------------------------------------------------------------------------------------------- making


def configured(config: dict) -> dict:
    """See Family.configured."""
    settings = hub.merged(DEFAULTS, config)
    if faults := faults_of(shaped(settings, 1, 4)):
        raise BadSettings(*faults)
    return settings


def start(config: dict, records: Records, generator: torch.Generator) -> tuple[nn.Module, Assets]:
    settings, answer = configured(config), image_field(records)
    channels, size, _ = guess_shape(records[0][answer])
    settings = shaped(settings, channels, size)
    if faults := faults_of(settings):
        raise BadSettings(*faults)
    net = fresh(settings, generator)
    return net, assets_of(net, answer)


def fresh(config: dict, generator: torch.Generator) -> Gan:
    """New weights that depend on `generator` alone."""
    with seeded(generator):
        return Gan(config).eval()


def adopt(folder: Path, records: Records, generator: torch.Generator) -> tuple[nn.Module, Assets]:
    """A GAN of ours goes on with other images, resized to what it makes. Without labels no weight is new."""
    if not claims(folder):
        raise Refusal(
            f"{folder} holds no GAN of ours; nothing of a model of another kind can be kept",
            "start a new GAN from data",
        )
    net, _ = read(folder, False)
    return net, assets_of(net, image_field(records))


def like(net: Any, assets: Assets, scale: float, generator: torch.Generator) -> tuple[nn.Module, Assets]:
    """The latent size stays: one latent asks both nets the same question."""
    width = max(GROUPS, round(net.config["width"] * scale / GROUPS) * GROUPS)
    return fresh({**net.config, "width": width}, generator), assets


def sizes_of(net: Any, assets: Assets) -> list[Size]:
    """See Family.sizes. Both players are narrowed alike."""

    def made(width: int) -> nn.Module:
        return sizes.on_meta(lambda: Gan({**net.config, "width": width}))

    return [Size("width", "channels", net.config["width"], made, GROUPS, sections=GROUPS)]


# ---------------------------------------------------------------------------------------- questions, answers


def fields(assets: Assets) -> tuple[dict[str, Kind], tuple[str, Kind]]:
    return {}, (assets.answer, "image")


def axis(assets: Assets) -> Hashable:
    """The pixels, and the size of the latent: a net of another one answers another question."""
    return (*assets.shape, assets.latent)


def kind(assets: Assets) -> Literal["logits", "values"]:
    return "values"


def collate(records: Sequence[Record], assets: Assets, generators: Sequence[torch.Generator]) -> Batch:
    """latent (B, L); with answers also image (B, C, S, S) and the penalties' direction (B, 2, C, S, S)."""
    known = all(record.get(assets.answer) is not None for record in records)
    latents, directions = [], []
    for i in range(len(records)):
        generator = generators[i]
        latents.append(torch.randn(assets.latent, generator=generator))
        if known:
            directions.append(torch.randn(2, *assets.shape, generator=generator))
    batch = {"latent": torch.stack(latents)}
    if known:
        images = [to_tensor(record[assets.answer], assets.shape) for record in records]
        batch |= {"image": torch.stack(images), "direction": torch.stack(directions)}
    return batch


def loss(net: Any, batch: Batch, player: str) -> tuple[Tensor, Tensor]:
    """Softplus of the other player's lead in the pair, for the discriminator plus its penalties. Count 1."""
    real, count = batch["image"], torch.ones(len(batch["image"]), device=batch["image"].device)
    if player == "generator":
        made = net.generator(batch["latent"])
        return softplus(net.discriminator(real) - net.discriminator(made)), count
    with torch.no_grad():
        made = net.generator(batch["latent"])
    on_real, on_made = net.discriminator(real), net.discriminator(made)
    total = softplus(on_made - on_real)
    for image, found, direction in zip((real, made), (on_real, on_made), batch["direction"].unbind(1)):
        slope = (net.discriminator(image + STEP * direction) - found) / STEP
        total = total + PENALTY * slope**2
    return total, count


@on_any_runtime
def outputs(net: Any, batch: Batch) -> Outputs:
    """The image made from each record's latent: values (B, 1, C * S * S) in -1..1."""
    values = net.generator(batch["latent"]).flatten(1)[:, None]
    return values, torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)


def sample(net: Any, assets: Assets, records: Sequence[Record], generators: Sequence[torch.Generator]) -> list[Record]:
    """One generated image a record. Nothing is asked, so that what the records hold makes no difference."""
    batch = collate([{} for _ in records], assets, generators)
    images = to_images(outputs(net, batch)[0], assets.shape)
    return [{**record, assets.answer: image, f"{assets.answer}_scores": {}} for record, image in zip(records, images)]


def score(records: Sequence[Record], answers: Sequence[Record], assets: Assets) -> dict[str, float]:
    """frechet_pixels, see `nets/pixels.py`; squared units of brightness 0..1."""
    return score_images(records, answers, assets.answer, assets.shape)


def headline(assets: Assets) -> tuple[str, Literal["up", "down"]]:
    return "frechet_pixels", "down"


# ----------------------------------------------------------------------------------------------------- parts


def players(net: Any) -> dict[str, nn.Module]:
    """The discriminator is first: it is the one that judges a record by the record's own image."""
    return {"discriminator": net.discriminator, "generator": net.generator}


def blocks(net: Any) -> dict[str, tuple[nn.Module, int]]:
    return {
        f"{name}.stages.{i}": (stage, 1)
        for name in ("generator", "discriminator")
        for i, stage in enumerate(net.get_submodule(name).stages)
    }


def tiny() -> dict:
    return {"width": 8, "latent": 8}


def toy(n: int, seed: int) -> Records:
    return records_of([{"image": image} for image in toy_patterns(n, seed)], {"image": "image"}, "image")


FAMILY = Family(
    name="gan",
    tag="unconditional-image-generation",
    kind=kind,
    claims=claims,
    read=read,
    write=write,
    configured=configured,
    start=start,
    adopt=adopt,
    like=like,
    fields=fields,
    axis=axis,
    collate=collate,
    pieces=undivided,
    packed=one_a_row(collate),
    lengths=of_one_length,
    encoding=lambda assets: {},
    loss=loss,
    outputs=outputs,
    steps=reads_all(outputs),
    writing=at_once,
    sample=sample,
    score=score,
    headline=headline,
    players=players,
    blocks=blocks,
    keep=depth.refuse,
    sizes=sizes_of,
    vocabulary=no_tokens,
    segmentation=uncut,
    tiny=tiny,
    toy=toy,
)
