"""sequence: time series forecast by a linear map, a recurrent or a convolutional net, all steps of the future at once.

A record has a past (times, channels) and a future: the next values of the past's last channels. The folder is our own:
config.json holds the design of the net and the series (lengths, scales), model.safetensors the weights. The nets and
their sources are in `nets/sequence_net.py`. Values are in standard units inside the net, in the data's outside.

Letters: B records, P steps of past, F of future, C channels, D of them forecast.
"""

from collections.abc import Collection, Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from .. import hub
from ..data import Record, Records
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
from ..nets.sequence_net import DESIGNS, NORMALIZE, SequenceNet
from . import depth, sizes
from .series import (
    LENGTHS,
    Series,
    axis,
    fields_of,
    futures,
    learn,
    questions,
    scale_of,
    score,
    series_from,
    standard,
    toy,
)
from .tables import faults_of

MODEL_TYPE = "onnuri_sequence"
DEFAULTS = {
    "design": "linear",
    "normalize": "window",
    "past": 0,
    "rank": 0,
    "mix": False,
    "width": 64,
    "layers": 2,
    "patch": 12,
    "dropout": 0.1,
}
"""past: steps that the net reads, 0 for all that every record has; the rest is explained at SequenceNet."""

NUMBERS = {"width": (1, 65_536), "patch": (1, 65_536), "dropout": (0.0, 0.95)}
LAYERS = (1, 12)
REACH = 2**11  # patches: that of the last layer
RANK = {"rank": (0, 65_536)}
NARROWEST = 4  # a norm over fewer says next to nothing


# --------------------------------------------------------------------------------------------------------- folders


def claims(folder: Path) -> bool:
    return hub.peek(folder).get("model_type") == MODEL_TYPE


def read(folder: Path, empty: bool) -> tuple[nn.Module, Series]:
    net = hub.read_own(from_config, folder, empty)
    return net, series_from(hub.read_json(folder / "config.json"))


def from_config(config: dict) -> SequenceNet:
    """The net that a folder's config.json describes; BadInput lists every bad entry."""
    series, design = series_from(config), config.get("net")
    if not isinstance(design, dict) or design.keys() != design_of("linear" if is_linear(design) else "", {}).keys():
        raise BadInput("config.json: 'net' must hold the design of the net")
    faults = choice_faults(design) + faults_of(design, RANK if is_linear(design) else NUMBERS)
    if not is_linear(design):
        reach = design["reach"]
        if not isinstance(reach, list) or not all(type(n) is int and 1 <= n <= REACH for n in reach):
            faults.append(f"'reach' must list a whole number up to {REACH} per layer")
    if faults:
        raise BadInput(*(f"config.json: {fault}" for fault in faults))
    return build(series, design)


def write(net: nn.Module, series: Series, folder: Path, weights: bool) -> None:
    design = cast(SequenceNet, net).design
    config = {"model_type": MODEL_TYPE, "architectures": ["SequenceNet"], "net": design, "series": asdict(series)}
    hub.write_own(net, config, folder, weights)


# ---------------------------------------------------------------------------------------------------------- making


def build(series: Series, design: dict) -> SequenceNet:
    """A net with weights of torch's own generator."""
    return SequenceNet(len(series.mean), series.num_forecast, series.past, series.future, **design)


def fresh(series: Series, design: dict, generator: torch.Generator) -> SequenceNet:
    """New weights that depend on `generator` alone."""
    with seeded(generator):
        return build(series, design).eval()


def configured(config: dict) -> dict:
    """See Family.configured."""
    settings = hub.merged(DEFAULTS, config)
    faults = choice_faults(settings)
    faults += faults_of(settings, NUMBERS | RANK | {"layers": LAYERS, "past": (0, LENGTHS["past"][1])})
    idle = {"mix", "layers", *NUMBERS} if is_linear(settings) else {"rank"}
    faults += [f"'{name}' has no effect on design {settings['design']}" for name in config if name in idle]
    if faults:
        raise BadSettings(*faults)
    return {name: value for name, value in settings.items() if name not in idle}


def start(config: dict, records: Records, generator: torch.Generator) -> tuple[nn.Module, Series]:
    settings = configured(config)
    series = learn(records, settings["past"])
    return fresh(series, design_of(settings["design"], settings), generator), series


def choice_faults(config: dict) -> list[str]:
    """What is wrong with the entries of a config that are one of several."""
    choices = {"design": DESIGNS, "normalize": NORMALIZE} | ({} if is_linear(config) else {"mix": (False, True)})
    return [
        f"'{name}' must be one of {', '.join(map(str, known)).lower()}, found {config.get(name)!r}"
        for name, known in choices.items()
        if type(config.get(name)) is not type(known[0]) or config[name] not in known
    ]


def is_linear(config: Any) -> bool:
    return isinstance(config, dict) and config.get("design") == "linear"


def design_of(design: str, settings: dict) -> dict:
    """The part of the settings that SequenceNet takes; a convolution reaches twice as far with each layer."""
    names = ("design", "normalize", *(("rank",) if design == "linear" else ("mix", *NUMBERS)))
    found = {name: settings.get(name) for name in names}
    reach = [2**layer if design == "tcn" else 1 for layer in range(settings.get("layers", 0))]
    return found if design == "linear" else {**found, "reach": reach}


def like(net: nn.Module, series: Series, scale: float, generator: torch.Generator) -> tuple[nn.Module, Series]:
    """The width of a linear map is its rank: at most the shorter side of the matrix, where it is whole."""
    design = cast(SequenceNet, net).design
    name, least = ("rank", 1) if is_linear(design) else ("width", NARROWEST)
    width = design[name] or min(series.past, series.future)
    changed = {} if scale == 1 else {name: max(min(least, width), round(width * scale))}
    return fresh(series, {**design, **changed}, generator), series


def adopt(folder: Path, records: Records, generator: torch.Generator) -> tuple[nn.Module, Series]:
    """The layers of a net of ours with a new head, for the lengths and scales of the records."""
    if not claims(folder):
        raise Refusal(
            f"{folder} holds no net for series; a body of another kind knows nothing of time",
            "start a new one: train --family sequence --data D --out DIR",
        )
    old, before = read(folder, False)
    design = cast(SequenceNet, old).design
    if is_linear(design):
        raise Refusal("a linear map is all head: nothing of it would be kept", "train onward without --new-head")
    series = learn(records, 0)
    if design["mix"] and len(series.mean) != len(before.mean):
        raise BadInput(f"the body reads {len(before.mean)} channels together, these series have {len(series.mean)}")
    net = fresh(series, design, generator)
    body = {name: tensor for name, tensor in old.state_dict().items() if not name.startswith("body.head.")}
    net.load_state_dict(net.state_dict() | body)
    return net, series


def keep(net: nn.Module, series: Series, names: Collection[str]) -> tuple[nn.Module, Series]:
    numbers = depth.chosen(blocks(net), names).get("body.layers", [])
    kept = deepcopy(cast(SequenceNet, net))
    layers = cast(nn.ModuleList, kept.get_submodule("body.layers"))
    kept.get_submodule("body").layers = nn.ModuleList(layers[number] for number in numbers)
    kept.design = {**kept.design, "reach": [kept.design["reach"][number] for number in numbers]}
    return kept, series


def sizes_of(net: nn.Module, series: Series) -> list[Size]:
    """See Family.sizes. A whole linear map has none."""
    design = cast(SequenceNet, net).design
    name = "rank" if is_linear(design) else "width"

    def made(number: int) -> nn.Module:
        return sizes.on_meta(lambda: build(series, {**design, name: number}))

    return [Size(name, "channels", design[name], made)] if design[name] else []


# ------------------------------------------------------------------------------------------------------- computing


def collate(records: Sequence[Record], series: Series, generators: Sequence[torch.Generator]) -> Batch:
    """{past (B, P, C), future (B, F, D)} in standard units; without `future` where a record lacks its answer."""
    batch = questions(records, series)
    if all(record.get(series.answer) is not None for record in records):
        batch["future"] = standard(futures(records, series), series)
    return batch


@on_any_runtime
def outputs(net: nn.Module, batch: Batch) -> Outputs:
    """The forecast in standard units, (B, F, D), and a full mask (B, F)."""
    values = net(batch)
    return values, torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)


def loss(net: nn.Module, batch: Batch, player: str) -> tuple[Tensor, Tensor]:
    """Squared errors in standard units, summed over steps and channels, and their number."""
    error = (outputs(net, batch)[0] - batch["future"]).square().flatten(1)
    return error.sum(1), torch.full_like(error[:, 0], error.shape[1])


def sample(
    net: nn.Module, series: Series, records: Sequence[Record], generators: Sequence[torch.Generator]
) -> list[Record]:
    device = next((parameter.device for parameter in net.parameters()), torch.device("cpu"))
    batch = {name: value.to(device) for name, value in questions(records, series).items()}
    mean, deviation = scale_of(series, series.num_forecast)
    values = (outputs(net, batch)[0].detach().cpu().double().numpy() * deviation + mean).astype(np.float32)
    return [{**record, series.answer: value, f"{series.answer}_scores": {}} for record, value in zip(records, values)]


# ------------------------------------------------------------------------------------------------- what it is made of


def blocks(net: nn.Module) -> dict[str, tuple[nn.Module, int]]:
    if is_linear(cast(SequenceNet, net).design):
        return {f"body.{name}": (part, -1) for name, part in net.get_submodule("body").named_children()}
    layers = cast(nn.ModuleList, net.get_submodule("body.layers"))
    return {f"body.layers.{place}": (layer, -1) for place, layer in enumerate(layers)}


def tiny() -> dict:
    return {"design": "lstm", "width": 16, "layers": 3, "patch": 4, "dropout": 0.0}


FAMILY = Family(
    name="sequence",
    tag="time-series-forecasting",
    kind=lambda series: "values",
    claims=claims,
    read=read,
    write=write,
    configured=configured,
    start=start,
    adopt=adopt,
    like=like,
    fields=fields_of,
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
    headline=lambda series: ("mse", "down"),
    players=lambda net: {"net": net},
    blocks=blocks,
    keep=keep,
    sizes=sizes_of,
    vocabulary=no_tokens,
    segmentation=uncut,
    tiny=tiny,
    toy=toy,
)
