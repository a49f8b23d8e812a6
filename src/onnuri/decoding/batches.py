"""Sequences of tokens as the batches of a net that reads from left to right.

Letters: B sequences, T tokens.
"""

from collections.abc import Collection, Sequence

import torch

from ..family import Batch


def padded(sequences: Sequence[Sequence[int]], pad: int) -> Batch:
    """input_ids, attention_mask, position_ids (B, T). Without positions some nets would count the padding."""
    longest = max(map(len, sequences))
    ids = torch.tensor([[*ids, *[pad] * (longest - len(ids))] for ids in sequences], dtype=torch.int64)
    places = torch.arange(longest).repeat(len(sequences), 1)
    mask = places < torch.tensor([[len(ids)] for ids in sequences])
    return {"input_ids": ids, "attention_mask": mask.long(), "position_ids": places}


def placed(sequences: Sequence[Sequence[int]], pad: int, last: bool) -> Batch:
    """The same and `predicted` (B, T): what comes next is asked after each token, or after the `last` alone."""
    batch = padded(sequences, pad)
    there = batch["attention_mask"].bool()
    ends = batch["position_ids"] == there.sum(1, keepdim=True) - 1
    return batch | {"predicted": ends if last else there}


def shortened(ids: list[int], room: int) -> list[int]:
    """At most `room` tokens: the first, on which many models lean, and the latest."""
    return ids if len(ids) <= room else [*ids[:1], *ids[len(ids) - room + 1 :]]


def answer_of(tokens: list[int], stops: Collection[int]) -> tuple[list[int], bool]:
    """(the tokens written before the first that ends an answer, whether one came)."""
    end = next((place for place, token in enumerate(tokens) if token in stops), None)
    return tokens[:end], end is not None
