"""A low-rank update of a weight's matrices: W + scale * up @ down (Hu et al. 2021, LoRA).

`down` (units, rank, columns) and `up` (units, rows, rank) follow the weight's own view, so that one form serves linear
layers, convolutions, tables, packs of recurrent nets and fused experts alike.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .matrices import View, Weight


class LowRank(nn.Module):
    """Adds the update to a stored tensor; for a product or rows of a table also without forming the sum."""

    def __init__(self, view: View, down: Tensor, up: Tensor, scale: float):
        super().__init__()
        self.view, self.scale = view, scale
        self.down, self.up = nn.Parameter(down), nn.Parameter(up)

    @property
    def rank(self) -> int:
        return self.down.shape[1]

    def delta(self, shape: torch.Size) -> Tensor:
        """The update in the stored tensor's `shape`."""
        return self.view.tensor(self.scale * (self.up @ self.down), shape)

    def forward(self, tensor: Tensor) -> Tensor:
        return (tensor + self.delta(tensor.shape)).to(tensor.dtype)  # summed in fp32, rounded once

    def product(self, x: Tensor) -> Tensor:
        """What the update adds to a product: x (..., columns) -> (..., rows). Costs rank, not rows x columns."""
        low = F.linear(x.to(self.down.dtype), self.down[0])
        return (self.scale * F.linear(low, self.up[0])).to(x.dtype)

    def rows(self, places: Tensor) -> Tensor:
        """What the update adds to these rows of a table."""
        return self.scale * (self.up[0][places] @ self.down[0])


def fresh(weight: Weight, rank: int, alpha: float, generator: torch.Generator) -> LowRank:
    """An update that is zero at first, of `rank` or what the matrices allow; scaled by alpha / rank. `down` is drawn as
    a new linear layer is (uniform, deviation 1 / sqrt(3 columns))."""
    units, rows, columns = weight.matrix.shape
    rank = min(rank, rows, columns)
    down = (2 * torch.rand(units, rank, columns, generator=generator) - 1) / columns**0.5
    return LowRank(weight.view, down, torch.zeros(units, rows, rank), alpha / rank)
