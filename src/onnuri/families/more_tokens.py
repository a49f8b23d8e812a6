"""A model of transformers with more tokens: new ones that are put together from those it knows, in its net and its tokenizer.

No architecture is named. A tokenizer that merges does so as before and goes on with the new pairs, so that a text is never cut into
more tokens (Sennrich et al., arXiv:1508.07909, continued). One that looks for the likeliest pieces gives a new one what its parts
had together and a little more, so that it is taken wherever these were, and fewest tokens win. One that takes the longest piece
that fits finds new ones among them. Tokens keep their numbers; a number that no token has is filled up.
"""

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import Refusal
from ..family import spelled_out
from ..weights.units import changed_axes, rebuilt

LITTLE = 1e-3  # nats
Joins = Sequence[tuple[int, int]]


def grown_net(net: Any, rows: int, made: Callable[[int], Any], joins: Joins) -> Any:
    """The net with a row more for each join wherever it has one for each of its `rows` tokens: the mean of those of its parts.
    `made`: a number of tokens -> the empty net of this design."""
    count = rows + len(joins)
    bigger = made(count)
    axes: dict[str, list[int]] = {}
    for (name, axis), pair in changed_axes(bigger, net).items():
        if pair != (count, rows):
            raise misfit(f"{name} would have {pair[0]} rows")
        axes.setdefault(name, []).append(axis)
    parts = spelled_out(rows, joins)

    def longer(name: str, value: Tensor) -> Tensor:
        value = value.detach().clone()
        for axis in axes.get(name, ()):
            value = torch.cat([value, means(value.movedim(axis, 0), parts).movedim(0, axis)], axis)
        return value

    return rebuilt(net, bigger, longer, misfit)


def misfit(why: str) -> Refusal:
    return Refusal(f"this design takes no more tokens: {why}", "a model of another design, or the tokens that it has")


def means(rows: Tensor, parts: Sequence[Sequence[int]]) -> Tensor:
    """(N, ...) of rows (V, ...): the mean of the rows in each of N `parts`."""
    flat = torch.tensor([part for each in parts for part in each], device=rows.device)
    lengths = torch.tensor([len(each) for each in parts], device=rows.device)
    owner = torch.arange(len(parts), device=rows.device).repeat_interleave(lengths)
    sums = rows.new_zeros(len(parts), *rows.shape[1:], dtype=torch.float32).index_add_(0, owner, rows[flat].float())
    return (sums / lengths.view(-1, *[1] * (rows.dim() - 1))).to(rows.dtype)


def grown_tokenizer(tokenizer: Any, file: dict, rows: int, joins: Joins, join: Callable[[str, str], str]) -> Any:
    """A copy that knows these tokens as well. `file`: what its tokenizer.json holds; `join`: how two tokens are written as one."""
    from tokenizers import Tokenizer

    file = deepcopy(file)
    model, names = file["model"], {number: token for token, number in tokenizer.get_vocab().items()}
    known = (
        model["vocab"]
        if isinstance(model["vocab"], dict)
        else {token: i for i, (token, _) in enumerate(model["vocab"])}
    )
    taken = set(known.values())
    more = {names.get(number, f"[UNUSED{number}]"): number for number in range(rows) if number not in taken}
    scores = [] if isinstance(model["vocab"], dict) else [score for _, score in model["vocab"]]
    scores += [min(scores, default=0.0)] * len(more)
    for number, (one, other) in enumerate(joins, rows):
        names[number] = join(names[one], names[other])
        more[names[number]] = number
        if "merges" in model:
            model["merges"].append([names[one], names[other]])
        if model["type"] == "Unigram":
            scores.append(scores[one] + scores[other] + LITTLE)
    if isinstance(model["vocab"], dict):
        model["vocab"] |= more
    else:
        model["vocab"] = list(zip([*known, *more], scores))
    copy = deepcopy(tokenizer)
    copy._tokenizer = Tokenizer.from_str(json.dumps(file, ensure_ascii=False))
    return copy


def grown(
    net: nn.Module,
    tokenizer: Any,
    file: dict,
    made: Callable[[int], Any],
    joins: Joins,
    join: Callable[[str, str], str],
) -> tuple[nn.Module, Any]:
    """(the net, the tokenizer) with a token more for each join."""
    rows = len(net.get_input_embeddings().weight)  # type: ignore[operator]
    return grown_net(net, rows, made, joins), grown_tokenizer(tokenizer, file, rows, joins, join)
