"""The peer for the GAN: what PyTorch's DCGAN tutorial does, at the size of these pictures, for N seconds.

Transposed convolutions, batch normalization, binary cross entropy, Adam at 2e-4 with a first moment of 0.5, batches of
128 (Radford et al., arXiv:1511.06434). Pictures are decoded before the clock starts.

    python benchmarks/sides/generator_dcgan.py --data DATA --seconds N --classifier CLASSIFIER
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from pictures_torch import read
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from frechet import BATCH, IMAGES, distances, save_grid

from onnuri.model import open_model

LATENT, WIDTH, RECORDS = 100, 64, 128


def generator_of(channels: int, side: int) -> nn.Sequential:
    """(B, LATENT, 1, 1) -> (B, channels, side, side), by way of a quarter and a half of the side."""
    return nn.Sequential(
        nn.ConvTranspose2d(LATENT, 2 * WIDTH, side // 4, bias=False),
        nn.BatchNorm2d(2 * WIDTH),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * WIDTH, WIDTH, 4, 2, 1, bias=False),
        nn.BatchNorm2d(WIDTH),
        nn.ReLU(),
        nn.ConvTranspose2d(WIDTH, channels, 4, 2, 1, bias=False),
        nn.Tanh(),
    )


def discriminator_of(channels: int, side: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, WIDTH, 4, 2, 1, bias=False),
        nn.LeakyReLU(0.2),
        nn.Conv2d(WIDTH, 2 * WIDTH, 4, 2, 1, bias=False),
        nn.BatchNorm2d(2 * WIDTH),
        nn.LeakyReLU(0.2),
        nn.Conv2d(2 * WIDTH, 1, side // 4, bias=False),
        nn.Flatten(0),
    )


def began_small(module: nn.Module) -> None:
    """The tutorial's first weights."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1, 0.02)


def train(generator: nn.Module, discriminator: nn.Module, images: Tensor, seconds: float) -> None:
    judged = nn.BCEWithLogitsLoss()
    made_by, judged_by = (
        torch.optim.Adam(net.parameters(), 2e-4, betas=(0.5, 0.999)) for net in (generator, discriminator)
    )
    real, false = torch.ones(RECORDS), torch.zeros(RECORDS)
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        made = generator(torch.randn(RECORDS, LATENT, 1, 1))
        judged_by.zero_grad()
        records = images[torch.randint(len(images), (RECORDS,))]
        loss = judged(discriminator(records), real) + judged(discriminator(made.detach()), false)
        loss.backward()
        judged_by.step()
        made_by.zero_grad()
        judged(discriminator(made), real).backward()
        made_by.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--classifier", required=True)
    parser.add_argument("--grid", type=Path)
    chosen = parser.parse_args()
    torch.manual_seed(0)
    images = read(chosen.data, "train")[0].float() / 127.5 - 1
    generator, discriminator = (
        make(*images.shape[1:3]).apply(began_small) for make in (generator_of, discriminator_of)
    )
    train(generator, discriminator, images, chosen.seconds)
    with torch.no_grad():
        parts = [generator.eval()(torch.randn(BATCH, LATENT, 1, 1)) for _ in range(IMAGES // BATCH)]
    made = ((torch.cat(parts) + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    made = list(np.asarray(made.squeeze(-1) if made.shape[-1] == 1 else made))
    if chosen.grid:
        save_grid(made, chosen.grid)
    print(json.dumps({**distances(open_model(chosen.classifier), str(chosen.data), made), "seconds": chosen.seconds}))


if __name__ == "__main__":
    main()
