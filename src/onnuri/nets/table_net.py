"""The table net: piecewise linear numbers and embedded categories into a residual perceptron.

Sources: Gorishniy et al. 2022, On Embeddings for Numerical Features (section 3.1, edges at quantiles); Gorishniy et al.
2021, Revisiting Deep Learning Models for Tabular Data (the ResNet of section 3.2). Unlike them: (1) LayerNorm in place
of batch norm, so that a record never changes another's answer; (2) the encoded numbers enter the first layer
directly, beside the plain number; (3) the outer bins end at the outer edges; (4) a missing number has an input of its
own and no bins.

Letters: B records, N number columns, C category columns, M bins of all the columns, D outputs, W width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

CLIP = 4.0  # standard deviations: how far a plain number reaches beyond its bins
SPREAD = 0.2  # of new embeddings; on Adult torch's 1.0 fits noise (log loss 0.3036 against 0.3022, validation)


class TableNet(nn.Module):
    """Batch {numbers (B, N) in standard units, missing (B, N) 0 or 1, codes (B, C)} -> (B, D) times `scale` plus `mean`.

    `edges` per number column, in standard units, rising; `num_codes` per category column, the first two of which mean
    missing and unknown. `codes` count through all the columns. Keys of a batch are absent where there is no column.
    """

    column_of_bin: Tensor
    lower: Tensor
    size: Tensor

    def __init__(self, edges: Sequence[Sequence[float]], num_codes: Sequence[int], num_outputs: int, mean: float,
                 scale: float, *, width: int, layers: int, embedding: int, dropout: float):
        super().__init__()
        self.design = {"width": width, "layers": layers, "embedding": embedding, "dropout": dropout}
        self.mean, self.scale = mean, scale
        self.num_numbers = len(edges)
        bins = [(column, low, high - low) for column, row in enumerate(edges) for low, high in zip(row, row[1:])]
        constants = (torch.tensor([part[place] for part in bins], dtype=dtype)
                     for place, dtype in enumerate((torch.long, torch.float, torch.float)))
        for name, constant in zip(("column_of_bin", "lower", "size"), constants):
            self.register_buffer(name, constant, persistent=False)  # they are read from the config
        self.embed = nn.Embedding(sum(num_codes), embedding) if num_codes else None
        self.stem = nn.Linear(2 * len(edges) + len(bins) + embedding * len(num_codes), width)
        self.layers = nn.ModuleList(Layer(width, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_outputs)
        self.init_inputs(num_codes)

    @torch.no_grad()
    def init_inputs(self, num_codes: Sequence[int]) -> None:
        """Missing and unknown start at zero: what the training records never show must not answer at random."""
        self.stem.weight[:, self.num_numbers:2 * self.num_numbers] = 0
        if self.embed is not None:
            nn.init.normal_(self.embed.weight, std=SPREAD)
            first = torch.tensor([0, *num_codes[:-1]]).cumsum(0)
            self.embed.weight[torch.cat([first, first + 1])] = 0

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        parts = []
        if self.num_numbers:
            numbers, missing = batch["numbers"], batch["missing"]
            bins = ((numbers[:, self.column_of_bin] - self.lower) / self.size).clamp(0, 1)
            parts += [numbers.clamp(-CLIP, CLIP), missing, bins * (1 - missing[:, self.column_of_bin])]
        if self.embed is not None:
            parts.append(self.embed(batch["codes"]).flatten(1))
        hidden = self.stem(torch.cat(parts, dim=1))
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(torch.relu(self.norm(hidden))) * self.scale + self.mean


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
