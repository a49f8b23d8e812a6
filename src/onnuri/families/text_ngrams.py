"""Texts as bags of n-grams of characters, read by our own NgramNet, which learns in a minute.

The folder is our own: config.json holds the design, the labels and the fields, model.safetensors the weights, and
ngrams.safetensors the vocabulary, see `ngrams.py`. Batch: ngrams (B, M) int32, the numbers of a text's n-grams, zeros
behind them.
"""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import hub
from ..data import Records, as_label, required_answer
from ..errors import Refusal
from ..family import Batch, Vocabulary, seeded
from ..nets.ngram_net import Design, NgramNet, design_of
from . import labels, ngrams
from .ngrams import Ngrams

MODEL_TYPE = "onnuri_ngram_net"
DEFAULTS = {"width": 0, "longest": 6, "least": 2, "max_length": 4000, "dropout": 0.3}
MOST_TEXTS = 500_000  # from which the n-grams are learnt; more of them bring none that matter
LEAST = {"longest": (1, 32), "least": (1, 1_000_000), "max_length": (1, 10_000_000), "width": (0, 4096)}
MOST_WIDTH = 32  # of a new net unless it is told otherwise


@dataclass(frozen=True)
class Assets:
    """Labels in order, the names of both fields, how many characters of a text are read, and the n-grams, whose digest
    stands for them in comparisons."""

    labels: tuple[str, ...]
    question: str
    answer: str
    max_length: int
    ngrams: Ngrams = field(compare=False)
    digest: str


# ---------------------------------------------------------------------------------------------------- folders


def is_own(folder: Path) -> bool:
    return hub.peek(folder).get("model_type") == MODEL_TYPE


def read(folder: Path, empty: bool) -> tuple[NgramNet, Assets]:
    net = hub.read_own(lambda config: NgramNet(design_of(config)), folder, empty)
    assert isinstance(net, NgramNet), "what was built"
    return net, hub.guarded(lambda path: assets_of(net, path, hub.read_json(path / "config.json")), folder)


def assets_of(net: NgramNet, folder: Path, config: dict[str, Any]) -> Assets:
    """The assets of a folder; ValueError or BadInput where they do not fit its net."""
    check_sizes({name: config[name] for name in ("longest", "max_length")})
    known, fields = ngrams.read(folder, config["longest"]), config["fields"]
    if len(known) != net.design.ngrams:
        raise ValueError(f"its table has rows for {net.design.ngrams} n-grams, {ngrams.FILE} lists {len(known)}")
    names = labels.stated_labels(config, net.design.num_labels)
    question, answer = str(fields["question"]), str(fields["answer"])
    return Assets(names, question, answer, config["max_length"], known, known.digest)


def write(net: NgramNet, assets: Assets, folder: Path, weights: bool) -> None:
    config = {
        "model_type": MODEL_TYPE,
        "architectures": ["OnnuriNgramNet"],
        **net.design.as_config(),
        "labels": list(assets.labels),
        "fields": {"question": assets.question, "answer": assets.answer},
        "longest": assets.ngrams.longest,
        "max_length": assets.max_length,
    }
    hub.write_own(net, config, folder, weights)
    ngrams.write(assets.ngrams, folder)


# --------------------------------------------------------------------------------------------------- new nets


def start(config: dict, records: Records, generator: torch.Generator) -> tuple[NgramNet, Assets]:
    """An NgramNet whose n-grams, and what they tell, are learnt from the records. It is as wide as there are labels unless
    `width` says otherwise."""
    settings = configured(config)
    names, question = labels.learn_labels(records), labels.question_of(records, "text", "category")
    answer, most = required_answer(records), settings["max_length"]
    design = design_for(settings, len(names))
    texts = records.some(MOST_TEXTS)
    known = ngrams.learnt(texts_of(texts, question), settings["longest"], settings["least"], most)
    net = build(replace(design, ngrams=len(known)), generator)
    net.bag.telling.copy_(torch.from_numpy(ngrams.telling(counts(texts, question, names, known, most))))
    return net, Assets(names, question, answer, most, known, known.digest)


def configured(config: dict) -> dict:
    """See Family.configured."""
    settings = hub.merged(DEFAULTS, config)
    design_for(settings, 2)
    return settings


def design_for(settings: dict, num_labels: int) -> Design:
    """The design of a net whose n-grams are not known yet; BadSettings with every fault."""
    with hub.as_bad_settings():
        check_sizes({name: settings[name] for name in LEAST})
        width = settings["width"] or min(num_labels, MOST_WIDTH)
        return design_of({"ngrams": 0, "width": width, "num_labels": num_labels, "dropout": settings["dropout"]})


def texts_of(records: Records, question: str) -> Iterator[str]:
    return (text or "" for text in records.column(question))


def counts(records: Records, question: str, names: Sequence[str], known: Ngrams, most: int) -> list[np.ndarray]:
    """How often each n-gram occurs under each label."""
    rows: dict[str | None, list[int]] = {name: [] for name in names}
    for row, label in enumerate(records.column(required_answer(records))):
        rows.setdefault(as_label(label), []).append(row)
    return [ngrams.counted(known, texts_of(records[rows[name]], question), most) for name in names]


def check_sizes(sizes: dict[str, Any]) -> None:
    """ValueError with every fault."""
    faults = [
        f"{name} must be a whole number from {LEAST[name][0]} to {LEAST[name][1]}, found {size!r}"
        for name, size in sizes.items()
        if type(size) is not int or not LEAST[name][0] <= size <= LEAST[name][1]
    ]
    if faults:
        raise ValueError("; ".join(faults))


def build(design: Design, generator: torch.Generator) -> NgramNet:
    with seeded(generator):
        return NgramNet(design).eval()


def adopt(folder: Path, records: Records, generator: torch.Generator) -> tuple[NgramNet, Assets]:
    """The n-grams and their vectors, a new head for the labels of the records."""
    old, assets = read(folder, False)
    names, question = labels.learn_labels(records), labels.question_of(records, "text", "category")
    net = build(replace(old.design, num_labels=len(names)), generator)
    body = {name: value for name, value in old.state_dict().items() if not name.startswith("head.")}
    net.load_state_dict(net.state_dict() | body)
    return net, replace(assets, labels=names, question=question, answer=required_answer(records))


def like(net: NgramNet, assets: Assets, scale: float, generator: torch.Generator) -> tuple[NgramNet, Assets]:
    """See Family.like: the n-grams and what they tell stay."""
    other = build(replace(net.design, width=max(1, round(net.design.width * scale))), generator)
    other.bag.telling.copy_(net.bag.telling)
    return other, assets


def vocabulary_of(net: NgramNet, assets: Assets) -> Vocabulary:
    """See Family.vocabulary: n-grams that are not known are passed over, so that any can go."""

    def kept(numbers: Tensor) -> tuple[NgramNet, Assets]:
        known = Ngrams(assets.ngrams.prints[numbers[1:].numpy() - 1], assets.ngrams.longest)
        other = NgramNet(replace(net.design, ngrams=len(known)))
        of_each = ("bag.table.weight", "bag.telling")
        state = net.state_dict()
        other.load_state_dict({name: value[numbers] if name in of_each else value for name, value in state.items()})
        return other.train(net.training), replace(assets, ngrams=known, digest=known.digest)

    rows = net.bag.table.weight.detach() * net.bag.telling[:, None]

    def grown(joins: Sequence[tuple[int, int]]) -> tuple[NgramNet, Assets]:
        raise Refusal("n-grams overlap, so that none is put together from others", "train a new bag on all the texts")

    return Vocabulary(("ngrams",), rows, {0}, {}, kept, grown)


# ---------------------------------------------------------------------------------------------------- batches


def tensors(texts: Sequence[str], assets: Assets) -> Batch:
    return {"ngrams": torch.from_numpy(assets.ngrams.encode(texts, assets.max_length))}


def sizes(texts: Sequence[str], assets: Assets) -> list[int]:
    """See Family.lengths: about as many n-grams begin as there are characters."""
    return [min(len(text), assets.max_length) for text in texts]


def encoding(assets: Assets) -> dict[str, dict]:
    """See Family.encoding."""
    prints = base64.b64encode(assets.ngrams.prints.astype("<u4").tobytes()).decode()
    sizes = {"longest": assets.ngrams.longest, "most": assets.max_length}
    return {"ngrams": {"type": "int32", "ngrams": assets.question, **sizes, "prints": prints}}
