"""What a model that reads one text and writes another is asked: both texts as token ids, the loss, the answers that it writes.

1. What is put before every answer (a language, a mark) and where the decoder starts belong to the model, see `begins`. What the
   tokenizer puts behind the end of a text is left out.
2. A record is answered from its question alone, with its answer there or not; with it the answer is judged as well, token by token
   as the net reads it itself (teacher forcing). So a measurement tells how good the written texts are, and the loss.
3. The likeliest token is written each time, never one that pads; what the folder's generation_config.json prefers (beams, a least
   length, an end that is forced) is overruled. An answer that found no end says so.
4. The balance term of a mixture of experts is left out of `loss`: it is no sum over examples.

Letters: B records, S tokens of the question, T tokens of the answer, V tokens in the vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Kind, Record
from ..decoding import Chooser, answer_of, padded, placed, written
from ..decoding.loop import AT_ONCE
from ..family import Batch, Memory, Outputs, Writing
from . import likeness, nats
from .nats import IGNORE, Nats
from .next_token import device_of
from .question_memory import outputs, steps
from .text_tokens import decoded, settings_kept


@dataclass(frozen=True)
class Assets:
    """What surrounds the net. `vocabulary` is a digest of the tokens; `begins`: the token with which the decoder starts, and those
    with which every answer begins, for which the tokenizer puts `before` of its own; a token of `stops` ends one. Tokens that are
    read: `max_length` of a question, `max_answer` of an answer; `max_new_tokens` are written."""

    tokenizer: Any = field(compare=False, repr=False)
    vocabulary: str
    begins: tuple[int, ...]
    before: int
    stops: tuple[int, ...]
    question: str
    answer: str
    max_length: int
    max_answer: int
    max_new_tokens: int

    @property
    def end(self) -> int | None:
        return self.tokenizer.eos_token_id

    @property
    def pad(self) -> int:
        return self.tokenizer.pad_token_id


# ----------------------------------------------------------------------------------------- records to numbers


def fields(assets: Assets) -> tuple[dict[str, Kind], tuple[str, Kind]]:
    return {assets.question: "text"}, (assets.answer, "text")


def collate(records: Sequence[Record], assets: Assets, generators: Sequence[torch.Generator]) -> Batch:
    """input_ids, attention_mask (B, S) of the questions; decoder_input_ids, decoder_attention_mask (B, T) of what stands before
    each token of the answers; `predicted` (B, T): the next token is asked for. With answers also labels (B, T), IGNORE where none
    is; without them the first token is asked for."""
    questions = question_ids(records, assets)
    if not all(assets.answer in record for record in records):
        return pair_batch(questions, [assets.begins for _ in records], assets, last=True)
    wanted = answer_ids(records, assets)
    batch = pair_batch(questions, [[assets.begins[0], *ids[:-1]] for ids in wanted], assets, last=False)
    return batch | {"labels": padded(wanted, assets.pad)["input_ids"].masked_fill(~batch["predicted"], IGNORE)}


def lengths(records: Sequence[Record], assets: Assets) -> list[int]:
    """Of both sides together."""
    questions, answers = question_ids(records, assets), [assets.begins] * len(records)
    if all(assets.answer in record for record in records):
        answers = answer_ids(records, assets)
    return [len(question) + len(answer) for question, answer in zip(questions, answers)]


def pair_batch(questions: Sequence[list[int]], answers: Sequence[Sequence[int]], assets: Assets, last: bool) -> Batch:
    """The batch of these tokens on both sides; what comes next is asked after each token of the answers, or the `last` alone."""
    question, answer = padded(questions, assets.pad), placed(answers, assets.pad, last)
    return {
        "input_ids": question["input_ids"],
        "attention_mask": question["attention_mask"],
        "decoder_input_ids": answer["input_ids"],
        "decoder_attention_mask": answer["attention_mask"],
        "predicted": answer["predicted"],
    }


def question_ids(records: Sequence[Record], assets: Assets, cut: bool = True) -> list[list[int]]:
    """What the tokenizer makes of each question, `cut` at max_length: at least one token."""
    texts = [record.get(assets.question) or "" for record in records]
    with settings_kept(assets.tokenizer):
        found = assets.tokenizer(texts, truncation=cut, max_length=assets.max_length if cut else None).input_ids
    return [ids or [assets.pad] for ids in found]


def answer_ids(records: Sequence[Record], assets: Assets) -> list[list[int]]:
    """What every answer begins with, and what the tokenizer makes of it up to its end, cut at max_answer: at least one token."""
    texts = [record[assets.answer] or "" for record in records]
    with settings_kept(assets.tokenizer):
        found = assets.tokenizer(text_target=texts).input_ids
    texts = [[*assets.begins[1:], *up_to_end(ids[assets.before :], assets.end)] for ids in found]
    return [ids[: assets.max_answer] or [assets.pad] for ids in texts]


def up_to_end(ids: list[int], end: int | None) -> list[int]:
    """The tokens up to the last end: what a tokenizer puts behind it is left out, and it is added where it is missing."""
    if end is None:
        return ids
    last = max((place for place, token in enumerate(ids) if token == end), default=None)
    return [*ids, end] if last is None else ids[: last + 1]


# --------------------------------------------------------------------------------------------- the next token


def loss(net: nn.Module, batch: Batch, player: str) -> tuple[Tensor, Tensor]:
    """Cross entropy in nats, summed over the tokens of the answer, and their number."""
    values, mask = outputs(net, batch)
    return token_losses(values, batch["labels"]).sum(1), mask.sum(1)


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, T): nats of each token, 0 where it is not asked for."""
    return Nats.apply(logits.flatten(0, 1), labels.flatten()).view(labels.shape)


# ---------------------------------------------------------------------------------------------------- answers


def sample(
    net: nn.Module, assets: Assets, records: Sequence[Record], generators: Sequence[torch.Generator]
) -> list[Record]:
    """The likeliest answers to the questions: {"new_tokens", "finished"}; and where an answer stood, how likely it was: {"nll":
    nats, "tokens", "bytes", "correct": greedy hits}."""
    told = [i for i, record in enumerate(records) if record.get(assets.answer) is not None]
    known = dict(zip(told, judged(net, assets, [records[i] for i in told])))
    return [
        {**record, assets.answer: text, f"{assets.answer}_scores": said | known.get(i, {})}
        for i, (record, (text, said)) in enumerate(zip(records, answered(net, assets, records)))
    ]


def judged(net: nn.Module, assets: Assets, records: list[Record]) -> list[dict]:
    """How likely the answers are that stand in the records. `bytes` are the UTF-8 bytes that the tokens asked for stand for."""
    if not records:
        return []
    batch = {name: value.to(device_of(net)) for name, value in collate(records, assets, []).items()}
    size = max(1, AT_ONCE // (len(assets.tokenizer) * batch["labels"].shape[1]))
    found = []
    for start in range(0, len(records), size):
        part = {name: value[start : start + size] for name, value in batch.items()}
        values, mask = outputs(net, part)
        losses = token_losses(values, part["labels"]).sum(1).tolist()
        hits = ((values.argmax(-1) == part["labels"]) & mask).sum(1).tolist()
        wanted = [ids[ids != IGNORE].tolist() for ids in part["labels"]]
        sizes = [len(decoded(assets.tokenizer, ids).encode()) for ids in wanted]
        found += [
            {"nll": nll, "tokens": len(ids), "bytes": size, "correct": hit}
            for nll, ids, size, hit in zip(losses, wanted, sizes, hits)
        ]
    return found


def answered(net: nn.Module, assets: Assets, records: Sequence[Record]) -> list[tuple[str, dict]]:
    """(text, scores) of each: the likeliest tokens, at most max_new_tokens, up to one of `stops`."""
    if not records:
        return []
    writes = writing(net, assets)
    questions = question_ids(records, assets)
    made = written(writes, questions, writes.most, Chooser([None] * len(records), writes.stops))
    return [
        (writes.text(ids), {"new_tokens": len(ids), "finished": finished})
        for ids, finished in (answer_of(ids, writes.stops) for ids in made)
    ]


def writing(net: nn.Module, assets: Assets) -> Writing:
    """See Family.writing: the prompt is the question, which the encoder reads; the answer has places of its own."""
    longest = max(1, assets.max_answer + 1 - len(assets.begins))  # the last one is read no more
    return Writing(
        tokenizer=assets.tokenizer,
        question=assets.question,
        prompts=lambda records: question_ids(records, assets, cut=False),
        batch=lambda prompts, made: pair_batch(prompts, [[*assets.begins, *ids] for ids in made], assets, last=True),
        following=lambda tokens: pair_batch([[] for _ in tokens], tokens, assets, last=False),
        step=lambda batch, memory: stepped(net, assets, batch, memory),
        alone=None,
        text=lambda ids: decoded(assets.tokenizer, list(ids)),
        stops=assets.stops,
        longest=longest,
        room=lambda count: assets.max_length if count <= longest else 0,
        shortened=lambda ids, room: beginning(ids, room, assets.tokenizer.all_special_ids),
        most=min(assets.max_new_tokens, longest),
    )


def beginning(ids: list[int], room: int, marks: Sequence[int]) -> list[int]:
    """At most `room` tokens, the first ones, and the marks that stand behind all of them: as a tokenizer cuts."""
    behind = next((n for n, token in enumerate(reversed(ids)) if token not in marks), 0)
    return ids if len(ids) <= room else [*ids[: room - behind], *ids[len(ids) - behind :]]


def stepped(net: nn.Module, assets: Assets, batch: Batch, memory: Memory) -> tuple[Outputs, Memory]:
    """`steps` wherever the net lies; no token that pads is ever the likeliest."""
    (values, mask), memory = steps(net, {name: value.to(device_of(net)) for name, value in batch.items()}, memory)
    if assets.pad not in assets.stops:
        values[..., assets.pad] = -math.inf
    return (values, mask), memory


def score(records: Sequence[Record], answers: Sequence[Record], assets: Assets) -> dict[str, float]:
    """How like the written texts are to the answers of the records; and over all tokens of these together what they cost, NaN
    where the model was not told them."""
    told = [i for i, record in enumerate(records) if record.get(assets.answer) is not None]
    found = [answer[f"{assets.answer}_scores"] for answer in answers]
    return {
        **likeness.scores([answers[i][assets.answer] for i in told], [records[i][assets.answer] for i in told]),
        **nats.scores(found),
    }
