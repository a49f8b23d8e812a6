"""Models that read one text and write another (translate, summarize, answer), as AutoModelForSeq2SeqLM of transformers opens them.

No architecture is named: config.json says that a folder is mine, transformers reads and writes it. Only `start` has to choose: a
T5 (Raffel et al. 2020, arXiv:1910.10683) with gated GELU (Shazeer 2020, arXiv:2002.05202), differing in:
1. its tokens are a byte-level BPE's (Radford et al. 2019), to which no text is unknown, and its table of them is tied to its head;
2. it begins with random weights, without pre-training, and is given no name of a task.

A record is a text and the one that it is answered with. How these are learnt and judged, says `text_pairs.py`.
"""

import json
import math
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import hub
from ..data import Records
from ..errors import BadInput, BadSettings, Refusal
from ..family import Family, Vocabulary, one_a_row, undivided
from ..hub_blocks import hub_blocks
from . import depth, fewer_tokens, heads, question_memory, sizes, text_pairs, text_tokens, texts, vocabulary, widths
from .segmentation import segmentation_of
from .text_pairs import Assets

QUESTIONS = ("source", "question", "text", "prompt", "document", "article", "input")
ANSWERS = ("target", "answer", "summary", "translation", "completion", "response", "output", "highlights")
DEFAULTS = {
    "hidden_size": 256,
    "num_layers": 3,
    "num_heads": 4,
    "vocab_size": 4096,
    "tokenizer": "bpe",
    "pre_split": "",
    "max_length": 256,
    "max_new_tokens": 128,
    "dropout": 0.1,
}
LEAST = {"hidden_size": 2, "num_layers": 1, "num_heads": 1, "vocab_size": 258, "max_length": 2, "max_new_tokens": 1}
NOTES = {"question": "source", "answer": "target", "max_length": 512, "max_new_tokens": 128}
OTHERS = ("ForCausalLM", "LMHeadModel", "Classification", "MaskedLM")
"""Heads of which none is here, so that the library, which takes a second to load, need not be asked."""


# ---------------------------------------------------------------------------------------------------- folders


def claims(folder: Path) -> bool:
    """What transformers counts among these models, and has an encoder: others of that list continue what they hear."""
    config = hub.peek(folder)
    kind, names = config.get("model_type"), config.get("architectures")
    if not isinstance(kind, str) or not isinstance(names, list) or any(str(name).endswith(OTHERS) for name in names):
        return False
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES as known

    return (kind, names[:1]) in [(one, [name]) for one, name in known.items()] and CONFIG_MAPPING[
        kind
    ].is_encoder_decoder is True


def read(folder: Path, empty: bool) -> tuple[nn.Module, Assets]:
    from transformers import AutoModelForSeq2SeqLM

    net = hub.read_hub(AutoModelForSeq2SeqLM, folder, empty)
    return net, assets_of(net, text_tokens.read_tokenizer(folder), noted_in(net, folder))


def noted_in(net: Any, folder: Path) -> dict:
    """What we noted in the folder's config; BadInput where that is malformed."""
    noted = getattr(net.config, "onnuri_fields", {})
    if not isinstance(noted, dict) or not all(fits(name, value) for name, value in noted.items()):
        raise BadInput(
            f"{folder}/config.json: onnuri_fields is malformed: {noted!r}",
            hint=f"delete it, or write it like {json.dumps(NOTES)}",
        )
    return NOTES | noted


def fits(name: str, value: Any) -> bool:
    """May this stand in `onnuri_fields`?"""
    return type(value) is type(NOTES.get(name)) and (isinstance(value, str) or value >= LEAST[name])


def assets_of(net: Any, tokenizer: Any, noted: dict) -> Assets:
    """The assets; the net learns where its decoder starts, if it does not know. BadInput when the tokenizer does not fit it."""
    digest = text_tokens.fitted(net, tokenizer)
    stops = net.generation_config.eos_token_id
    stops = {*(stops if isinstance(stops, list) else [stops]), tokenizer.eos_token_id} - {None}
    before, forced = put_before(tokenizer), net.generation_config.forced_bos_token_id
    begins = (starts(net, tokenizer), *(before if forced is None else [forced]))
    question, answer = (places_of(net, part) for part in ("encoder", "decoder"))
    length = min(noted["max_length"], tokenizer.model_max_length)
    answer = min(answer, max(length, noted["max_new_tokens"] + len(begins) - 1))  # a config may state no places
    limits = {"max_length": min(length, question), "max_answer": answer}
    return Assets(tokenizer, digest, begins, len(before), tuple(sorted(stops)), **{**noted, **limits})


def starts(net: Any, tokenizer: Any) -> int:
    """The token with which the decoder starts, where nothing says it by the tokenizer's first mark; noted in the net's configs."""
    said = (net.generation_config.decoder_start_token_id, getattr(net.config, "decoder_start_token_id", None))
    marks = (net.generation_config.bos_token_id, tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.pad_token_id)
    start = next(number for number in (*said, *marks) if number is not None)
    net.config.decoder_start_token_id = net.generation_config.decoder_start_token_id = start
    return start


def put_before(tokenizer: Any) -> list[int]:
    """The marks that the tokenizer puts before every answer: the language, the beginning."""
    found = tokenizer(text_target=["a"], return_special_tokens_mask=True)
    marks, ids = found["special_tokens_mask"][0], found["input_ids"][0]
    return ids[: marks.index(0)] if 0 in marks else []


def places_of(net: Any, part: str) -> int:
    """How many tokens the net can take on one side, as its config says; any number where it says nothing."""
    names = (f"max_{part}_position_embeddings", "max_position_embeddings")
    stated = [getattr(config, name, None) for config in depth.parts_of(net.config) for name in names]
    return next((value for value in stated if isinstance(value, int) and value > 0), 2**31)


def write(net: Any, assets: Assets, folder: Path, weights: bool) -> None:
    net.config.onnuri_fields = {name: getattr(assets, name) for name in NOTES}
    hub.write_hub(net, folder, weights)
    assets.tokenizer.save_pretrained(folder)


# ------------------------------------------------------------------------------------------------- new models


def start(config: dict, records: Records, generator: torch.Generator) -> tuple[nn.Module, Assets]:
    from transformers import AutoModelForSeq2SeqLM

    settings = configured(config)
    question, answer = columns_of(records)
    some = records[:: math.ceil(len(records) / vocabulary.MOST_TEXTS)]
    known = (record[name] or "" for record in some for name in (question, answer))
    tokenizer = vocabulary.learnt(known, vocabulary.ANSWERED, **{name: settings[name] for name in vocabulary.ENTRIES})
    net = widths.fresh(AutoModelForSeq2SeqLM, design(settings, tokenizer), 1, generator, torch.float32)
    lengths = {name: settings[name] for name in ("max_length", "max_new_tokens")}
    return net, assets_of(net, tokenizer, {"question": question, "answer": answer, **lengths})


def configured(config: dict) -> dict:
    """See Family.configured."""
    settings = hub.merged(DEFAULTS, config)
    faults = [
        f"'{name}' must be a whole number from {low} up, found {settings[name]!r}"
        for name, low in LEAST.items()
        if type(settings[name]) is not int or settings[name] < low
    ]
    if not faults and settings["hidden_size"] % settings["num_heads"]:
        faults.append(f"'num_heads' {settings['num_heads']} does not divide 'hidden_size' {settings['hidden_size']}")
    if not isinstance(settings["dropout"], (int, float)) or not 0 <= settings["dropout"] < 1:
        faults.append(f"'dropout' must be at least 0 and below 1, found {settings['dropout']!r}")
    faults += [] if faults else vocabulary.faults_of(settings, vocabulary.ANSWERED)
    if faults:
        raise BadSettings(*faults)
    return settings


def columns_of(records: Records) -> tuple[str, str]:
    """(the question's column, the answer's): the answer that is named, else a customary name; of the other columns of text a
    customary name, else the first. Few texts that come again may be categories. BadInput where they are not two."""
    written = [name for kind in ("text", "category") for name, found in records.fields.items() if found == kind]
    answer = next((name for name in (records.answer, *ANSWERS) if name in written), "")
    others = [name for name in written if name != answer]
    question = next((name for name in (*QUESTIONS, *others) if name in others), "")
    if not answer or not question:
        raise BadInput(
            f"it is not clear which columns of text are asked and answered: {', '.join(records.fields)}",
            hint="--answer NAME, and where a column is no text --fields NAME=text,NAME=text",
        )
    return question, answer


def design(settings: dict, tokenizer: Any) -> Any:
    """The config for transformers. The feed-forward width is 8/3 of the hidden, rounded up to 16: three matrices as large as two
    of four times the width."""
    from transformers import T5Config

    entries = {
        "vocab_size": len(tokenizer),
        "d_model": settings["hidden_size"],
        "d_kv": settings["hidden_size"] // settings["num_heads"],
        "d_ff": 16 * math.ceil(settings["hidden_size"] / 6),
        "num_layers": settings["num_layers"],
        "num_decoder_layers": settings["num_layers"],
        "num_heads": settings["num_heads"],
        "dropout_rate": settings["dropout"],
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": tokenizer.pad_token_id,
    }
    return T5Config(**entries)


def adopt(folder: Path, records: Records, generator: torch.Generator) -> tuple[nn.Module, Assets]:
    """The encoder and decoder of any folder that has both, with a new head over its own tokenizer; a folder of mine is simply read.
    The columns are those of the records. Refusal for a net that has only one of the two."""
    from transformers import AutoModelForSeq2SeqLM

    question, answer = columns_of(records)
    if claims(folder):
        net, assets = read(folder, False)
        return net, replace(assets, question=question, answer=answer)
    require_design(folder)
    tokenizer = text_tokens.read_tokenizer(folder)
    net = hub.adopt_hub(AutoModelForSeq2SeqLM, folder, generator)
    return net, assets_of(net, tokenizer, NOTES | {"question": question, "answer": answer})


def require_design(folder: Path) -> None:
    """Refusal where the folder describes no net with an encoder and a decoder."""
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    config = hub.guarded(AutoConfig.from_pretrained, folder, local_files_only=True)
    if type(config) not in AutoModelForSeq2SeqLM._model_mapping or not config.is_encoder_decoder:
        raise Refusal(
            f"this {config.model_type} has no encoder whose text its decoder could answer",
            "the folder of a model with both; a decoder alone learns to continue a prompt as a causal_lm",
        )


def like(net: Any, assets: Assets, scale: float, generator: torch.Generator) -> tuple[nn.Module, Assets]:
    """See Family.like: the vocabulary and the layers stay. Refusal when the config does not state its widths by the usual names."""
    from transformers import AutoModelForSeq2SeqLM

    other: Any = heads.like(AutoModelForSeq2SeqLM, net, scale, generator)
    try:
        with torch.no_grad():
            question_memory.outputs(other, question_memory.probe(other, slice(0, 3)))  # does it run at all?
    except (ValueError, RuntimeError, IndexError) as error:
        raise widths.cannot_scale(f"with other widths it does not run: {str(error).splitlines()[0]}") from error
    other.generation_config = deepcopy(net.generation_config)
    return other, assets


def vocabulary_of(net: Any, assets: Assets) -> Vocabulary | None:
    noted = {name: getattr(assets, name) for name in NOTES}
    entries = ("input_ids", "decoder_input_ids")
    return fewer_tokens.vocabulary_of(
        net, assets.tokenizer, lambda net, tokenizer: assets_of(net, tokenizer, noted), entries
    )


FAMILY = Family(
    name="seq2seq",
    tag="text2text-generation",
    kind=lambda assets: "logits",
    claims=claims,
    read=read,
    write=write,
    configured=configured,
    start=start,
    adopt=adopt,
    like=like,
    fields=text_pairs.fields,
    axis=lambda assets: assets.vocabulary,
    collate=text_pairs.collate,
    pieces=undivided,
    packed=one_a_row(text_pairs.collate),
    lengths=text_pairs.lengths,
    encoding=lambda assets: {},
    loss=text_pairs.loss,
    outputs=question_memory.outputs,
    steps=question_memory.steps,
    writing=text_pairs.writing,
    sample=text_pairs.sample,
    score=text_pairs.score,
    headline=lambda assets: ("chrf", "up"),
    players=lambda net: {"net": net},
    blocks=hub_blocks,
    keep=depth.keep_layers,
    sizes=sizes.of_config,
    vocabulary=vocabulary_of,
    segmentation=lambda assets: segmentation_of(assets.tokenizer),
    tiny=lambda: {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 2,
        "vocab_size": 320,
        "max_length": 48,
        "max_new_tokens": 32,
        "dropout": 0.0,
    },
    toy=texts.toy_translations,
)
