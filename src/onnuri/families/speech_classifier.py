"""Sounds to one label of several: any audio classifier of transformers, and our own SpeechNet for short ones.

A sound enters as one channel at the rate that the model asks for. A transformers folder keeps its own feature extractor,
which is given each sound alone. Many of its nets let padding change their answers, whatever mask they get (normalization
over time, convolutions behind the mask), so that sounds of one length are computed together, unpadded. SpeechNet takes padding.

Batch: lengths (B,) or, for transformers, sizes (B, dimensions) int64: how much of each tensor is the record's own; what
the extractor gives, or samples (B, S) float32, zero behind them; labels (B,) int64; for SpeechNet draws (B, K): uniform
numbers, one generator per record. They disturb the sound in the loss while the net is in training mode, as dropout
does, and nowhere else: `outputs` never reads them.
"""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import hub
from ..data import Record, Records, Sound, records_of, required_answer
from ..errors import BadInput
from ..family import (
    Batch,
    Family,
    Outputs,
    Size,
    at_once,
    no_tokens,
    on_any_runtime,
    one_a_row,
    reads_all,
    seeded,
    uncut,
    undivided,
)
from ..hub_blocks import hub_blocks
from ..nets.speech_net import GROUP, NUM_DRAWS, STAGES, WINDOW, Design, SpeechNet, design_of
from ..padding import padded
from ..sounds import RATES, resampled
from . import depth, heads, labels, sizes

MODEL_TYPE = "onnuri_speech_net"
DEFAULTS = {"rate": None, "mels": 40, "width": 24, "depth": 1, "seconds": None}
LOOKED_AT = 2000  # records from which the rate and the seconds are learnt
USUAL = 0.99  # of the records are heard to their end unless `seconds` says otherwise
MOST_SECONDS = 3600
LONGEST = 30.0  # seconds that a transformers net hears: its memory grows with their square
SHORTEST = 0.25  # seconds that a transformers net is given at least; shorter sounds end in silence
EXTRACTORS = ("preprocessor_config.json", "processor_config.json")
GIVEN = ("attention_mask", "input_features", "input_values")  # the names under which extractors give tensors


@dataclass(frozen=True)
class Assets:
    """Labels in order, the names of both fields, samples a second, the seconds of a sound that are heard, and the
    library's extractor, whose settings stand for it in comparisons; None for a SpeechNet."""

    labels: tuple[str, ...]
    question: str
    answer: str
    rate: int
    seconds: float
    extractor: Any = field(compare=False)
    settings: str


# ---------------------------------------------------------------------------------------------------- folders


def is_own(folder: Path) -> bool:
    return hub.peek(folder).get("model_type") == MODEL_TYPE


def claims(folder: Path) -> bool:
    return is_own(folder) or heads.hears(folder)


def read(folder: Path, empty: bool) -> tuple[nn.Module, Assets]:
    """See Family.read. BadInput also for a folder without the settings of a feature extractor for sound."""
    if is_own(folder):
        net = hub.read_own(lambda config: SpeechNet(design_of(config)), folder, empty)
        return net, hub.guarded(lambda path: own_assets(hub.read_json(path / "config.json")), folder)
    from transformers import AutoModelForAudioClassification

    heads.require_one_label(folder)
    extractor = read_extractor(folder)
    net = hub.read_hub(AutoModelForAudioClassification, folder, empty)
    names = heads.field_names(net.config, "audio", "label", folder)
    return net, hub_assets(extractor, heads.label_names(net.config, folder), *names)


def read_extractor(folder: Path) -> Any:
    """The feature extractor of the folder; BadInput where its file is missing or states no rate of sound."""
    from transformers import AutoFeatureExtractor

    found = [hub.read_json(folder / name) for name in EXTRACTORS if (folder / name).exists()]
    if not found:
        raise BadInput(
            f"{folder} holds no {EXTRACTORS[0]}: its rate of sound is unknown",
            hint="fetch that file from where the model came",
        )
    stated = [one.get("feature_extractor", one) for one in found]  # a processor keeps it within its own settings
    rates = [one.get("sampling_rate") for one in stated if isinstance(one, dict)]
    if not any(type(rate) is int and RATES[0] <= rate <= RATES[1] for rate in rates):
        raise BadInput(
            f"{folder}: {EXTRACTORS[0]} describes no feature extractor for sound: it states no sampling_rate"
        )
    extractor = hub.guarded(AutoFeatureExtractor.from_pretrained, folder, local_files_only=True)
    if extractor.sampling_rate not in rates:
        raise BadInput(f"{folder}: {EXTRACTORS[0]} states another sampling_rate than its processor")
    return extractor


def hub_assets(extractor: Any, names: tuple[str, ...], question: str, answer: str) -> Assets:
    settings = json.dumps(extractor.to_dict(), sort_keys=True, default=str)
    return Assets(names, question, answer, extractor.sampling_rate, LONGEST, extractor, settings)


def own_assets(config: dict[str, Any]) -> Assets:
    """The assets of a SpeechNet from its config.json; ValueError when they do not fit its design."""
    design, seconds = design_of(config), checked_seconds(config["seconds"])
    names = labels.stated_labels(config, design.num_labels)
    fields = config["fields"]
    return Assets(names, str(fields["question"]), str(fields["answer"]), design.rate, seconds, None, "")


def write(net: nn.Module, assets: Assets, folder: Path, weights: bool) -> None:
    """See Family.write."""
    if isinstance(net, SpeechNet):
        hub.write_own(net, own_config(net, assets), folder, weights)
    else:
        hub.write_hub(net, folder, weights)
        assets.extractor.save_pretrained(folder)


def own_config(net: SpeechNet, assets: Assets) -> dict[str, Any]:
    """config.json of a SpeechNet; `own_assets` and `design_of` read it."""
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["OnnuriSpeechNet"],
        **net.design.as_config(),
        "labels": list(assets.labels),
        "fields": {"question": assets.question, "answer": assets.answer},
        "seconds": assets.seconds,
    }


# --------------------------------------------------------------------------------------------------- new nets


def configured(config: dict) -> dict:
    """See Family.configured."""
    settings = hub.merged(DEFAULTS, config)
    design_for(settings | {"rate": settings["rate"] or 16_000, "seconds": settings["seconds"] or 1}, 2)
    return settings


def design_for(settings: dict, num_labels: int) -> Design:
    """BadSettings with every fault."""
    with hub.as_bad_settings():
        checked_seconds(settings["seconds"])
        return design_of({**settings, "depths": [settings["depth"]] * STAGES, "num_labels": num_labels})


def start(config: dict, records: Records, generator: torch.Generator) -> tuple[nn.Module, Assets]:
    """A SpeechNet for the records, at their commonest rate and for the `seconds` of most of them."""
    settings = configured(config)
    names, question = labels.learn_labels(records), labels.question_of(records, "audio")
    sounds = [record[question] for record in records.some(LOOKED_AT)]
    rate = settings["rate"] or Counter(sound.rate for sound in sounds).most_common(1)[0][0]
    seconds = settings["seconds"] or float(np.quantile([len(s.samples) / s.rate for s in sounds], USUAL))
    design = design_for(settings | {"rate": rate, "seconds": seconds}, len(names))
    return build(design, generator), Assets(names, question, required_answer(records), rate, float(seconds), None, "")


def checked_seconds(seconds: Any) -> float:
    """ValueError unless so many seconds can be heard."""
    if not isinstance(seconds, (int, float)) or not 0 < seconds <= MOST_SECONDS:
        raise ValueError(f"seconds must be above 0 and at most {MOST_SECONDS}, found {seconds!r}")
    return float(seconds)


def build(design: Design, generator: torch.Generator) -> SpeechNet:
    with seeded(generator):
        return SpeechNet(design).eval()


def adopt(folder: Path, records: Records, generator: torch.Generator) -> tuple[nn.Module, Assets]:
    """The body of a SpeechNet or of any encoder of sound of transformers, a new head for the records' labels."""
    names, question = labels.learn_labels(records), labels.question_of(records, "audio")
    answer = required_answer(records)
    if is_own(folder):
        old, assets = read(folder, False)
        assert isinstance(old, SpeechNet), "what is_own says"
        net = build(replace(old.design, num_labels=len(names)), generator)
        body = {name: value for name, value in old.state_dict().items() if not name.startswith("head.")}
        net.load_state_dict(net.state_dict() | body)
        return net, replace(assets, labels=names, question=question, answer=answer)
    from transformers import AutoModelForAudioClassification

    extractor = read_extractor(folder)
    net = heads.with_new_head(AutoModelForAudioClassification, folder, names, question, answer, generator)
    return net, hub_assets(extractor, names, question, answer)


def like(net: Any, assets: Assets, scale: float, generator: torch.Generator) -> tuple[nn.Module, Assets]:
    """See Family.like. The widths of a SpeechNet stay multiples of its groups."""
    if isinstance(net, SpeechNet):
        width = max(GROUP, round(net.design.width * scale / GROUP) * GROUP)
        return build(replace(net.design, width=width), generator), assets
    from transformers import AutoModelForAudioClassification

    return heads.like(AutoModelForAudioClassification, net, scale, generator), assets


def keep(net: Any, assets: Assets, names: Collection[str]) -> tuple[nn.Module, Assets]:
    """See Family.keep. Every block of a SpeechNet adds to what the one before gave, so that any can go."""
    if not isinstance(net, SpeechNet):
        return depth.keep_layers(net, assets, names)
    kept = depth.chosen(blocks(net), names)
    depths = tuple(len(kept.get(f"stages.{stage}", ())) for stage in range(len(net.design.depths)))
    with torch.device("meta"):
        smaller = SpeechNet(replace(net.design, depths=depths))
    return depth.filled(smaller, net, kept), assets


def sizes_of(net: Any, assets: Assets) -> list[Size]:
    """See Family.sizes. The stages of a SpeechNet stay twice as wide as the one before."""
    if not isinstance(net, SpeechNet):
        return sizes.of_config(net, assets)

    def made(width: int) -> nn.Module:
        return sizes.on_meta(lambda: SpeechNet(replace(net.design, width=width)))

    return [Size("width", "channels", net.design.width, made, GROUP, run=GROUP)]


def blocks(net: nn.Module) -> dict[str, tuple[nn.Module, int]]:
    """The residual blocks of a SpeechNet put out (B, C, F, T), a convolution over samples (B, C, T)."""
    if not isinstance(net, SpeechNet):
        return {name: (block, 1 if over_samples(block) else axis) for name, (block, axis) in hub_blocks(net).items()}
    return {
        f"stages.{stage}.{place}": (block, 1)
        for stage, part in enumerate(net.stages)
        for place, block in enumerate(part)  # type: ignore[arg-type]
    }


def over_samples(block: nn.Module) -> bool:
    return any(isinstance(child, nn.Conv1d) for child in block.children())


# ------------------------------------------------------------------------------------ records in, answers out


def fields(assets: Assets) -> tuple[dict, tuple]:
    return {assets.question: "audio"}, (assets.answer, "category")


def collate(records: Sequence[Record], assets: Assets, generators: Sequence[torch.Generator]) -> Batch:
    """See the module; labels where every record has its answer."""
    heard = [samples_of(record[assets.question], assets) for record in records]
    if assets.extractor:
        batch = extracted(heard, assets)
    else:
        draws = [torch.rand(NUM_DRAWS, generator=generators[i]) for i in range(len(records))]
        lengths = torch.tensor([len(samples) for samples in heard])
        batch = {
            "samples": padded([torch.from_numpy(s) for s in heard]),
            "lengths": lengths,
            "draws": torch.stack(draws),
        }
    return {**batch, **labels.label_batch(records, assets.answer, assets.labels)}


def lengths(records: Sequence[Record], assets: Assets) -> list[int]:
    sounds = [record[assets.question] for record in records]
    return [round(min(len(sound.samples) / sound.rate, assets.seconds) * assets.rate) for sound in sounds]


def samples_of(sound: Sound, assets: Assets) -> np.ndarray:
    """The samples at the model's rate, float32 (S,): no more seconds than it hears, and as many as it needs."""
    most = round(assets.seconds * sound.rate)
    samples = resampled(Sound(sound.samples[:most], sound.rate), assets.rate)
    least = round((SHORTEST if assets.extractor else WINDOW) * assets.rate)
    return np.pad(samples, (0, max(0, least - len(samples))))


def extracted(heard: Sequence[np.ndarray], assets: Assets) -> Batch:
    """What the extractor gives for each sound alone, padded with zeros, and how much of it is the sound's own."""
    found = [assets.extractor(samples, sampling_rate=assets.rate, return_tensors="pt") for samples in heard]
    given = {name: [one[name][0] for one in found] for name in GIVEN if name in found[0]}
    sizes = [[size for values in given.values() for size in values[i].shape] for i in range(len(heard))]
    return {**{name: padded(values) for name, values in given.items()}, "sizes": torch.tensor(sizes)}


def outputs(net: nn.Module, batch: Batch) -> Outputs:
    """Logits (B, 1, D). Where padding could be heard, a graph takes sounds of one length, and so is each net asked."""
    if "sizes" not in batch or torch.compiler.is_exporting():
        return together(net, batch)
    sizes, number = batch["sizes"].unique(dim=0, return_inverse=True)
    places = [(number == i).nonzero()[:, 0] for i in range(len(sizes))]
    found = [together(net, own_part(batch, rows, size)) for rows, size in zip(places, sizes.tolist())]
    order = torch.cat(places).argsort()
    values, mask = (torch.cat(part)[order] for part in zip(*found))
    return values, mask


def own_part(batch: Batch, rows: Tensor, sizes: list[int]) -> Batch:
    """These rows of what an extractor gave, without padding; `sizes` as in the batch."""
    part, left = {}, iter(sizes)
    for name, values in ((name, batch[name]) for name in GIVEN if name in batch):
        part[name] = values[(rows, *(slice(next(left)) for _ in values.shape[1:]))]
    return part


@on_any_runtime
def together(net: nn.Module, batch: Batch) -> Outputs:
    """Logits (B, 1, D) of one call of the net."""
    if isinstance(net, SpeechNet):
        return labels.one_place(net(batch["samples"], batch["lengths"]))
    stored = next(value.dtype for value in net.parameters() if value.is_floating_point())
    given = {name: value.to(stored) if value.is_floating_point() else value for name, value in batch.items()}
    return labels.one_place(net(**{name: given[name] for name in GIVEN if name in given}).logits)


def loss(net: nn.Module, batch: Batch, player: str) -> tuple[Tensor, Tensor]:
    if isinstance(net, SpeechNet) and net.training:
        found = labels.one_place(net(batch["samples"], batch["lengths"], batch["draws"]))
        return labels.cross_entropy(found, batch["labels"])
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
    """Tones of 0.2 to 0.4 seconds that rise or fall, in noise."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        rising, rate = bool(random.integers(2)), 4000
        time = np.arange(int(rate * random.uniform(0.2, 0.4))) / rate
        start, slope = random.uniform(500, 1000), random.uniform(800, 1600) / time[-1]
        pitch = start + slope * (time if rising else time[-1] - time) / 2
        tone = 0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / rate) + random.normal(0, 0.02, len(time))
        rows.append({"audio": Sound(tone.astype(np.float32), rate), "label": "rising" if rising else "falling"})
    return records_of(rows, {"audio": "audio", "label": "category"}, "label")


FAMILY = Family(
    name="speech_classifier",
    tag="audio-classification",
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
    lengths=lengths,
    encoding=lambda assets: {},
    loss=loss,
    outputs=outputs,
    steps=reads_all(outputs),
    writing=at_once,
    sample=sample,
    score=score,
    headline=lambda assets: ("accuracy", "up"),
    players=lambda net: {"classifier": net},
    blocks=blocks,
    keep=keep,
    sizes=sizes_of,
    vocabulary=no_tokens,
    segmentation=uncut,
    tiny=lambda: {"width": 16, "mels": 24},
    toy=toy,
)
