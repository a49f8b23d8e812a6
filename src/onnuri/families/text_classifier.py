"""Texts to one label of several: a bag of n-grams, a small BERT, or any sequence classifier of transformers.

A new model is the bag (`text_ngrams.py`), which learns from nothing in a minute; with net=bert in its config it is a small
BERT (`text_tokens.py`), for what lies in the order of the words.
Letters: B texts. Batch: the entries of either kind; labels (B,) int64.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data import Record, Records, records_of
from ..errors import BadSettings, propose
from ..family import (
    Batch,
    Family,
    Outputs,
    Segmentation,
    Size,
    Vocabulary,
    at_once,
    on_any_runtime,
    one_a_row,
    reads_all,
    undivided,
)
from ..hub_blocks import hub_blocks
from ..nets.ngram_net import NgramNet
from . import depth, heads, labels, segmentation, sizes, text_ngrams, text_tokens

NETS = {"ngrams": text_ngrams, "bert": text_tokens}
Assets = text_ngrams.Assets | text_tokens.Assets


# ---------------------------------------------------------------------------------------------------- folders


def claims(folder: Path) -> bool:
    return text_ngrams.is_own(folder) or (
        heads.has_head(folder, "ForSequenceClassification") and not heads.hears(folder)
    )


def kind_of(folder: Path) -> Any:
    """The module that knows this folder."""
    return text_ngrams if text_ngrams.is_own(folder) else text_tokens


def read(folder: Path, empty: bool) -> tuple[nn.Module, Assets]:
    return kind_of(folder).read(folder, empty)


def write(net: nn.Module, assets: Assets, folder: Path, weights: bool) -> None:
    module_of(assets).write(net, assets, folder, weights)


def module_of(assets: Assets) -> Any:
    return text_ngrams if isinstance(assets, text_ngrams.Assets) else text_tokens


# --------------------------------------------------------------------------------------------------- new nets


def configured(config: dict) -> dict:
    """See Family.configured. A bag of n-grams, or what the entry `net` names; the other entries are those of its kind."""
    name, rest = chosen(config)
    return {"net": name, **NETS[name].configured(rest)}


def start(config: dict, records: Records, generator: torch.Generator) -> tuple[nn.Module, Assets]:
    name, rest = chosen(config)
    return NETS[name].start(rest, records, generator)


def chosen(config: dict) -> tuple[str, dict]:
    """(the kind of net, the entries for it)."""
    name = str(config.get("net", "ngrams"))
    if name not in NETS:
        raise BadSettings(f"net must be {' or '.join(NETS)}; {propose(name, NETS)}")
    return name, {key: value for key, value in config.items() if key != "net"}


def adopt(folder: Path, records: Records, generator: torch.Generator) -> tuple[nn.Module, Assets]:
    return kind_of(folder).adopt(folder, records, generator)


def like(net: Any, assets: Assets, scale: float, generator: torch.Generator) -> tuple[nn.Module, Assets]:
    return module_of(assets).like(net, assets, scale, generator)


def keep(net: Any, assets: Assets, names: Collection[str]) -> tuple[nn.Module, Assets]:
    """See Family.keep. A bag is the only block of its net."""
    if isinstance(net, NgramNet):
        raise depth.misfit("a bag of n-grams is all that it has")
    return depth.keep_layers(net, assets, names)


def sizes_of(net: Any, assets: Assets) -> list[Size]:
    """See Family.sizes."""
    if not isinstance(net, NgramNet):
        return sizes.of_config(net, assets)

    def made(width: int) -> nn.Module:
        return sizes.on_meta(lambda: NgramNet(replace(net.design, width=width)))

    return [Size("width", "channels", net.design.width, made)]


def vocabulary_of(net: Any, assets: Assets) -> Vocabulary | None:
    return module_of(assets).vocabulary_of(net, assets)


def segmentation_of(assets: Assets) -> Segmentation | None:
    """See Family.segmentation. The n-grams of a bag overlap."""
    return None if isinstance(assets, text_ngrams.Assets) else segmentation.segmentation_of(assets.tokenizer)


def blocks(net: nn.Module) -> dict[str, tuple[nn.Module, int]]:
    return {"bag": (net.bag, -1)} if isinstance(net, NgramNet) else hub_blocks(net)


# ------------------------------------------------------------------------------------ records in, answers out


def fields(assets: Assets) -> tuple[dict, tuple]:
    return {assets.question: "text"}, (assets.answer, "category")


def collate(records: Sequence[Record], assets: Assets, generators: Sequence[torch.Generator]) -> Batch:
    """The entries of the net's kind; labels (B,) where every record has its answer. No noise."""
    texts = [record[assets.question] or "" for record in records]
    return {**module_of(assets).tensors(texts, assets), **labels.label_batch(records, assets.answer, assets.labels)}


def lengths(records: Sequence[Record], assets: Assets) -> list[int]:
    return module_of(assets).sizes([record[assets.question] or "" for record in records], assets)


def encoding(assets: Assets) -> dict[str, dict]:
    return module_of(assets).encoding(assets)


@on_any_runtime
def outputs(net: nn.Module, batch: Batch) -> Outputs:
    """Logits (B, 1, D)."""
    return labels.one_place(net(batch["ngrams"]) if "ngrams" in batch else text_tokens.logits(net, batch))


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
    """Short Korean and English verdicts, kind and unkind."""
    random = np.random.default_rng(seed)
    things = ["영화", "음식", "여행", "the book", "the show", "노래"]
    verdicts = {
        "kind": ["정말 좋아요", "최고였다", "is great", "사랑해요"],
        "unkind": ["별로예요", "지루했다", "is awful", "싫어요"],
    }
    rows = []
    for _ in range(n):
        label = ("kind", "unkind")[random.integers(2)]
        rows.append({"text": f"{random.choice(things)} {random.choice(verdicts[label])}", "label": label})
    return records_of(rows, {"text": "text", "label": "category"}, "label")


FAMILY = Family(
    name="text_classifier",
    tag="text-classification",
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
    encoding=encoding,
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
    vocabulary=vocabulary_of,
    segmentation=segmentation_of,
    tiny=lambda: {
        "net": "bert",
        "hidden_size": 32,
        "num_layers": 1,
        "max_length": 32,
        "vocab_size": 300,
        "dropout": 0.0,
    },
    toy=toy,
)
