"""Tokens that follow others: the likeliest, or drawn by their probability, one after another from what a net says is next.

Letters: B sequences, T tokens, V tokens in the vocabulary.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from ..family import Batch, Memory, Outputs

AT_ONCE = 2**25  # scores, 128 MiB of them
Step = Callable[[Batch, Memory], tuple[Outputs, Memory]]


def padded(sequences: list[list[int]], pad: int) -> Batch:
    """input_ids, attention_mask, position_ids (B, T). Without positions some nets would count the padding."""
    longest = max(map(len, sequences))
    ids = torch.tensor([[*ids, *[pad] * (longest - len(ids))] for ids in sequences])
    places = torch.arange(longest).repeat(len(sequences), 1)
    mask = places < torch.tensor([[len(ids)] for ids in sequences])
    return {"input_ids": ids, "attention_mask": mask.long(), "position_ids": places}


def continued_by(
    step: Step,
    prompts: Sequence[list[int]],
    most: int,
    stops: Collection[int],
    pad: int,
    drawn: Sequence[torch.Generator | None],
    device: torch.device,
) -> list[list[int]]:
    """`most` new tokens of each prompt, or fewer up to one of `stops`. A step that keeps nothing is given all tokens each time."""
    made: list[list[int]] = [[] for _ in prompts]
    live, read, memory = list(range(len(prompts))), list(prompts), ()
    while live:
        batch = padded(read, pad)
        ends = batch["attention_mask"].sum(1) - 1
        batch["predicted"] = batch["position_ids"] == ends[:, None]
        here = {name: value.to(device) for name, value in batch.items()}
        scores, memory = last_scores(step, here, ends, memory)
        scores = disturbed(scores, [drawn[i] for i in live])
        for i, token in zip(live, scores.argmax(-1).tolist()):
            made[i].append(token)
        going = [row for row, i in enumerate(live) if len(made[i]) < most and made[i][-1] not in stops]
        if len(going) < len(live):
            live, memory = [live[row] for row in going], [tensor[going] for tensor in memory]
        if memory and batch["input_ids"].shape[1] > 1:
            memory = aligned(memory)
        read = [made[i][-1:] if memory else [*prompts[i], *made[i]] for i in live]
    return made


def last_scores(step: Step, batch: Batch, ends: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
    """(what a step says at the place `ends` of each sequence (B, V), the memory). Where nothing is kept yet sequences are long,
    and so many are read at once that their scores, of which there are V at each place, are no more than AT_ONCE."""
    if memory:
        (values, _), memory = step(batch, memory)
        return values[torch.arange(len(ends)), ends].float(), memory
    scores: list[Tensor] = []
    kept: list[Memory] = []
    start, size = 0, 1
    while start < len(ends):
        rows = slice(start, start + size)
        (values, _), part = step({name: value[rows] for name, value in batch.items()}, ())
        scores.append(values[torch.arange(len(values)), ends[rows]].float())
        kept.append(part)
        start, size = start + size, max(1, AT_ONCE // values[0].numel())
    return torch.cat(scores), [torch.cat(tensors) for tensors in zip(*kept)]


def aligned(memory: Memory) -> Memory:
    """The same, all sequences ending at the last place, so that what is added stands next to it: a window of attention that
    slides counts places, whether anything is there or not. Of which places are there (B, T), and tensors (B, heads, T, width)."""
    there, *kept = memory
    lengths, count = there.sum(1, keepdim=True), there.shape[1]
    places = (torch.arange(count, device=there.device) + lengths) % count
    if bool((lengths == count).all()):
        return memory
    return [there.gather(1, places), *(one.gather(2, places[:, None, :, None].expand_as(one)) for one in kept)]


def generated(
    net: Any,
    prompts: Sequence[list[int]],
    most: int,
    stops: Collection[int],
    pad: int,
    drawn: Sequence[torch.Generator | None],
) -> list[list[int]]:
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
    made: dict[int, list[int]] = {}
    for length in sorted({len(ids) for ids in prompts}):
        group = [i for i, ids in enumerate(prompts) if len(ids) == length]
        ids = torch.tensor([prompts[i] for i in group], device=net.device)
        noise = [lambda _, scores, group=group: disturbed(scores.float(), [drawn[i] for i in group])]
        rows = net.generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy, logits_processor=noise)
        made |= dict(zip(group, rows[:, length:].tolist()))
    return [made[i] for i in range(len(prompts))]


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
