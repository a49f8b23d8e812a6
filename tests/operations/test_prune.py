"""prune against torch's own magnitude pruning, the definitions of Wanda and SparseGPT step by step, and its identities."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as reference

from onnuri import registry
from onnuri.errors import BadSettings, Refusal
from onnuri.model import Model
from onnuri.operation import Quiet
from onnuri.operations.prune import OPERATION, Settings, apply
from onnuri.operations.prune.numbers import keep, pruned
from onnuri.plan import settings_of
from onnuri.sources import open_data
from onnuri.weights.gptq import DAMPING
from onnuri.weights.matrices import weights


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
    zeros, change, *_ = OPERATION.promises
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


# ------------------------------------------------------------------------------------------------- by what the layers see


def seen(columns: int) -> torch.Tensor:
    """The second moments of inputs of which some are much alike and some much larger."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(400, columns // 4, generator=draw) @ torch.randn(columns // 4, columns, generator=draw)
    x += 0.1 * torch.randn(400, columns, generator=draw) * torch.linspace(0.1, 5, columns)
    return x.T @ x / len(x)


def matrix_of(columns: int) -> torch.Tensor:
    return torch.randn(1, 12, columns, generator=torch.Generator().manual_seed(0))


def step_by_step(matrix: torch.Tensor, moments: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
    """SparseGPT by its definition: what a column costs, and what is left after it, by the inverse of what is left of the
    moments. `kept` None: half of the matrix, by the costs."""
    numbers, columns = matrix[0].double().clone(), matrix.shape[2]
    damped = moments.double() + DAMPING * moments.diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    inverses = [torch.linalg.inv(damped[place:, place:]) for place in range(columns)]
    if kept is None:
        costs = numbers.square() / torch.stack([inverse[0, 0] for inverse in inverses])
        kept = (costs > costs.flatten().sort().values[costs.numel() // 2 - 1]).double()
    for place, inverse in enumerate(inverses):
        error = numbers[:, place] * (1 - kept[:, place])
        numbers[:, place:] -= error[:, None] * inverse[0] / inverse[0, 0]
    return numbers[None]


def test_sparsegpt_is_its_definition():
    found = pruned(matrix_of(64), Settings(method="sparsegpt"), seen(64))
    expected = step_by_step(matrix_of(64), seen(64))
    assert float(((found == 0) != (expected.abs() < 1e-9)).float().mean()) < 0.01
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)


def test_sparsegpt_over_several_blocks_goes_on_with_what_is_left():
    """300 columns are three blocks: given the same zeros, the numbers are those of the definition."""
    found = pruned(matrix_of(300), Settings(method="sparsegpt"), seen(300))
    expected = step_by_step(matrix_of(300), seen(300), (found[0] != 0).double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-2, atol=5e-3)


def test_wanda_ranks_by_size_times_input():
    moments, matrix = seen(32), matrix_of(32)
    found = pruned(matrix, Settings(method="wanda", scope="row", share=0.25), moments)
    scores = matrix[0].abs() * moments.diagonal().sqrt()
    for row, numbers, kept in zip(scores, matrix[0], found[0]):
        least = row.argsort()[:8]
        assert (kept[least] == 0).all() and int((kept == 0).sum()) == 8
        assert torch.equal(kept[kept != 0], numbers[kept != 0])


@pytest.mark.parametrize("pattern", ["any", "2:4"])
def test_what_is_seen_changes_a_product_less(pattern):
    """magnitude, then wanda, then sparsegpt."""
    moments, matrix = seen(64), matrix_of(64)

    def off(method: str) -> float:
        lost = (
            pruned(matrix, Settings(method=method, pattern=pattern), moments if method != "magnitude" else None)
            - matrix
        )[0]
        return float(((lost @ moments) * lost).sum())

    assert off("sparsegpt") < 0.7 * off("wanda") and off("wanda") < 0.9 * off("magnitude")


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("name", ["causal_lm", "image_classifier"])
def test_two_of_four_in_every_row(method, name):
    data, family = open_data(f"toy:{name}"), registry.family(name)
    model = Model(family, *family.start(family.tiny(), data.records, torch.Generator().manual_seed(0)))
    before = Model(family, copy.deepcopy(model.net), model.assets)
    settings = Settings(pattern="2:4", method=method)
    result = apply(settings, Quiet(), model, data)
    assert result.model.pruned
    for weight in weights(result.model.net):
        if weight.name in result.model.pruned:
            assert int((weight.matrix.unflatten(2, (-1, 4)) != 0).sum(-1).max()) <= 2
    for promise in OPERATION.promises:
        value = promise.measure(settings, {"model": before}, result)
        assert value is None or value <= promise.bound
    crowded = OPERATION.promises[2]
    with torch.no_grad():
        next(w for w in weights(result.model.net) if w.name in result.model.pruned).value.fill_(1)
    assert crowded.measure(settings, {"model": before}, result) > 0


@pytest.mark.parametrize(
    "given", [{"pattern": "2:4", "share": 0.3}, {"pattern": "2:4", "scope": "row"}, {"calibration": 5}]
)
def test_settings_without_effect_are_refused(given):
    with pytest.raises(BadSettings, match="no effect"):
        settings_of(OPERATION, given)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("name", [name for name in registry.entries("families") if name != "forest"])
def test_every_family_can_be_pruned_by_what_its_layers_see(name, method):
    data, family = open_data(f"toy:{name}"), registry.family(name)
    model = Model(family, *family.start(family.tiny(), data.records, torch.Generator().manual_seed(0)))
    before = Model(family, copy.deepcopy(model.net), model.assets)
    settings = Settings(method=method, share=0.4)
    result = apply(settings, Quiet(), model, data)
    for promise in OPERATION.promises:
        value = promise.measure(settings, {"model": before}, result)
        assert value is None or value <= promise.bound
    batch = result.model.collate(data.split("test").some(4).list())
    assert bool(result.model.outputs(batch)[0].isfinite().all())
