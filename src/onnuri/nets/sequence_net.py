"""Forecasts of time series: recurrent, convolutional or linear, from a past of fixed length to the whole future at once.

Sources: Zeng et al. 2022, Are Transformers Effective for Time Series Forecasting? (`linear` is its DLinear, and
`normalize: last` what its NLinear does; their plain mean at both ends is that of the repeated end values);
Lin et al. 2023, SegRNN (steps are joined to patches, so that a recurrent net takes few turns); Bai et al. 2018, An
Empirical Evaluation of Generic Convolutional and Recurrent Networks (`tcn`: causal, twice as far with each layer);
Kim et al. 2022, Reversible Instance Normalization (`normalize: window`, without its learnt scale). Unlike them every
layer is x + layer(norm(x)), so that layers are alike in shape.

Letters: B records, P steps of past, F of future, C channels, D of them forecast (the last ones), G groups of channels
that see each other, N patches, W width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

DESIGNS = ("linear", "gru", "lstm", "tcn")
NORMALIZE = ("none", "last", "window")
TREND = 25  # steps of the moving average, as in DLinear
KERNEL = 3  # patches that a convolution sees
SMALLEST = 1e-5  # variance that is added where a past is divided by its deviation


class SequenceNet(nn.Module):
    """{past (B, P, C)} -> future (B, F, D), both in standard units.

    `normalize`: what is taken from each past before and given back after: `none`, its `last` value, or its mean and
    deviation (`window`). `mix`: one net reads all channels; else each channel that is forecast is read alone, by the
    same weights. `rank`: of the linear maps, 0 for whole matrices. `reach`: per layer, how many patches apart a
    convolution looks; 1 for recurrent layers.
    """

    def __init__(
        self,
        num_channels: int,
        num_forecast: int,
        past: int,
        future: int,
        *,
        design: str,
        normalize: str,
        rank: int = 0,
        mix: bool = False,
        width: int = 0,
        patch: int = 0,
        dropout: float = 0.0,
        reach: Sequence[int] = (),
    ):
        super().__init__()
        self.num_forecast, self.future = num_forecast, future
        self.design: dict = {"design": design, "normalize": normalize}
        if design == "linear":
            self.design["rank"] = rank
            self.body: nn.Module = Linear(past, future, rank)
        else:
            self.design |= {"mix": mix, "width": width, "patch": patch, "dropout": dropout, "reach": list(reach)}
            inputs, outputs = (num_channels, num_forecast) if mix else (1, 1)
            self.body = Patches(past, inputs * patch, future * outputs, self.design)
        self.mix = mix

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        past = batch["past"]
        level, spread = self.level(past)
        past, level, spread = (past - level) / spread, self.answered(level), self.answered(spread)
        groups = past.unsqueeze(1) if self.mix else self.answered(past).transpose(1, 2).unsqueeze(3)
        future = self.body(groups).float()
        future = future.reshape(-1, self.future, self.num_forecast) if self.mix else future.transpose(1, 2)
        return future * spread + level

    def level(self, past: Tensor) -> tuple[Tensor, Tensor]:
        """(what is subtracted, what is divided by), (B, 1, C) both."""
        last = past[:, -1:]
        if self.design["normalize"] == "window":
            return past.mean(1, keepdim=True), (past.var(1, unbiased=False, keepdim=True) + SMALLEST).sqrt()
        return last if self.design["normalize"] == "last" else torch.zeros_like(last), torch.ones_like(last)

    def answered(self, x: Tensor) -> Tensor:
        """Of (B, ?, C) the channels that are forecast."""
        return x[:, :, x.shape[2] - self.num_forecast :]


class Linear(nn.Module):
    """(B, D, P, 1) -> (B, D, F): one map for the moving average of the past, one for the rest."""

    def __init__(self, past: int, future: int, rank: int):
        super().__init__()
        self.trend, self.rest = linear_map(past, future, rank), linear_map(past, future, rank)

    def forward(self, x: Tensor) -> Tensor:
        x = x.squeeze(3)
        ends = functional.pad(x, (TREND // 2, TREND // 2), mode="replicate")
        smooth = functional.avg_pool1d(ends, TREND, 1)
        return self.trend(smooth) + self.rest(x - smooth)


def linear_map(inputs: int, outputs: int, rank: int) -> nn.Module:
    """One matrix, or two with `rank` numbers between them."""
    if not rank:
        return nn.Linear(inputs, outputs)
    return nn.Sequential(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs))


class Patches(nn.Module):
    """(B, G, P, inputs) -> (B, G, F * outputs), read from the last patch. Where P is no multiple of a patch the oldest
    step is repeated before it."""

    def __init__(self, past: int, inputs: int, outputs: int, design: dict):
        super().__init__()
        self.patch, width = design["patch"], design["width"]
        self.repeated = -past % self.patch
        self.stem = nn.Linear(inputs, width)
        self.layers = nn.ModuleList(LAYERS[design["design"]](width, design["dropout"], n) for n in design["reach"])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        if self.repeated:
            x = torch.cat([x[:, :, :1].repeat(1, 1, self.repeated, 1), x], dim=2)
        x = self.stem(x.unflatten(2, (-1, self.patch)).flatten(3))
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x[:, :, -1]))


class Recurrent(nn.Module):
    """(B, G, N, W) -> the same: a recurrent layer along N."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], width: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.cells = kind(width, width, batch_first=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        found, _ = self.cells(self.norm(x).flatten(0, 1))
        return x + self.dropout(found).reshape(x.shape)


class Causal(nn.Module):
    """(B, G, N, W) -> the same: two convolutions along N that see a patch and earlier ones, `reach` apart."""

    def __init__(self, width: int, dropout: float, reach: int):
        super().__init__()
        self.before = (KERNEL - 1) * reach
        self.norm = nn.LayerNorm(width)
        self.one = nn.Conv1d(width, width, KERNEL, dilation=reach)
        self.other = nn.Conv1d(width, width, KERNEL, dilation=reach)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        found = self.norm(x).flatten(0, 1).transpose(1, 2)
        for convolution in (self.one, self.other):
            found = self.dropout(torch.relu(convolution(functional.pad(found, (self.before, 0)))))
        return x + found.transpose(1, 2).reshape(x.shape)


LAYERS = {
    "gru": lambda width, dropout, reach: Recurrent(nn.GRU, width, dropout),
    "lstm": lambda width, dropout, reach: Recurrent(nn.LSTM, width, dropout),
    "tcn": Causal,
}
