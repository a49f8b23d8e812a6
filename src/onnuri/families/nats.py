"""What tokens cost: cross entropy in nats, of each over vocabularies too large for the memory all at once, and of all together.

Letters: N places, V tokens in the vocabulary.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

IGNORE = -100  # the label of transformers for a token that is not asked for
CHUNK = 2**22  # logits in float32 at once: 16 MiB, which stay in a cache or nearly


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


def scores(found: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What the tokens of all texts together cost, of {"nll": nats, "tokens", "bytes", "correct": greedy hits} of each text that was
    judged; NaN where none was."""
    nll, tokens, size, hits = (sum(one.get(name, 0) for one in found) for name in ("nll", "tokens", "bytes", "correct"))
    return {
        "bits_per_byte": nll / math.log(2) / size if size else math.nan,
        "perplexity": math.exp(min(nll / tokens, 700)) if tokens else math.nan,
        "next_token_accuracy": hits / tokens if tokens else math.nan,
    }
