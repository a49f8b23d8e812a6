"""The neurons against a loop in plain Python, the surrogate against its formula, and the family under every operation."""

import random

import pytest
import torch
from onnuri_spiking.family import FAMILY
from onnuri_spiking.net import STEEPNESS, Neurons, spike

from onnuri.blocks import with_blocks
from onnuri.errors import BadInput, BadSettings, Refusal
from onnuri.matrix import run_cell
from onnuri.model import Model, open_model, tensor_digest, write_model


def tiny(**config) -> Model:
    made = FAMILY.start(FAMILY.tiny() | config, FAMILY.toy(40, 0), torch.Generator().manual_seed(0))
    return Model(FAMILY, *made)


def values(model: Model) -> torch.Tensor:
    return model.outputs(model.collate(FAMILY.toy(16, 1).list()))[0]


def test_neurons_leak_and_fire():
    draw = random.Random(0)
    currents = [[draw.uniform(-0.5, 1.5) for _ in range(30)] for _ in range(5)]  # 5 neurons, 30 steps
    expected = []
    for current in currents:
        potential, fired = 0.0, []
        for now in current:
            potential = 0.75 * potential + now
            fired.append(float(potential > 1))
            potential -= fired[-1]
        expected.append(fired)
    found = Neurons(0.75)(torch.tensor(currents, dtype=torch.float64).T[None])[0].T
    assert found.tolist() == expected and 0 < found.mean() < 1


def test_the_gradient_of_a_spike_is_the_surrogate():
    distance = torch.linspace(-2, 2, 41, dtype=torch.float64, requires_grad=True)
    spikes = spike(distance)
    spikes.sum().backward()
    assert spikes.tolist() == (distance > 0).double().tolist()  # exactly: a spike is no number near 1
    torch.testing.assert_close(distance.grad, (1 + STEEPNESS * distance.detach().abs()) ** -2)


def test_a_folder_is_read_as_it_was_written(tmp_path):
    model = tiny()
    write_model(model, tmp_path)
    again = open_model(tmp_path)
    assert again.family.name == FAMILY.name and again.assets == model.assets
    assert tensor_digest(again.net) == tensor_digest(model.net) and torch.equal(values(again), values(model))


def test_an_example_does_not_change_another():
    model = tiny()
    records = FAMILY.toy(16, 1).list()
    alone = torch.cat([model.outputs(model.collate([record]))[0] for record in records])
    torch.testing.assert_close(alone, values(model), rtol=0, atol=1e-6)  # sums of 16, in another order


def test_a_layer_that_is_left_out_adds_nothing():
    model = tiny(layers=3)
    less = with_blocks(model, ["layers.0", "layers.2"])
    model.net.get_submodule("layers.1").register_forward_hook(lambda module, inputs, output: inputs[0])
    assert torch.equal(values(less), values(model))


def test_bad_designs_and_folders(tmp_path):
    with pytest.raises(BadSettings, match=r"width must be(.|\n)*leak must be"):
        tiny(width=0, leak="slow")
    (tmp_path / "config.json").write_text('{"model_type": "onnuri_spiking", "labels": ["a"]}')
    with pytest.raises(BadInput):
        open_model(tmp_path)
    with pytest.raises(Refusal, match="no spiking net"):
        FAMILY.adopt(tmp_path / "none", FAMILY.toy(8, 0), torch.Generator())


@pytest.mark.parametrize("operation", ("train", "evaluate", "predict", "distill", "prune", "quantize", "export"))
def test_operations_keep_their_promises(operation, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / FAMILY.name
    cell = run_cell(FAMILY.name, operation, folder)
    assert cell.outcome == "passed", cell
