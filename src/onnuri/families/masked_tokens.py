"""What a masked language model is asked: texts of which some tokens are hidden, the loss of these, texts that it fills in.

Devlin et al., BERT (arXiv:1810.04805): of CHOSEN of the tokens most are hidden behind the mask, some by another token, some not
at all. Differing in:
1. A record is one text; there is no second segment and no guess whether it follows the first.
2. What is hidden is drawn anew for each record in each epoch (Liu et al., RoBERTa, arXiv:1907.11692), by its own generator.
3. A token that hides another is never one of the tokenizer's marks.
4. A record that is judged has its tokens hidden by a generator that its text alone seeds: every model of one vocabulary and
   length is asked for the same ones, each time.

Letters: B records, T tokens, V tokens in the vocabulary, N tokens asked for in a batch.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Kind, Record, digest_of
from ..family import Batch, Outputs, Session, mix, on_any_runtime
from . import text_tokens
from .nats import IGNORE, Nats
from .next_token import device_of

MASKED = "masked"  # the field of texts to fill in
MASKS = ("[MASK]", "<mask>")  # understood for every tokenizer, beside its own
CHOSEN = 0.15
BY_MASK, BY_OTHER = 0.8, 0.1  # of those: hidden behind the mask, by another token; the rest is left to be seen
CANDIDATES = 5


@dataclass(frozen=True)
class Assets:
    """What surrounds the net. `vocabulary` is a digest of the tokens."""

    tokenizer: Any = field(compare=False, repr=False)
    vocabulary: str
    answer: str
    max_length: int

    @property
    def mask(self) -> int:
        return self.tokenizer.mask_token_id

    @cached_property
    def marks(self) -> Tensor:
        """The tokens that stand for no text."""
        return torch.tensor(sorted(set(self.tokenizer.all_special_ids)))

    @cached_property
    def others(self) -> Tensor:
        """All other tokens."""
        return torch.tensor(sorted(set(self.tokenizer.get_vocab().values()) - set(self.marks.tolist())))


# ----------------------------------------------------------------------------------------- records to numbers


def fields(assets: Assets) -> tuple[dict[str, Kind], tuple[str, Kind]]:
    return {}, (assets.answer, "text")


def collate(records: Sequence[Record], assets: Assets, generators: Sequence[torch.Generator]) -> Batch:
    """The tensors of the tokenizer (B, T), padded on the right; `predicted` (B, T): this token is asked for. With answers some
    tokens are hidden, and labels (B, T) are IGNORE where a token is not asked for; without them the masks of MASKED are asked for,
    or one alone."""
    texts = texts_of(records, assets)
    if not all(assets.answer in record for record in records):
        return asked(texts, assets)
    batch = text_tokens.encode(assets.tokenizer, texts, assets.max_length)
    ids, there = batch["input_ids"], batch["attention_mask"].bool()
    plain = there & ~torch.isin(ids, assets.marks)
    plain |= there & ~plain.any(1, keepdim=True)  # a text without any is asked for a mark
    seen, predicted = ids.clone(), torch.zeros_like(plain)
    for row, generator in enumerate(generators):
        places = plain[row].nonzero().squeeze(1)
        chosen = places[torch.randperm(len(places), generator=generator)[: max(1, round(CHOSEN * len(places)))]]
        seen[row, chosen] = hidden(ids[row, chosen], assets, generator)
        predicted[row, chosen] = True
    return batch | {"input_ids": seen, "predicted": predicted, "labels": ids.masked_fill(~predicted, IGNORE)}


def texts_of(records: Sequence[Record], assets: Assets) -> list[str]:
    """What is read of each: its answer, or the text to fill in."""
    told = all(assets.answer in record for record in records)
    return [
        written((record[assets.answer] or "") if told else record.get(MASKED) or MASKS[0], assets) for record in records
    ]


def lengths(records: Sequence[Record], assets: Assets) -> list[int]:
    return text_tokens.lengths(assets.tokenizer, texts_of(records, assets), assets.max_length)


def hidden(ids: Tensor, assets: Assets, generator: torch.Generator) -> Tensor:
    """(n,): what is seen in the place of these tokens."""
    fate = torch.rand(len(ids), generator=generator)
    others = assets.others[torch.randint(len(assets.others), ids.shape, generator=generator)]
    seen = torch.where(fate < BY_MASK + BY_OTHER, others, ids)
    return seen.masked_fill(fate < BY_MASK, assets.mask)


def asked(texts: list[str], assets: Assets) -> Batch:
    """Texts as `written` gives them, asked for their masks."""
    batch = text_tokens.encode(assets.tokenizer, texts, assets.max_length)
    return batch | {"predicted": batch["input_ids"] == assets.mask}


def written(text: str, assets: Assets) -> str:
    """The text with the tokenizer's own masks; a space before one is part of what it hides."""
    names = "|".join(map(re.escape, (assets.tokenizer.mask_token, *MASKS)))
    return re.sub(rf"\s*(?:{names})", lambda _: assets.tokenizer.mask_token, text)


# ------------------------------------------------------------------------------------------ the hidden tokens


@on_any_runtime
def outputs(net: nn.Module, batch: Batch) -> Outputs:
    return text_tokens.logits(net, batch), batch["predicted"]


def asked_logits(net: Any, batch: Batch) -> Tensor:
    """(N, V): what `outputs` gives at the places asked for, row by row. The head, which takes each place by itself, is given no
    other: with its V products for a place it is most of a small net."""
    predicted = batch["predicted"]
    if isinstance(net, Session) or net.base_model is net:
        return outputs(net, batch)[0][predicted]

    def narrowed(body: nn.Module, inputs: Any, found: Any) -> Any:
        found.last_hidden_state = found.last_hidden_state[predicted][None]
        return found

    handle = net.base_model.register_forward_hook(narrowed)
    try:
        return text_tokens.logits(net, batch)[0]
    finally:
        handle.remove()


def loss(net: nn.Module, batch: Batch, player: str) -> tuple[Tensor, Tensor]:
    """Cross entropy in nats, summed over the tokens asked for, and their number."""
    losses = token_losses(asked_logits(net, batch), batch)
    return losses.sum(1), batch["predicted"].sum(1)


def token_losses(logits: Tensor, batch: Batch) -> Tensor:
    """Logits (N, V) -> (B, T): nats of each token, 0 where it is not asked for."""
    predicted = batch["predicted"]
    found = Nats.apply(logits, batch["labels"][predicted])
    return torch.zeros(predicted.shape, device=found.device).masked_scatter(predicted, found)


# ---------------------------------------------------------------------------------------------------- answers


def sample(
    net: nn.Module, assets: Assets, records: Sequence[Record], generators: Sequence[torch.Generator]
) -> list[Record]:
    """A record with its text keeps it and is judged by tokens hidden in it: {"nll": nats, "tokens", "correct": hits}. One with
    masks in its text, or with its text in MASKED, or with none at all, has them filled in: {"candidates": [[{"text",
    "probability"}, likeliest first], one list for each mask]}."""
    texts = [written(record.get(assets.answer) or record.get(MASKED) or MASKS[0], assets) for record in records]
    told = [
        i
        for i, record in enumerate(records)
        if record.get(assets.answer) and assets.tokenizer.mask_token not in texts[i]
    ]
    open_ones = sorted(set(range(len(records))) - set(told))
    found = dict(zip(told, judged(net, assets, [records[i] for i in told])))
    found |= dict(zip(open_ones, filled(net, assets, [texts[i] for i in open_ones])))
    return [
        {**record, assets.answer: found[i][0], f"{assets.answer}_scores": found[i][1]}
        for i, record in enumerate(records)
    ]


def judged(net: nn.Module, assets: Assets, records: list[Record]) -> list[tuple[str, dict]]:
    """(text, scores) of each."""
    if not records:
        return []
    texts = [record[assets.answer] for record in records]
    generators = [torch.Generator().manual_seed(mix(digest_of({MASKED: text}))) for text in texts]
    batch = {name: value.to(device_of(net)) for name, value in collate(records, assets, generators).items()}
    predicted, logits = batch["predicted"], asked_logits(net, batch)
    hits = torch.zeros_like(predicted).masked_scatter(predicted, logits.argmax(-1) == batch["labels"][predicted])
    totals = (token_losses(logits, batch).sum(1), predicted.sum(1), hits.sum(1))
    return [
        (text, {"nll": nll, "tokens": tokens, "correct": correct})
        for text, nll, tokens, correct in zip(texts, *(total.tolist() for total in totals))
    ]


def filled(net: nn.Module, assets: Assets, texts: list[str]) -> list[tuple[str, dict]]:
    """(text, scores) of each: the likeliest token of each mask, as if the others stayed masks."""
    if not texts:
        return []
    batch = {name: value.to(device_of(net)) for name, value in asked(texts, assets).items()}
    found = asked_logits(net, batch).float().softmax(-1).topk(min(CANDIDATES, len(assets.tokenizer)))
    counts = batch["predicted"].sum(1).tolist()
    rows = zip(texts, batch["input_ids"].tolist(), *(part.cpu().split(counts) for part in found))
    return [with_candidates(text, ids, likely, tokens, assets) for text, ids, likely, tokens in rows]


def with_candidates(text: str, ids: list[int], likely: Tensor, tokens: Tensor, assets: Assets) -> tuple[str, dict]:
    """The text with its masks filled in; what lies beyond max_length keeps them."""
    first, *rest = text.split(assets.tokenizer.mask_token)
    places = [place for place, token in enumerate(ids) if token == assets.mask]
    candidates = []
    for place, after, some, chances in zip(places, rest, tokens.tolist(), likely.tolist()):
        pieces = [piece(ids[:place], token, assets) for token in some]
        candidates.append([{"text": word, "probability": chance} for word, chance in zip(pieces, chances)])
        ids[place] = some[0]
        first += pieces[0] + after
    return assets.tokenizer.mask_token.join([first, *rest[len(places) :]]), {"candidates": candidates}


def piece(before: list[int], token: int, assets: Assets) -> str:
    """The text of a token behind others: with the space that it begins with."""
    start, whole, alone = (text_tokens.decoded(assets.tokenizer, ids) for ids in (before, [*before, token], [token]))
    return whole.removeprefix(start) if whole.startswith(start) else alone


def score(records: Sequence[Record], answers: Sequence[Record], assets: Assets) -> dict[str, float]:
    """Over all tokens asked for together, NaN where there is none: beside what was filled in stands no truth. Cross entropy in
    nats, mean over the tokens; comparable between models of one vocabulary only."""
    found = [answer[f"{assets.answer}_scores"] for answer in answers]
    nll, tokens, hits = (sum(one.get(name, 0) for one in found) for name in ("nll", "tokens", "correct"))
    return {
        "masked_cross_entropy": nll / tokens if tokens else math.nan,
        "masked_accuracy": hits / tokens if tokens else math.nan,
    }
