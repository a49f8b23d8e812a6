"""Pictures to one label of several, by a spiking neural net that is trained with a surrogate gradient.

The folder is Onnuri's own kind: config.json holds the design of the net, the labels and the size of a picture,
model.safetensors the weights. A picture is brought to that size and to -1..1; nothing about it is drawn at random.
Letters: B records, P pixels of all channels, D labels.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onnuri import hub
from onnuri.data import Record, Records, records_of, required_answer
from onnuri.errors import BadSettings, Refusal
from onnuri.families import depth, labels
from onnuri.family import (
    Batch,
    Family,
    Outputs,
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
from onnuri.nets.pixels import Shape, guess_shape, to_tensor

from .net import Design, SpikingNet

MODEL_TYPE = "onnuri_spiking"
DEFAULTS = {"width": 128, "layers": 2, "steps": 8, "leak": 0.9}
LIMITS = {"width": (1, 65_536), "layers": (0, 256), "steps": (1, 256), "leak": (0.0, 1.0)}


@dataclass(frozen=True)
class Assets:
    """Labels in order, the names of both fields, and the shape (channels, height, width) to which pictures are brought."""

    labels: tuple[str, ...]
    question: str
    answer: str
    shape: Shape


# ---------------------------------------------------------------------------------------------------- folders


def claims(folder: Path) -> bool:
    return hub.peek(folder).get("model_type") == MODEL_TYPE


def read(folder: Path, empty: bool) -> tuple[nn.Module, Assets]:
    """See Family.read."""
    net = hub.read_own(lambda config: SpikingNet(design_of(config)), folder, empty)
    return net, hub.guarded(lambda path: assets_of(hub.read_json(path / "config.json")), folder)


def design_of(config: dict) -> Design:
    """The checked design in a config.json; ValueError with every fault."""
    settings = {name: config[name] for name in DEFAULTS}
    if faults := faults_of(settings):
        raise ValueError("; ".join(faults))
    assets = assets_of(config)
    return Design(pixels=int(np.prod(assets.shape)), labels=len(assets.labels), **settings)


def assets_of(config: dict) -> Assets:
    """The assets in a config.json; ValueError where they are malformed."""
    names, shape = tuple(map(str, config["labels"])), tuple(config["shape"])
    if len(set(names)) < max(2, len(names)) or len(shape) != 3 or not all(type(n) is int and n > 0 for n in shape):
        raise ValueError("labels must hold two names or more, all unlike, and shape three whole numbers")
    return Assets(names, str(config["fields"]["question"]), str(config["fields"]["answer"]), shape)


def faults_of(settings: dict) -> list[str]:
    """What is wrong with the settings of a design."""
    return [
        f"{name} must be {'a whole number' if type(low) is int else 'a number'} from {low} to {high}, found {value!r}"
        for name, value in settings.items()
        for low, high in [LIMITS[name]]
        if type(value) not in (type(low), int) or not low <= value <= high
    ]


def write(net: Any, assets: Assets, folder: Path, weights: bool) -> None:
    """See Family.write."""
    config = {
        "model_type": MODEL_TYPE,
        "architectures": ["SpikingNet"],
        **{name: getattr(net.design, name) for name in DEFAULTS},
        "labels": list(assets.labels),
        "fields": {"question": assets.question, "answer": assets.answer},
        "shape": list(assets.shape),
    }
    hub.write_own(net, config, folder, weights)


# --------------------------------------------------------------------------------------------------- new nets


def configured(config: dict) -> dict:
    """See Family.configured."""
    settings = hub.merged(DEFAULTS, config)
    if faults := faults_of(settings):
        raise BadSettings(*faults)
    return settings


def start(config: dict, records: Records, generator: torch.Generator) -> tuple[nn.Module, Assets]:
    """See Family.start; the first picture says size and channels."""
    settings = configured(config)
    question = labels.question_of(records, "image")
    shape = guess_shape(records[0][question])
    assets = Assets(labels.learn_labels(records), question, required_answer(records), shape)
    design = Design(pixels=int(np.prod(shape)), labels=len(assets.labels), **settings)
    return fresh(design, generator), assets


def fresh(design: Design, generator: torch.Generator) -> SpikingNet:
    """New weights that depend on `generator` alone."""
    with seeded(generator):
        return SpikingNet(design).eval()


def adopt(folder: Path, records: Records, generator: torch.Generator) -> tuple[nn.Module, Assets]:
    """The body of a spiking net and a new head for the labels of the records."""
    if not claims(folder):
        raise Refusal(
            f"{folder} holds no spiking net; the weights of another kind mean nothing to neurons that spike",
            "start a new one: train --family spiking_classifier --data D --out DIR",
        )
    old: Any = read(folder, False)
    names, question = labels.learn_labels(records), labels.question_of(records, "image")
    net = fresh(replace(old[0].design, labels=len(names)), generator)
    body = {name: value for name, value in old[0].state_dict().items() if not name.startswith("head.")}
    net.load_state_dict(net.state_dict() | body)
    return net, Assets(names, question, required_answer(records), old[1].shape)


def like(net: Any, assets: Assets, scale: float, generator: torch.Generator) -> tuple[nn.Module, Assets]:
    """See Family.like."""
    return fresh(replace(net.design, width=max(1, round(net.design.width * scale))), generator), assets


def blocks(net: Any) -> dict[str, tuple[nn.Module, int]]:
    return {f"layers.{place}": (layer, -1) for place, layer in enumerate(net.layers)}


def keep(net: Any, assets: Assets, names: Collection[str]) -> tuple[nn.Module, Assets]:
    """See Family.keep. A layer adds its spikes to those it was given, so that any can go."""
    kept = depth.chosen(blocks(net), names)
    with torch.device("meta"):
        smaller = SpikingNet(replace(net.design, layers=len(kept["layers"])))
    return depth.filled(smaller, net, kept), assets


# ------------------------------------------------------------------------------------ records in, answers out


def collate(records: Sequence[Record], assets: Assets, generators: Sequence[torch.Generator]) -> Batch:
    """pixel_values (B, P) float32; labels (B,) where every record has its answer. Draws no noise."""
    pixels = torch.stack([to_tensor(record[assets.question], assets.shape).flatten() for record in records])
    return {"pixel_values": pixels, **labels.label_batch(records, assets.answer, assets.labels)}


@on_any_runtime
def outputs(net: nn.Module, batch: Batch) -> Outputs:
    """Logits (B, 1, D)."""
    stored = next(value.dtype for value in net.parameters() if value.is_floating_point())
    return labels.one_place(net(batch["pixel_values"].to(stored)))


def loss(net: nn.Module, batch: Batch, player: str) -> tuple[Tensor, Tensor]:
    return labels.cross_entropy(outputs(net, batch), batch["labels"])


def sample(
    net: nn.Module, assets: Assets, records: Sequence[Record], generators: Sequence[torch.Generator]
) -> list[Record]:
    found = outputs(
        net, collate([{assets.question: record[assets.question]} for record in records], assets, generators)
    )
    return labels.answered(records, found, assets.answer, assets.labels)


def toy(n: int, seed: int) -> Records:
    """Grey 6 x 6 pictures on noise, the upper or the lower half bright."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        image, lower = random.integers(0, 120, (6, 6)), bool(random.integers(2))
        image[3:] += 100 * lower
        image[:3] += 100 * (not lower)
        rows.append({"image": image.astype(np.uint8), "label": "lower" if lower else "upper"})
    return records_of(rows, {"image": "image", "label": "category"}, "label")


FAMILY = Family(
    name="spiking_classifier",
    tag="image-classification",
    kind=lambda assets: "logits",
    claims=claims,
    read=read,
    write=write,
    configured=configured,
    start=start,
    adopt=adopt,
    like=like,
    fields=lambda assets: ({assets.question: "image"}, (assets.answer, "category")),
    axis=lambda assets: assets.labels,
    collate=collate,
    pieces=undivided,
    packed=one_a_row(collate),
    lengths=of_one_length,
    sizes=lambda net, assets: [],
    encoding=lambda assets: {},
    loss=loss,
    outputs=outputs,
    steps=reads_all(outputs),
    writing=at_once,
    sample=sample,
    score=lambda records, answers, assets: labels.label_scores(records, answers, assets.answer),
    headline=lambda assets: ("accuracy", "up"),
    players=lambda net: {"classifier": net},
    blocks=blocks,
    keep=keep,
    vocabulary=no_tokens,
    segmentation=uncut,
    tiny=lambda: {"width": 16, "layers": 2, "steps": 4},
    toy=toy,
)
