"""A net of leaky integrate-and-fire neurons that answers with one label.

Neftci, Mostafa and Zenke, Surrogate Gradient Learning in Spiking Neural Networks (arXiv:1901.09948), differing in:
1. the pixels are a current that flows unchanged at every step, no random spikes: the same picture, the same answer;
2. a spike takes the threshold from the potential, and no synapse has a time constant of its own;
3. layers add their spikes to those that they were given (Fang et al., SEW ResNet, arXiv:2102.04159), so that deep nets
   learn and any layer can go;
4. the read-out is the mean current of the head over all steps, which is its membrane without leak.
Letters: B pictures, S steps of time, P pixels of all channels, W width, D labels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

THRESHOLD = 1.0
STEEPNESS = 5.0  # of the surrogate: at a potential 0.2 from the threshold a quarter of the gradient is left
GAIN = 2.0  # of new weights: with torch's own most neurons would never reach the threshold


@dataclass(frozen=True)
class Design:
    """The sizes of a SpikingNet; `leak` is the share of a potential that is left after a step."""

    pixels: int
    width: int
    layers: int
    steps: int
    leak: float
    labels: int


def spike(distance: Tensor) -> Tensor:
    """1 where a potential is above the threshold, else 0. The gradient is that of the fast sigmoid x / (1 + k |x|),
    whose value adds and takes away itself: plain arithmetic, which every exporter can write down."""
    soft = distance / (1 + STEEPNESS * distance.abs())
    return (distance > 0).to(distance.dtype) + (soft - soft.detach())


class Neurons(nn.Module):
    """Currents (B, S, W) -> spikes (B, S, W)."""

    def __init__(self, leak: float):
        super().__init__()
        self.leak = leak

    def forward(self, current: Tensor) -> Tensor:
        potential, spikes = torch.zeros_like(current[:, 0]), []
        for now in current.unbind(1):
            potential = self.leak * potential + now
            spikes.append(spike(potential - THRESHOLD))
            potential = potential - THRESHOLD * spikes[-1]
        return torch.stack(spikes, 1)


class Layer(nn.Module):
    """Spikes (B, S, W) -> counts of spikes (B, S, W): those that came in, and its own."""

    def __init__(self, width: int, leak: float):
        super().__init__()
        self.synapses = nn.Linear(width, width)
        self.neurons = Neurons(leak)

    def forward(self, spikes: Tensor) -> Tensor:
        return spikes + self.neurons(self.synapses(spikes))


class SpikingNet(nn.Module):
    """Pixels (B, P) in -1..1 -> logits (B, D)."""

    def __init__(self, design: Design):
        super().__init__()
        self.design = design
        self.synapses = nn.Linear(design.pixels, design.width)
        self.neurons = Neurons(design.leak)
        self.layers = nn.ModuleList(Layer(design.width, design.leak) for _ in range(design.layers))
        self.head = nn.Linear(design.width, design.labels)
        with torch.no_grad():
            for synapses in (self.synapses, *(layer.synapses for layer in self.layers)):
                synapses.weight.mul_(GAIN)

    def forward(self, pixel_values: Tensor) -> Tensor:
        current = self.synapses(pixel_values)
        spikes = self.neurons(current.unsqueeze(1).expand(-1, self.design.steps, -1))
        for layer in self.layers:
            spikes = layer(spikes)
        return self.head(spikes.mean(1))
