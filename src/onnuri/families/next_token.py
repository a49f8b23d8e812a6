"""What a language model is asked: records as token ids, the loss of each next token, the texts that it continues.

1. A sequence is what the tokenizer makes of the text, as the model knows it, and the end-of-text token.
2. The net reads the answer itself (teacher forcing): a record with its text is judged, one without continued.
3. The balance term of a mixture of experts is left out of `loss`: it is no sum over examples.
4. After a prompt the likeliest text is written; from nothing a text is drawn, each by its record's generator, since the
   likeliest one would be the same for all.

Letters: B records, T tokens, V tokens in the vocabulary.
"""

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..data import Kind, Record
from ..family import Batch, Decoder, Outputs, Session, on_any_runtime

PROMPT = "prompt"  # the field that is continued where the data has no column of prompts
IGNORE = -100  # the label of transformers for a token that is not asked for
CHUNK = 2**22  # logits in float32 at once: 16 MiB, which stay in a cache or nearly


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
    ids = assets.tokenizer(record.get(assets.prompt or PROMPT) or "").input_ids
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


# --------------------------------------------------------------------------------------------- the next token


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
    """(B, T): nats of the next token, 0 where it is not asked for."""
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE).flatten()
    return Nats.apply(logits.flatten(0, 1), targets).view(labels.shape)


class Nats(torch.autograd.Function):
    """Cross entropy of each row in float32, of which only CHUNK numbers are held at a time. The gradient is made beside
    the loss, in the type of the logits: the softmax is computed once and never kept in float32."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        """(N, V), (N,) -> (N,)."""
        losses = logits.new_zeros(len(targets), dtype=torch.float32)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        size = max(1, CHUNK // logits.shape[-1])
        for rows in (slice(start, start + size) for start in range(0, len(targets), size)):
            asked, places = (targets[rows] != IGNORE)[:, None], targets[rows].clamp_min(0)[:, None]
            found = F.log_softmax(logits[rows], -1, dtype=torch.float32)
            losses[rows] = (-found.gather(1, places) * asked).squeeze(1)
            if gradient is not None:
                found.exp_().scatter_add_(1, places, found.new_full(places.shape, -1))
                gradient[rows] = found.mul_(asked)
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient if bool((above == 1).all()) else gradient * above[:, None].to(gradient.dtype), None


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


def continued(
    net: nn.Module, assets: Assets, records: list[Record], drawn: list[torch.Generator | None]
) -> list[tuple[str, dict]]:
    """(text, scores) of each: the likeliest tokens, or tokens drawn by its generator, at most max_new_tokens, up to one of
    `stops`."""
    most = min(assets.max_new_tokens, assets.max_length - 1)
    prompts = [shortened(prompt_ids(record, assets), assets.max_length - most) for record in records]
    made = decoded_by(net, assets, prompts, most, drawn)
    ends = [next((n for n, token in enumerate(ids) if token in assets.stops), None) for ids in made]
    return [
        (decoded(ids[:end], assets), {"new_tokens": len(ids[:end]), "finished": end is not None})
        for ids, end in zip(made, ends)
    ]


def decoded_by(
    net: nn.Module, assets: Assets, prompts: list[list[int]], most: int, drawn: list[torch.Generator | None]
) -> list[list[int]]:
    """New tokens of each prompt, by whatever the net has for that."""
    if isinstance(net, Decoder):
        changes = [each and (lambda logits, each=each: disturbed(logits[None], [each])[0]) for each in drawn]
        return net.continued(prompts, most, assets.stops, changes)
    return (decode_plainly if isinstance(net, Session) else decode_cached)(net, assets, prompts, most, drawn)


def disturbed(logits: Tensor, drawn: Sequence[torch.Generator | None]) -> Tensor:
    """Logits (B, V) whose largest is a token drawn by its probability, where a row has a generator: noise after Gumbel is
    added (Maddison et al., arXiv:1411.0030)."""
    noise = [
        torch.zeros(logits.shape[1])
        if each is None
        else -torch.empty(logits.shape[1]).exponential_(generator=each).log()
        for each in drawn
    ]
    return logits + torch.stack(noise).to(logits) if any(drawn) else logits


def decode_plainly(
    net: nn.Module, assets: Assets, prompts: list[list[int]], most: int, drawn: list[torch.Generator | None]
) -> list[list[int]]:
    """New tokens of each prompt through `outputs` alone, so on any runtime."""
    made: list[list[int]] = [[] for _ in prompts]
    for _ in range(most):
        live = [i for i, ids in enumerate(made) if not ids or ids[-1] not in assets.stops]
        if not live:
            break
        batch = padded([prompts[i] + made[i] for i in live], assets.pad)
        ends = batch["attention_mask"].sum(1) - 1
        values, _ = outputs(net, batch | {"predicted": batch["position_ids"] == ends[:, None]})
        scores = disturbed(values[torch.arange(len(live)), ends].float(), [drawn[i] for i in live])
        for i, token in zip(live, scores.argmax(-1).tolist()):
            made[i].append(token)
    return made


def decode_cached(
    net: Any, assets: Assets, prompts: list[list[int]], most: int, drawn: list[torch.Generator | None]
) -> list[list[int]]:
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
        noise = [lambda _, scores, group=group: disturbed(scores.float(), [drawn[i] for i in group])]
        rows = net.generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy, logits_processor=noise)
        made |= dict(zip(group, rows[:, length:].tolist()))
    return [made[i] for i in range(len(prompts))]


def device_of(net: nn.Module) -> torch.device:
    """A net without parameters runs elsewhere and takes its batch from the CPU."""
    return next((parameter.device for parameter in net.parameters()), torch.device("cpu"))


def score(records: Sequence[Record], answers: Sequence[Record], assets: Assets) -> dict[str, float]:
    """Over all tokens together, NaN where there is none: beside a continuation stands no truth."""
    found = [answer[f"{assets.answer}_scores"] for answer in answers]
    nll, tokens, size, hits = (sum(one.get(name, 0) for one in found) for name in ("nll", "tokens", "bytes", "correct"))
    return {
        "bits_per_byte": nll / math.log(2) / size if size else math.nan,
        "perplexity": math.exp(min(nll / tokens, 700)) if tokens else math.nan,
        "next_token_accuracy": hits / tokens if tokens else math.nan,
    }
