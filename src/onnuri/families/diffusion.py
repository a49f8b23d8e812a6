"""diffusion: denoising diffusion of images, DDPM (Ho et al. 2020, arXiv:2006.11239), by diffusers.

Its folders are in `diffusion_folders.py`. Two differences from the paper:

1. A new model has the cosine schedule, better on small images (Nichol & Dhariwal 2021, arXiv:2102.09672).
2. Sampling is DDIM in few steps, whose only noise is the start (Song et al. 2020, arXiv:2010.02502).

Letters: B records, C channels, H and W height and width.
"""

import json
from collections.abc import Hashable, Sequence
from dataclasses import replace
from math import gcd
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .. import hub
from ..data import Kind, Record, Records, records_of
from ..errors import BadSettings, Refusal
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
from ..nets.pixels import guess_shape, image_field, score_images, shaped, to_images, to_tensor, toy_patterns
from . import depth, sizes
from .diffusion_folders import STEPS, Assets, claims, library, public, read, write

NOISE = (
    "prediction_type",
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "trained_betas",
    "rescale_betas_zero_snr",
)
"""The entries of a scheduler that decide what a net's prediction means."""

DEFAULTS = {
    "size": None,
    "channels": None,
    "width": 32,
    "layers": 2,
    "schedule": "squaredcos_cap_v2",
    "timesteps": 1000,
    "steps": STEPS,
}
"""size (pixels a side, a multiple of 4) and channels (1 or 3) are taken from the first record where they are
None; width: channels at full size; layers: residual blocks a stage; timesteps: of the noise schedule; steps:
how many of them sampling visits."""


# ---------------------------------------------------------------------------------------------------- making


def configured(config: dict) -> dict:
    """See Family.configured."""
    settings = hub.merged(DEFAULTS, config)
    check_settings(shaped(settings, 1, 4))
    return settings


def start(config: dict, records: Records, generator: torch.Generator) -> tuple[nn.Module, Assets]:
    settings, answer = configured(config), image_field(records)
    channels, size, _ = guess_shape(records[0][answer])
    settings = shaped(settings, channels, size)
    check_settings(settings)
    version = {"_diffusers_version": library().__version__}
    noise = library().DDPMScheduler(settings["timesteps"], beta_schedule=settings["schedule"])
    scheduler = {"_class_name": "DDPMScheduler", **version, **public(noise.config)}
    index = {
        "_class_name": "DDPMPipeline",
        **version,
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    shape = (settings["channels"], settings["size"], settings["size"])
    return fresh(design(settings), generator), Assets(answer, shape, settings["steps"], index, scheduler)


def check_settings(settings: dict) -> None:
    """BadSettings lists every entry that no UNet can be built from."""
    limits = {
        "size": (4, 512),
        "width": (8, 1024),
        "layers": (1, 8),
        "timesteps": (1, 10_000),
        "steps": (1, settings["timesteps"] if type(settings["timesteps"]) is int else 10_000),
    }
    faults = [
        f"'{name}' must be a whole number from {low} to {high}, found {settings[name]!r}"
        for name, (low, high) in limits.items()
        if type(settings[name]) is not int or not low <= settings[name] <= high
    ]
    if not faults:
        faults += [
            f"'{name}' must be a multiple of {unit}, found {settings[name]}"
            for name, unit in (("size", 4), ("width", 8))
            if settings[name] % unit
        ]
    if settings["channels"] not in (1, 3):
        faults.append(f"'channels' must be 1 or 3, found {settings['channels']!r}")
    schedules = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
    if settings["schedule"] not in schedules:
        faults.append(f"'schedule' must be one of {', '.join(schedules)}, found {settings['schedule']!r}")
    if faults:
        raise BadSettings(*faults)


def design(settings: dict) -> dict:
    """UNet2DModel's config: widths 1, 2, 2 in three stages, 1, 2 for tiny images; attention in the last."""
    width, channels = settings["width"], settings["channels"]
    plain = 2 if settings["size"] >= 16 else 1
    return {
        "sample_size": settings["size"],
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": [width] + [2 * width] * plain,
        "down_block_types": ["DownBlock2D"] * plain + ["AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D"] + ["UpBlock2D"] * plain,
        "layers_per_block": settings["layers"],
        "norm_num_groups": width // 4,
        "attention_head_dim": width,
    }


def fresh(config: dict, generator: torch.Generator) -> nn.Module:
    """New weights that depend on `generator` alone."""
    with seeded(generator):
        return library().UNet2DModel.from_config(config).eval()


def adopt(folder: Path, records: Records, generator: torch.Generator) -> tuple[nn.Module, Assets]:
    """A diffusion model goes on with other images, resized to its size. Without labels no weight is new."""
    if not claims(folder):
        raise Refusal(
            f"{folder} holds no UNet of pixels; nothing of a model of another kind can be kept",
            "start a new diffusion model from data",
        )
    net, assets = read(folder, False)
    return net, replace(assets, answer=image_field(records))


def like(net: Any, assets: Assets, scale: float, generator: torch.Generator) -> tuple[nn.Module, Assets]:
    """Widths stay multiples of 4. Groups and heads shrink to what divides them all."""
    config = public(net.config)
    if scale != 1:
        widths = [max(4, round(width * scale / 4) * 4) for width in config["block_out_channels"]]
        parts = ("norm_num_groups", "attn_norm_num_groups", "attention_head_dim")
        config |= {name: gcd(config[name], *widths) for name in parts if config[name]}
        config["block_out_channels"] = widths
    return fresh(config, generator), assets


def sizes_of(net: Any, assets: Assets) -> list[Size]:
    """See Family.sizes. All stages keep their proportion, and each group its share of them."""
    config = public(net.config)
    count = gcd(*config["block_out_channels"])

    def made(number: int) -> nn.Module:
        widths = [width // count * number for width in config["block_out_channels"]]
        return sizes.on_meta(lambda: library().UNet2DModel.from_config({**config, "block_out_channels": widths}))

    groups = config["norm_num_groups"]
    return [Size("block_out_channels", "channels", count, made, groups, sections=groups)]


# ---------------------------------------------------------------------------------------- questions, answers


def fields(assets: Assets) -> tuple[dict[str, Kind], tuple[str, Kind]]:
    return {}, (assets.answer, "image")


def axis(assets: Assets) -> Hashable:
    """The pixels, and which noise is predicted: nets of unlike schedules answer different questions."""
    config = schedule_of(assets).config
    return json.dumps([config[name] for name in NOISE]), *assets.shape


def schedule_of(assets: Assets) -> Any:
    """The noise schedule as a DDIMScheduler."""
    return library().DDIMScheduler.from_config(public(assets.scheduler))


def kind(assets: Assets) -> Literal["logits", "values"]:
    return "values"


def collate(records: Sequence[Record], assets: Assets, generators: Sequence[torch.Generator]) -> Batch:
    """noisy (B, C, H, W) and timestep (B,); with answers also target (B, C, H, W), what should be predicted.

    Noise is mixed into the records' own images. Records without one are asked at the last step, all noise.
    """
    schedule = schedule_of(assets)
    steps = schedule.config.num_train_timesteps
    draws = [draw(generators[i], assets, steps) for i in range(len(records))]
    timestep, noise = (torch.stack(part) for part in zip(*draws))
    if not all(record.get(assets.answer) is not None for record in records):
        return {"noisy": noise, "timestep": torch.full_like(timestep, steps - 1)}
    image = torch.stack([to_tensor(record[assets.answer], assets.shape) for record in records])
    return {
        "noisy": schedule.add_noise(image, noise, timestep),
        "timestep": timestep,
        "target": target_of(image, noise, timestep, schedule),
    }


def target_of(image: Tensor, noise: Tensor, timestep: Tensor, schedule: Any) -> Tensor:
    """What the net should predict: the noise (epsilon), the image (sample) or a mixture (v_prediction)."""
    if schedule.config.prediction_type == "v_prediction":
        return schedule.get_velocity(image, noise, timestep)
    return image if schedule.config.prediction_type == "sample" else noise


def draw(generator: torch.Generator, assets: Assets, timesteps: int) -> tuple[Tensor, Tensor]:
    """A step () and noise (C, H, W) of one record."""
    return torch.randint(timesteps, (), generator=generator), torch.randn(assets.shape, generator=generator)


def loss(net: nn.Module, batch: Batch, player: str) -> tuple[Tensor, Tensor]:
    """The sum of the squared errors and the number of values, the paper's simple objective (equation 14)."""
    error = (outputs(net, batch)[0][:, 0] - batch["target"].flatten(1)) ** 2
    return error.sum(1), torch.full_like(error[:, 0], error.shape[1])


@on_any_runtime
def outputs(net: nn.Module, batch: Batch) -> Outputs:
    """What the net takes for the noise: values (B, 1, C * H * W).

    The library asks whether B is above 63, so an export needs `Dim.DYNAMIC` for B, a fixed range is refused.
    """
    values = net(batch["noisy"], batch["timestep"], return_dict=False)[0].flatten(1)[:, None]
    return values, torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)


def sample(
    net: nn.Module, assets: Assets, records: Sequence[Record], generators: Sequence[torch.Generator]
) -> list[Record]:
    """One image a record, made by DDIM. Nothing is asked, so what the records hold makes no difference."""
    noisy = collate([{} for _ in records], assets, generators)["noisy"]
    schedule = schedule_of(assets)
    schedule.set_timesteps(min(assets.steps, schedule.config.num_train_timesteps))
    for timestep in schedule.timesteps:
        values, _ = outputs(net, {"noisy": noisy, "timestep": timestep.repeat(len(records))})
        noisy = schedule.step(values.reshape(noisy.shape), timestep, noisy).prev_sample
    images = to_images(noisy, assets.shape)
    return [{**record, assets.answer: image, f"{assets.answer}_scores": {}} for record, image in zip(records, images)]


def score(records: Sequence[Record], answers: Sequence[Record], assets: Assets) -> dict[str, float]:
    """frechet_pixels, see `nets/pixels.py`; squared units of brightness 0..1."""
    return score_images(records, answers, assets.answer, assets.shape)


def headline(assets: Assets) -> tuple[str, Literal["up", "down"]]:
    return "frechet_pixels", "down"


# ----------------------------------------------------------------------------------------------------- parts


def players(net: nn.Module) -> dict[str, nn.Module]:
    return {"unet": net}


def blocks(net: nn.Module) -> dict[str, tuple[nn.Module, int]]:
    """The residual blocks, which put out one tensor each; the UNet's larger blocks put out several."""
    return {name: (module, 1) for name, module in net.named_modules() if name.split(".")[-2:-1] == ["resnets"]}


def tiny() -> dict:
    return {"width": 8, "layers": 1, "timesteps": 100, "steps": 10}


def toy(n: int, seed: int) -> Records:
    return records_of([{"image": image} for image in toy_patterns(n, seed)], {"image": "image"}, "image")


FAMILY = Family(
    name="diffusion",
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
