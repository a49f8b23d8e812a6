"""A generator and a discriminator of plain convolutions for square images, after DCGAN (Radford et al. 2015,
arXiv:1511.06434) with four differences:

1. The generator enlarges by nearest neighbor and convolves, which leaves no checkerboard (Odena et al. 2016,
   doi:10.23915/distill.00003); its matrices are then ordinary convolutions.
2. The generator normalizes by groups, the discriminator not at all (as R3GAN, arXiv:2501.05441): with batch
   normalization one image would change another's loss.
3. Widths double towards the small sides, up to 4 times.
4. Sides are halved while they are even and above 4, so that 28 (14, 7) fits as well as 32 (16, 8, 4).

Letters: B images, L the latent size, C channels, S pixels a side.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

LIMITS = {"size": (4, 512), "channels": (1, 3), "width": (4, 2048), "latent": (1, 4096)}
"""What an entry of the config may be; the upper ends keep a hostile config.json from asking for all
memory."""

GROUPS = 4


def faults_of(config: dict) -> list[str]:
    """[] or what is wrong with the entries size, channels, width and latent."""
    faults = [
        f"'{name}' must be a whole number from {low} to {high}, found {config.get(name)!r}"
        for name, (low, high) in LIMITS.items()
        if type(config.get(name)) is not int or not low <= config[name] <= high
    ]
    if faults:
        return faults
    if config["channels"] == 2:
        faults.append("'channels' must be 1 or 3, found 2")
    faults += [
        f"'{name}' must be a multiple of {unit}, found {config[name]}"
        for name, unit in (("size", 4), ("width", GROUPS))
        if config[name] % unit
    ]
    return faults


def sides(size: int) -> list[int]:
    """The sides that the generator passes through, the smallest first: 28 -> [7, 14, 28]."""
    ladder = [size]
    while ladder[0] > 4 and ladder[0] % 2 == 0:
        ladder.insert(0, ladder[0] // 2)
    return ladder


def widths(size: int, width: int) -> list[int]:
    """The channels at each of `sides`: width 32 at 28 -> [128, 64, 32]."""
    return [width * min(2**step, 4) for step in reversed(range(len(sides(size))))]


class Generator(nn.Module):
    """(B, L) standard normal -> (B, C, S, S) in -1..1."""

    def __init__(self, size: int, channels: int, width: int, latent: int):
        super().__init__()
        side, wide = sides(size)[0], widths(size, width)
        self.first = (wide[0], side, side)
        self.project = nn.Linear(latent, wide[0] * side * side)
        self.normalize = nn.GroupNorm(GROUPS, wide[0])
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Upsample(scale_factor=2),
                nn.Conv2d(before, after, 3, padding=1),
                nn.GroupNorm(GROUPS, after),
                nn.SiLU(),
            )
            for before, after in pairwise(wide)
        )
        self.to_pixels = nn.Conv2d(wide[-1], channels, 3, padding=1)

    def forward(self, latent_BL: Tensor) -> Tensor:
        hidden = self.project(latent_BL).unflatten(1, self.first)
        hidden = nn.functional.silu(self.normalize(hidden))
        for stage in self.stages:
            hidden = stage(hidden)
        return torch.tanh(self.to_pixels(hidden))


class Discriminator(nn.Module):
    """(B, C, S, S) -> (B,): the higher, the more real."""

    def __init__(self, size: int, channels: int, width: int):
        super().__init__()
        side, wide = sides(size)[0], widths(size, width)[::-1]
        self.from_pixels = nn.Sequential(nn.Conv2d(channels, wide[0], 3, padding=1), nn.LeakyReLU(0.2))
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(0.2))
            for before, after in pairwise(wide)
        )
        self.judge = nn.Linear(wide[-1] * side * side, 1)

    def forward(self, image_BCSS: Tensor) -> Tensor:
        hidden = self.from_pixels(image_BCSS)
        for stage in self.stages:
            hidden = stage(hidden)
        return self.judge(hidden.flatten(1))[:, 0]


class Gan(nn.Module):
    """Both players. `config`: size, channels, width and latent, as `faults_of` accepts them."""

    def __init__(self, config: dict):
        super().__init__()
        self.config = {name: config[name] for name in LIMITS}
        size, channels, width, latent = self.config.values()
        self.generator = Generator(size, channels, width, latent)
        self.discriminator = Discriminator(size, channels, width)

    def forward(self, latent_BL: Tensor) -> Tensor:
        """What the trained model does: (B, L) -> (B, C, S, S)."""
        return self.generator(latent_BL)
