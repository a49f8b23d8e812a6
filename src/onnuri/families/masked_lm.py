"""Encoders that learn from texts alone by filling in what is hidden, as AutoModelForMaskedLM of transformers opens them.

No architecture is named: config.json says that a folder is mine, transformers reads and writes it. Only `start` has to choose: the
small BERT (Devlin et al., arXiv:1810.04805) of `text_tokens.py`, whose head is tied to its embeddings. Its body is the ground for
other heads: train it on all texts there are, then `--new-head --family text_classifier` on the few with labels.

A record is a text. Some of its tokens are hidden to be learnt and judged, as `masked_tokens.py` says. What is to be filled in
stands in the field `masked`, with `[MASK]` or `<mask>` wherever a token is asked for.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import hub
from ..data import Records
from ..errors import BadInput, Refusal
from ..family import Family, Vocabulary, at_once, one_a_row, reads_all, undivided
from ..hub_blocks import hub_blocks
from . import depth, fewer_tokens, heads, masked_tokens, sizes, text_tokens, texts, vocabulary, widths
from .masked_tokens import MASKED, Assets
from .segmentation import segmentation_of

HEAD = "ForMaskedLM"


# ---------------------------------------------------------------------------------------------------- folders


def claims(folder: Path) -> bool:
    return heads.has_head(folder, HEAD)


def read(folder: Path, empty: bool) -> tuple[nn.Module, Assets]:
    """See Family.read. BadInput also for a folder whose tokenizer has no mask."""
    from transformers import AutoModelForMaskedLM

    tokenizer = read_tokenizer(folder)
    net = hub.read_hub(AutoModelForMaskedLM, folder, empty)
    return net, assets_of(net, tokenizer, heads.field_names(net.config, MASKED, "text", folder)[1])


def read_tokenizer(folder: Path) -> Any:
    tokenizer = text_tokens.read_tokenizer(folder)
    if tokenizer.mask_token_id is None:
        raise BadInput(
            f"the tokenizer of {folder} has no mask, so nothing can be hidden",
            hint="name its mask_token in tokenizer_config.json; or the folder of an encoder that was trained with one",
        )
    return tokenizer


def assets_of(net: Any, tokenizer: Any, answer: str) -> Assets:
    return Assets(tokenizer, text_tokens.fitted(net, tokenizer), answer, text_tokens.longest(net, tokenizer))


def write(net: Any, assets: Assets, folder: Path, weights: bool) -> None:
    net.config.onnuri_fields = {"question": MASKED, "answer": assets.answer}
    hub.write_hub(net, folder, weights)
    assets.tokenizer.save_pretrained(folder)


# ------------------------------------------------------------------------------------------------- new models


def start(config: dict, records: Records, generator: torch.Generator) -> tuple[nn.Module, Assets]:
    """A BERT whose vocabulary is learnt from the records."""
    from transformers import AutoModelForMaskedLM

    settings = text_tokens.configured(config)
    answer = texts.column_of(records, (MASKED,))
    some = records[:: math.ceil(len(records) / vocabulary.MOST_TEXTS)]
    known = (text or "" for text in some.column(answer))
    tokenizer = vocabulary.learnt(known, vocabulary.READ, **{name: settings[name] for name in vocabulary.ENTRIES})
    made = text_tokens.design(settings, tokenizer)
    net = widths.fresh(AutoModelForMaskedLM, made, 1, generator, torch.float32)
    return net, assets_of(net, tokenizer, answer)


def adopt(folder: Path, records: Records, generator: torch.Generator) -> tuple[nn.Module, Assets]:
    """An encoder's body with a new head over its own tokenizer; a folder of mine is simply read. The column is that of the
    records. Refusal for a net that reads in one direction."""
    from transformers import AutoModelForMaskedLM

    answer = texts.column_of(records, (MASKED,))
    if claims(folder):
        net, assets = read(folder, False)
        return net, replace(assets, answer=answer)
    require_design(folder)
    tokenizer = read_tokenizer(folder)
    net = hub.adopt_hub(AutoModelForMaskedLM, folder, generator)
    assets = assets_of(net, tokenizer, answer)
    require_both_directions(net, assets)
    return net, assets


def require_design(folder: Path) -> None:
    """Refusal where transformers has no head that fills in for the body of the folder: decoders have none."""
    from transformers import AutoConfig, AutoModelForMaskedLM

    config = hub.guarded(AutoConfig.from_pretrained, folder, local_files_only=True)
    if type(config) not in AutoModelForMaskedLM._model_mapping:
        raise one_direction(f"transformers has no {config.model_type} that fills in what is hidden")


@torch.no_grad()
def require_both_directions(net: nn.Module, assets: Assets) -> None:
    """Refusal when what the net says of the first token does not depend on later ones."""
    one, other = (assets.others[[0, *[place] * 5]] for place in (0, 1))
    ids = torch.stack([one, other])
    values = text_tokens.logits(net, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})[:, 0]
    if torch.equal(values[0], values[1]):
        raise one_direction("this net reads a text from left to right")


def one_direction(why: str) -> Refusal:
    return Refusal(
        f"{why}, so it cannot learn to fill in", "the folder of an encoder, or train this one as a causal_lm"
    )


def like(net: Any, assets: Assets, scale: float, generator: torch.Generator) -> tuple[nn.Module, Assets]:
    """See Family.like: the vocabulary, the layers and the heads stay."""
    from transformers import AutoModelForMaskedLM

    return heads.like(AutoModelForMaskedLM, net, scale, generator), assets


def vocabulary_of(net: Any, assets: Assets) -> Vocabulary | None:
    return fewer_tokens.vocabulary_of(
        net, assets.tokenizer, lambda net, tokenizer: assets_of(net, tokenizer, assets.answer)
    )


FAMILY = Family(
    name="masked_lm",
    tag="fill-mask",
    kind=lambda assets: "logits",
    claims=claims,
    read=read,
    write=write,
    configured=text_tokens.configured,
    start=start,
    adopt=adopt,
    like=like,
    fields=masked_tokens.fields,
    axis=lambda assets: assets.vocabulary,
    collate=masked_tokens.collate,
    pieces=undivided,
    packed=one_a_row(masked_tokens.collate),
    lengths=masked_tokens.lengths,
    encoding=lambda assets: {},
    loss=masked_tokens.loss,
    outputs=masked_tokens.outputs,
    steps=reads_all(masked_tokens.outputs),
    writing=at_once,
    sample=masked_tokens.sample,
    score=masked_tokens.score,
    headline=lambda assets: ("masked_cross_entropy", "down"),
    players=lambda net: {"net": net},
    blocks=hub_blocks,
    keep=depth.keep_layers,
    sizes=sizes.of_config,
    vocabulary=vocabulary_of,
    segmentation=lambda assets: segmentation_of(assets.tokenizer),
    tiny=lambda: {"hidden_size": 32, "num_layers": 2, "max_length": 48, "vocab_size": 64, "dropout": 0.0},
    toy=texts.toy,
)
