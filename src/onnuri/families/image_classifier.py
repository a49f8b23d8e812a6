"""Pictures to one label of several: any image classifier of transformers, and our own ConvNet for small ones.

A transformers folder keeps its own processor, which says size and scale of the pixels. The ConvNet's
config.json holds what `pictures.py` learnt from the records: the size, the mean and deviation per channel, and
how pictures are disturbed in training.

Batch: pixel_values (B, C, H, W) float32; labels (B,) int64; for a ConvNet moves (B, 3) int64, from one generator per
record: how far the picture is shifted and whether it is mirrored. That is done in the loss while the net is in
training mode, as dropout does, and nowhere else: `outputs` never reads them.
"""

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import hub
from ..data import Record, Records, records_of, required_answer
from ..errors import BadInput, BadSettings
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
from ..hub_blocks import hub_blocks
from ..nets.convnet import NARROWEST, ConvNet, Design, design_of, moved, stage_widths, whiten
from . import depth, heads, labels, pictures, sizes
from .pictures import Pixels

MODEL_TYPE = "onnuri_convnet"
DEFAULTS = {
    "image_size": None,
    "channels": None,
    "width": 32,
    "depth": 1,
    "shift": None,
    "flip": None,
    "smoothing": 0.0,
}
"""image_size (one number or two), channels (1 or 3), shift (pixels) and flip (true or false): None learns them;
smoothing: the share of each label that is given to all in training (0.1 on CIFAR-10: a point of accuracy more)."""

ANY = {"image_size": 1024, "channels": 1, "shift": 0, "flip": False}
"""In place of what is learnt, where a config is checked before there are records."""

LOOKED_AT = 2000  # records from which all that is learnt before training is learnt


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
    return is_own(folder) or heads.has_head(folder, "ForImageClassification")


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
    design = design_of(config)
    names = labels.stated_labels(config, design.num_labels)
    mean, deviation = (tuple(map(float, config[name])) for name in ("image_mean", "image_std"))
    if not len(mean) == len(deviation) == design.channels or min(deviation) <= 0:
        raise ValueError(f"image_mean and image_std must hold {design.channels} numbers, the latter above 0")
    if faults := pictures.faults_of(config["shift"], config["flip"], design.image_size):
        raise ValueError("; ".join(faults))
    fields = config["fields"]
    pixels = Pixels(design.image_size, mean, deviation, config["shift"], config["flip"])
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
        "shift": assets.pixels.shift,
        "flip": assets.pixels.flip,
    }


# --------------------------------------------------------------------------------------------------- new nets


def start(config: dict, records: Records, generator: torch.Generator) -> tuple[nn.Module, Assets]:
    """A ConvNet for the records, from which it learns what `config` leaves open."""
    settings = configured(config)
    names, question = labels.learn_labels(records), labels.question_of(records, "image")
    answer, some = required_answer(records), records.some(LOOKED_AT).list()
    images = [record[question] for record in some]
    settings["image_size"] = settings["image_size"] or pictures.usual_size(images)
    settings["channels"] = settings["channels"] or (3 if any(image.ndim == 3 for image in images) else 1)
    design = design_for(settings, len(names))
    values = pictures.stacked(images, design.image_size, design.channels)
    pixels = learn_pixels(values, pictures.labels_in(some, answer), settings)
    net = build(design, generator)
    whiten(net, pictures.normalized(values, pixels))
    return net, Assets(names, question, answer, design.channels, pixels, None, "")


def configured(config: dict) -> dict:
    """See Family.configured."""
    settings = hub.merged(DEFAULTS, config)
    known = settings | {name: value for name, value in ANY.items() if not settings[name]}
    if faults := pictures.faults_of(known["shift"], known["flip"], design_for(known, 2).image_size):
        raise BadSettings(*faults)
    return settings


def design_for(settings: dict, num_labels: int) -> Design:
    """BadSettings with every fault."""
    with hub.as_bad_settings():
        return design_of({**settings, "num_labels": num_labels})


def learn_pixels(values: np.ndarray, truth: Sequence[str], settings: dict) -> Pixels:
    """How pictures like these (N, H, W, C) enter a ConvNet; `shift` and `flip` as they are set, else learnt."""
    size = values.shape[1], values.shape[2]
    shift = pictures.usual_shift(size) if settings["shift"] is None else settings["shift"]
    flip = pictures.same_when_mirrored(values, truth) if settings["flip"] is None else settings["flip"]
    if faults := pictures.faults_of(shift, flip, size):
        raise BadSettings(*faults)
    return Pixels(size, *pictures.mean_and_deviation(values), shift, flip)


def build(design: Design, generator: torch.Generator) -> ConvNet:
    with seeded(generator):
        return ConvNet(design).eval()


def adopt(folder: Path, records: Records, generator: torch.Generator) -> tuple[nn.Module, Assets]:
    """The body of a ConvNet or of any image encoder of transformers, a new head for the records' labels."""
    names, question = labels.learn_labels(records), labels.question_of(records, "image")
    answer = required_answer(records)
    if is_own(folder):
        old, assets = read(folder, False)
        assert isinstance(old, ConvNet) and assets.pixels, "what is_own says"
        some = records.some(LOOKED_AT).list()
        values = pictures.stacked([record[question] for record in some], assets.pixels.size, assets.channels)
        flip = pictures.same_when_mirrored(values, pictures.labels_in(some, answer))
        pixels = replace(assets.pixels, flip=flip)
        assets = replace(assets, labels=names, question=question, answer=answer, pixels=pixels)
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
    """See Family.like."""
    if isinstance(net, ConvNet):
        width = max(NARROWEST, round(net.design.width * scale))
        return build(replace(net.design, width=width), generator), assets
    from transformers import AutoModelForImageClassification

    return heads.like(AutoModelForImageClassification, net, scale, generator), assets


def keep(net: Any, assets: Assets, names: Collection[str]) -> tuple[nn.Module, Assets]:
    """See Family.keep. Of a ConvNet as many blocks in each stage, the first of them always: it changes the shape."""
    if not isinstance(net, ConvNet):
        return depth.keep_layers(net, assets, names)
    kept = depth.chosen(hub_blocks(net), names)
    each = len(kept["blocks"]) // len(stage_widths(net.design))
    with torch.device("meta"):
        smaller = ConvNet(replace(net.design, depth=each))
    return depth.filled(smaller, net, kept), assets


def sizes_of(net: Any, assets: Assets) -> list[Size]:
    """See Family.sizes. The stages of a ConvNet stay twice as wide as the one before."""
    if not isinstance(net, ConvNet):
        return sizes.of_config(net, assets)

    def made(width: int) -> nn.Module:
        return sizes.on_meta(lambda: ConvNet(replace(net.design, width=width)))

    step = math.gcd(net.design.width, sizes.GRAIN)
    return [Size("width", "channels", net.design.width, made, step, least=NARROWEST)]


# ------------------------------------------------------------------------------------ records in, answers out


def fields(assets: Assets) -> tuple[dict, tuple]:
    return {assets.question: "image"}, (assets.answer, "category")


def collate(records: Sequence[Record], assets: Assets, generators: Sequence[torch.Generator]) -> Batch:
    """pixel_values (B, C, H, W) float32; labels (B,) where every record has its answer; moves for a ConvNet."""
    images = [record[assets.question] for record in records]
    answers = labels.label_batch(records, assets.answer, assets.labels)
    if assets.pixels is None:
        return {"pixel_values": processed(images, assets), **answers}
    values = pictures.stacked(images, assets.pixels.size, assets.channels)
    moves = pictures.moves_of(generators, assets.pixels)
    return {"pixel_values": pictures.normalized(values, assets.pixels), **answers, "moves": moves}


def processed(images: Sequence[np.ndarray], assets: Assets) -> Tensor:
    """Pictures as the folder's own processor prepares them; BadInput when it leaves them unlike in size."""
    channels = [pictures.with_channels(image, assets.channels) for image in images]
    try:
        found = assets.processor(images=channels, return_tensors="pt", input_data_format="channels_last")
    except ValueError as error:
        raise BadInput(
            f"the processor of this model cannot take these pictures: {error}", hint="pictures of one size"
        ) from error
    return found["pixel_values"]


def encoding(assets: Assets) -> dict[str, dict]:
    """See Family.encoding: what `collate` does; {} where a processor does what no step says."""
    if assets.pixels:
        steps = pictures.encoding(assets.pixels, assets.channels)
    else:
        steps = pictures.processor_encoding(json.loads(assets.settings), assets.channels)
    return {"pixel_values": {"type": "float32", "image": assets.question, "steps": steps}} if steps else {}


@on_any_runtime
def outputs(net: nn.Module, batch: Batch) -> Outputs:
    """Logits (B, 1, D)."""
    stored = next(value.dtype for value in net.parameters() if value.is_floating_point())
    found = net(batch["pixel_values"].to(stored))
    return labels.one_place(found if isinstance(found, Tensor) else found.logits)


def loss(net: nn.Module, batch: Batch, player: str) -> tuple[Tensor, Tensor]:
    if isinstance(net, ConvNet) and net.training:
        batch = {**batch, "pixel_values": moved(batch["pixel_values"], batch["moves"])}
        return labels.cross_entropy(outputs(net, batch), batch["labels"], net.design.smoothing)
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
    configured=configured,
    start=start,
    adopt=adopt,
    like=like,
    fields=fields,
    axis=lambda assets: assets.labels,
    collate=collate,
    pieces=undivided,
    packed=one_a_row(collate),
    lengths=of_one_length,
    encoding=encoding,
    loss=loss,
    outputs=outputs,
    steps=reads_all(outputs),
    writing=at_once,
    sample=sample,
    score=score,
    headline=lambda assets: ("accuracy", "up"),
    players=lambda net: {"classifier": net},
    blocks=hub_blocks,
    keep=keep,
    sizes=sizes_of,
    vocabulary=no_tokens,
    segmentation=uncut,
    tiny=lambda: {"width": 16, "depth": 1},
    toy=toy,
)
