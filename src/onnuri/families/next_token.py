"""What a language model is asked: records as token ids, the loss of each next token, the texts that it continues.

1. A sequence is what the tokenizer makes of the text, as the model knows it, and the end-of-text token. Longer ones than the
   net reads at once are cut in `collate`; they are learnt whole (`packing.py`) and judged whole.
2. The net reads the answer itself (teacher forcing): a record with its text is judged, one without continued.
3. The balance term of a mixture of experts is left out of `loss`: it is no sum over examples.
4. After a prompt the likeliest text is written; from nothing a text is drawn, each by its record's generator, since the
   likeliest one would be the same for all.

Letters: B records, T tokens, V tokens in the vocabulary.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data import Kind, Record
from ..decoding import Chooser, answer_of, by_library, padded, placed, shortened, written
from ..decoding.growing import grown
from ..decoding.loop import AT_ONCE
from ..family import Batch, Choose, Decoder, Memory, Outputs, Session, Writing, on_any_runtime
from .nats import IGNORE, Nats, scores
from .stretches import stretches
from .text_tokens import decoded

BEFORE = "tokens before"  # the field of a piece with what stands before it in its text
PROMPT = "prompt"  # the field that is continued where the data has no column of prompts


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


# ----------------------------------------------------------------------------------------- records to numbers


def fields(assets: Assets) -> tuple[dict[str, Kind], tuple[str, Kind]]:
    return ({assets.prompt: "text"} if assets.prompt else {}), (assets.answer, "text")


def collate(records: Sequence[Record], assets: Assets, generators: Sequence[torch.Generator]) -> Batch:
    """input_ids, attention_mask, position_ids (B, T), padded on the right; `predicted` (B, T): the next token
    is asked for. With answers also labels (B, T), IGNORE where a token is not asked for."""
    if all(assets.answer in record for record in records):
        return batch_of([encode(record, assets) for record in records], assets)
    asked = [shortened(prompt_ids(record, assets), assets.max_length) for record in records]
    return placed(asked, assets.pad, last=True)


def batch_of(coded: Sequence[tuple[list[int], int]], assets: Assets) -> Batch:
    """The batch of sequences, each with the place of the first token that is asked for."""
    batch = padded([ids for ids, _ in coded], assets.pad)
    asked = batch["position_ids"] >= torch.tensor([[first] for _, first in coded])
    asked &= batch["attention_mask"].bool()
    return batch | {"predicted": F.pad(asked[:, 1:], (0, 1)), "labels": batch["input_ids"].masked_fill(~asked, IGNORE)}


def lengths(records: Sequence[Record], assets: Assets) -> list[int]:
    if not all(assets.answer in record for record in records):
        return [min(len(prompt_ids(record, assets)), assets.max_length) for record in records]
    return [min(len(before) + len(ids), assets.max_length) for before, ids in tokens_of(records, assets)]


def encode(record: Record, assets: Assets) -> tuple[list[int], int]:
    """(token ids with the end, cut at max_length; place of the first one that is asked for)."""
    before, ids = tokens_of([record], assets)[0]
    return [*before, *ids][: assets.max_length], max(1, len(before))


def tokens_of(records: Sequence[Record], assets: Assets) -> list[tuple[list[int], list[int]]]:
    """(what stands before, the tokens with the end that are asked for, however many) of each. One of `packing.pieces` holds
    both already."""
    if any(isinstance(record[assets.answer], np.ndarray) for record in records):
        return [(record[BEFORE].tolist(), record[assets.answer].tolist()) for record in records]
    texts = [record[assets.answer] or "" for record in records]
    found = []
    for record, ids in zip(records, assets.tokenizer(texts, add_special_tokens=not assets.prompt).input_ids):
        ids = ids if assets.end is None or ids[-1:] == [assets.end] else [*ids, assets.end]
        room = assets.max_length - min(len(ids), assets.max_length // 2)
        before = shortened(prompt_ids(record, assets), room) if assets.prompt else []
        found.append((before, ids if before or ids else [assets.pad]))
    return found


def prompt_ids(record: Record, assets: Assets) -> list[int]:
    """What stands before the text: at least one token, and not the end that some tokenizers add."""
    ids = assets.tokenizer(record.get(assets.prompt or PROMPT) or "").input_ids
    ids = ids[:-1] if len(ids) > 1 and ids[-1] == assets.end else ids
    return ids or [assets.end or 0]


# --------------------------------------------------------------------------------------------- the next token


def logits_of(net: nn.Module, batch: Batch, past: Any = None) -> Tensor:
    """(B, T, V). Positions go to the nets that take them. `past`: a cache to go on from and to fill."""
    taken = inspect.signature(net.forward).parameters
    names = [name for name in ("input_ids", "attention_mask", "position_ids") if name in taken and name in batch]
    cache = {"use_cache": past is not None} if "use_cache" in taken else {}
    if past is not None:
        cache["past_key_values"] = past
    return net(**{name: batch[name] for name in names}, **cache).logits


@on_any_runtime
def outputs(net: nn.Module, batch: Batch) -> Outputs:
    return logits_of(net, batch), batch["predicted"]


def steps(net: nn.Module, batch: Batch, memory: Memory) -> tuple[Outputs, Memory]:
    """The memory: which places are there (B, T), then keys and values (B, heads, T, width) of each layer in turn. Tokens after
    it are counted on. Nothing is kept of nets whose library keeps something else."""
    if isinstance(net, Session):
        return net.steps(batch, memory)
    if not memory and not keys_and_values(net):
        return outputs(net, batch), ()
    mask, places, past = batch["attention_mask"], batch["position_ids"], cache_of(memory[1:])
    if memory:
        places = places + memory[0].sum(1, keepdim=True)
        mask = torch.cat([memory[0], mask], 1)
    values = logits_of(net, batch | {"attention_mask": mask, "position_ids": places}, past)
    return (values, batch["predicted"]), [mask, *(part for layer in past.layers for part in (layer.keys, layer.values))]


def keys_and_values(net: Any) -> bool:
    """Whether what its library keeps of the places read is their keys and values, in every layer; and each place can be told its
    number, which would else be counted from the longest text."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    if not {"past_key_values", "position_ids"} <= inspect.signature(net.forward).parameters.keys():
        return False
    kinds = {type(layer) for layer in DynamicCache(config=net.config).layers}
    return kinds <= {DynamicLayer, DynamicSlidingWindowLayer}


def cache_of(kept: Memory) -> Any:
    """The library's cache, filled with the keys and values of each layer in turn. It keeps all places where attention slides as
    well: what is out of sight is masked."""
    from transformers.cache_utils import DynamicCache

    cache = DynamicCache()
    for keys, values in zip(kept[::2], kept[1::2]):
        layer = growing_layer()()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values  # and not through `update`, which would copy them
        cache.layers.append(layer)
    return cache


@lru_cache
def growing_layer() -> type:
    """The library's layer of a cache that grows, which here is not copied at each token."""
    from transformers.cache_utils import DynamicLayer

    class GrowingLayer(DynamicLayer):
        def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            assert self.keys is not None and self.values is not None
            self.keys, self.values = grown(self.keys, key_states, 2), grown(self.values, value_states, 2)
            return self.keys, self.values

    return GrowingLayer


def loss(net: nn.Module, batch: Batch, player: str) -> tuple[Tensor, Tensor]:
    """Cross entropy in nats, summed over the tokens asked for, and their number."""
    values, mask = outputs(net, batch)
    return token_losses(values, batch["labels"]).sum(1), mask.sum(1)


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, T): nats of the next token, 0 where it is not asked for."""
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE).flatten()
    return Nats.apply(logits.flatten(0, 1), targets).view(labels.shape)


# ---------------------------------------------------------------------------------------------------- answers


def sample(
    net: nn.Module, assets: Assets, records: Sequence[Record], generators: Sequence[torch.Generator]
) -> list[Record]:
    """A record with its text keeps it and is judged: {"nll": nats, "tokens", "bytes", "correct": greedy
    hits}. One without is continued from its prompt, or drawn from nothing: {"new_tokens", "finished"}."""
    told = [i for i, record in enumerate(records) if record.get(assets.answer)]
    asked = [i for i, record in enumerate(records) if not record.get(assets.answer)]
    found = dict(zip(told, judged(net, assets, [records[i] for i in told])))
    drawn = {i: generators[i] for i in asked if not records[i].get(assets.prompt or PROMPT)}
    found |= dict(zip(asked, continued(net, assets, [records[i] for i in asked], [drawn.get(i) for i in asked])))
    return [
        {**record, assets.answer: found[i][0], f"{assets.answer}_scores": found[i][1]}
        for i, record in enumerate(records)
    ]


def judged(net: nn.Module, assets: Assets, records: list[Record]) -> list[tuple[str, dict]]:
    """(text, scores) of each, over all of it: what is longer than `max_length` is judged in stretches, each token once and with
    half of `max_length` before it at least. `bytes` are the UTF-8 bytes that the tokens asked for stand for."""
    told = tokens_of(records, assets) if records else []
    parts = [
        (number, ([*before, *ids][start:end], max(1, asked - start, len(before) - start)))
        for number, (before, ids) in enumerate(told)
        for start, end, asked in stretches(len(before) + len(ids), assets.max_length, assets.max_length // 2)
    ]
    sums = torch.zeros(len(told), 3, dtype=torch.float64)
    size = max(1, AT_ONCE // (len(assets.tokenizer) * max((len(ids) for _, (ids, _) in parts), default=1)))
    for some in (parts[start : start + size] for start in range(0, len(parts), size)):
        found = token_sums(net, batch_of([part for _, part in some], assets))
        sums.index_add_(0, torch.tensor([number for number, _ in some]), found)
    sizes = [len(decoded(assets.tokenizer, ids if before else ids[1:]).encode()) for before, ids in told]
    return [
        (record[assets.answer], {"nll": nll, "tokens": int(tokens), "bytes": size, "correct": int(hits)})
        for record, (nll, tokens, hits), size in zip(records, sums.tolist(), sizes)
    ]


def token_sums(net: nn.Module, batch: Batch) -> Tensor:
    """(B, 3) in float64: nats of the tokens asked for, their number, and how many of them are the likeliest."""
    batch = {name: value.to(device_of(net)) for name, value in batch.items()}
    values, mask = outputs(net, batch)
    hits = (values.argmax(-1) == batch["input_ids"].roll(-1, 1)) & mask
    found = token_losses(values, batch["labels"]).sum(1), mask.sum(1), hits.sum(1)
    return torch.stack([each.double().cpu() for each in found], 1)


def continued(
    net: nn.Module, assets: Assets, records: list[Record], drawn: list[torch.Generator | None]
) -> list[tuple[str, dict]]:
    """(text, scores) of each: the likeliest tokens, or tokens drawn by its generator, at most max_new_tokens, up to one of
    `stops`."""
    writes = writing(net, assets)
    prompts = [shortened(ids, writes.room(writes.most)) for ids in writes.prompts(records)]
    made = written(writes, prompts, writes.most, Chooser(drawn, writes.stops))
    return [
        (decoded(assets.tokenizer, ids), {"new_tokens": len(ids), "finished": finished})
        for ids, finished in (answer_of(ids, assets.stops) for ids in made)
    ]


def writing(net: nn.Module, assets: Assets) -> Writing:
    """See Family.writing. Where a folder asks for more tokens than the net reads, half of these are left to the question."""
    most = assets.max_new_tokens
    return Writing(
        tokenizer=assets.tokenizer,
        question=assets.prompt or PROMPT,
        prompts=lambda records: [prompt_ids(record, assets) for record in records],
        batch=lambda prompts, made: placed([a + b for a, b in zip(prompts, made)], assets.pad, last=True),
        following=lambda tokens: placed(tokens, assets.pad, last=False),
        step=partial(stepped, net),
        alone=alone(net, assets),
        text=lambda ids: decoded(assets.tokenizer, list(ids)),
        stops=assets.stops,
        longest=assets.max_length,
        room=lambda count: assets.max_length - count,
        shortened=shortened,
        most=most if most < assets.max_length else max(1, assets.max_length // 2),
    )


def alone(net: nn.Module, assets: Assets) -> Callable[[list[list[int]], int, Choose], None] | None:
    """See Writing.alone."""
    if isinstance(net, Decoder):
        return lambda prompts, most, choose: net.continued(prompts, most, assets.stops, choose)
    if isinstance(net, Session) or keys_and_values(net):
        return None
    return partial(by_library, net, assets.stops, assets.pad)


def stepped(net: nn.Module, batch: Batch, memory: Memory) -> tuple[Outputs, Memory]:
    """`steps` wherever the net lies; after texts of unlike lengths the memory is aligned."""
    here = {name: value.to(device_of(net)) for name, value in batch.items()}
    found, memory = steps(net, here, memory)
    return found, aligned(memory) if memory and batch["input_ids"].shape[1] > 1 else memory


def aligned(memory: Memory) -> Memory:
    """The same, all sequences ending at the last place, so that what is added stands next to it: a window of attention that
    slides counts places, whether anything is there or not. Of which places are there (B, T), and tensors (B, heads, T, width)."""
    there, *kept = memory
    lengths, count = there.sum(1, keepdim=True), there.shape[1]
    places = (torch.arange(count, device=there.device) + lengths) % count
    if bool((lengths == count).all()):
        return memory
    return [there.gather(1, places), *(one.gather(2, places[:, None, :, None].expand_as(one)) for one in kept)]


def device_of(net: nn.Module) -> torch.device:
    """A net without parameters runs elsewhere and takes its batch from the CPU."""
    return next((parameter.device for parameter in net.parameters()), torch.device("cpu"))


def score(records: Sequence[Record], answers: Sequence[Record], assets: Assets) -> dict[str, float]:
    """See `nats.scores`: beside a continuation stands no truth."""
    return scores([answer[f"{assets.answer}_scores"] for answer in answers])
