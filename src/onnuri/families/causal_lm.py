"""Language models that write text from left to right, as AutoModelForCausalLM of transformers opens them.

No architecture is named: config.json says that a folder is mine, transformers reads and writes it. Only
`start` has to choose: a Llama (Touvron et al. 2023, arXiv 2302.13971) or, with experts, a Mixtral (Jiang et
al. 2024, arXiv 2401.04088), over a byte-level BPE (Radford et al. 2019), to which no text is unknown.

A record is a text, or a prompt and the text that follows; then only the text is learnt and judged. Choices:
1. A sequence is what the tokenizer makes of the text, as the model knows it, and the end-of-text token.
2. The net reads the answer itself (teacher forcing): a record with its text is judged, one without continued.
3. The balance term of a mixture of experts is left out of `loss`: it is no sum over examples.

Letters: B records, T tokens, V tokens in the vocabulary.
"""

import hashlib
import inspect
import json
import math
import random
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..data import Kind, Record, Records, records_of
from ..errors import BadInput, BadSettings, Refusal
from ..family import Batch, Family, Outputs, Session, on_any_runtime
from ..hub import adopt_hub, guarded, hub_blocks, merged, peek, read_hub, write_hub
from . import widths

HEADS = ("ForCausalLM", "LMHeadModel")
PROMPTS = ("prompt", "question", "instruction")
END, PAD = "<|endoftext|>", "<|pad|>"
IGNORE = -100  # the label of transformers for a token that is not asked for
CHUNK = 2**24  # logits in float32 at once: 64 MiB
TOKENIZER_TEXTS = 200_000  # more of them no longer change the merges that matter
DEFAULTS = {
    "hidden_size": 256,
    "num_layers": 4,
    "num_heads": 4,
    "vocab_size": 4096,
    "max_length": 256,
    "experts": 0,
    "tie_embeddings": True,
    "max_new_tokens": 64,
}
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


@dataclass(frozen=True)
class Assets:
    """What surrounds the net. `vocabulary` is a digest of the tokens; a token of `stops` ends a continuation;
    `prompt` is "" where the data has no such column."""

    tokenizer: Any = field(compare=False, repr=False)
    vocabulary: str
    stops: tuple[int, ...]
    answer: str
    prompt: str
    max_length: int
    max_new_tokens: int

    @property
    def end(self) -> int | None:
        return self.tokenizer.eos_token_id

    @property
    def pad(self) -> int:
        """Any token would do, because the attention mask hides it."""
        return next((i for i in (self.tokenizer.pad_token_id, self.end) if i is not None), 0)


# ---------------------------------------------------------------------------------------------------- folders


def claims(folder: Path) -> bool:
    names = peek(folder).get("architectures")
    return isinstance(names, list) and any(str(name).endswith(HEADS) for name in names[:1])


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
    noted = NOTES | noted
    noted["max_length"] = min(noted["max_length"], longest)
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
    digest = hashlib.sha256(json.dumps([rows, tokens]).encode()).hexdigest()
    return Assets(tokenizer, digest, tuple(sorted(stops)), **noted)


def write(net: Any, assets: Assets, folder: Path, weights: bool) -> None:
    net.config.onnuri_fields = {name: getattr(assets, name) for name in NOTES}
    write_hub(net, folder, weights)
    assets.tokenizer.save_pretrained(folder)


# ------------------------------------------------------------------------------------------------- new models


def start(config: dict, records: Records, generator: torch.Generator) -> tuple[nn.Module, Assets]:
    from transformers import AutoModelForCausalLM

    settings = checked(merged(DEFAULTS, config))
    answer, prompt = columns_of(records)
    tokenizer = train_tokenizer(records, {prompt, answer} - {""}, settings)
    net = widths.fresh(AutoModelForCausalLM, design(settings, tokenizer), 1, generator, torch.float32)
    return net, with_tokenizer(
        net,
        tokenizer,
        {
            "answer": answer,
            "prompt": prompt,
            "max_length": settings["max_length"],
            "max_new_tokens": settings["max_new_tokens"],
        },
    )


def checked(settings: dict) -> dict:
    """The settings, or BadSettings with all that is out of range."""
    faults = [
        f"'{name}' must be a whole number from {low} up, found {settings[name]!r}"
        for name, low in LEAST.items()
        if not isinstance(settings[name], int) or settings[name] < low
    ]
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
    """(the text's column, the prompt's or ""). The text is the answer when that is text, else the column
    `text`, else the first one of text."""
    texts = [name for name, kind in records.fields.items() if kind == "text"]
    prompts = [name for name in PROMPTS if name in texts and name != records.answer]
    choices = [name for name in (records.answer, "text", *texts) if name in texts and name not in prompts]
    if not choices:
        raise BadInput(
            f"no column holds the text to learn: {', '.join(records.fields)}", hint="--fields NAME=text --answer NAME"
        )
    return choices[0], prompts[0] if prompts else ""


def train_tokenizer(records: Records, names: set[str], settings: dict) -> Any:
    """A byte-level BPE of at most `vocab_size` tokens. Every byte is one of them, so any text comes back as
    it went in. END stands before each text, so that its first token is predicted too."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe: Any = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings["vocab_size"],
        special_tokens=[END, PAD],
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    some = records[:: math.ceil(len(records) / TOKENIZER_TEXTS)]
    bpe.train_from_iterator((record[name] or "" for record in some for name in sorted(names)), trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", pair=f"{END} $A $B", special_tokens=[(END, bpe.token_to_id(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END, eos_token=END, pad_token=PAD, model_max_length=settings["max_length"]
    )


def design(settings: dict, tokenizer: Any) -> Any:
    """The config for transformers. The feed-forward width is Llama's 8/3 of the hidden, rounded up to 16."""
    from transformers import LlamaConfig, MixtralConfig

    common = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": settings["max_length"],
        "hidden_size": settings["hidden_size"],
        "num_hidden_layers": settings["num_layers"],
        "num_attention_heads": settings["num_heads"],
        "num_key_value_heads": settings["num_heads"],
        "intermediate_size": 16 * math.ceil(settings["hidden_size"] / 6),
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
    values = logits_of(net, padded([[0, 1, 1, 1, 1, 1], [0, 2, 2, 2, 2, 2]], 0))[:, 0]
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


# ---------------------------------------------------------------------------------------- records to numbers


def fields(assets: Assets) -> tuple[dict[str, Kind], tuple[str, Kind]]:
    return ({assets.prompt: "text"} if assets.prompt else {}), (assets.answer, "text")


def collate(records: Sequence[Record], assets: Assets, generators: Sequence[torch.Generator]) -> Batch:
    """input_ids, attention_mask, position_ids (B, T), padded on the right; `predicted` (B, T): the next token
    is asked for. With answers also labels (B, T), IGNORE where a token is not asked for."""
    answered = all(assets.answer in record for record in records)
    coded = [encode(record, assets) if answered else (prompt_ids(record, assets), 0) for record in records]
    batch = padded([ids for ids, _ in coded], assets.pad)
    lengths, places = batch["attention_mask"].sum(1, keepdim=True), batch["position_ids"]
    if not answered:
        return batch | {"predicted": places == lengths - 1}
    asked = (places >= torch.tensor([[first] for _, first in coded])) & (places < lengths)
    return batch | {"predicted": F.pad(asked[:, 1:], (0, 1)), "labels": batch["input_ids"].masked_fill(~asked, IGNORE)}


def encode(record: Record, assets: Assets) -> tuple[list[int], int]:
    """(token ids with the end, cut at max_length; place of the first one that is asked for)."""
    ids = assets.tokenizer(record[assets.answer] or "", add_special_tokens=not assets.prompt).input_ids
    ids = ids if assets.end is None or ids[-1:] == [assets.end] else [*ids, assets.end]
    room = assets.max_length - min(len(ids), assets.max_length // 2)
    before = shortened(prompt_ids(record, assets), room) if assets.prompt else []
    return [*before, *ids][: assets.max_length] or [assets.pad], max(1, len(before))


def prompt_ids(record: Record, assets: Assets) -> list[int]:
    """What stands before the text: at least one token, and not the end that some tokenizers add."""
    ids = assets.tokenizer(record.get(assets.prompt or PROMPTS[0]) or "").input_ids
    ids = ids[:-1] if len(ids) > 1 and ids[-1] == assets.end else ids
    return shortened(ids or [assets.end or 0], assets.max_length)


def shortened(ids: list[int], room: int) -> list[int]:
    """At most `room` tokens: the first, on which many models lean, and the latest."""
    return ids if len(ids) <= room else [*ids[:1], *ids[len(ids) - room + 1 :]]


def padded(sequences: list[list[int]], pad: int) -> Batch:
    """input_ids, attention_mask, position_ids (B, T). Without positions some nets would count the padding."""
    longest = max(map(len, sequences))
    ids = torch.tensor([[*ids, *[pad] * (longest - len(ids))] for ids in sequences])
    places = torch.arange(longest).repeat(len(sequences), 1)
    mask = places < torch.tensor([[len(ids)] for ids in sequences])
    return {"input_ids": ids, "attention_mask": mask.long(), "position_ids": places}


# ----------------------------------------------------------------------------------------------- predictions


def logits_of(net: nn.Module, batch: Batch) -> Tensor:
    """(B, T, V). Positions go to the nets that take them; no cache is filled."""
    taken = inspect.signature(net.forward).parameters
    names = [name for name in ("input_ids", "attention_mask", "position_ids") if name in taken]
    cache = {"use_cache": False} if "use_cache" in taken else {}
    return net(**{name: batch[name] for name in names}, **cache).logits


@on_any_runtime
def outputs(net: nn.Module, batch: Batch) -> Outputs:
    return logits_of(net, batch), batch["predicted"]


def loss(net: nn.Module, batch: Batch, player: str) -> tuple[Tensor, Tensor]:
    """Cross entropy in nats, summed over the tokens asked for, and their number."""
    values, mask = outputs(net, batch)
    return token_losses(values, batch["labels"]).sum(1), mask.sum(1)


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, T): nats of the next token, 0 where it is not asked for. Float32 is held for CHUNK logits at a
    time, in the backward pass too, which computes each chunk again."""
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE).flatten()
    rows = max(1, CHUNK // logits.shape[-1])
    chunks = zip(logits.flatten(0, 1).split(rows), targets.split(rows))
    losses = [checkpoint(nats, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    return torch.cat(losses).view(labels.shape)


def nats(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), targets, reduction="none", ignore_index=IGNORE)


# --------------------------------------------------------------------------------------------------- answers


def sample(
    net: nn.Module, assets: Assets, records: Sequence[Record], generators: Sequence[torch.Generator]
) -> list[Record]:
    """A record with its text keeps it and is judged: {"nll": nats, "tokens", "bytes", "correct": greedy
    hits}. One without is continued from its prompt, or from nothing: {"new_tokens", "finished"}."""
    told = [i for i, record in enumerate(records) if record.get(assets.answer)]
    asked = [i for i, record in enumerate(records) if not record.get(assets.answer)]
    found = dict(zip(told, judged(net, assets, [records[i] for i in told])))
    found |= dict(zip(asked, continued(net, assets, [records[i] for i in asked])))
    return [
        {**record, assets.answer: found[i][0], f"{assets.answer}_scores": found[i][1]}
        for i, record in enumerate(records)
    ]


def device_of(net: nn.Module) -> torch.device:
    """A net without parameters runs elsewhere and takes its batch from the CPU."""
    return next((parameter.device for parameter in net.parameters()), torch.device("cpu"))


def judged(net: nn.Module, assets: Assets, records: list[Record]) -> list[tuple[str, dict]]:
    """(text, scores) of each. `bytes` are the UTF-8 bytes that the tokens asked for stand for."""
    if not records:
        return []
    batch = {name: value.to(device_of(net)) for name, value in collate(records, assets, []).items()}
    values, mask = outputs(net, batch)
    losses = token_losses(values, batch["labels"]).sum(1).tolist()
    hits = ((values.argmax(-1) == batch["input_ids"].roll(-1, 1)) & mask).sum(1).tolist()
    asked = [ids[ids != IGNORE].tolist() for ids in batch["labels"]]
    sizes = [len(decoded(ids, assets).encode()) for ids in asked]
    return [
        (record[assets.answer], {"nll": nll, "tokens": len(ids), "bytes": size, "correct": hit})
        for record, nll, ids, size, hit in zip(records, losses, asked, sizes, hits)
    ]


def decoded(ids: list[int], assets: Assets) -> str:
    return assets.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def continued(net: nn.Module, assets: Assets, records: list[Record]) -> list[tuple[str, dict]]:
    """(text, scores) of each: the likeliest tokens, at most max_new_tokens, up to one of `stops`."""
    most = min(assets.max_new_tokens, assets.max_length - 1)
    prompts = [shortened(prompt_ids(record, assets), assets.max_length - most) for record in records]
    decode = decode_plainly if isinstance(net, Session) else decode_cached
    made = decode(net, assets, prompts, most)
    ends = [next((n for n, token in enumerate(ids) if token in assets.stops), None) for ids in made]
    return [
        (decoded(ids[:end], assets), {"new_tokens": len(ids[:end]), "finished": end is not None})
        for ids, end in zip(made, ends)
    ]


def decode_plainly(net: nn.Module, assets: Assets, prompts: list[list[int]], most: int) -> list[list[int]]:
    """New tokens of each prompt through `outputs` alone, so on any runtime."""
    made: list[list[int]] = [[] for _ in prompts]
    for _ in range(most):
        live = [i for i, ids in enumerate(made) if not ids or ids[-1] not in assets.stops]
        if not live:
            break
        batch = padded([prompts[i] + made[i] for i in live], assets.pad)
        ends = batch["attention_mask"].sum(1) - 1
        values, _ = outputs(net, batch | {"predicted": batch["position_ids"] == ends[:, None]})
        for i, token in zip(live, values[torch.arange(len(live)), ends].argmax(-1).tolist()):
            made[i].append(token)
    return made


def decode_cached(net: Any, assets: Assets, prompts: list[list[int]], most: int) -> list[list[int]]:
    """The same by `generate` with its cache. Prompts of one length go together, so nothing is padded; what
    the folder's generation_config.json prefers is overruled."""
    from transformers import GenerationConfig

    greedy = GenerationConfig(
        max_new_tokens=most,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        eos_token_id=list(assets.stops) or None,
        pad_token_id=assets.pad,
    )
    made: dict[int, list[int]] = {}
    for length in sorted({len(ids) for ids in prompts}):
        group = [i for i, ids in enumerate(prompts) if len(ids) == length]
        ids = torch.tensor([prompts[i] for i in group], device=device_of(net))
        rows = net.generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
        made |= dict(zip(group, rows[:, length:].tolist()))
    return [made[i] for i in range(len(prompts))]


def score(records: Sequence[Record], answers: Sequence[Record], assets: Assets) -> dict[str, float]:
    """Over all tokens together, NaN where there is none: beside a continuation stands no truth."""
    found = [answer[f"{assets.answer}_scores"] for answer in answers]
    nll, tokens, size, hits = (sum(one.get(name, 0) for one in found) for name in ("nll", "tokens", "bytes", "correct"))
    return {
        "bits_per_byte": nll / math.log(2) / size if size else math.nan,
        "perplexity": math.exp(min(nll / tokens, 700)) if tokens else math.nan,
        "next_token_accuracy": hits / tokens if tokens else math.nan,
    }


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


def toy(n: int, seed: int) -> Records:
    """Short sentences, English and Korean mixed, of few words in a fixed order."""
    draw = random.Random(seed)
    words = (
        ("고양이가", "the cat", "아이가", "a child"),
        ("집에서", "at home", "학교에서", "outside"),
        ("잔다", "sleeps", "읽는다", "sings"),
    )
    rows = [{"text": " ".join(draw.choice(choices) for choices in words) + "."} for _ in range(n)]
    return records_of(rows, {"text": "text"}, "text")


FAMILY = Family(
    name="causal_lm",
    tag="text-generation",
    kind=lambda assets: "logits",
    claims=claims,
    read=read,
    write=write,
    start=start,
    adopt=adopt,
    like=like,
    fields=fields,
    axis=lambda assets: assets.vocabulary,
    collate=collate,
    loss=loss,
    outputs=outputs,
    sample=sample,
    score=score,
    headline=lambda assets: ("bits_per_byte", "down"),
    players=lambda net: {"net": net},
    blocks=hub_blocks,
    tiny=tiny,
    toy=toy,
)
