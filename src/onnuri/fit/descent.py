"""How one step downhill is taken: AdamW or Muon, the pace over the run, and the gradient's way into it."""

from collections.abc import Iterable, Sequence
from math import cos, pi
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from ..costs.peaks import native_bf16
from ..errors import BadSettings
from ..weights.attach import stored_matrices
from ..weights.matrices import View, weights

if TYPE_CHECKING:
    from .loop import FitSettings, Objective

BETAS = (0.9, 0.98)
AGAINST = (0.0, 0.99)  # of players against each other: where one went steps ago misleads the other by now
MOMENTUM = 0.95  # of Muon
ITERATIONS = 5


class Muon(AdamW):
    """AdamW for all but the matrices in `views`, which follow their momentum with its singular values brought near 1
    (Jordan et al. 2024, kellerjordan.github.io/posts/muon). The update has the size of AdamW's (Liu et al.,
    arXiv:2502.16982), so that one learning rate and one decay serve both."""

    def __init__(self, groups: list[dict[str, Any]], views: dict[Tensor, View], **options: Any):
        super().__init__(groups, **options)
        self.views = views

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight in self.views and weight.grad is not None:
                    self.turn(weight, group["lr"], group["weight_decay"])
                    weight.grad = None  # so AdamW leaves it alone
        super().step()

    def turn(self, weight: Tensor, rate: float, decay: float) -> None:
        fault = self.found_inf.bool()  # type: ignore[attr-defined]
        gradient = torch.where(fault, 0, weight.grad / self.grad_scale)  # type: ignore[attr-defined]
        momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
        momentum.lerp_(gradient, 1 - MOMENTUM)
        view = self.views[weight]
        matrix = view.matrix(gradient.lerp(momentum, MOMENTUM))
        update = 0.2 * max(matrix.shape[1:]) ** 0.5 * view.tensor(orthogonal(matrix), weight.shape)
        weight.sub_(torch.where(fault, 0, rate * (update + decay * weight)))


def orthogonal(matrices: Tensor) -> Tensor:
    """(units, rows, columns) with the singular vectors as they are and the singular values from about 0.7 to 1.2, by a
    Newton-Schulz iteration of the fifth order."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(torch.bfloat16 if native_bf16(x.device) else torch.float32)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


def hidden(net: nn.Module, blocks: Iterable[str]) -> dict[Tensor, View]:
    """The trained matrices inside these modules, embeddings excepted. BadSettings where there is none."""
    inside = tuple(f"{name}." for name in blocks)
    found = [weight for weight in weights(net, "linear", "conv", "expert") if weight.name.startswith(inside)]
    views = {tensor: view for weight in found for tensor, view in stored_matrices(weight) if tensor.requires_grad}
    if not views:
        raise BadSettings(
            "'optimizer' muon is for matrices inside blocks, and none is trained", hint="--optimizer adamw"
        )
    return views


def optimizers(
    objective: "Objective", trained: dict[str, list[nn.Parameter]], settings: "FitSettings", rate: float
) -> dict[str, AdamW]:
    """Of each player; several play against each other."""
    views = hidden(objective.net, objective.blocks) if settings.optimizer == "muon" else None
    betas = BETAS if len(trained) == 1 else AGAINST
    return {player: optimizer_of(ps, rate, settings.weight_decay, views, betas) for player, ps in trained.items()}


def optimizer_of(
    parameters: Sequence[Tensor],
    rate: float,
    decay: float,
    views: dict[Tensor, View] | None = None,
    betas: tuple[float, float] = BETAS,
) -> AdamW:
    """Muon where there are `views`, else AdamW (Loshchilov & Hutter, arXiv:1711.05101). Only matrices decay, since decaying
    a norm or a bias only hurts."""
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]] or groups[:1]
    options: dict[str, Any] = {"lr": rate, "betas": betas, "fused": True}
    return Muon(groups, views, **options) if views else AdamW(groups, **options)


def schedule(step: int, total: int, warmup: float) -> float:
    """What the learning rate is multiplied by: a linear warm-up, then a cosine down to a fiftieth."""
    warm = max(1, round(warmup * total))
    along = min(1.0, (step - warm) / max(1, total - warm))
    return (step + 1) / (warm + 1) if step < warm else 0.02 + 0.49 * (1 + cos(pi * along))


def scale(optimizer: AdamW, parameters: Sequence[nn.Parameter], sums: Tensor, limit: float) -> Tensor:
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
