"""Every layer kind reads as matrices and back; a tied tensor is one Weight with several homes."""

import pytest
import torch
from torch import nn

from onnuri.weights.attach import bake, pack
from onnuri.weights.matrices import View, weights

LAYERS = {
    "linear": (nn.Linear(6, 4), {"weight": ("linear", (1, 4, 6))}),
    "conv": (nn.Conv2d(3, 5, 2), {"weight": ("conv", (1, 5, 12))}),
    "depthwise": (nn.Conv1d(4, 4, 3, groups=4), {"weight": ("conv", (1, 4, 3))}),
    "transposed": (nn.ConvTranspose2d(3, 5, 2), {"weight": ("conv", (1, 5, 12))}),
    "embedding": (nn.Embedding(7, 3), {"weight": ("embedding", (1, 7, 3))}),
    "lstm": (nn.LSTM(3, 2), {"weight_ih_l0": ("linear", (1, 8, 3)), "weight_hh_l0": ("linear", (1, 8, 2))}),
    "attention": (
        nn.MultiheadAttention(4, 2),
        {"in_proj_weight": ("linear", (1, 12, 4)), "out_proj.weight": ("linear", (1, 4, 4))},
    ),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_layer_kinds(kind):
    layer, expected = LAYERS[kind]
    found = {w.name: (w.role, tuple(w.matrix.shape)) for w in weights(layer)}
    assert found == expected
    for weight in weights(layer):
        assert torch.equal(weight.view.tensor(weight.matrix, weight.value.shape), weight.value)


def test_rows_are_outputs():
    """Scaling row i of the matrix view scales output i, for a transposed convolution too."""
    layer = nn.ConvTranspose1d(2, 3, 2, bias=False)
    weight, x = weights(layer)[0], torch.randn(1, 2, 5)
    before = layer(x)
    matrix = weight.matrix.clone()
    matrix[0, 1] *= 2
    layer.weight.data = weight.view.tensor(matrix, layer.weight.shape)
    assert torch.allclose(layer(x), before * torch.tensor([1.0, 2.0, 1.0])[None, :, None])


def test_views_invert_for_every_order():
    tensor = torch.randn(2, 3, 4)
    for view in (View((0,), (2,), (1,)), View((), (1,), (0, 2)), View((), (2, 0), (1,))):
        assert torch.equal(view.tensor(view.matrix(tensor), tensor.shape), tensor)


def test_tied_table_is_one_weight():
    net = nn.ModuleDict({"table": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    net["head"].weight = net["table"].weight
    [weight] = weights(net)
    assert weight.name == "table.weight" and len(weight.homes) == 2 and weight.role == "embedding"


def test_fused_experts_and_transposed_linears():
    from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

    mixtral = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_local_experts=4,
        )
    )
    experts = weights(mixtral, "expert")
    assert {tuple(w.matrix.shape) for w in experts} == {(4, 48, 16), (4, 16, 24)}
    assert any(w.role == "raw" for w in weights(mixtral)), "the router is used raw and left alone"
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=8))
    found = {w.name: tuple(w.matrix.shape) for w in weights(gpt2)}
    assert found["transformer.h.0.attn.c_attn.weight"] == (1, 48, 16), "Conv1D stores (in, out)"
    assert len([w for w in weights(gpt2) if len(w.homes) == 2]) == 1


def test_a_module_of_two_names_has_one_home():
    net = nn.Module()
    net.one = nn.Linear(3, 2)
    net.other = net.one
    [weight] = weights(net)
    assert len(weight.homes) == 1
    pack(weight, "int8")
    bake(net)
    assert net.other.weight is net.one.weight
