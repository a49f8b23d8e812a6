"""Texts as tokens: any encoder of transformers, and a small BERT of our own making.

A new one is Devlin et al., BERT (arXiv:1810.04805), differing in:
1. its tokens are pairs of characters merged instead of WordPiece, or others of `vocabulary.py`;
2. it begins with random weights, without pre-training, and never sees a second segment.
Letters: B texts, T tokens. Batch: input_ids, attention_mask and, where the tokenizer gives it, token_type_ids
(B, T) int64, padded on the right so that a token's place does not depend on its neighbors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import hub
from ..data import Records, required_answer
from ..errors import BadInput, BadSettings
from ..family import Batch, Vocabulary
from . import fewer_tokens, heads, labels, vocabulary, widths
from .segmentation import settings_kept

DEFAULTS = {
    "hidden_size": 128,
    "num_layers": 2,
    "num_heads": 2,
    "max_length": 128,
    "vocab_size": 8000,
    "tokenizer": "characters",
    "pre_split": "",
    "dropout": 0.1,
}
TENSORS = ("input_ids", "attention_mask", "token_type_ids")
LONGEST = 512  # tokens of a text where a model states no limit of its own


@dataclass(frozen=True)
class Assets:
    """Labels in order, the names of both fields, the tokenizer, and a digest that compares for it."""

    labels: tuple[str, ...]
    question: str
    answer: str
    max_length: int
    tokenizer: Any = field(compare=False)
    digest: str


# ---------------------------------------------------------------------------------------------------- folders


def read(folder: Path, empty: bool) -> tuple[nn.Module, Assets]:
    """See Family.read. BadInput also for a folder without a tokenizer, or whose answer is not one label."""
    from transformers import AutoModelForSequenceClassification

    heads.require_one_label(folder)
    tokenizer = read_tokenizer(folder)
    net = hub.read_hub(AutoModelForSequenceClassification, folder, empty)
    names = heads.field_names(net.config, "text", "label", folder)
    return net, assets_of(net, tokenizer, heads.label_names(net.config, folder), *names)


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of the folder; its end mark pads where it has no mark for that."""
    from transformers import AutoTokenizer

    tokenizer = hub.guarded(AutoTokenizer.from_pretrained, folder, local_files_only=True)
    for name in ("is_local", "local_files_only"):  # how it was opened would be written into its config
        tokenizer.init_kwargs.pop(name, None)
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):  # the library makes one up where no file is
        raise BadInput(f"{folder} holds no vocabulary", hint="fetch its tokenizer files again")
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise BadInput(f"the tokenizer of {folder} has neither a padding nor an end mark")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def assets_of(net: Any, tokenizer: Any, names: tuple[str, ...], question: str, answer: str) -> Assets:
    """The assets of a classifier."""
    digest = fitted(net, tokenizer)
    return Assets(names, question, answer, longest(net, tokenizer), tokenizer, digest)


def fitted(net: Any, tokenizer: Any) -> str:
    """A digest of the tokens. BadInput where the net does not know them all; it learns which one pads, for those that answer at
    the last token that does not."""
    rows = net.get_input_embeddings().num_embeddings
    if net.config.pad_token_id is None:
        net.config.pad_token_id = tokenizer.pad_token_id
    if len(tokenizer) > rows:
        raise BadInput(f"the tokenizer knows {len(tokenizer)} tokens, the net only {rows}")
    return vocabulary.digest_of(tokenizer, rows)


def longest(net: Any, tokenizer: Any) -> int:
    """How many tokens of a text the net can take. Some tables of places begin behind the padding number."""
    places = [
        table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
        for name, table in net.named_modules()
        if name.endswith("position_embeddings") and isinstance(table, nn.Embedding)
    ]
    if not places:
        stated = getattr(net.config, "max_position_embeddings", None) or LONGEST
        places = [stated if stated > 0 else LONGEST]  # XLNet states -1
    return min(*places, tokenizer.model_max_length)


def write(net: Any, assets: Assets, folder: Path, weights: bool) -> None:
    """See Family.write."""
    hub.write_hub(net, folder, weights)
    assets.tokenizer.save_pretrained(folder)


# --------------------------------------------------------------------------------------------------- new nets


def start(config: dict, records: Records, generator: torch.Generator) -> tuple[nn.Module, Assets]:
    """A BERT whose vocabulary is learnt from the records."""
    from transformers import AutoModelForSequenceClassification

    settings = configured(config)
    names, question = labels.learn_labels(records), labels.question_of(records, "text", "category")
    answer = required_answer(records)
    texts = (record[question] or "" for record in records[: vocabulary.MOST_TEXTS])
    tokenizer = vocabulary.learnt(texts, vocabulary.READ, **{name: settings[name] for name in vocabulary.ENTRIES})
    made = design(settings, tokenizer, **heads.label_config(names))
    made.onnuri_fields = {"question": question, "answer": answer}
    net = widths.fresh(AutoModelForSequenceClassification, made, 1, generator, torch.float32)
    return net, assets_of(net, tokenizer, names, question, answer)


def design(settings: dict, tokenizer: Any, **more: Any) -> Any:
    """The config for transformers. `more`: what the head has of its own."""
    from transformers import BertConfig

    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings["hidden_size"],
        intermediate_size=4 * settings["hidden_size"],
        num_hidden_layers=settings["num_layers"],
        num_attention_heads=settings["num_heads"],
        max_position_embeddings=settings["max_length"],
        hidden_dropout_prob=settings["dropout"],
        attention_probs_dropout_prob=settings["dropout"],
        pad_token_id=tokenizer.pad_token_id,
        **more,
    )


def configured(config: dict) -> dict:
    """See Family.configured."""
    return checked(hub.merged(DEFAULTS, config))


def checked(settings: dict) -> dict:
    """The settings, or BadSettings with every fault."""
    faults = [
        f"{name} must be a whole number above {least}, found {settings[name]!r}"
        for name, least in {"hidden_size": 0, "num_layers": 0, "num_heads": 0, "max_length": 2, "vocab_size": 0}.items()
        if type(settings[name]) is not int or settings[name] <= least
    ]
    faults += [] if faults else vocabulary.faults_of(settings, vocabulary.READ)
    if not faults and settings["hidden_size"] % settings["num_heads"]:
        faults.append(f"num_heads {settings['num_heads']} does not divide {settings['hidden_size']}")
    if not isinstance(settings["dropout"], (int, float)) or not 0 <= settings["dropout"] < 1:
        faults.append(f"dropout must be at least 0 and below 1, found {settings['dropout']!r}")
    if faults:
        raise BadSettings(*faults)
    return settings


def adopt(folder: Path, records: Records, generator: torch.Generator) -> tuple[nn.Module, Assets]:
    """The body of any text model of transformers that can classify, a new head for the records' labels."""
    from transformers import AutoModelForSequenceClassification

    names, question = labels.learn_labels(records), labels.question_of(records, "text", "category")
    answer, tokenizer = required_answer(records), read_tokenizer(folder)
    net = heads.with_new_head(AutoModelForSequenceClassification, folder, names, question, answer, generator)
    return net, assets_of(net, tokenizer, names, question, answer)


def like(net: Any, assets: Assets, scale: float, generator: torch.Generator) -> tuple[nn.Module, Assets]:
    """See Family.like: the vocabulary, the layers and the heads stay."""
    from transformers import AutoModelForSequenceClassification

    return heads.like(AutoModelForSequenceClassification, net, scale, generator), assets


def vocabulary_of(net: Any, assets: Assets) -> Vocabulary | None:
    """See Family.vocabulary."""
    rest = (assets.labels, assets.question, assets.answer)
    return fewer_tokens.vocabulary_of(net, assets.tokenizer, lambda net, tokenizer: assets_of(net, tokenizer, *rest))


# ------------------------------------------------------------------------------------------------------------ batches


def tensors(texts: Sequence[str], assets: Assets) -> Batch:
    """See `encode`."""
    return encode(assets.tokenizer, list(texts), assets.max_length)


def sizes(texts: Sequence[str], assets: Assets) -> list[int]:
    """See Family.lengths."""
    return lengths(assets.tokenizer, list(texts), assets.max_length)


def encoding(assets: Assets) -> dict[str, dict]:
    """See Family.encoding; {} for a tokenizer that does other than `vocabulary.of_characters` made it."""
    said = vocabulary.encoding(assets.tokenizer)
    if not said:
        return {}
    names = [name for name in TENSORS[1:] if name in tensors([""], assets)]
    tokens = {"type": "int64", "tokens": assets.question, "most": assets.max_length, **said}
    filled = {name: {"type": "int64", "like": TENSORS[0], "fill": int(name == "attention_mask")} for name in names}
    return {TENSORS[0]: tokens, **filled}


def logits(net: nn.Module, batch: Batch) -> Tensor:
    """(B, D); (B, T, D) of a net that answers at each token."""
    return net(**{name: batch[name] for name in TENSORS if name in batch}).logits


def encode(tokenizer: Any, texts: list[str], max_length: int) -> dict[str, Tensor]:
    """What the tokenizer gives of TENSORS (B, T), cut at `max_length`, padded on the right to the longest text."""
    with settings_kept(tokenizer):
        tokens = tokenizer(
            texts,
            truncation=True,
            max_length=max_length,
            padding="longest",
            padding_side="right",
            return_attention_mask=True,
            return_tensors="pt",
        )
    return {name: tokens[name] for name in TENSORS if name in tokens}


def lengths(tokenizer: Any, texts: list[str], max_length: int) -> list[int]:
    """How many tokens `encode` makes of each."""
    with settings_kept(tokenizer):
        return [len(ids) for ids in tokenizer(texts, truncation=True, max_length=max_length).input_ids]


def decoded(tokenizer: Any, ids: list[int]) -> str:
    """The text of these tokens, without marks, its spaces as they were."""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
