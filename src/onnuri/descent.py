"""How one step downhill is taken: AdamW, its pace over the run, and the gradient's way into it."""

from collections.abc import Sequence
from math import cos, pi

import torch
from torch import Tensor, nn


def adamw(parameters: Sequence[nn.Parameter], rate: float, decay: float) -> torch.optim.AdamW:
    """Loshchilov & Hutter (arXiv:1711.05101), fused; only matrices decay, since decaying a norm or a bias only hurts."""
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]] or groups[:1], lr=rate, betas=(0.9, 0.98), fused=True)


def schedule(step: int, total: int, warmup: float) -> float:
    """What the learning rate is multiplied by: a linear warm-up, then a cosine down to a fiftieth."""
    warm = max(1, round(warmup * total))
    along = min(1.0, (step - warm) / max(1, total - warm))
    return (step + 1) / (warm + 1) if step < warm else 0.02 + 0.49 * (1 + cos(pi * along))


def scale(optimizer: torch.optim.AdamW, parameters: Sequence[nn.Parameter], sums: Tensor, limit: float) -> Tensor:
    """Have the optimizer take the gradient of the mean, clipped to the norm `limit` (0: not), and skip a step that is no
    number; the norm before clipping. `sums`: (summed loss, count); the gradients are those of the summed loss.

    The fused optimizer scales what it reads anyway. Done here, it would read and write every gradient twice more. Nothing
    waits for another device.
    """
    count = sums[1].clamp_min(1e-12)
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]) / count
    clipped = (norm / limit).clamp_min(1) if limit else 1.0
    optimizer.grad_scale = (count * clipped).float()  # type: ignore[attr-defined]
    optimizer.found_inf = (~torch.isfinite(norm + sums[0])).float()  # type: ignore[attr-defined]
    return norm
