"""Attached functions and the packed form through the whole chain: deepcopy, tie, bake, save, reopen."""

import copy

import pytest
import torch
from torch import nn

from onnuri.errors import BadInput, Refusal
from onnuri.weights import attach as A
from onnuri.weights import packed_file
from onnuri.weights.matrices import weights
from onnuri.weights.packed import FORMATS


class Double(nn.Module):
    def forward(self, w):
        return w * 2


def net() -> nn.Module:
    torch.manual_seed(0)
    body = nn.ModuleDict(
        {
            "table": nn.Embedding(9, 8),
            "conv": nn.Conv1d(8, 8, 3, padding=1),
            "rnn": nn.LSTM(8, 8, batch_first=True),
            "mha": nn.MultiheadAttention(8, 2, batch_first=True),
            "head": nn.Linear(8, 9, bias=False),
        }
    )
    body["head"].weight = body["table"].weight
    return body.eval()


def run(body) -> torch.Tensor:
    x = body["table"](torch.arange(6)[None] % 9)
    x = body["conv"](x.transpose(1, 2)).transpose(1, 2)
    x, _ = body["rnn"](x)
    x, _ = body["mha"](x, x, x)
    return body["head"](x)


def test_attach_changes_and_bake_keeps():
    body = net()
    reference = copy.deepcopy(body)
    for weight in weights(reference):
        weight.value.data.mul_(2)
    for weight in weights(body):
        A.attach(weight, Double())
    assert torch.allclose(run(body), run(reference), atol=1e-6)
    A.bake(body)
    assert torch.allclose(run(body), run(reference), atol=1e-6)
    assert body["head"].weight is body["table"].weight, "tied homes stay tied"
    assert type(body["head"]) is nn.Linear and set(body.state_dict()) == set(net().state_dict())


def test_undoing_a_copy_leaves_the_original():
    body = net()
    for weight in weights(body):
        A.attach(weight, Double())
    before = run(body)
    twin = copy.deepcopy(body)
    A.bake(twin)
    assert torch.equal(run(body), before) and torch.allclose(run(twin), before, atol=1e-6)
    assert isinstance(body["head"], nn.Linear)


def test_names_survive_attaching():
    body = net()
    names = [(w.name, w.role) for w in weights(body)]
    for weight in weights(body):
        A.attach(weight, Double())
    assert sorted((w.name, w.role) for w in weights(body)) == sorted(names)


def test_gradients_reach_the_parameter_below():
    layer = nn.Linear(3, 2)
    A.attach(weights(layer)[0], Double())
    layer(torch.ones(1, 3)).sum().backward()
    [parameter] = [p for n, p in layer.named_parameters() if "attached" in n]
    assert torch.equal(parameter.grad, torch.full((2, 3), 2.0))


def test_unbaked_nets_are_not_saved():
    layer = nn.Sequential(nn.Linear(3, 2))
    A.attach(weights(layer)[0], Double())
    with pytest.raises(Refusal):
        A.require_baked(layer)


@pytest.mark.parametrize("scheme", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_form_reloads_bit_for_bit(tmp_path, scheme, dtype):
    body = net().to(dtype)
    for weight in weights(body):
        A.pack(weight, scheme, input_scale=torch.tensor(0.02) if scheme == "int8-static" else None)
    outputs = run(body)
    packed_file.save_packed(body, tmp_path / "p.safetensors")
    again = net()
    packed_file.load_packed(again, tmp_path / "p.safetensors")
    assert torch.equal(run(again), outputs)
    assert len(A.packed_weights(again)) == len(A.packed_weights(body)) == len(weights(net()))
    size = (tmp_path / "p.safetensors").stat().st_size
    assert size < 0.75 * sum(p.numel() * 4 for p in net().parameters()) + 4000


def test_rounding_is_to_the_nearest_code():
    layer = nn.Linear(64, 16)
    original = layer.weight.detach().clone()
    A.pack(weights(layer)[0], "int8")
    base = A.packed_weights(layer)["weight"][1]
    assert float(((weights(layer)[0].value - original).abs() / base.scale[0]).max()) <= 0.5 + 1e-5


def test_packed_linear_equals_its_dequantized_twin():
    layer = nn.Linear(64, 16)
    A.pack(weights(layer)[0], "int8")
    twin, x = copy.deepcopy(layer), torch.randn(5, 64)
    A.bake(twin)
    assert torch.allclose(layer(x), twin(x), atol=1e-5)


def test_dynamic_product_is_close_and_integer():
    layer = nn.Linear(64, 16)
    x = torch.randn(5, 3, 64)
    exact = layer(x)
    A.pack(weights(layer)[0], "int8-dynamic")
    error = (layer(x) - exact).norm() / exact.norm()
    assert 0 < error < 0.02, "two roundings to 8 bits: about 1 % relative"


def test_functions_compose_above_the_packed_form():
    layer = nn.Linear(8, 4)
    A.pack(weights(layer)[0], "int8")
    single = layer(torch.ones(1, 8)) - layer.bias
    A.attach(weights(layer)[0], Double())
    assert torch.allclose(layer(torch.ones(1, 8)) - layer.bias, 2 * single, atol=1e-5)


def test_load_lists_all_faults(tmp_path):
    body = net()
    A.pack(weights(body)[0], "int8")
    packed_file.save_packed(body, tmp_path / "p.safetensors")
    other = nn.ModuleDict({"table": nn.Embedding(9, 8), "new": nn.Linear(2, 2)})
    with pytest.raises(BadInput) as error:
        packed_file.load_packed(other, tmp_path / "p.safetensors")
    assert "missing tensor new.weight" in str(error.value) and "unexpected tensor conv.weight" in str(error.value)


def test_packed_products_stay_in_the_range_of_fp16():
    layer = nn.Linear(4096, 8).half()
    x = torch.ones(1, 4096, dtype=torch.float16)
    with torch.no_grad():
        layer.weight.fill_(0.02)
    A.pack(weights(layer)[0], "int8")
    assert torch.isfinite(layer(x)).all()
