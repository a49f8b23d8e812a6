"""How texts are laid out for training: long ones in pieces, so that each token is learnt, short ones side by side in a row.

Krell et al., Efficient sequence packing without cross-contamination (arXiv:2107.02027). Differing in:
1. What shares a row belongs to one step: each step learns from the records that it would learn from without packing, so
   nothing but the time that it takes depends on it. Rows are as long as the longest of them.
2. The mask is the library's: where the numbers of the places begin anew, another text begins. Whether a net heeds that, in
   all of its layers, is found out by trying; one that does not (recurrent ones, positions counted by the net itself) gets a
   text in each row.
3. A piece begins with the last token of the piece before, so that the next one is asked for as well.

Letters: R rows, T places in a row.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data import Record, Records
from ..decoding import padded
from ..family import Batch, Collate
from .nats import IGNORE
from .next_token import BEFORE, Assets, collate, encode, logits_of, tokens_of
from .stretches import count, first_fit, stored

AT_ONCE = 1024  # records that are tokenized together
SAME = 1e-6  # relative: sums over what is hidden add exact zeros, but products may be taken in other groups


# ------------------------------------------------------------------------------------------------------------- pieces


def pieces(records: Records, assets: Assets) -> Records:
    """The records as tokens, of which at most `max_length` are in one: before it (BEFORE) and asked for (the answer). All
    records are tokenized now, once."""
    befores: list[int] = []

    def sequences() -> Iterator[list[int]]:
        for start in range(0, len(records), AT_ONCE):
            for before, ids in tokens_of(records.list(slice(start, start + AT_ONCE)), assets):
                befores.append(len(before))
                yield [*before, *ids]

    flat, ends = stored(sequences(), max(assets.tokenizer.get_vocab().values()) + 1)
    begins, before = np.concatenate([[0], ends[:-1]]), np.asarray(befores)
    step, most = assets.max_length - 1, assets.max_length
    counts = np.array([count(length, most, 1) for length in (ends - begins).tolist()])
    firsts = np.cumsum(counts) - counts

    def piece(row: int) -> Record:
        text = int(np.searchsorted(firsts, row, "right")) - 1
        start = int(begins[text]) + (row - int(firsts[text])) * step
        asked = start + (1 if row > firsts[text] else int(before[text]))
        return {BEFORE: flat[start:asked], assets.answer: flat[asked : min(start + most, int(ends[text]))]}

    def get(rows: Sequence[int], names: Collection[str]) -> list[Record]:
        return [piece(row) for row in rows]

    return Records(get, range(int(counts.sum())), {BEFORE: "series", assets.answer: "series"}, assets.answer)


# --------------------------------------------------------------------------------------------------------------- rows


def packed(net: nn.Module, assets: Assets) -> Collate:
    """`in_rows` where the net keeps texts apart that share a row, else one in each."""
    return in_rows if keeps_apart(net, assets) else collate


def in_rows(records: Sequence[Record], assets: Assets, generators: Sequence[torch.Generator]) -> Batch:
    """input_ids, position_ids, predicted, labels (R, T) of records with their texts. There is no attention_mask: each place
    behind the last text of a row is a text of its own, of which nothing is asked."""
    coded = [encode(record, assets) for record in records]
    width = max(len(ids) for ids, _ in coded)
    rows = first_fit([len(ids) for ids, _ in coded], width)
    ids = torch.full((len(rows), width), assets.pad)
    places, asked = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for row, numbers in enumerate(rows):
        start = 0
        for text, first in (coded[number] for number in numbers):
            end = start + len(text)
            ids[row, start:end] = torch.tensor(text)
            asked[row, start + first : end] = True
            places[row, start:end] = torch.arange(len(text))
            start = end
    predicted = asked.roll(-1, 1)  # the first place of a row is never asked for
    labels = ids.masked_fill(~asked, IGNORE)
    return {"input_ids": ids, "position_ids": places, "predicted": predicted, "labels": labels}


def keeps_apart(net: Any, assets: Assets) -> bool:
    """Whether the second of two texts in a row gives what it gives alone, whatever the first one is, in each of two rows that are
    divided at unlike places."""
    half = assets.max_length // 2
    if half < 2:
        return False
    draw, sizes = torch.Generator().manual_seed(0), (half + 1, half - 1)
    one, other = (
        [torch.randint(len(assets.tokenizer), (size,), generator=draw).tolist() for size in sizes] for _ in range(2)
    )
    texts = one[::-1]
    try:
        alone = [said(net, padded([text], assets.pad))[0] for text in texts]
        together, again = (seconds(net, list(zip(firsts, texts))) for firsts in (one, other))
    except Exception:  # a net that asks for a mask stumbles in its own way
        return False
    return all(map(is_same, alone, together, again))


def seconds(net: Any, rows: list[tuple[list[int], list[int]]]) -> list[Tensor]:
    """Logits of the second text of each row."""
    ids = torch.tensor([[*first, *text] for first, text in rows])
    places = torch.tensor([[*range(len(first)), *range(len(text))] for first, text in rows])
    found = said(net, {"input_ids": ids, "position_ids": places})
    return [each[len(first) :] for each, (first, _) in zip(found, rows)]


def is_same(alone: Tensor, together: Tensor, again: Tensor) -> bool:
    """Whether a text behind two others gives the same, and what it gives alone."""
    rounding, size = max(1e-5, 4 * torch.finfo(alone.dtype).eps), alone.abs().max()
    return bool((together - alone).abs().max() <= rounding * size and (together - again).abs().max() <= SAME * size)


@torch.no_grad()
def said(net: Any, batch: Batch) -> Tensor:
    """Logits of the batch in eval mode."""
    modes = [(module, module.training) for module in net.modules()]
    try:
        return logits_of(net.eval(), {name: value.to(net.device) for name, value in batch.items()})
    finally:
        for module, mode in modes:
            module.training = mode
