"""Weight norms folded into plain parameters and taken apart again, against torch's own."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from onnuri.weights.matrices import weights
from onnuri.weights.weightnorm import FOLDED, fold_norms, unfolded


def normed(axis):
    """A net with two weight norms whose lengths are not those of their directions, and a plain layer."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(4, 6, 3, groups=2), nn.Conv1d(6, 6, 1), nn.Linear(8, 5))
    for layer in (net[0], net[2]):
        parametrizations.weight_norm(layer, "weight", axis if axis is None or axis < layer.weight.dim() else 1)
        layer.parametrizations.weight.original0.data.mul_(1.5)
    return net


@pytest.mark.parametrize("axis", [0, 2, None])
def test_folded_and_taken_apart(axis):
    """Values are the library's but for rounding, and bitwise the same however often they go to the disk and back."""
    net = normed(axis)
    twin, names, x = fold_norms(deepcopy(net)), net.state_dict().keys(), torch.randn(2, 4, 10)
    assert type(twin[0]) is nn.Conv1d and [weight.role for weight in weights(twin)] == ["conv", "conv", "linear"]
    assert torch.allclose(twin(x), net(x), atol=1e-6)
    assert unfolded(twin).keys() == names
    again = normed(axis)
    again.load_state_dict(unfolded(twin))
    assert torch.allclose(again(x), net(x), atol=1e-6)
    assert all(torch.equal(value, fold_norms(again).state_dict()[name]) for name, value in twin.state_dict().items())


def test_the_original_of_a_copy_stays_as_it_was():
    net, x = normed(0), torch.randn(2, 4, 10)
    before, kept = net(x), parametrize.is_parametrized(net[0])
    fold_norms(deepcopy(net))
    assert kept and parametrize.is_parametrized(net[0]) and torch.equal(net(x), before)


def test_zeros_survive():
    """A pruned slice has no direction: torch's quotient would be no number."""
    net = fold_norms(normed(2))
    with torch.no_grad():
        net[0].weight[..., 1] = 0
        net[0].weight[2, 0, 0] = 0
    again = normed(2)
    again.load_state_dict(unfolded(net))
    assert torch.isfinite(again[0].weight).all()
    assert torch.equal(again[0].weight == 0, net[0].weight == 0)
    assert torch.equal(fold_norms(again)[0].weight, net[0].weight)


def test_other_nets_are_left_alone():
    net = nn.Sequential(nn.Linear(3, 3), parametrizations.orthogonal(nn.Linear(3, 3)))
    state = net.state_dict()
    assert parametrize.is_parametrized(fold_norms(net)[1]) and FOLDED not in vars(net[0])
    assert unfolded(net).keys() == state.keys() and all(unfolded(net)[k].equal(v) for k, v in state.items())
