"""The peer for pictures: a residual net of about the same size, trained by a bare loop of PyTorch for N seconds.

What a good tutorial does: batch normalization, shifts and mirroring, SGD with momentum under one cycle, bf16 and
channels last. Pictures are decoded once, before the clock starts; the test is not timed either.

    python benchmarks/sides/pictures_torch.py --data DATA --seconds N [--no-mirror]
"""

import argparse
import io
import json
import time
from pathlib import Path

import numpy as np
import polars as pl
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

BATCH, RATE, SHIFT = 128, 0.2, 2


def read(data: Path, split: str) -> tuple[Tensor, list[str]]:
    """Pictures (N, C, H, W) uint8 and their labels."""
    table = pl.read_parquet(data / f"{split}.parquet")
    images = [np.asarray(Image.open(io.BytesIO(content))) for content in table["image"].to_list()]
    stacked = torch.from_numpy(np.stack(images))
    stacked = stacked.unsqueeze(-1) if stacked.dim() == 3 else stacked
    return stacked.permute(0, 3, 1, 2), [str(label) for label in table["label"].to_list()]


class Block(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(),
            nn.Conv2d(outside, outside, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outside),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.branch(x) + self.shortcut(x))


def net_of(channels: int, labels: int) -> nn.Module:
    """1.2 million weights."""
    widths = (32, 64, 128, 256)
    blocks = [Block(max(width // 2, 32), width, 1 if width == 32 else 2) for width in widths]
    stem = [nn.Conv2d(channels, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, labels))


def disturbed(images: Tensor, mirror: bool) -> Tensor:
    """Each picture shifted, half of them mirrored."""
    size, (height, width) = len(images), images.shape[2:]
    down, right = torch.randint(-SHIFT, SHIFT + 1, (2, size, 1))
    rows, columns = torch.arange(height) + down + SHIFT, torch.arange(width) + right + SHIFT
    if mirror:
        columns = torch.where(torch.rand(size, 1) < 0.5, width - 1 + 2 * SHIFT - columns, columns)
    padded = functional.pad(images, [SHIFT] * 4)
    return padded[torch.arange(size)[:, None, None], :, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def train(net: nn.Module, images: Tensor, labels: Tensor, seconds: float, mirror: bool) -> None:
    """One cycle of the learning rate over the seconds."""
    optimizer = torch.optim.SGD(net.parameters(), RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    began, order = time.perf_counter(), torch.empty(0, dtype=torch.int64)
    while (share := (time.perf_counter() - began) / seconds) < 1:
        order = order if len(order) >= BATCH else torch.randperm(len(images))
        rows, order = order[:BATCH], order[BATCH:]
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(share / 0.2, (1 - share) / 0.8)
        batch = disturbed(images[rows], mirror).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            loss = functional.cross_entropy(net(batch).float(), labels[rows])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--no-mirror", action="store_true", help="for digits, which a mirror changes")
    chosen = parser.parse_args()
    torch.manual_seed(0)
    (images, words), (test, truth) = (read(chosen.data, split) for split in ("train", "test"))
    names = sorted(set(words))
    labels, answers = (torch.tensor([names.index(word) for word in part]) for part in (words, truth))
    some = images[::20].float()
    mean, deviation = some.mean((0, 2, 3), keepdim=True), some.std((0, 2, 3), keepdim=True)
    images, test = ((part.float() - mean) / deviation for part in (images, test))
    net = net_of(images.shape[1], len(names)).to(memory_format=torch.channels_last)
    train(net, images, labels, chosen.seconds, not chosen.no_mirror)
    net.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        guessed = torch.cat([net(part).argmax(1) for part in test.split(500)])
    print(json.dumps({"accuracy": (guessed == answers).double().mean().item(), "seconds": chosen.seconds}))


if __name__ == "__main__":
    main()
