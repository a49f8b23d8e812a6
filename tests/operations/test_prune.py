"""prune against torch's own magnitude pruning, and its identities."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as reference

from onnuri import registry
from onnuri.errors import Refusal
from onnuri.model import Model
from onnuri.operation import Quiet
from onnuri.operations.prune import OPERATION, Settings, apply, keep
from onnuri.sources import open_data
from onnuri.weights import weights


@pytest.fixture
def model_and_data():
    data = open_data("toy:tabular")
    family = registry.family("tabular")
    return Model(family, *family.start(family.tiny(), data.records, torch.Generator().manual_seed(0))), data


def test_equals_torch_per_matrix(model_and_data):
    model, data = model_and_data
    expected = copy.deepcopy(model.net)
    for module in expected.modules():
        if isinstance(module, nn.Linear):
            reference.l1_unstructured(module, "weight", 0.4)
            reference.remove(module, "weight")
    result = apply(Settings(share=0.4), Quiet(), model, data)
    pairs = zip(weights(result.model.net, "linear"), weights(expected, "linear"))
    assert all(torch.equal(a.matrix, b.matrix) for a, b in pairs)


def test_rows_are_ranked_alone():
    matrix = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [40.0, 30.0, 20.0, 10.0]]])
    assert keep(matrix, Settings(share=0.5, scope="row")).tolist() == [[[0, 0, 1, 1], [1, 1, 0, 0]]]
    assert keep(matrix, Settings(share=0.5)).tolist() == [[[0, 0, 0, 0], [1, 1, 1, 1]]]


def test_experts_are_ranked_alone():
    matrix = torch.stack([torch.ones(2, 2), 100 * torch.ones(2, 2)])
    assert keep(matrix, Settings(share=0.5)).sum((1, 2)).tolist() == [2, 2]


def test_equal_numbers_are_cut_to_the_exact_share():
    assert float(keep(torch.ones(1, 10, 10), Settings(share=0.3)).mean()) == pytest.approx(0.7)


def test_nothing_else_changes(model_and_data):
    model, data = model_and_data
    before = {name: value.clone() for name, value in model.net.state_dict().items()}
    touched = {weight.name for weight in weights(model.net, "linear", "conv", "expert")}
    after = apply(Settings(share=0.5), Quiet(), model, data).model.net.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name not in touched)


def test_a_promise_can_be_broken(model_and_data):
    """The promises fail on a result that is not pruned, or that was changed otherwise."""
    model, data = model_and_data
    zeros, change = OPERATION.promises
    result = apply(Settings(share=0.5), Quiet(), Model(model.family, copy.deepcopy(model.net), model.assets), data)
    assert zeros.measure(Settings(share=0.9), {"model": model}, result) > zeros.bound
    with torch.no_grad():
        weights(result.model.net, "linear")[0].value.mul_(2)
    assert change.measure(Settings(share=0.5), {"model": model}, result) > change.bound


def test_a_forest_is_refused():
    data = open_data("toy:forest")
    family = registry.family("forest")
    model = Model(family, *family.start(family.tiny(), data.records, torch.Generator().manual_seed(0)))
    with pytest.raises(Refusal, match="no weight matrices"):
        apply(Settings(), Quiet(), model, data)
