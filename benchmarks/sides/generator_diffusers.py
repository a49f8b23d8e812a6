"""The peer for generators: diffusers' own way to train a small DDPM (its unconditional tutorial), for N seconds.

The UNet and the noise schedule are those that `onnuri train --family diffusion` begins with; both
sample by DDIM in 50 steps. The loop is the tutorial's: AdamW at 1e-4 under a cosine with warm-up, batches of 16, noise
predicted in fp32 (or bf16 with --bf16, which the tutorial leaves to accelerate).

    python benchmarks/sides/generator_diffusers.py --data DATA --seconds N --classifier CLASSIFIER
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from pictures_torch import read
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))
from frechet import BATCH, IMAGES, distances, save_grid

from onnuri.model import open_model

RATE, RECORDS, STEPS = 1e-4, 16, 50


def net_of(images: Tensor) -> UNet2DModel:
    channels, side = images.shape[1], images.shape[2]
    return UNet2DModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        norm_num_groups=8,
        attention_head_dim=32,
    )


def train(net: UNet2DModel, images: Tensor, schedule: DDPMScheduler, seconds: float, bf16: bool) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), RATE)
    began = time.perf_counter()
    while (share := (time.perf_counter() - began) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(share / 0.05, 0.5 * (1 + np.cos(np.pi * share)))
        clean = images[torch.randint(len(images), (RECORDS,))]
        noise, steps = torch.randn_like(clean), torch.randint(schedule.config["num_train_timesteps"], (RECORDS,))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            found = net(schedule.add_noise(clean, noise, steps), steps, return_dict=False)[0]  # type: ignore[arg-type]
        functional.mse_loss(found.float(), noise).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def sampled(net: UNet2DModel, shape: torch.Size, schedule: DDPMScheduler) -> np.ndarray:
    """IMAGES pictures (N, H, W, C) uint8."""
    sampler = DDIMScheduler.from_config(schedule.config)
    parts = []
    for _ in range(IMAGES // BATCH):
        sampler.set_timesteps(STEPS)
        noisy = torch.randn(BATCH, *shape)
        for step in sampler.timesteps:
            noisy = sampler.step(net(noisy, step, return_dict=False)[0], int(step), noisy).prev_sample  # type: ignore
        parts.append(noisy)
    return ((torch.cat(parts) + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--classifier", required=True)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--grid", type=Path)
    chosen = parser.parse_args()
    torch.manual_seed(0)
    images = read(chosen.data, "train")[0].float() / 127.5 - 1
    net, schedule = net_of(images), DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2")
    train(net, images, schedule, chosen.seconds, chosen.bf16)
    made = sampled(net.eval(), images.shape[1:], schedule)
    made = made.squeeze(-1) if made.shape[-1] == 1 else made
    if chosen.grid:
        save_grid(list(made), chosen.grid)
    found = distances(open_model(chosen.classifier), str(chosen.data), list(made))
    print(json.dumps({**found, "seconds": chosen.seconds}))


if __name__ == "__main__":
    main()
