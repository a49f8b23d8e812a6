"""What a token costs: its cross entropy in nats, over vocabularies so large that all at once would fill the memory.

Letters: N places, V tokens in the vocabulary.
"""

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
