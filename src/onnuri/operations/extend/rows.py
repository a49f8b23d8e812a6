"""What the rows of new tokens begin as, in the head of a model that writes from left to right.

A new token stands for old ones in a row, and the model knows how likely these are: log p(first) + log p(second | first) + ... The
first term is the logit that the first part's row gives; the others are taken as one number for each new token, their mean wherever
its parts were met. So the row becomes that of the first part, plus that number in the direction along which all that the head
reads is one long (by ridge regression); or in the bias, where the head has one. The rows that are there stay, so what is written
with old tokens becomes less likely by what the new ones take.

Letters: N places, W width of what the head reads, V tokens, B texts, T places in a text.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ...data import Records
from ...family import Batch, spelled_out
from ...model import Model
from ...weights.calibration import batches_of
from .pairs import Pair

RIDGE = 1e-3  # of the mean square of what the head reads


def head_of(net: nn.Module, tokens: int) -> nn.Linear | None:
    """The layer that gives a number for each token; None where there is none, or several."""
    found = [each for each in net.modules() if isinstance(each, nn.Linear) and each.out_features == tokens]
    return found[0] if len(found) == 1 else None


@torch.no_grad()
def reads_backward(model: Model, batch: Batch, entry: str) -> bool:
    """Whether what is said of a place depends on later ones."""
    changed = batch[entry].clone()
    changed[:, -1] = (changed[:, -1] + 1) % 2
    one, other = (model.outputs(each)[0][:, :-1] for each in (batch, batch | {entry: changed}))
    return one.shape[1] == 0 or not torch.allclose(one, other, atol=1e-4)


@torch.no_grad()
def by_likelihood(old: Model, net: nn.Module, records: Records, entry: str, first: int, joins: Sequence[Pair]) -> bool:
    """Give the rows of the new tokens, numbered from `first` on, in the head of `net` what the module's docstring says. False, and
    nothing is changed, where there is no such head, or where the model reads backward."""
    head, wide = head_of(old.net, first), head_of(net, first + len(joins))
    batches = batches_of(old, records)
    if head is None or wide is None or reads_backward(old, batches[0], entry):
        return False
    parts = spelled_out(first, joins)
    read, shift = looked_at(old, head, batches, entry, parts)
    begin = torch.tensor([each[0] for each in parts])
    rows = head.weight[begin].float()
    if wide.bias is not None:
        wide.bias[first:] = head.bias[begin] + shift.to(head.bias)
    else:
        rows = rows + shift[:, None] * direction(read)
    wide.weight[first:] = rows.to(wide.weight)
    return True


def looked_at(
    old: Model, head: nn.Linear, batches: Sequence[Batch], entry: str, parts: Sequence[tuple[int, ...]]
) -> tuple[Tensor, Tensor]:
    """(what the head reads (N, W), the mean log probability of all parts of each new token but the first, after those before it;
    where they were never met, as many times what one part has on average)."""
    read: list[Tensor] = []
    sums, times = torch.zeros(len(parts)), torch.zeros(len(parts))
    handle = head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    try:
        for place, batch in enumerate(batches):
            values, mask = old.outputs(batch)
            following = batch[entry][:, 1:]
            likely = (
                values[:, :-1].gather(2, following[..., None])[..., 0].float() - values[:, :-1].logsumexp(2).float()
            )
            read[place] = read[place].view(*mask.shape, -1)[mask]
            for number, value in met(batch[entry].tolist(), likely.tolist(), parts):
                sums[number] += value
                times[number] += 1
    finally:
        handle.remove()
    others = torch.tensor([len(each) - 1 for each in parts])
    usual = sums.sum() / (times * others).sum().clamp_min(1)
    return torch.cat(read).float(), torch.where(times > 0, sums / times.clamp_min(1), usual * others)


def met(
    rows: Sequence[Sequence[int]], likely: Sequence[Sequence[float]], parts: Sequence[tuple[int, ...]]
) -> Iterator[tuple[int, float]]:
    """(new token, log probability of its parts after the first) wherever its parts stand in a row. `likely`: of each token but the
    first of a row."""
    known: dict[int, list[tuple[tuple[int, ...], int]]] = {}
    for number, each in enumerate(parts):
        known.setdefault(each[0], []).append((each, number))
    for ids, chances in zip(rows, likely):
        for place, token in enumerate(ids):
            for each, number in known.get(token, ()):
                if tuple(ids[place : place + len(each)]) == each:
                    yield number, sum(chances[place : place + len(each) - 1])


def direction(read: Tensor) -> Tensor:
    """(W,): its product with what the head reads is 1, as nearly as that can be."""
    squares = read.mT @ read / len(read)
    ridge = RIDGE * squares.diagonal().mean() * torch.eye(len(squares))
    return torch.linalg.solve(squares + ridge, read.mean(0))
