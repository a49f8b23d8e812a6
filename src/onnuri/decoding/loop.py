"""The loop: what a net says is next is chosen, and read in turn, until every answer has ended.

Letters: B sequences, T tokens, V tokens in the vocabulary.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from ..family import Choose, Memory, Writing
from .choosing import Chooser

AT_ONCE = 2**25  # scores, 128 MiB of them


def written(writing: Writing, prompts: Sequence[list[int]], most: int, chooser: Chooser) -> list[list[int]]:
    """`most` new tokens of each prompt, or fewer up to one of the stops: those that the chooser kept."""
    if writing.alone is not None:
        writing.alone(list(prompts), most, chooser)
    else:
        one_by_one(writing, prompts, most, chooser)
    return [answer.tokens for answer in chooser.answers]


def one_by_one(writing: Writing, prompts: Sequence[list[int]], most: int, chooser: Chooser) -> None:
    """A step that keeps nothing is given all tokens each time."""
    live, memory = list(range(len(prompts))), ()
    tokens = [answer.tokens for answer in chooser.answers]
    while live:
        if memory:
            (values, mask), memory = writing.step(writing.following([tokens[row][-1:] for row in live]), memory)
            scores = values[mask]
        else:
            scores, memory = first_scores(writing, [prompts[row] for row in live], [tokens[row] for row in live])
        chooser(scores, live)
        going = [place for place, row in enumerate(live) if len(tokens[row]) < most and not chooser.ended(row)]
        if len(going) < len(live):
            live, memory = [live[place] for place in going], [tensor[going] for tensor in memory]


def first_scores(writing: Writing, prompts: list[list[int]], made: list[list[int]]) -> tuple[Tensor, Memory]:
    """(what a step says is next of each (B, V), the memory). Sequences are long here, and so many are read at once that their
    scores, of which there are V at each place, are no more than AT_ONCE."""
    batch = writing.batch(prompts, made)
    scores: list[Tensor] = []
    kept: list[Memory] = []
    start, size = 0, 1
    while start < len(prompts):
        rows = slice(start, start + size)
        (values, mask), part = writing.step({name: value[rows] for name, value in batch.items()}, ())
        scores.append(values[mask].float())
        kept.append(part)
        start, size = start + size, max(1, AT_ONCE // values[0].numel())
    return torch.cat(scores), [torch.cat(tensors) for tensors in zip(*kept)]


def by_library(net: Any, stops: Collection[int], pad: int, prompts: list[list[int]], most: int, choose: Choose) -> None:
    """The same by `generate` of transformers, with whatever it keeps of a net. Prompts of one length go together, so nothing is
    padded; what the folder's generation_config.json prefers is overruled."""
    from transformers import GenerationConfig

    greedy = GenerationConfig(
        max_new_tokens=most,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        eos_token_id=list(stops) or None,
        pad_token_id=pad,
    )
    for length in sorted({len(ids) for ids in prompts}):
        group = [row for row, ids in enumerate(prompts) if len(ids) == length]
        ids = torch.tensor([prompts[row] for row in group], device=net.device)
        chosen = [lambda _, scores, group=group: choose(scores, group)]
        net.generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy, logits_processor=chosen)
