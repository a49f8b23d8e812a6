"""A small net for short sounds (words, calls, alarms): a log-mel spectrum and residual convolutions over it.

The spectrum is that of Davis & Mermelstein 1980 on the mel scale of Slaney's Auditory Toolbox, computed by the net itself
from samples of one channel. The convolutions are those of He et al. (arXiv:1512.03385) with the activation first
(arXiv:1603.05027), differing in:
1. group normalization (Wu & He, arXiv:1803.08494) over the frames that a sound has and none of its padding, and padding
   is zero before every convolution: no sound changes another's result, whatever it is padded to;
2. mean and maximum over time are pooled for each band of frequencies.
In training the spectrum is disturbed by numbers that come with each sound: stretched in time and in frequency (Jaitly &
Hinton 2013), tilted, drowned in noise, and masked (SpecAugment, arXiv:1904.08779).
Letters: B sounds, S samples, T frames, M mel bands, C channels, F bands of frequencies that are left.
"""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

GROUP = 8
WINDOW, HOP = 0.025, 0.010  # seconds
FLOOR = 1e-3  # of the mean power: what is softer counts as silence
NUM_DRAWS = 16
FASTEST, SLOWEST = 0.8, 1.25  # how many times as long a disturbed sound may last
LOWEST, HIGHEST = 0.85, 1.2  # times which band is heard in the place of each: a longer or a shorter throat
TILT = 2.0  # nepers of power from the lowest to the highest band: another room or microphone
NOISE = (-9.0, 0.0)  # log power of the noise in each band; a sound has 0 in the mean
MASKED_BANDS, MASKED_TIME = 0.2, 0.2  # the largest share of bands and of frames that a mask hides; two of each
LIMITS = {"rate": (1000, 192_000), "mels": (8, 256), "width": (GROUP, 1024), "num_labels": (2, 100_000)}
STAGES = 3


@dataclass(frozen=True)
class Design:
    """The sizes of a SpeechNet. `rate`: samples a second; `depths`: residual blocks of each stage."""

    rate: int
    mels: int
    width: int
    depths: tuple[int, ...]
    num_labels: int

    def as_config(self) -> dict[str, Any]:
        """For config.json; `design_of` undoes it."""
        return {**asdict(self), "depths": list(self.depths)}

    @property
    def window(self) -> int:
        """Samples of a frame: a sound must not be shorter."""
        return round(WINDOW * self.rate)


def design_of(config: dict[str, Any]) -> Design:
    """A checked Design from a config; ValueError names every fault."""
    values = {field.name: config[field.name] for field in fields(Design)}
    depths = values["depths"]
    faults = [
        f"{name} must be a whole number from {low} to {high}, found {values[name]!r}"
        for name, (low, high) in LIMITS.items()
        if type(values[name]) is not int or not low <= values[name] <= high
    ]
    if not faults and values["width"] % GROUP:
        faults.append(f"width must be a multiple of {GROUP}, found {values['width']}")
    if (
        not isinstance(depths, (list, tuple))
        or len(depths) != STAGES
        or any(type(depth) is not int or not 0 <= depth <= 64 for depth in depths)
    ):
        faults.append(f"depths must be {STAGES} whole numbers from 0 to 64, found {depths!r}")
    if faults:
        raise ValueError("; ".join(faults))
    return Design(**{**values, "depths": tuple(depths)})


# ---------------------------------------------------------------------------------------------------------- spectrum


class LogMel(nn.Module):
    """Samples (B, S) and how many of them each sound has (B,) to log power (B, T, M), and the frames of each sound (B,).

    A frame lies wholly within its sound, the first one always counts. The sound's mean power is 1.
    """

    waves: Tensor
    bands: Tensor

    def __init__(self, rate: int, mels: int):
        super().__init__()
        self.window, self.hop = round(WINDOW * rate), max(1, round(HOP * rate))
        size = 2 ** math.ceil(math.log2(self.window))
        with torch.device("cpu"):  # computed, also where the rest is made without storage
            self.register_buffer("waves", fourier(self.window, size), persistent=False)
            self.register_buffer("bands", mel_bands(rate, size, mels), persistent=False)

    def forward(self, samples: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        power = samples.square().sum(1) / lengths
        samples = samples / (power.sqrt() + 1e-5).unsqueeze(1)
        parts = functional.conv1d(samples.unsqueeze(1), self.waves, stride=self.hop)  # (B, 2 frequencies, T)
        real, imaginary = parts.chunk(2, 1)
        mel = self.bands @ (real.square() + imaginary.square())
        frames = (lengths - self.window).clamp_min(0) // self.hop + 1
        return (mel + FLOOR).log().transpose(1, 2), frames


def fourier(window: int, size: int) -> Tensor:
    """(2 * frequencies, 1, window): cosines, then sines, under a Hann window of power 1; frequencies 0..size / 2."""
    time = torch.arange(window, dtype=torch.float64)
    angle = 2 * math.pi / size * torch.arange(size // 2 + 1, dtype=torch.float64).unsqueeze(1) * time
    hann = torch.hann_window(window, dtype=torch.float64)
    waves = torch.cat([angle.cos(), angle.sin()]) * (hann / hann.square().sum().sqrt())
    return waves.float().unsqueeze(1)


def mel_bands(rate: int, size: int, mels: int) -> Tensor:
    """(mels, frequencies): triangles evenly spaced on the mel scale from 0 to half the rate, at least as wide as one
    frequency on each side; each row sums to 1."""
    step = rate / size
    highest = 2595 * math.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, highest, mels + 2, dtype=torch.float64) / 2595) - 1)
    low, middle, high = (edges[i : i + mels].unsqueeze(1) for i in range(3))
    frequency = step * torch.arange(size // 2 + 1, dtype=torch.float64)
    rise = (frequency - middle) / (middle - low).clamp_min(step) + 1
    fall = (middle - frequency) / (high - middle).clamp_min(step) + 1
    triangles = torch.minimum(rise, fall).clamp_min(0)
    return (triangles / triangles.sum(1, keepdim=True)).float()


# ------------------------------------------------------------------------------------------------------- disturbance


def disturbed(mel: Tensor, frames: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Log power (B, T, M) as another voice in another room would have given it, and its frames (B,). `draws`: (B,
    NUM_DRAWS) uniform in 0..1, which alone decide."""
    u = draws.to(mel.dtype).unbind(1)
    band = torch.arange(mel.shape[2], device=mel.device, dtype=mel.dtype)
    time = torch.arange(math.ceil(mel.shape[1] * SLOWEST), device=mel.device, dtype=mel.dtype)
    pace = FASTEST * (SLOWEST / FASTEST) ** u[0]
    warp = LOWEST * (HIGHEST / LOWEST) ** u[1]
    mel = interpolate(mel, torch.minimum(time / pace.unsqueeze(1), frames.unsqueeze(1) - 1), 1)
    mel = interpolate(mel, (band * warp.unsqueeze(1)).clamp_max(len(band) - 1), 2)
    frames = (frames * pace).round().clamp_min(1)
    place = band / len(band) - 0.5
    tilt = (
        TILT * (2 * u[2] - 1).unsqueeze(1) * place
        + TILT / 2 * (2 * u[3] - 1).unsqueeze(1) * (2 * math.pi * (place + u[4].unsqueeze(1))).sin()
    )
    noise = (NOISE[0] + (NOISE[1] - NOISE[0]) * u[5]).unsqueeze(1) + TILT * (u[6].unsqueeze(1) - 0.5) * place
    mel = torch.logaddexp(mel + tilt.unsqueeze(1), noise.unsqueeze(1))
    soft = math.log(FLOOR)
    for first, width in ((u[7], u[8]), (u[9], u[10])):
        hidden = between(band, first * len(band), MASKED_BANDS * width * len(band))
        mel = mel.masked_fill(hidden.unsqueeze(1), soft)
    for first, width in ((u[11], u[12]), (u[13], u[14])):
        hidden = between(time, first * frames, MASKED_TIME * width * frames)
        mel = mel.masked_fill(hidden.unsqueeze(2), soft)
    return mel, frames.long()


def between(places: Tensor, first: Tensor, width: Tensor) -> Tensor:
    """(B, places) bool: which lie within `width` behind `first`."""
    away = places - first.unsqueeze(1)
    return (away >= 0) & (away < width.unsqueeze(1))


def interpolate(values: Tensor, places: Tensor, axis: int) -> Tensor:
    """`values` (B, T, M) read at fractional `places` (B, new) along `axis`, linearly."""
    places = places.unsqueeze(3 - axis)
    places = places.expand([-1 if d == axis else values.shape[d] for d in range(3)])
    low = places.floor().long()
    high = (low + 1).clamp_max(values.shape[axis] - 1)
    part = places - low
    return values.gather(axis, low) * (1 - part) + values.gather(axis, high) * part


# --------------------------------------------------------------------------------------------------------------- net


class Norm(nn.Module):
    """Group normalization of (B, C, F, T) over the frames of `mask` (B, 1, 1, T) alone; padding comes out as zero."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x.float() * mask
        groups = x.unflatten(1, (-1, GROUP))
        count = mask.sum((1, 2, 3)).reshape(-1, 1, 1) * (GROUP * x.shape[2])
        mean = groups.sum((2, 3, 4)).unsqueeze(2) / count
        spread = groups.square().sum((2, 3, 4)).unsqueeze(2) / count - mean.square()
        scale = self.weight.reshape(-1, GROUP) * (spread.clamp_min(0) + 1e-5).rsqrt()
        shift = self.bias.reshape(-1, GROUP) - mean * scale
        return (x * scale.flatten(1)[:, :, None, None] + shift.flatten(1)[:, :, None, None]) * mask


class Block(nn.Module):
    """Two convolutions whose sum with what came in goes out; shape and padding stay."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1, self.norm2 = Norm(channels), Norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        branch = self.conv1(torch.relu(self.norm1(x, mask)))
        return x + self.conv2(torch.relu(self.norm2(branch, mask))) * mask


class SpeechNet(nn.Module):
    """Samples (B, S), zero behind each sound's own, and lengths (B,) int64, to logits (B, num_labels)."""

    def __init__(self, design: Design):
        super().__init__()
        self.design = design
        widths = [design.width * 2**stage for stage in range(STAGES)]
        self.spectrum = LogMel(design.rate, design.mels)
        self.downs = nn.ModuleList(
            nn.Conv2d(inside, outside, 3, stride=2, padding=1, bias=False)
            for inside, outside in zip([1, *widths], widths)
        )
        self.stages = nn.ModuleList(
            nn.ModuleList(Block(width) for _ in range(depth)) for width, depth in zip(widths, design.depths)
        )
        self.norm = Norm(widths[-1])
        bands = -(-design.mels // 2**STAGES)
        self.pooled_norm = nn.LayerNorm(2 * widths[-1] * bands)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(2 * widths[-1] * bands, design.num_labels)

    def forward(self, samples: Tensor, lengths: Tensor, draws: Tensor | None = None) -> Tensor:
        """`draws` (B, NUM_DRAWS): what disturbs the spectrum, None to leave it as it is."""
        mel, frames = self.spectrum(samples, lengths)
        if draws is not None:
            mel, frames = disturbed(mel, frames, draws)
        mask = mask_of(frames, mel.shape[1])
        x = (mel / 3).transpose(1, 2).unsqueeze(1) * mask
        for down, blocks in zip(self.downs, self.stages):
            frames = (frames + 1) // 2
            x = down(x)
            mask = mask_of(frames, x.shape[3])
            x = x * mask
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, mask)
        x = torch.relu(self.norm(x, mask))
        pooled = torch.cat([x.sum(3) / mask.sum(3), x.amax(3)], 1)  # nothing is below the zeros of padding
        return self.head(self.drop(self.pooled_norm(pooled.flatten(1))))


def mask_of(frames: Tensor, length: int) -> Tensor:
    """(B, 1, 1, length) float: 1 for the frames that a sound has, 0 for padding."""
    inside = torch.arange(length, device=frames.device) < frames.unsqueeze(1)
    return inside.float()[:, None, None]
