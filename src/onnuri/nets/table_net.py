"""The table net: piecewise linear numbers and embedded categories into a residual perceptron.

Sources: Gorishniy et al. 2022, On Embeddings for Numerical Features in Tabular Deep Learning (section 3.2);
Gorishniy et al. 2021, Revisiting Deep Learning Models for Tabular Data (the ResNet of section 3.2). Unlike
them: (1) LayerNorm in place of batch norm, so that no record changes another's answer; (2) the bins enter the
first layer directly, beside the plain number; (3) the outer bins end at the outer edges; (4) a missing number
has an input of its own and no bins.

Letters: B records, N number columns, C category columns, M bins of all the columns, D outputs, W width.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

CLIP = 4.0  # standard deviations: how far a plain number reaches beyond its bins
SPREAD = 0.2  # of new embeddings: with torch's 1.0 the categories outweigh the rest (Adult: AUC -0.001)


class TableNet(nn.Module):
    """Batch {numbers (B, N) in standard units, missing (B, N) 0 or 1, codes (B, C)} -> (B, D), float32.

    `edges` per number column, in standard units, rising; `num_codes` per category column, the first two of
    which mean missing and unknown. `codes` count through all the columns. An entry of the batch is absent
    where there is no such column. What the head gives is multiplied by `scale` and added to `mean`.
    """

    column_of_bin: Tensor
    lower: Tensor
    size: Tensor

    def __init__(
        self,
        edges: Sequence[Sequence[float]],
        num_codes: Sequence[int],
        num_outputs: int,
        mean: float,
        scale: float,
        *,
        width: int,
        layers: int,
        embedding: int,
        dropout: float,
    ):
        super().__init__()
        self.design = {"width": width, "layers": layers, "embedding": embedding, "dropout": dropout}
        self.num_numbers, self.mean, self.scale = len(edges), mean, scale
        bins = [(column, low, high - low) for column, row in enumerate(edges) for low, high in pairwise(row)]
        self.keep("column_of_bin", [column for column, _, _ in bins], torch.long)
        self.keep("lower", [low for _, low, _ in bins], torch.float)
        self.keep("size", [size for _, _, size in bins], torch.float)
        self.embed = nn.Embedding(sum(num_codes), embedding) if num_codes else None
        self.stem = nn.Linear(2 * len(edges) + len(bins) + embedding * len(num_codes), width)
        self.layers = nn.ModuleList(Layer(width, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_outputs)
        self.init_inputs(num_codes)

    def keep(self, name: str, values: Sequence[float], dtype: torch.dtype) -> None:
        """A constant that moves with the net and is not stored: the config has it."""
        self.register_buffer(name, torch.tensor(values, dtype=dtype), persistent=False)

    @torch.no_grad()
    def init_inputs(self, num_codes: Sequence[int]) -> None:
        """Missing and unknown start at zero: what training never shows must not answer at random."""
        self.stem.weight[:, self.num_numbers : 2 * self.num_numbers] = 0
        if self.embed is not None:
            nn.init.normal_(self.embed.weight, std=SPREAD)
            first = torch.tensor([0, *num_codes[:-1]]).cumsum(0)
            self.embed.weight[torch.cat([first, first + 1])] = 0

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = self.stem(self.features(batch))
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(torch.relu(self.norm(hidden))).float() * self.scale + self.mean

    def features(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, 2N + M + C * embedding): plain numbers, missing ones, the filled shares of bins, categories."""
        parts = []
        if self.num_numbers:
            numbers, missing = batch["numbers"], batch["missing"]
            shares = ((numbers[:, self.column_of_bin] - self.lower) / self.size).clamp(0, 1)
            parts += [numbers.clamp(-CLIP, CLIP), missing, shares * (1 - missing[:, self.column_of_bin])]
        if self.embed is not None:
            parts.append(self.embed(batch["codes"]).flatten(1))
        return torch.cat(parts, dim=1)


class Layer(nn.Module):
    """(B, W) -> (B, W): x + down(relu(up(norm(x)))), dropout inside and outside."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.down(self.dropout(torch.relu(self.up(self.norm(x))))))
