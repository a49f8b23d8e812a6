"""A body of transformers whose tokens become one vector for the whole text, as the modules of sentence-transformers do it.

Letters: B texts, T tokens, H the body's width, D numbers of a vector.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMALLEST = 1e-9  # what a number of tokens is at least; an empty text has none


class SentenceNet(nn.Module):
    """`pooling`: one of POOLINGS. `dense`: a layer from H to D or None, `activation` one of ACTIVATIONS behind it. `unit`: vectors
    have length 1. `most`: only so many of their numbers are given, the first ones; 0: all."""

    def __init__(
        self,
        body: nn.Module,
        pooling: str,
        unit: bool,
        dense: nn.Linear | None = None,
        activation: str = "Identity",
        most: int = 0,
    ):
        super().__init__()
        self.body, self.dense = body, dense
        self.pooling, self.unit, self.activation, self.most = pooling, unit, activation, most
        self.dimensions: tuple[int, ...] = ()  # the lengths of vectors that are learnt beside the whole ones

    @property
    def width(self) -> int:
        """D, before `most` of them are taken."""
        return self.dense.out_features if self.dense else hidden_width(self.body)

    def forward(self, **inputs: Tensor) -> Tensor:
        """What a tokenizer gives (B, T), padded on the right -> (B, D)."""
        cache = {"use_cache": False} if "use_cache" in inspect.signature(self.body.forward).parameters else {}
        states = self.body(**inputs, **cache).last_hidden_state
        vectors = POOLINGS[self.pooling](states, inputs["attention_mask"])
        if self.dense is not None:
            vectors = ACTIVATIONS[self.activation](self.dense(vectors))
        vectors = F.normalize(vectors, dim=1) if self.unit else vectors
        return vectors[:, : self.most] if self.most else vectors


def hidden_width(body: Any) -> int:
    """H."""
    return body.config.get_text_config().hidden_size


def mean(states: Tensor, mask: Tensor) -> Tensor:
    return sums(states, mask) / counts(mask, states)


def root(states: Tensor, mask: Tensor) -> Tensor:
    """The sum over the root of how many there are."""
    return sums(states, mask) / counts(mask, states).sqrt()


def weighted(states: Tensor, mask: Tensor) -> Tensor:
    """The mean, each token as often as its place counts (Muennighoff, SGPT, arXiv:2202.08904)."""
    return mean(states, mask * torch.arange(1, mask.shape[1] + 1, device=mask.device))


def sums(states: Tensor, mask: Tensor) -> Tensor:
    return (states * mask[..., None].to(states.dtype)).sum(1)


def counts(mask: Tensor, states: Tensor) -> Tensor:
    return mask.sum(1, keepdim=True).to(states.dtype).clamp_min(SMALLEST)


def largest(states: Tensor, mask: Tensor) -> Tensor:
    return states.masked_fill(mask[..., None] == 0, torch.finfo(states.dtype).min).amax(1)


def first(states: Tensor, mask: Tensor) -> Tensor:
    return states[:, 0]


def last(states: Tensor, mask: Tensor) -> Tensor:
    """Of the tokens that are there."""
    place = (mask.sum(1) - 1).clamp_min(0)[:, None, None].expand(-1, 1, states.shape[2])
    return states.gather(1, place)[:, 0]


Pooling = Callable[[Tensor, Tensor], Tensor]
POOLINGS: dict[str, Pooling] = {
    "mean": mean,
    "cls": first,
    "max": largest,
    "lasttoken": last,
    "mean_sqrt_len_tokens": root,
    "weightedmean": weighted,
}
"""{name in sentence-transformers: (states (B, T, H), mask (B, T)) -> (B, H)}"""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"Identity": lambda x: x, "Tanh": torch.tanh}
