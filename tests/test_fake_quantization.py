"""Rounding while a net is trained: what it computes is what packing gives, its gradient is the straight-through one."""

import copy

import pytest
import torch

from onnuri import registry
from onnuri.errors import BadSettings, Refusal
from onnuri.model import Model, tensor_digest
from onnuri.operation import Quiet
from onnuri.operations import train
from onnuri.operations.quantize import Settings, apply
from onnuri.sources import open_data
from onnuri.weights.attach import is_attached, pack, packed_weights
from onnuri.weights.fake_quantization import ROLES, rounding
from onnuri.weights.matrices import weights

FAMILIES = [name for name in registry.entries("families") if name != "forest"]


def started(name: str):
    data, family = open_data(f"toy:{name}"), registry.family(name)
    return Model(family, *family.start(family.tiny(), data.records, torch.Generator().manual_seed(0))), data


@pytest.mark.parametrize("scheme", ["int8", "int4", "fp8-e4m3"])
@pytest.mark.parametrize("name", FAMILIES)
def test_inside_the_net_computes_as_the_packed_one_and_is_whole_again_after(name, scheme):
    model, data = started(name)
    batch = model.collate(data.records[:4].list())
    digest = tensor_digest(model.net)
    if all(weight.matrix.shape[2] % 32 for weight in weights(model.net, *ROLES)) and scheme == "int4":
        with pytest.raises(BadSettings, match="no matrix"), rounding(model.net, scheme):
            pass
        return
    with rounding(model.net, scheme):
        rounded = model.outputs(batch)[0]
        assert is_attached(model.net)
    assert tensor_digest(model.net) == digest and not is_attached(model.net)
    packed = apply(Settings(scheme=scheme), Quiet(), model, data).model
    torch.testing.assert_close(rounded, packed.outputs(batch)[0], rtol=1e-4, atol=1e-4)


def test_the_gradient_is_that_at_the_rounded_numbers():
    """A net that holds the rounded numbers themselves has the same gradient."""
    torch.manual_seed(0)
    net, x = torch.nn.Sequential(torch.nn.Linear(32, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)), torch.randn(5, 32)
    other = copy.deepcopy(net)
    for weight in weights(other):
        pack(weight, "int8")
    for module, (_, base) in zip((net[0], net[2]), packed_weights(other).values()):
        module.rounded = base().detach().requires_grad_()
    by_hand = torch.nn.functional.linear(x, net[0].rounded, net[0].bias).relu()
    torch.nn.functional.linear(by_hand, net[2].rounded, net[2].bias).square().sum().backward()
    with rounding(net, "int8"):
        net(x).square().sum().backward()
    for module in (net[0], net[2]):
        torch.testing.assert_close(module.weight.grad, module.rounded.grad, rtol=1e-5, atol=1e-6)


def test_after_such_a_training_packing_costs_less():
    data = open_data("builtin:digits")
    family, costs = registry.family("image_classifier"), {}
    net, assets = family.start(family.tiny(), data.split("train"), torch.Generator().manual_seed(0))
    first = train.apply(train.Settings(steps=60, batch_size=32), Quiet(), data, Model(family, net, assets)).model

    def loss(model: Model) -> float:
        batch = model.collate(data.split("train").some(200).list())
        with torch.no_grad():
            total, count = family.loss(model.net, batch, next(iter(family.players(model.net))))
        return float(total.sum() / count.sum())

    for scheme in ("", "int4"):
        model = Model(family, copy.deepcopy(first.net), assets)
        settings = train.Settings(steps=60, batch_size=32, learning_rate=5e-4, quantized=scheme)
        model = train.apply(settings, Quiet(), data, model).model
        before = loss(model)
        costs[scheme] = loss(apply(Settings(scheme="int4"), Quiet(), model, data).model) - before
    assert costs["int4"] < 0.5 * costs[""]


def test_pruned_models_and_nets_without_matrices_are_refused():
    model, data = started("tabular")
    model.pruned = (weights(model.net, *ROLES)[0].name,)
    with pytest.raises(BadSettings, match="zeros"):
        train.apply(train.Settings(steps=1, quantized="int4"), Quiet(), data, model)
    with pytest.raises(BadSettings, match="no weight matrices"), rounding(torch.nn.BatchNorm1d(4), "int8"):
        pass
    with pytest.raises(Refusal, match="follows a gradient"):
        train.apply(train.Settings(family="forest", quantized="int4"), Quiet(), open_data("toy:forest"))
