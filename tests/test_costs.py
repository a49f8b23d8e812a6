"""FLOPs against hand formulas and torch's own counter, bytes against sizes that are known, lines against a larger batch."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from onnuri import registry
from onnuri.costs.count import Line, tensors_of, watched
from onnuri.model import Model
from onnuri.sources import open_data
from onnuri.weights.attach import pack
from onnuri.weights.matrices import weights


def flops(work) -> int:
    with watched() as watch:
        work()
    assert not watch.unknown
    return watch.total_flops


def started(name: str, **config):
    data, family = open_data(f"toy:{name}"), registry.family(name)
    made = family.start({**family.tiny(), **config}, data.records, torch.Generator().manual_seed(0))
    return Model(family, *made), data


CONVOLUTIONS = {
    "plain": (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 9, 8), 2 * 2 * 9 * 8 * 6 * 4 * 9),
    "strided": (nn.Conv2d(4, 6, 3, stride=2, dilation=2), (2, 4, 9, 8), 2 * 2 * 3 * 2 * 6 * 4 * 9),
    "grouped": (nn.Conv1d(8, 8, 5, groups=8), (3, 8, 20), 2 * 3 * 16 * 8 * 5),
    "transposed": (nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (2, 4, 5, 5), 2 * 2 * 25 * 4 * 3 * 4),
    "3d": (nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4), 2 * 27 * 3 * 2 * 8),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_and_its_gradients(name):
    layer, shape, expected = CONVOLUTIONS[name]
    x = torch.randn(shape, requires_grad=True)
    assert flops(lambda: layer(x)) == expected
    assert flops(lambda: layer(x).sum().backward()) == 3 * expected, (
        "the gradients of input and kernel cost as much each"
    )


def test_what_torch_counts_is_counted_alike():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10), nn.BatchNorm1d(10))
    x = torch.randn(5, 3, 8, 8)

    def work():
        net(x).square().sum().backward()

    with FlopCounterMode(display=False) as theirs:
        work()
    assert flops(work) == theirs.get_total_flops()


def test_recurrent_layers():
    x, places = torch.randn(2, 7, 5), 2 * 7
    gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}
    for kind, count in gates.items():
        layer = kind(5, 6, num_layers=2, bidirectional=True, batch_first=True)
        expected = 2 * places * 2 * count * 6 * ((5 + 6) + (12 + 6))
        assert flops(lambda layer=layer: layer(x)) == expected
        with torch.no_grad():
            assert flops(lambda layer=layer: layer(x)) == expected
    assert flops(lambda: nn.LSTM(5, 6)(x)[0].sum().backward()) == 3 * 2 * places * 4 * 6 * 11


@pytest.mark.parametrize("masked", [False, True])
def test_attention(masked):
    q, k, v = (torch.randn(2, 3, n, 8, requires_grad=True) for n in (5, 7, 7))
    mask = torch.ones(5, 7, dtype=torch.bool) if masked else None
    forward = 2 * 2 * 3 * 5 * 7 * (8 + 8)
    assert flops(lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)) == forward
    assert flops(lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask).sum().backward()) == 3.5 * forward


def test_a_fused_encoder_layer_counts_as_its_parts():
    layer, x = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval(), torch.randn(2, 5, 16)
    expected = 2 * 10 * (4 * 16 * 16 + 2 * 16 * 32) + 2 * 2 * 2 * 5 * 5 * 16
    with torch.no_grad():
        assert flops(lambda: layer(x)) == expected
    assert torch.backends.mha.get_fastpath_enabled()


def test_products_of_integers_are_counted_as_such():
    layer, x = nn.Linear(16, 8), torch.randn(32, 16)
    for weight in weights(layer):
        pack(weight, "int8-dynamic")
    with watched() as watch, torch.no_grad():
        layer(x)
    assert dict(watch.flops) == {torch.int8: 2 * 32 * 16 * 8}


def test_fused_experts():
    model, data = started("causal_lm", experts=4)
    batch = model.collate(data.records.list(slice(0, 1)))
    tokens, config = batch["input_ids"].shape[1], model.net.config
    size, wide, heads = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    routed = 2 * 3 * size * wide
    layer = 2 * tokens * (4 * size * size + routed + 4 * size) + 4 * tokens * tokens * size
    assert flops(lambda: model.outputs(batch)) == heads * layer + 2 * tokens * size * config.vocab_size


def test_what_has_no_formula_is_named():
    with watched() as watch:
        torch.fft.rfft(torch.randn(8))
        torch.linalg.eigvalsh(torch.eye(3))
    assert {"_fft_r2c", "_linalg_eigh"} <= watch.unknown.keys()


def test_an_operator_of_a_library_is_counted_by_its_parts():
    @torch.library.custom_op("onnuri_tests::twice", mutates_args=())
    def twice(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x @ y) @ y

    assert flops(lambda: torch.ops.onnuri_tests.twice(torch.ones(3, 4), torch.ones(4, 4))) == 2 * 2 * 3 * 4 * 4


# ------------------------------------------------------------------------------------------------------------ bytes


def test_bytes_alive_and_made():
    x = torch.ones(1000)
    with watched([x]) as watch:
        y = x * 2
        y = y * 3  # the one before is free only when this one is there
        x.view(10, 100)[0]
    assert (watch.made, watch.peak, watch.live) == (8000, 8000, 4000)
    del y
    assert watch.live == 0


def test_weights_are_read_once_and_tables_by_rows():
    table, layer = nn.Embedding(1000, 8), nn.Linear(8, 4, bias=False)
    with watched(tensors_of(nn.ModuleList([table, layer]))) as watch, torch.no_grad():
        for _ in range(3):
            layer(table(torch.tensor([1, 2])))
    assert watch.read_once == 3 * 2 * 8 * 4 + 8 * 4 * 4
    assert watch.read_each == 3 * (2 * 8 * 4 + 8 * 4 * 4)


def test_what_autograd_keeps():
    layer, x = nn.Linear(10, 10, bias=False), torch.ones(5, 10)
    with watched([*layer.parameters(), x]) as watch:
        hidden = torch.tanh(layer(x))  # keeps its output; the product keeps x and the weight, which are known
        hidden.sum().backward()
    assert watch.peak_saved == 5 * 10 * 4


@pytest.mark.parametrize("name", ["causal_lm", "gan", "image_classifier", "tabular", "text_classifier"])
def test_two_small_batches_tell_the_peak_of_a_large_one(name):
    model, data = started(name)
    records, peaks = data.records.list(slice(0, 1)) * 24, {}
    for n in (2, 4, 24):
        batch = model.collate(records[:n])
        with watched(tensors_of(model.net)) as peaks[n]:
            model.family.loss(model.net, batch, next(iter(model.players)))[0].sum().backward()
        model.net.zero_grad()
    line = Line.of([peaks[2], peaks[4]], (2, 4), 0)
    assert line.at(24) == pytest.approx(peaks[24].peak, rel=0.01), "some scratch does not grow"
    assert line.at(line.most(10**9)) <= 10**9 < line.at(line.most(10**9) + 1)
    cost = peaks[2].each().at(peaks[4].each(), (2, 4), 24)
    assert sum(cost.flops.values()) == pytest.approx(peaks[24].total_flops)
