"""A residual convolution net for small pictures (8 to about 64 pixels): ConvNet, and its sizes: Design.

He et al., Deep Residual Learning for Image Recognition (arXiv:1512.03385), arranged as nets that learn CIFAR fast are
(Page, How to Train Your ResNet, 2018; Jordan, arXiv:2404.00498): each stage halves the sides, then adds. Unlike theirs:
1. no batch normalization, so that no picture changes another's result: each filter is standardized (Qiao et al.,
   arXiv:1903.10520) and each picture normalized as one group (Wu & He, arXiv:1803.08494). CIFAR-10 after about one
   epoch: 0.67, with group normalization alone 0.61, with batch normalization 0.70;
2. a weight that is exactly zero stays zero when its filter is standardized: what is pruned is pruned;
3. the stem begins as filters that whiten the patches of the records, and learns on from there;
4. a stage halves the sides by the largest of four numbers behind its first convolution, not by a stride: it costs twice the
   time and is worth more than twice the passes over the data (CIFAR-10, 2 passes: 0.81, 3 passes with strides: 0.80);
   a block adds one layer, not two, which is not (after 110 seconds on one core: 0.72 against 0.67);
5. mean and maximum are pooled, and normalized as one layer before the head;
6. the number of stages follows from the picture's size: they halve it while more than 4 pixels are left, two to four.
In training pictures may be mirrored and shifted by numbers that come with each (`moved`).
Letters: B pictures, C channels, H height, W width.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

NARROWEST = 2  # the stem begins with pairs of filters
MIN_STAGES, MAX_STAGES = 2, 4
STEM = 3  # pixels a side of the stem's filters
FAINT = 1e-2  # variance added to that of the patches: what is fainter is noise, and is not made louder
LIMITS = {"height": (1, 1024), "width": (NARROWEST, 1024), "depth": (1, 64), "num_labels": (2, 100_000)}


@dataclass(frozen=True)
class Design:
    """The sizes of a ConvNet. `image_size`: (height, width); `width`: channels of the stem, each stage doubles them;
    `depth`: residual blocks in each stage. `smoothing`: the share of each label that is given to all in training."""

    image_size: tuple[int, int]
    channels: int
    width: int
    depth: int
    num_labels: int
    smoothing: float = 0.0

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
    """What is wrong with the sizes: wrong type, out of range."""
    numbers = {name: values[name] for name in ("width", "depth", "num_labels")}
    faults = [
        f"{name} must be a whole number from {low} to {high}, found {number!r}"
        for name, number in numbers.items()
        for low, high in [LIMITS[name]]
        if type(number) is not int or not low <= number <= high
    ]
    low, high = LIMITS["height"]
    sides = values["image_size"]
    if len(sides) != 2 or any(type(side) is not int or not low <= side <= high for side in sides):
        faults.append(f"image_size must be one or two whole numbers from {low} to {high}, found {sides}")
    if not isinstance(values["smoothing"], (int, float)) or not 0 <= values["smoothing"] < 1:
        faults.append(f"smoothing must be from 0 to below 1, found {values['smoothing']!r}")
    if values["channels"] not in (1, 3):
        faults.append(f"channels must be 1 (grey) or 3 (color), found {values['channels']!r}")
    return faults


def stage_widths(design: Design) -> list[int]:
    """The channels of each stage: 8 and 16 pixels give two stages, 28 and 32 three, more than 32 four."""
    stages, side = 0, min(design.image_size)
    while stages < MIN_STAGES or (side > 4 and stages < MAX_STAGES):
        stages, side = stages + 1, -(-side // 2)
    return [design.width * 2 ** (stage + 1) for stage in range(stages)]


# --------------------------------------------------------------------------------------------------------------- net


class StandardConv(nn.Conv2d):
    """A convolution of 3 x 3 whose filters are used with mean 0 and deviation 1, zeros excepted."""

    def __init__(self, inside: int, outside: int):
        super().__init__(inside, outside, 3, padding=1, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        return functional.conv2d(input, standardized(self.weight), None, padding=self.padding)


def standardized(filters: Tensor) -> Tensor:
    """Each of the filters (outside, inside, 3, 3) with mean 0 and deviation 1, its zeros as they are."""
    away = filters - filters.mean((1, 2, 3), keepdim=True)
    spread = away.square().mean((1, 2, 3), keepdim=True)
    return away * (spread + 1e-5).rsqrt() * (filters != 0)


class Layer(nn.Module):
    """Convolution, `pool` or nothing, normalization of each picture, ReLU."""

    def __init__(self, inside: int, outside: int, pool: nn.Module | None = None):
        super().__init__()
        self.conv = StandardConv(inside, outside)
        self.pool = pool or nn.Identity()
        self.norm = nn.GroupNorm(1, outside)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.pool(self.conv(x))))


class Block(nn.Module):
    """A layer beside a shortcut; the first block of a stage halves the sides before."""

    def __init__(self, inside: int, outside: int):
        super().__init__()
        self.halve = nn.Identity() if inside == outside else Layer(inside, outside, nn.MaxPool2d(2, ceil_mode=True))
        self.layer = Layer(outside, outside)

    def forward(self, x: Tensor) -> Tensor:
        x = self.halve(x)
        return x + self.layer(x)


class ConvNet(nn.Module):
    """Pictures (B, channels, H, W), normalized, to logits (B, num_labels)."""

    def __init__(self, design: Design):
        super().__init__()
        self.design = design
        widths = stage_widths(design)
        self.stem = nn.Conv2d(design.channels, design.width, STEM, padding=STEM // 2, bias=False)
        self.norm = nn.GroupNorm(1, design.width)
        self.blocks = nn.ModuleList(
            Block(width if place else width // 2, width) for width in widths for place in range(design.depth)
        )
        self.pooled_norm = nn.LayerNorm(2 * widths[-1])
        self.head = nn.Linear(2 * widths[-1], design.num_labels)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(pixel_values)))
        for block in self.blocks:
            x = block(x)
        pooled = torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)
        return self.head(self.pooled_norm(pooled))


def whiten(net: ConvNet, pixel_values: Tensor) -> None:
    """Begin the stem with the main directions of the pictures' patches, each scaled to variance 1, with both signs, as
    many as there is room for; what room is left keeps its random filters."""
    patches = functional.unfold(pixel_values, STEM, padding=STEM // 2).transpose(1, 2).flatten(0, 1).double()
    variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
    main = (directions / (variances + FAINT).sqrt()).T.flip(0)[: net.design.width // 2]
    with torch.no_grad():
        net.stem.weight[: 2 * len(main)] = torch.cat([main, -main]).reshape(-1, *net.stem.weight.shape[1:])


# ------------------------------------------------------------------------------------------------------- disturbance


def moved(pixel_values: Tensor, moves: Tensor) -> Tensor:
    """Pictures (B, C, H, W) mirrored, then shifted, the mean color where nothing was. `moves` (B, 3) int64: pixels
    down, pixels right, and 1 for those that are mirrored."""
    height, width = pixel_values.shape[2:]
    rows = torch.arange(height, device=moves.device) - moves[:, :1]
    columns = torch.arange(width, device=moves.device) - moves[:, 1:2]
    columns = torch.where(moves[:, 2:] == 1, width - 1 - columns, columns)
    # a border of one pixel stands for all outside
    rows, columns = rows.clamp(-1, height) + 1, columns.clamp(-1, width) + 1
    bordered = functional.pad(pixel_values, (1, 1, 1, 1)).permute(0, 2, 3, 1)
    picture = torch.arange(len(moves), device=moves.device)[:, None, None]
    return bordered[picture, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)
