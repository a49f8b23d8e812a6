"""The peer for short texts with a net: hashed n-grams of characters in an embedding bag, by a bare loop of PyTorch.

As fastText does it (arXiv:1607.01759): every n-gram has a row by its hash, rare and unknown ones too, which is why the table
is large. Adam updates only the rows that a batch has met.

    python benchmarks/sides/reviews_torch.py --data DATA [--longest 6] [--rows 22] [--width 32] [--epochs 3]
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from reviews_sklearn import read
from torch import Tensor, nn
from torch.nn import functional

BATCH, RATE, MOST = 256, 2e-3, 256
STEP, MIX = np.uint64(0x100000001B3), np.uint64(0x9E3779B97F4A7C15)


def rows_of(text: str, longest: int, bits: int) -> np.ndarray:
    """The rows of the n-grams of 1 to `longest` characters."""
    points = np.frombuffer(f" {text[:MOST]} ".encode("utf-32-le"), np.uint32).astype(np.uint64)
    sums, found = np.zeros(len(points), np.uint64), []
    for n in range(1, min(longest, len(points)) + 1):
        sums = sums[: len(points) - n + 1] * STEP + points[n - 1 :]
        found.append(((sums + np.uint64(n)) * MIX) >> np.uint64(64 - bits))
    return np.concatenate(found).astype(np.int64)


class Bag(nn.Module):
    def __init__(self, bits: int, width: int):
        super().__init__()
        self.table = nn.EmbeddingBag(2**bits, width, mode="mean", sparse=True)
        nn.init.normal_(self.table.weight, std=0.1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(width, 2)

    def forward(self, texts: Sequence[np.ndarray]) -> Tensor:
        starts = np.cumsum([0, *(len(rows) for rows in texts[:-1])])
        bags = self.table(torch.from_numpy(np.concatenate(texts)), torch.from_numpy(starts))
        return self.head(self.drop(bags))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--longest", type=int, default=6)
    parser.add_argument("--rows", type=int, default=22, help="of the table, as a power of two")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=3)
    chosen = parser.parse_args()
    torch.manual_seed(0)
    began = time.perf_counter()
    texts, labels = read(chosen.data, "train")
    train, truth = [rows_of(text, chosen.longest, chosen.rows) for text in texts], torch.tensor(labels)
    net = Bag(chosen.rows, chosen.width)
    optimizers = [
        torch.optim.SparseAdam(net.table.parameters(), lr=RATE),
        torch.optim.Adam(net.head.parameters(), lr=RATE),
    ]
    for _ in range(chosen.epochs):
        for part in torch.randperm(len(train)).split(BATCH):
            functional.cross_entropy(net([train[i] for i in part.tolist()]), truth[part]).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    seconds = time.perf_counter() - began
    net.eval()
    texts, labels = read(chosen.data, "test")
    asked = [rows_of(text, chosen.longest, chosen.rows) for text in texts]
    with torch.no_grad():
        found = torch.cat([net(asked[start : start + BATCH]).argmax(1) for start in range(0, len(asked), BATCH)])
    accuracy = float((found == torch.tensor(labels)).double().mean())
    size = sum(p.numel() * p.element_size() for p in net.parameters()) / 1e6
    print(json.dumps({"accuracy": accuracy, "seconds": seconds, "megabytes": size}))


if __name__ == "__main__":
    main()
