"""Language models that write text from left to right, as AutoModelForCausalLM of transformers opens them.

No architecture is named: config.json says that a folder is mine, transformers reads and writes it. Only
`start` has to choose: a Llama (Touvron et al. 2023, arXiv 2302.13971) or, with experts, a Mixtral (Jiang et
al. 2024, arXiv 2401.04088), over tokens learnt as `vocabulary.py` says, to which no text is unknown.

A record is a text, or a prompt and the text that follows; then only the text is learnt and judged. How, says
`next_token.py`.
"""

import json
import math
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data import Records
from ..decoding import padded
from ..errors import BadInput, BadSettings, Refusal
from ..family import Family, Vocabulary
from ..hub import adopt_hub, guarded, merged, read_hub, write_hub
from ..hub_blocks import hub_blocks
from . import depth, dial, fewer_tokens, heads, next_token, packing, sizes, texts, vocabulary, widths
from .next_token import Assets
from .segmentation import segmentation_of

HEADS = ("ForCausalLM", "LMHeadModel")
PROMPTS = (next_token.PROMPT, "question", "instruction")
DEFAULTS = {
    "hidden_size": 256,
    "num_layers": 4,
    "num_heads": 4,
    "vocab_size": 4096,
    "tokenizer": "bpe",
    "pre_split": "",
    "max_length": 256,
    "experts": 0,
    "tie_embeddings": True,
    "max_new_tokens": 64,
}
DIALS = {"depth": 0, "parameters": 0}  # known by name; `dial` takes them out
LEAST = {
    "hidden_size": 2,
    "num_layers": 1,
    "num_heads": 1,
    "vocab_size": 258,
    "max_length": 2,
    "experts": 0,
    "max_new_tokens": 1,
}
NOTES = {"answer": "text", "prompt": "", "max_length": 1024, "max_new_tokens": 64}


# ---------------------------------------------------------------------------------------------------- folders


def claims(folder: Path) -> bool:
    return any(heads.has_head(folder, head) for head in HEADS)


def read(folder: Path, empty: bool) -> tuple[nn.Module, Assets]:
    from transformers import AutoModelForCausalLM

    net = read_hub(AutoModelForCausalLM, folder, empty)
    return net, assets_beside(net, folder)


def assets_beside(net: Any, folder: Path) -> Assets:
    """The tokenizer of `folder`, and what we noted in its config; BadInput where a note is malformed."""
    from transformers import AutoTokenizer

    noted = getattr(net.config, "onnuri_fields", {})
    if not isinstance(noted, dict) or not all(fits(name, value) for name, value in noted.items()):
        raise BadInput(
            f"{folder}/config.json: onnuri_fields is malformed: {noted!r}",
            hint=f"delete it, or write it like {json.dumps(NOTES)}",
        )
    longest = getattr(net.config, "max_position_embeddings", None) or math.inf
    if noted.get("max_length", 0) > longest:
        raise BadInput(
            f"{folder}/config.json: onnuri_fields reads {noted['max_length']} tokens at once, the net has {longest} positions",
            hint=f'"max_length": {longest} or less there',
        )
    noted = NOTES | {"max_length": min(NOTES["max_length"], longest)} | noted
    return with_tokenizer(net, guarded(AutoTokenizer.from_pretrained, folder, local_files_only=True), noted)


def fits(name: str, value: Any) -> bool:
    """May this stand in `onnuri_fields`?"""
    return type(value) is type(NOTES.get(name)) and (isinstance(value, str) or value >= LEAST[name])


def with_tokenizer(net: Any, tokenizer: Any, noted: dict) -> Assets:
    """The assets; BadInput when the tokenizer has a token that the net does not embed."""
    rows, tokens = net.get_input_embeddings().weight.shape[0], sorted(tokenizer.get_vocab().items())
    if not tokens or max(number for _, number in tokens) >= rows:
        raise BadInput(
            f"the tokenizer has {len(tokens)} tokens, but the net embeds {rows}",
            hint="put the tokenizer of this very model into the folder",
        )
    stops = net.generation_config.eos_token_id if net.can_generate() else None
    stops = {*(stops if isinstance(stops, list) else [stops]), tokenizer.eos_token_id} - {None}
    return Assets(tokenizer, vocabulary.digest_of(tokenizer, rows), tuple(sorted(stops)), **noted)


def write(net: Any, assets: Assets, folder: Path, weights: bool) -> None:
    net.config.onnuri_fields = {name: getattr(assets, name) for name in NOTES}
    write_hub(net, folder, weights)
    assets.tokenizer.save_pretrained(folder)


# ------------------------------------------------------------------------------------------------- new models


def start(config: dict, records: Records, generator: torch.Generator) -> tuple[nn.Module, Assets]:
    from transformers import AutoModelForCausalLM

    settings = configured(config)
    answer, prompt = columns_of(records)
    some = records[:: math.ceil(len(records) / vocabulary.MOST_TEXTS)]
    known = (record[name] or "" for record in some for name in sorted({prompt, answer} - {""}))
    tokenizer = vocabulary.learnt(known, vocabulary.WRITTEN, **{name: settings[name] for name in vocabulary.ENTRIES})
    net = widths.fresh(AutoModelForCausalLM, design(settings, tokenizer), 1, generator, torch.float32)
    lengths = {name: settings[name] for name in ("max_length", "max_new_tokens")}
    return net, with_tokenizer(net, tokenizer, {"answer": answer, "prompt": prompt, **lengths})


def configured(config: dict) -> dict:
    """See Family.configured; the dials stand no more beside what they set."""
    settings = checked(merged(DEFAULTS | DIALS, dialed(config)))
    return {name: settings[name] for name in DEFAULTS}


def dialed(config: dict) -> dict:
    """The config with what its dial sets. BadSettings where an entry beside it, which it counts with, is out of range."""
    if DIALS.keys() & config.keys() and (faults := out_of_range(config)):
        raise BadSettings(*faults)
    return dial.chosen(DEFAULTS, config)


def out_of_range(settings: dict) -> list[str]:
    return [
        f"'{name}' must be a whole number from {low} up, found {settings[name]!r}"
        for name, low in LEAST.items()
        if name in settings and (not isinstance(settings[name], int) or settings[name] < low)
    ]


def checked(settings: dict) -> dict:
    """The settings, or BadSettings with all that is out of range."""
    faults = out_of_range(settings)
    faults += [] if faults else vocabulary.faults_of(settings, vocabulary.WRITTEN)
    # rotary positions turn pairs; the grouped product of experts reads 16 bytes at a time
    step = 1 if faults else math.lcm(2 * settings["num_heads"], 8 if settings["experts"] else 1)
    if not faults and settings["hidden_size"] % step:
        faults.append(
            f"'hidden_size' must be a multiple of {step} with {settings['num_heads']} heads and "
            f"{settings['experts']} experts, found {settings['hidden_size']}"
        )
    if settings["experts"] == 1:
        faults.append("'experts' must be 0, or 2 and more, since each token asks two of them; found 1")
    if faults:
        raise BadSettings(*faults)
    return settings


def columns_of(records: Records) -> tuple[str, str]:
    """(the text's column, the prompt's or "")."""
    prompts = [name for name in PROMPTS if records.questions.get(name) == "text"]
    return texts.column_of(records, prompts), prompts[0] if prompts else ""


def design(settings: dict, tokenizer: Any) -> Any:
    """The config for transformers."""
    from transformers import LlamaConfig, MixtralConfig

    common = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": settings["max_length"],
        "hidden_size": settings["hidden_size"],
        "num_hidden_layers": settings["num_layers"],
        "num_attention_heads": settings["num_heads"],
        "num_key_value_heads": settings["num_heads"],
        "intermediate_size": dial.feed_forward(settings["hidden_size"]),
        "tie_word_embeddings": bool(settings["tie_embeddings"]),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if settings["experts"]:
        return MixtralConfig(**common, num_local_experts=settings["experts"], num_experts_per_tok=2)
    return LlamaConfig(**common)


def adopt(folder: Path, records: Records, generator: torch.Generator) -> tuple[nn.Module, Assets]:
    """A decoder's body with a new head over its own tokenizer; a folder of mine is simply read. The columns
    are those of the records. Refusal for a net that reads in both directions."""
    from transformers import AutoModelForCausalLM

    net: Any = read(folder, False)[0] if claims(folder) else adopt_hub(AutoModelForCausalLM, folder, generator)
    require_causal(net)
    if not claims(folder):
        net.config.onnuri_fields = {}  # the columns of another family
    answer, prompt = columns_of(records)
    return net, replace(assets_beside(net, folder), answer=answer, prompt=prompt)


@torch.no_grad()
def require_causal(net: nn.Module) -> None:
    """Refusal when what the net says of the first token depends on later ones: it would see the answer."""
    values = next_token.logits_of(net, padded([[0, 1, 1, 1, 1, 1], [0, 2, 2, 2, 2, 2]], 0))[:, 0]
    rounding = max(1e-5, 4 * torch.finfo(values.dtype).eps)
    one, other = values.float()
    if (one - other).abs().max() > rounding * one.abs().max():
        raise Refusal(
            "this net reads a text in both directions, so it cannot learn to continue one",
            "the folder of a decoder, or train this one as a text_classifier",
        )


def like(net: Any, assets: Assets, scale: float, generator: torch.Generator) -> tuple[nn.Module, Assets]:
    """Refusal when the config does not state its widths by the usual names."""
    from transformers import AutoModelForCausalLM

    other = widths.fresh(AutoModelForCausalLM, net.config, scale, generator, net.dtype)
    widths.require_scaled(net, other, scale)
    try:
        require_causal(other)  # does it run at all?
    except (ValueError, RuntimeError, IndexError) as error:
        raise widths.cannot_scale(f"with other widths it does not run: {str(error).splitlines()[0]}") from error
    other.generation_config = deepcopy(net.generation_config)
    return other, assets


def vocabulary_of(net: Any, assets: Assets) -> Vocabulary | None:
    noted = {name: getattr(assets, name) for name in NOTES}
    return fewer_tokens.vocabulary_of(
        net, assets.tokenizer, lambda net, tokenizer: with_tokenizer(net, tokenizer, noted)
    )


# ------------------------------------------------------------------------------------------------------ toys


def tiny() -> dict:
    return {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 2,
        "vocab_size": 320,
        "max_length": 48,
        "max_new_tokens": 8,
    }


FAMILY = Family(
    name="causal_lm",
    tag="text-generation",
    kind=lambda assets: "logits",
    claims=claims,
    read=read,
    write=write,
    configured=configured,
    start=start,
    adopt=adopt,
    like=like,
    fields=next_token.fields,
    axis=lambda assets: assets.vocabulary,
    collate=next_token.collate,
    pieces=packing.pieces,
    packed=packing.packed,
    lengths=next_token.lengths,
    encoding=lambda assets: {},
    loss=next_token.loss,
    outputs=next_token.outputs,
    steps=next_token.steps,
    writing=next_token.writing,
    sample=next_token.sample,
    score=next_token.score,
    headline=lambda assets: ("bits_per_byte", "down"),
    players=lambda net: {"net": net},
    blocks=hub_blocks,
    keep=depth.keep_layers,
    sizes=sizes.of_config,
    vocabulary=vocabulary_of,
    segmentation=lambda assets: segmentation_of(assets.tokenizer),
    tiny=tiny,
    toy=texts.toy,
)
