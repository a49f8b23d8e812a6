"""The peer for series: DLinear (Zeng et al. 2023, arXiv:2205.13504) on ETTh1, by a bare loop of PyTorch.

A moving average over 25 steps is the trend, the rest the season; one linear map for each, shared by all channels. The
division into 12, 4 and 4 months and the scaling by the training months are those of the paper.

    python benchmarks/sides/series_torch.py --data DATA/ett/ETTh1.csv [--past 336] [--future 96]
"""

import argparse
import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

MONTH, KERNEL, BATCH, RATE, EPOCHS, PATIENCE = 30 * 24, 25, 32, 1e-3, 20, 3
"""BATCH and the early stop are those of the paper's scripts; RATE is divided by two after each epoch there, too slow."""


class DLinear(nn.Module):
    def __init__(self, past: int, future: int):
        super().__init__()
        self.season, self.trend = nn.Linear(past, future), nn.Linear(past, future)
        for layer in (self.season, self.trend):
            nn.init.constant_(layer.weight, 1 / past)

    def forward(self, past: Tensor) -> Tensor:
        """(B, past, C) -> (B, future, C)."""
        x = past.transpose(1, 2)
        trend = functional.avg_pool1d(functional.pad(x, (KERNEL // 2, KERNEL // 2), "replicate"), KERNEL, 1)
        return (self.season(x - trend) + self.trend(trend)).transpose(1, 2)


def windows(rows: Tensor, past: int, future: int, shuffled: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of (past, future), each window once."""
    count = len(rows) - past - future + 1
    order = torch.randperm(count) if shuffled else torch.arange(count)
    for part in order.split(BATCH):
        whole = rows[part.unsqueeze(1) + torch.arange(past + future)]
        yield whole[:, :past], whole[:, past:]


@torch.no_grad()
def errors(net: nn.Module, rows: Tensor, past: int, future: int) -> tuple[float, float]:
    """Mean squared and mean absolute error over all windows."""
    sums, count = torch.zeros(2, dtype=torch.float64), 0
    for before, after in windows(rows, past, future, False):
        away = (net(before) - after).double()
        sums += torch.stack([away.square().sum(), away.abs().sum()])
        count += away.numel()
    return float(sums[0] / count), float(sums[1] / count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--past", type=int, default=336)
    parser.add_argument("--future", type=int, default=96)
    chosen = parser.parse_args()
    torch.manual_seed(0)
    began = time.perf_counter()
    rows = torch.from_numpy(pl.read_csv(chosen.data).drop("date").to_numpy()).float()
    known = rows[: 12 * MONTH]
    rows = (rows - known.mean(0)) / known.std(0, correction=0)
    past, future = chosen.past, chosen.future
    train, validation = rows[: 12 * MONTH], rows[12 * MONTH - past : 16 * MONTH]
    test = rows[16 * MONTH - past : 20 * MONTH]
    net = DLinear(past, future)
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    best, kept, worse = float("inf"), net.state_dict(), 0
    for epoch in range(EPOCHS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * 0.8**epoch
        for before, after in windows(train, past, future, True):
            optimizer.zero_grad()
            functional.mse_loss(net(before), after).backward()
            optimizer.step()
        value = errors(net, validation, past, future)[0]
        worse = 0 if value < best else worse + 1
        if value < best:
            best, kept = value, copy.deepcopy(net.state_dict())
        if worse == PATIENCE:
            break
    net.load_state_dict(kept)
    seconds = time.perf_counter() - began
    squared, absolute = errors(net, test, past, future)
    print(json.dumps({"mse": squared, "mae": absolute, "seconds": seconds}))


if __name__ == "__main__":
    main()
