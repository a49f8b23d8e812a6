"""How evenly a mixture's experts are asked, and the term of the loss that evens it out, text by text.

The sequence-wise balance of DeepSeek-V3 (arXiv:2412.19437, eq. 17-20): of a sequence of T tokens the sum over experts i of
f_i P_i, where f_i = E / (K T) times the choices of expert i and P_i is the mean of its affinity; 1 when all is even. A sum over
sequences, so it is exact however a batch is cut or packed, which Switch's term over whole batches is not. Differing in:
1. Affinities are the softmax of what the router says, whatever the net makes of it.
2. It is a mean over the net's mixtures, so that its weight does not depend on their number; each sequence weighs as its tokens.
3. Where mixtures, choices and sequences are is seen in the forward pass, not known: weights of the role `expert`; the whole
   numbers that these are called with; the last product with as many columns as experts before that; the masks of attention.

Letters: R rows, T places in a row, N = R T, E experts, K of them chosen at a place.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..errors import BadSettings
from ..family import Batch
from ..observe import HIDDEN, SOFTMAX
from ..weights.matrices import weights

PRODUCTS = (functional.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__)
Loads = dict[str, Tensor]
"""{mixture: choices of each expert (E,)}."""


@dataclass(frozen=True)
class Choice:
    """What a mixture decided: `chosen` (N, K), `scores` (N, E)."""

    name: str
    chosen: Tensor
    scores: Tensor


def mixtures(net: nn.Module) -> dict[str, tuple[nn.Module, nn.Module, int]]:
    """{name: (module, the experts inside it, E)}."""
    named = dict(net.named_modules())
    homes = {id(weight.homes[0][0]): weight for weight in weights(net, "expert")}
    paths = {name: homes[id(module)] for name, module in named.items() if id(module) in homes}
    return {
        (above := name.rpartition(".")[0]): (named[above], named[name], weight.matrix.shape[0])
        for name, weight in paths.items()
    }


class Routing(TorchFunctionMode):
    """While it is on, `choices` of every mixture of the net are noted, and which places the masks of attention show."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.choices: list[Choice] = []
        self.shown: Tensor | None = None
        self.open: tuple[str, int] | None = None
        self.scores: Tensor | None = None
        self.found = mixtures(net)

    def hooks(self) -> Iterator[Any]:
        for name, (module, experts, count) in self.found.items():
            yield module.register_forward_pre_hook(lambda *_, name=name, count=count: self.begin(name, count))
            yield experts.register_forward_pre_hook(lambda _, args, kwargs: self.end(args, kwargs), with_kwargs=True)

    def begin(self, name: str, count: int) -> None:
        self.open, self.scores = (name, count), None

    def end(self, args: tuple, kwargs: dict) -> None:
        whole = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and not v.is_floating_point()]
        if self.open and self.scores is not None and whole:
            self.choices.append(Choice(self.open[0], whole[0].flatten(0, -2), self.scores.flatten(0, -2)))
        self.open = None

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if self.open and function in PRODUCTS and made.shape[-1] == self.open[1]:
            self.scores = made
        elif self.shown is None and function is functional.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value", "attn_mask"), args)) | (kwargs or {})
            mask = given.get("attn_mask")
            if mask is not None and mask.dim() == 4 and mask.shape[2] == mask.shape[3]:
                self.shown = (mask if mask.dtype == torch.bool else mask > HIDDEN).any(1)
        elif self.shown is None and function in SOFTMAX and made.dim() == 4 and 0 <= made.shape[3] - made.shape[2] <= 1:
            self.shown = (made[..., : made.shape[2]] > 0).any(1)  # one column more is a sink, for what no place gets
        return made

    def sequences(self, rows: int, places: int) -> tuple[Tensor, Tensor]:
        """(the number of the sequence of each place (N,), whether it counts (N,)). A sequence begins where a place sees itself
        alone; one of a single place, as padding is where rows are shared, counts nothing."""
        if self.shown is None or self.shown.shape[1] != places:
            number = torch.arange(rows).repeat_interleave(places) * (places + 1)
            return number, torch.ones_like(number, dtype=torch.bool)
        shown = self.shown.expand(rows, -1, -1)
        alone = (shown.sum(2) == 1) & shown.diagonal(dim1=1, dim2=2)
        number = (alone.cumsum(1) + torch.arange(rows, device=alone.device)[:, None] * (places + 1)).flatten()
        real = shown.any(1).flatten()
        size = torch.zeros(rows * (places + 1), device=real.device).index_add_(0, number, real.float())
        return number, real & (size[number] > 1)


@contextmanager
def routing(net: nn.Module) -> Iterator[Routing]:
    """Inside, what the mixtures of the net choose is noted."""
    seen = Routing(net)
    handles = list(seen.hooks())
    try:
        with seen:
            yield seen
    finally:
        for handle in handles:
            handle.remove()


# ------------------------------------------------------------------------------------------------------------ the term


def balanced(net: nn.Module, loss: Callable, weight: float) -> Callable:
    """The loss and `weight` times the balance of its experts, for each token. BadSettings for a net without any."""
    if not mixtures(net):
        raise BadSettings("'balance' has no effect: this net has no experts", hint="leave it out")

    def run(batch: Batch, player: str) -> tuple[Tensor, Tensor]:
        with routing(net) as seen:
            total, count = loss(batch, player)
        if not seen.choices:
            raise BadSettings("'balance': it is not seen how this net chooses its experts", hint="leave it out")
        if not once(seen):
            raise BadSettings("'balance': this net is asked several times for one record", hint="leave it out")
        terms = [uneven(choice, seen, len(total)) for choice in seen.choices]
        return total + weight * torch.stack(terms).mean(0), count

    return run


def once(seen: Routing) -> bool:
    """Whether each mixture chose once, so that rows are those of the loss."""
    names = [choice.name for choice in seen.choices]
    return len(names) == len(set(names))


def uneven(choice: Choice, seen: Routing, rows: int) -> Tensor:
    """(R,): over the sequences of each row, T times the sum of f_i P_i."""
    places, experts = len(choice.chosen) // rows, choice.scores.shape[1]
    number, real = (each.to(choice.scores.device) for each in seen.sequences(rows, places))
    asked = counted(choice.chosen, experts) * real[:, None]
    affinity = choice.scores.float().softmax(1) * real[:, None]
    size, chosen, felt = (
        torch.zeros(rows * (places + 1), *each.shape[1:], device=each.device).index_add(0, number, each)
        for each in (real.float(), asked, affinity)
    )
    even = experts / choice.chosen.shape[1] / size.clamp_min(1)
    return (even * (chosen * felt).sum(1)).view(rows, places + 1).sum(1)


def counted(chosen: Tensor, experts: int) -> Tensor:
    """(N, E): how often each expert is chosen."""
    found = torch.zeros(len(chosen), experts, device=chosen.device)
    return found.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=found.dtype))


# ------------------------------------------------------------------------------------------------------------ the load


@torch.no_grad()
def loads(net: nn.Module, loss: Callable, batch: Batch, player: str) -> Loads:
    """How often each expert is chosen for the tokens of a batch, padding included where the net is asked several times; {} for a
    net without experts."""
    if not mixtures(net):
        return {}
    with routing(net) as seen:
        rows = len(loss(batch, player)[0])
    found: Loads = {}
    for choice in seen.choices:
        asked = counted(choice.chosen, choice.scores.shape[1])
        if once(seen):
            asked = asked[seen.sequences(rows, len(choice.chosen) // rows)[1].to(asked.device)]
        found[choice.name] = found.get(choice.name, 0) + asked.sum(0).cpu()
    return found


def shares(found: Loads) -> dict[str, float]:
    """{mixture and expert: share of the choices}."""
    return {
        f"{name} {number}": share
        for name, load in found.items()
        for number, share in enumerate((load / load.sum().clamp_min(1)).tolist())
    }
