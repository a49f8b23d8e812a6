"""Pictures to one label of several: any image classifier of transformers, and our own ConvNet for small ones.

A transformers folder keeps its own processor, which says size and scale of the pixels. The ConvNet's
config.json holds the size, and the mean and deviation per channel that were learnt from the records. A
picture is brought to the net's channels (grey by ITU-R 601, color by repeating grey) and, where it differs, size.
Batch: pixel_values (B, C, H, W) float32, labels (B,) int64.
"""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from .. import hub
from ..data import Record, Records, records_of, required_answer
from ..errors import BadInput, BadSettings
from ..family import Batch, Family, Outputs, on_any_runtime, seeded
from ..nets.convnet import GROUP, ConvNet, design_of, stage_widths
from . import depth, heads, labels

MODEL_TYPE = "onnuri_convnet"
DEFAULTS = {"image_size": None, "channels": None, "width": 32, "depth": 1}
LARGEST = 64  # pixels of the longer side that a new ConvNet takes unless told otherwise
LOOKED_AT = 2000  # records from which size, channels, mean and deviation are learnt


@dataclass(frozen=True)
class Pixels:
    """How pictures enter a ConvNet: (height, width), mean and deviation of each channel, scaled to 0..1."""

    size: tuple[int, int]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


@dataclass(frozen=True)
class Assets:
    """Labels in order, the names of both fields, and how pictures enter: by `pixels`, or by the library's
    `processor`, whose settings stand for it in comparisons."""

    labels: tuple[str, ...]
    question: str
    answer: str
    channels: int
    pixels: Pixels | None
    processor: Any = field(compare=False)
    settings: str


# ---------------------------------------------------------------------------------------------------- folders


def is_own(folder: Path) -> bool:
    return hub.peek(folder).get("model_type") == MODEL_TYPE


def claims(folder: Path) -> bool:
    return is_own(folder) or heads.is_classifier(folder, "ForImageClassification")


def read(folder: Path, empty: bool) -> tuple[nn.Module, Assets]:
    """See Family.read. BadInput also for a folder without the processor's settings."""
    if is_own(folder):
        net = hub.read_own(lambda config: ConvNet(design_of(config)), folder, empty)
        return net, hub.guarded(lambda path: own_assets(hub.read_json(path / "config.json")), folder)
    from transformers import AutoModelForImageClassification

    heads.require_one_label(folder)
    processor = read_processor(folder)
    net = hub.read_hub(AutoModelForImageClassification, folder, empty)
    names = heads.field_names(net.config, "image", "label", folder)
    return net, hub_assets(net, processor, heads.label_names(net.config, folder), *names)


def read_processor(folder: Path) -> Any:
    """The processor of the folder, on PIL: it must never depend on torchvision."""
    from transformers import AutoImageProcessor

    if not (folder / "preprocessor_config.json").exists():
        raise BadInput(
            f"{folder} holds no preprocessor_config.json: its size of picture is unknown",
            hint="fetch that file from where the model came",
        )
    return hub.guarded(AutoImageProcessor.from_pretrained, folder, backend="pil", local_files_only=True)


def hub_assets(net: Any, processor: Any, names: tuple[str, ...], question: str, answer: str) -> Assets:
    channels = getattr(net.config, "num_channels", 3)
    settings = json.dumps(processor.to_dict(), sort_keys=True, default=str)
    return Assets(names, question, answer, channels, None, processor, settings)


def own_assets(config: dict[str, Any]) -> Assets:
    """The assets of a ConvNet from its config.json; ValueError when they do not fit its design."""
    design, names = design_of(config), tuple(config["labels"])
    mean, deviation = (tuple(map(float, config[name])) for name in ("image_mean", "image_std"))
    if len(names) != design.num_labels or len(set(names)) != len(names):
        raise ValueError(f"it has {design.num_labels} outputs, and {len(set(names))} unlike labels")
    if not len(mean) == len(deviation) == design.channels or min(deviation) <= 0:
        raise ValueError(f"image_mean and image_std must hold {design.channels} numbers, the latter above 0")
    fields = config["fields"]
    pixels = Pixels(design.image_size, mean, deviation)
    return Assets(names, str(fields["question"]), str(fields["answer"]), design.channels, pixels, None, "")


def write(net: nn.Module, assets: Assets, folder: Path, weights: bool) -> None:
    """See Family.write."""
    if isinstance(net, ConvNet):
        hub.write_own(net, own_config(net, assets), folder, weights)
    else:
        hub.write_hub(net, folder, weights)
        assets.processor.save_pretrained(folder)


def own_config(net: ConvNet, assets: Assets) -> dict[str, Any]:
    """config.json of a ConvNet; `own_assets` and `design_of` read it."""
    assert assets.pixels, "a ConvNet has pixels"
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["OnnuriConvNet"],
        **net.design.as_config(),
        "labels": list(assets.labels),
        "fields": {"question": assets.question, "answer": assets.answer},
        "image_mean": list(assets.pixels.mean),
        "image_std": list(assets.pixels.deviation),
    }


# --------------------------------------------------------------------------------------------------- new nets


def start(config: dict, records: Records, generator: torch.Generator) -> tuple[nn.Module, Assets]:
    """A ConvNet for the records; `image_size` (one number or two) and `channels` default to theirs."""
    settings = hub.merged(DEFAULTS, config)
    names, question = labels.learn_labels(records), labels.question_of(records, "image")
    images = [record[question] for record in records.some(LOOKED_AT)]
    settings["image_size"] = settings["image_size"] or usual_size(images)
    settings["channels"] = settings["channels"] or (3 if any(image.ndim == 3 for image in images) else 1)
    try:
        design = design_of({**settings, "num_labels": len(names)})
    except ValueError as error:
        raise BadSettings(*str(error).split("; ")) from None
    pixels = learn_pixels(images, design.image_size, design.channels)
    assets = Assets(names, question, required_answer(records), design.channels, pixels, None, "")
    return build(design, generator), assets


def build(design: Any, generator: torch.Generator) -> ConvNet:
    with seeded(generator):
        return ConvNet(design).eval()


def usual_size(images: Sequence[np.ndarray]) -> tuple[int, int]:
    """The commonest (height, width), shrunk until its longer side is LARGEST."""
    height, width = Counter(image.shape[:2] for image in images).most_common(1)[0][0]
    shrink = min(1.0, LARGEST / max(height, width))
    return max(1, round(height * shrink)), max(1, round(width * shrink))


def learn_pixels(images: Sequence[np.ndarray], size: tuple[int, int], channels: int) -> Pixels:
    """The mean and deviation of each channel; a deviation of zero becomes 1."""
    values = np.stack([resized(image, size, channels) for image in images]).astype(np.float64) / 255
    deviation = values.std((0, 1, 2))
    deviation = np.where(deviation > 0, deviation, 1.0)
    return Pixels(size, tuple(values.mean((0, 1, 2)).tolist()), tuple(deviation.tolist()))


def adopt(folder: Path, records: Records, generator: torch.Generator) -> tuple[nn.Module, Assets]:
    """The body of a ConvNet or of any image encoder of transformers, a new head for the records' labels."""
    names, question = labels.learn_labels(records), labels.question_of(records, "image")
    answer = required_answer(records)
    if is_own(folder):
        old, assets = read(folder, False)
        assert isinstance(old, ConvNet), "what is_own says"
        assets = replace(assets, labels=names, question=question, answer=answer)
        return new_head(old, len(names), generator), assets
    from transformers import AutoModelForImageClassification

    processor = read_processor(folder)
    net = heads.with_new_head(AutoModelForImageClassification, folder, names, question, answer, generator)
    return net, hub_assets(net, processor, names, question, answer)


def new_head(old: ConvNet, num_labels: int, generator: torch.Generator) -> ConvNet:
    """A ConvNet with the body of `old` and a new head."""
    net = build(replace(old.design, num_labels=num_labels), generator)
    body = {name: value for name, value in old.state_dict().items() if not name.startswith("head.")}
    net.load_state_dict(net.state_dict() | body)
    return net


def like(net: Any, assets: Assets, scale: float, generator: torch.Generator) -> tuple[nn.Module, Assets]:
    """See Family.like. The widths of a ConvNet stay multiples of its groups."""
    if isinstance(net, ConvNet):
        width = max(GROUP, round(net.design.width * scale / GROUP) * GROUP)
        return build(replace(net.design, width=width), generator), assets
    from transformers import AutoModelForImageClassification

    return heads.like(AutoModelForImageClassification, net, scale, generator), assets


def keep(net: Any, assets: Assets, names: Collection[str]) -> tuple[nn.Module, Assets]:
    """See Family.keep. Of a ConvNet as many blocks in each stage, the first of them always: it changes the shape."""
    if not isinstance(net, ConvNet):
        return depth.keep_layers(net, assets, names)
    kept = depth.chosen(hub.hub_blocks(net), names)
    each = len(kept["blocks"]) // len(stage_widths(net.design))
    with torch.device("meta"):
        smaller = ConvNet(replace(net.design, depth=each))
    return depth.filled(smaller, net, kept), assets


# ------------------------------------------------------------------------------------ records in, answers out


def fields(assets: Assets) -> tuple[dict, tuple]:
    return {assets.question: "image"}, (assets.answer, "category")


def collate(records: Sequence[Record], assets: Assets, generators: Sequence[torch.Generator]) -> Batch:
    """pixel_values (B, C, H, W) float32; labels (B,) where every record has its answer. Draws no noise."""
    images = [record[assets.question] for record in records]
    pixels = own_pixels(images, assets.pixels) if assets.pixels else processed(images, assets)
    return {"pixel_values": pixels, **labels.label_batch(records, assets.answer, assets.labels)}


def own_pixels(images: Sequence[np.ndarray], pixels: Pixels) -> Tensor:
    """Pictures as a ConvNet takes them: (B, C, H, W), of mean 0 and deviation 1 over its first records."""
    stacked = np.stack([resized(image, pixels.size, len(pixels.mean)) for image in images])
    scale = np.array(pixels.deviation, dtype=np.float32)
    values = (stacked.astype(np.float32) / 255 - np.array(pixels.mean, dtype=np.float32)) / scale
    return torch.from_numpy(values).permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)


def processed(images: Sequence[np.ndarray], assets: Assets) -> Tensor:
    """Pictures as the folder's own processor prepares them; BadInput when it leaves them unlike in size."""
    channels = [with_channels(image, assets.channels) for image in images]
    try:
        found = assets.processor(images=channels, return_tensors="pt", input_data_format="channels_last")
    except ValueError as error:
        raise BadInput(
            f"the processor of this model cannot take these pictures: {error}", hint="pictures of one size"
        ) from error
    return found["pixel_values"]


def with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """A picture as (H, W, channels) uint8."""
    if channels == 1:
        return np.asarray(Image.fromarray(image).convert("L"))[..., None]
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image


def resized(image: np.ndarray, size: tuple[int, int], channels: int) -> np.ndarray:
    """A picture as (height, width, channels) uint8."""
    if image.shape[:2] != size:
        image = np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return with_channels(image, channels)


@on_any_runtime
def outputs(net: nn.Module, batch: Batch) -> Outputs:
    """Logits (B, 1, D)."""
    stored = next(value.dtype for value in net.parameters() if value.is_floating_point())
    found = net(batch["pixel_values"].to(stored))
    return labels.one_place(found if isinstance(found, Tensor) else found.logits)


def loss(net: nn.Module, batch: Batch, player: str) -> tuple[Tensor, Tensor]:
    return labels.cross_entropy(outputs(net, batch), batch["labels"])


def sample(
    net: nn.Module, assets: Assets, records: Sequence[Record], generators: Sequence[torch.Generator]
) -> list[Record]:
    questions = [{assets.question: record[assets.question]} for record in records]
    found = outputs(net, collate(questions, assets, generators))
    return labels.answered(records, found, assets.answer, assets.labels)


def score(records: Sequence[Record], answers: Sequence[Record], assets: Assets) -> dict[str, float]:
    return labels.label_scores(records, answers, assets.answer)


def toy(n: int, seed: int) -> Records:
    """Grey 8 x 8 pictures with a bright bar, lying or standing, and noise."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        image, standing, place = random.integers(0, 120, (8, 8)), bool(random.integers(2)), random.integers(8)
        image[(slice(None), place) if standing else place] += 120
        rows.append({"image": image.astype(np.uint8), "label": "standing" if standing else "lying"})
    return records_of(rows, {"image": "image", "label": "category"}, "label")


FAMILY = Family(
    name="image_classifier",
    tag="image-classification",
    kind=lambda assets: "logits",
    claims=claims,
    read=read,
    write=write,
    start=start,
    adopt=adopt,
    like=like,
    fields=fields,
    axis=lambda assets: assets.labels,
    collate=collate,
    loss=loss,
    outputs=outputs,
    sample=sample,
    score=score,
    headline=lambda assets: ("accuracy", "up"),
    players=lambda net: {"classifier": net},
    blocks=hub.hub_blocks,
    keep=keep,
    tiny=lambda: {"width": 16, "depth": 1},
    toy=toy,
)
