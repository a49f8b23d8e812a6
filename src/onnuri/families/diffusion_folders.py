"""Folders of diffusers that hold a diffusion model of pixels, in two layouts, each written back as it was found.

A pipeline: `model_index.json`, `unet/`, `scheduler/`, as DDPMPipeline opens it. A bare UNet2DModel: `config.json`,
weights, perhaps `scheduler_config.json`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from .. import hub
from ..errors import BadInput, needs_extra
from ..nets.pixels import Shape

PIPELINES = ("DDPMPipeline", "DDIMPipeline")
SCHEDULERS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler")
PREDICTIONS = ("epsilon", "sample", "v_prediction")
SAMPLING = "onnuri_sampling.json"
"""What the library's files have no place for: the column of images and the steps of sampling."""

STEPS = 50  # of sampling, where nothing else is said


@dataclass(frozen=True)
class Assets:
    """`answer`: the column of images. `shape`: of what is generated. `steps`: of sampling.

    `index`: model_index.json, {} for a bare UNet. `scheduler`: scheduler_config.json, {} where there is none.
    """

    answer: str
    shape: Shape
    steps: int
    index: dict
    scheduler: dict


def library() -> Any:
    """diffusers, quiet."""
    try:
        import diffusers
    except ImportError:
        raise needs_extra("diffusion", "diffusers") from None
    diffusers.utils.logging.set_verbosity_error()
    return diffusers


def public(config: Any) -> dict:
    """A config of the library without its private entries. One of them, `_use_default_values`, would make
    `from_config` put defaults in place of entries that were given by position or changed since."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


def claims(folder: Path) -> bool:
    return is_pipeline(folder) or hub.peek(folder).get("_class_name") == "UNet2DModel"


def is_pipeline(folder: Path) -> bool:
    try:
        return hub.read_json(folder / "model_index.json").get("_class_name") in PIPELINES
    except BadInput:
        return False


def read(folder: Path, empty: bool) -> tuple[nn.Module, Assets]:
    pipeline = is_pipeline(folder)
    index = hub.read_json(folder / "model_index.json") if pipeline else {}
    schedule = folder / "scheduler" if pipeline else folder
    found = pipeline or (schedule / "scheduler_config.json").exists()
    scheduler = hub.read_json(schedule / "scheduler_config.json") if found else {}
    check_scheduler(scheduler, schedule)
    net = read_unet(folder / "unet" if pipeline else folder, empty)
    answer, steps = read_sampling(folder)
    return net, Assets(answer, shape_of(net, folder), steps, index, scheduler)


def read_unet(folder: Path, empty: bool) -> nn.Module:
    unet = library().UNet2DModel
    if empty:
        config = hub.guarded(unet.load_config, folder, local_files_only=True)
        return hub.guarded(lambda _: unet.from_config(config), folder).eval()
    net, report = hub.guarded(
        unet.from_pretrained, folder, use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    hub.check_report(report, folder)
    return net.eval()


def check_scheduler(config: dict, folder: Path) -> None:
    """BadInput unless the noise schedule is one of discrete steps that the library can build."""
    name, prediction = config.get("_class_name", SCHEDULERS[0]), config.get("prediction_type", PREDICTIONS[0])
    if name not in SCHEDULERS:
        raise BadInput(f"{folder}: the scheduler {name!r} is not known; known: {', '.join(SCHEDULERS)}")
    if prediction not in PREDICTIONS:
        raise BadInput(f"{folder}: the prediction_type {prediction!r} is not known; known: {', '.join(PREDICTIONS)}")
    hub.guarded(lambda _: library().DDIMScheduler.from_config(public(config)), folder)


def shape_of(net: Any, folder: Path) -> Shape:
    """What the UNet generates; BadInput for one that asks for a class, predicts variances or has no size."""
    config, size = net.config, net.config.sample_size
    sides = [size, size] if isinstance(size, int) else list(size or [])
    faults = []
    if config.class_embed_type is not None or config.num_class_embeds is not None:
        faults.append(f"{folder}: the UNet asks for a class; only unconditional ones are read")
    if config.out_channels != config.in_channels or config.in_channels not in (1, 3):
        faults.append(
            f"{folder}: the UNet maps {config.in_channels} channels to {config.out_channels}; 1 to 1 or 3 to 3 are read"
        )
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        faults.append(f"{folder}: sample_size must be the pixels a side, found {size!r}")
    if faults:
        raise BadInput(*faults, hint="an unconditional DDPM of pixels, such as google/ddpm-cifar10-32")
    return config.in_channels, sides[0], sides[1]


def read_sampling(folder: Path) -> tuple[str, int]:
    """The column of images and the steps; a folder that another tool wrote has the defaults."""
    found = hub.read_json(folder / SAMPLING) if (folder / SAMPLING).exists() else {}
    answer, steps = found.get("answer", "image"), found.get("steps", STEPS)
    if not isinstance(answer, str) or type(steps) is not int or steps < 1:
        raise BadInput(
            f"{folder / SAMPLING}: 'answer' must be a name and 'steps' a whole number above 0, "
            f"found {answer!r} and {steps!r}"
        )
    return answer, steps


def write(net: Any, assets: Assets, folder: Path, weights: bool) -> None:
    unet = folder / "unet" if assets.index else folder
    if weights:
        net.save_pretrained(unet, safe_serialization=True)
    else:
        net.save_config(unet)
    if assets.index:
        write_json(assets.index, folder / "model_index.json")
    if assets.scheduler:
        schedule = folder / "scheduler" if assets.index else folder
        write_json(assets.scheduler, schedule / "scheduler_config.json")
    write_json({"answer": assets.answer, "steps": assets.steps}, folder / SAMPLING)


def write_json(value: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
