"""factorize against numpy's SVD, its identities, and every other operation on what it gives."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from command import carried_out, some
from onnuri import registry
from onnuri.conformance.bench import Bench
from onnuri.errors import BadInput, BadSettings, Refusal
from onnuri.model import Model, count_parameters, open_model, stored_bytes, tensor_digest, write_model
from onnuri.operation import Quiet
from onnuri.operations.factorize import OPERATION, Settings, apply
from onnuri.plan import settings_of
from onnuri.sources import open_data
from onnuri.weights import attach, packed_file
from onnuri.weights.attach import factored_weights, is_factored, put_stack
from onnuri.weights.calibration import looked_up
from onnuri.weights.factored import Factored
from onnuri.weights.matrices import weights
from onnuri.weights.ranks import Curve, choose, factors, most, rank_within, spectrum

NETS = [name for name in registry.entries("families") if name != "forest"]


def started(name: str):
    data, family = open_data(f"toy:{name}"), registry.family(name)
    return Model(family, *family.start(family.tiny(), data.records, torch.Generator().manual_seed(0))), data


def factorized(name: str, **given) -> Model:
    model, data = started(name)
    return apply(Settings(**given), Quiet(), model, data).model


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def correlated(columns: int) -> torch.Tensor:
    """Inputs that lie mostly in a fifth of their dimensions."""
    return drawn(500, columns // 5, seed=1) @ drawn(columns // 5, columns, seed=2) + 0.1 * drawn(500, columns, seed=3)


# ------------------------------------------------------------------------------------------------------- the mathematics


@pytest.mark.parametrize("rank", [1, 7, 20])
@pytest.mark.parametrize("shape", [(30, 50), (50, 30)])
def test_the_error_is_the_tail_of_numpys_singular_values(shape, rank):
    matrix = drawn(1, *shape)
    found = spectrum(matrix)
    left, right = factors(matrix, found.directions, rank)
    tail = np.linalg.svd(matrix[0].double().numpy(), compute_uv=False)[rank:]
    error = float((matrix - left @ right).double().norm())
    assert error == pytest.approx(np.sqrt((tail**2).sum()), rel=1e-5), (
        "Eckart and Young: no other of this rank is nearer"
    )
    assert float(found.left_over[0, rank]) == pytest.approx(float((tail**2).sum()), rel=1e-5)


def test_full_rank_is_the_identity():
    matrix, inputs = drawn(2, 12, 20), correlated(20)
    for moments in (None, inputs.T @ inputs / 500):
        left, right = factors(matrix, spectrum(matrix, moments).directions, 12)
        torch.testing.assert_close(left @ right, matrix, rtol=1e-4, atol=1e-5)


def test_both_factors_have_one_size():
    left, right = factors(drawn(1, 30, 50), spectrum(drawn(1, 30, 50)).directions, 9)
    torch.testing.assert_close(left.norm(dim=1), right.norm(dim=2), rtol=1e-4, atol=1e-5)


def test_aware_is_the_best_of_its_rank_on_what_it_saw():
    """The least error of a product is that of the best approximation of the product itself (numpy), and svd's is larger."""
    matrix, inputs = drawn(1, 40, 50), correlated(50)
    moments = inputs.T @ inputs / 500
    products = inputs.double().numpy() @ matrix[0].double().numpy().T
    tail = np.linalg.svd(products, compute_uv=False)[8:]

    def error(seen) -> float:
        left, right = factors(matrix, spectrum(matrix, seen).directions, 8)
        return float((inputs @ (matrix - left @ right)[0].T).double().norm())

    assert error(moments) == pytest.approx(np.sqrt((tail**2).sum()), rel=1e-4)
    assert error(moments) < 0.5 * error(None)


def test_inputs_that_were_never_seen_do_no_harm():
    inputs = drawn(500, 20)
    inputs[:, 10:] = 0
    left, right = factors(drawn(1, 15, 20), spectrum(drawn(1, 15, 20), inputs.T @ inputs / 500).directions, 12)
    assert bool((left @ right).isfinite().all()) and float((left @ right).norm()) <= float(drawn(1, 15, 20).norm())


def test_the_rank_is_the_least_within_the_error():
    found = spectrum(drawn(3, 30, 50))
    rank = rank_within(found, 0.4)
    assert float(found.shares[:, rank].max()) <= 0.16 < float(found.shares[:, rank - 1].max())


@pytest.mark.parametrize(("shape", "largest"), [((1, 20, 12), 7), ((4, 8, 8), 3), ((1, 1, 50), 0), ((1, 2, 2), 0)])
def test_two_factors_are_always_fewer_numbers(shape, largest):
    rank, (_, rows, columns) = most(torch.zeros(shape)), shape
    assert rank == largest and rank * (rows + columns) < rows * columns <= (rank + 1) * (rows + columns)


def test_ranks_are_the_best_of_all_that_fit():
    """Against trying every choice there is."""
    matrices = [drawn(1, 6, 6, seed=n) @ torch.diag(drawn(6, seed=n + 9).exp()) for n in range(3)]
    curves = [Curve.of(spectrum(matrix).shares, matrix) for matrix in matrices]
    for budget in (40, 60, 72, 90, 108):
        places = choose(curves, budget)
        lost, spent = (sum(getattr(c, part)[p] for c, p in zip(curves, places)) for part in ("losses", "costs"))
        every = np.array(np.meshgrid(*[range(len(curve.costs)) for curve in curves])).reshape(3, -1).T
        costs, losses = (
            np.array([sum(getattr(c, part)[p] for c, p in zip(curves, one)) for one in every])
            for part in ("costs", "losses")
        )
        assert spent <= budget and lost == pytest.approx(losses[costs <= budget].min(), abs=0.1)


# ------------------------------------------------------------------------------------------------------ two products


LAYERS = [
    (nn.Linear(20, 12), (5, 20)),
    (nn.Conv1d(6, 10, 3, padding="same"), (2, 6, 9)),
    (nn.Conv2d(6, 10, 3, padding=1, stride=2, padding_mode="reflect"), (2, 6, 9, 9)),
    (nn.Conv3d(4, 10, 2, dilation=2, bias=False), (2, 4, 6, 6, 6)),
    (nn.ConvTranspose1d(8, 10, 4, 2, 1), (2, 8, 5)),
    (nn.ConvTranspose2d(8, 10, 4, 2, 1, output_padding=1), (2, 8, 5, 5)),
    (nn.Conv2d(8, 16, 3, groups=2), (2, 8, 9, 9)),
    (nn.LSTM(12, 9, batch_first=True), (2, 5, 12)),
]


def cut(layer: nn.Module, rank: int = 3) -> nn.Module:
    """The layer with its first weight as factors of this rank."""
    layer = copy.deepcopy(layer)
    weight = weights(layer)[0]
    parts = factors(weight.matrix, spectrum(weight.matrix).directions, rank)
    put_stack(weight, Factored(*parts, weight.view, weight.value.shape))
    return layer


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda each: type(each).__name__)
def test_two_steps_give_what_the_whole_matrix_gives(layer, shape):
    layer, x = cut(layer), drawn(*shape)
    whole = copy.deepcopy(layer)
    attach.bake(whole)
    given, wanted = (each(x)[0] if isinstance(each, nn.LSTM) else each(x) for each in (layer, whole))
    torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-5)
    given.sum().backward()
    assert all(p.grad is not None for p in layer.parameters()), "both factors follow a gradient"


@pytest.mark.parametrize(("layer", "shape"), LAYERS[:6], ids=lambda each: type(each).__name__)
def test_the_matrix_is_not_formed(layer, shape, monkeypatch):
    layer = cut(layer)
    monkeypatch.setattr(Factored, "forward", lambda self: pytest.fail("the whole matrix was formed"))
    layer(drawn(*shape))


def test_rows_of_a_table_and_an_output_size():
    table, places = cut(nn.Embedding(30, 20)), torch.tensor([[3, 0], [29, 3]])
    torch.testing.assert_close(table(places), weights(table)[0].value[places], rtol=1e-5, atol=1e-5)
    layer = cut(nn.ConvTranspose2d(8, 10, 4, 2, 1))
    assert layer(drawn(2, 8, 5, 5), output_size=[11, 11]).shape == (2, 10, 11, 11)


def test_fewer_operations():
    from onnuri.costs.count import watched

    whole, thin = nn.Linear(64, 64), cut(nn.Linear(64, 64), rank=8)
    flops = []
    for layer in (whole, thin):
        with torch.no_grad(), watched() as watch:
            layer(drawn(5, 64))
        flops.append(watch.total_flops)
    assert flops[1] == flops[0] / 4


# --------------------------------------------------------------------------------------------------------- the operation


@pytest.mark.parametrize("given", [{}, {"method": "svd"}, {"error": 0.5}, {"error": 0.8, "method": "svd"}], ids=str)
@pytest.mark.parametrize("name", some(NETS, ("causal_lm", "diffusion", "gan", "image_classifier", "tabular")))
def test_every_family_keeps_its_promises(name, given):
    model, data = started(name)
    result, settings = apply(Settings(**given), Quiet(), model, data), Settings(**given)
    inputs = {"model": started(name)[0], "data": data}
    values = {
        promise.text: (promise.measure(settings, inputs, result), promise.bound) for promise in OPERATION.promises
    }
    assert all(value is None or value <= bound for value, bound in values.values()), values
    assert [value is None for value, _ in values.values()] == [
        "error" in given,
        "error" not in given,
        given.get("method") == "svd",
    ]
    left = count_parameters(result.model.net)
    assert left < count_parameters(inputs["model"].net) and stored_bytes(result.model.net) >= 4 * left


@pytest.mark.parametrize("given", [{}, {"error": 0.5}], ids=str)
def test_the_promises_can_be_broken(given):
    model, data = started("causal_lm")
    result, settings = apply(Settings(**given), Quiet(), model, data), Settings(**given)
    inputs = {"model": started("causal_lm")[0], "data": data}
    with torch.no_grad():
        for _, base in factored_weights(result.model.net).values():
            base.left.copy_(base.left.roll(1, 1))
    kept = [(p.measure(settings, inputs, result) or 0) <= p.bound for p in OPERATION.promises]
    assert kept[1] is ("error" not in given)
    smaller = Settings(size=0.4) if not given else settings
    assert (OPERATION.promises[0].measure(smaller, inputs, result) or 0) > 1 or given


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["causal_lm", "image_classifier", "gan"])
def test_a_folder_reopens_exactly(name, dtype, tmp_path):
    model = factorized(name)
    model.net.to(dtype)
    write_model(model, tmp_path)
    again = open_model(tmp_path)
    assert tensor_digest(again.net) == tensor_digest(model.net) and is_factored(again.net)
    assert count_parameters(again.net) == count_parameters(model.net)
    assert not list(tmp_path.glob("*.safetensors")), "no file that another tool would open and find incomplete"


def test_a_damaged_file_is_refused(tmp_path):
    body, path = nn.Sequential(cut(nn.Linear(20, 12))), tmp_path / "p.safetensors"
    packed_file.save_packed(body, path)
    packed_file.load_packed(again := nn.Sequential(nn.Linear(20, 12)), path)
    assert torch.equal(again(drawn(2, 20)), body(drawn(2, 20)))
    with pytest.raises(BadInput, match=r"factors of 0\.weight are of another shape"):
        packed_file.load_packed(nn.Sequential(nn.Linear(21, 12)), path)
    with pytest.raises(BadInput, match=r"0\.weight is not one of this model's"):
        packed_file.load_packed(nn.Sequential(nn.Identity()), path)


def test_a_table_counts_its_rows_as_they_are_looked_up():
    model, data = started("causal_lm")
    seen = data.split("train").some(16)
    (name, shares), *_ = looked_up(model, seen, weights(model.net)).items()
    batch = model.collate(seen.list())
    counts = np.bincount(batch["input_ids"].flatten().numpy(), minlength=len(shares))
    assert "embed" in name and float(shares.sum()) == pytest.approx(1)
    assert (shares.argsort()[-3:].sort().values.numpy() == np.sort(counts.argsort()[-3:])).all()


def test_short_types_stay_within_the_error():
    model, data = started("causal_lm")
    model.net.to(torch.bfloat16)
    before, settings = copy.deepcopy(model), Settings(error=0.5, method="svd")
    result = apply(settings, Quiet(), model, data)
    assert all(base.left.dtype == torch.bfloat16 for _, base in factored_weights(result.model.net).values())
    assert OPERATION.promises[1].measure(settings, {"model": before, "data": data}, result) <= 1


def test_the_same_twice():
    assert tensor_digest(factorized("causal_lm").net) == tensor_digest(factorized("causal_lm").net)


@pytest.mark.parametrize(
    ("given", "told"), [({"error": 0.1, "size": 0.3}, "both say"), ({"method": "svd", "calibration": 5}, "no effect")]
)
def test_settings_without_effect_are_refused(given, told):
    with pytest.raises(BadSettings, match=told):
        settings_of(OPERATION, given)


def test_what_cannot_be_done_is_refused_with_a_way_out():
    model, data = started("tabular")
    with pytest.raises(Refusal, match="even rank 1"):
        apply(Settings(size=0.01), Quiet(), model, data)
    with pytest.raises(Refusal, match=r"within an error of 0\.001"):
        apply(Settings(error=0.001), Quiet(), model, data)
    forest, data = started("forest")
    with pytest.raises(Refusal, match="nothing to factorize"):
        apply(Settings(), Quiet(), forest, data)


def test_matrices_that_stay_whole_are_named():
    model, data = started("tabular")
    result = apply(Settings(), log := Quiet(), model, data)
    whole = {weight.name for weight in weights(model.net)} - factored_weights(result.model.net).keys()
    assert whole and all(name in log.warnings[-1] for name in whole)


# ------------------------------------------------------------------------------------------- the rest of a model's life


@pytest.fixture(scope="module", params=["causal_lm", "image_classifier"])
def bench(request, tmp_path_factory) -> Bench:
    return Bench(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def thin(bench):
    """The folder of a factorized model."""
    carried_out(bench, "factorize", "thin", size=0.5)
    return bench.folder / "thin"


def test_training_onward_lowers_the_loss_and_keeps_the_factors(bench, thin):
    before = open_model(thin)
    line = carried_out(bench, "train", "trained", thin, steps=30, learning_rate=0.003, batch_size=16)
    after = open_model(bench.folder / "trained")
    old, new = (factored_weights(model.net) for model in (before, after))
    assert {name: base.rank for name, (_, base) in old.items()} == {name: base.rank for name, (_, base) in new.items()}
    moved = [
        not torch.equal(getattr(base, side), getattr(new[name][1], side))
        for name, (_, base) in old.items()
        for side in ("left", "right")
    ]
    assert all(moved), "both factors of every matrix follow the gradient"
    loss = line["curves"]["loss"]
    assert loss[-1][1] < loss[0][1] and count_parameters(after.net) == count_parameters(before.net)


def test_muon_turns_the_factors(bench, thin):
    carried_out(bench, "train", "turned", thin, steps=2, batch_size=16, optimizer="muon")
    assert is_factored(open_model(bench.folder / "turned").net)


def test_an_export_keeps_two_products_and_its_numbers(bench, thin):
    line = carried_out(bench, "export", "exported", thin)
    assert line["after"]["parameters"] == count_parameters(open_model(thin).net)
    assert line["after"]["parameters"] == count_parameters(open_model(bench.folder / "exported").net)
    carried_out(bench, "export", "whole")
    small, large = ((bench.folder / name / "onnuri/model.onnx").stat().st_size for name in ("exported", "whole"))
    assert small < large


def test_an_adapter_hangs_on_factors_and_is_baked(bench, thin):
    carried_out(bench, "adapt", "adapter", thin, steps=4, batch_size=16)
    adapter = open_model(bench.folder / "adapter")
    assert is_factored(adapter.net) and attach.updates(adapter.net)
    with pytest.raises(Refusal, match="adapter"):
        carried_out(bench, "train", "no", bench.folder / "adapter", steps=2)
    carried_out(bench, "bake", "baked", bench.folder / "adapter")
    assert not attach.is_attached(open_model(bench.folder / "baked").net)


def test_a_teacher_and_a_student(bench, thin):
    carried_out(bench, "distill", "student", bench.model, student=thin, steps=4, batch_size=16)
    assert is_factored(open_model(bench.folder / "student").net)
    carried_out(bench, "distill", "taught", thin, steps=4, batch_size=16, size=0.5)
    assert count_parameters(open_model(bench.folder / "taught").net) < count_parameters(open_model(thin).net)


def test_what_needs_whole_matrices_says_so(bench, thin):
    for operation in ("quantize", "prune", "factorize"):
        with pytest.raises(Refusal, match="two factors each"):
            carried_out(bench, operation, "no", thin)
    with pytest.raises(Refusal, match="two factors each"):
        carried_out(bench, "merge", "no", thin, other=bench.model)
    with pytest.raises(Refusal, match="no other head"):
        carried_out(bench, "train", "no", thin, new_head=True, family=bench.family)


def test_baked_it_is_whole_again_and_answers_alike(bench, thin):
    line = carried_out(bench, "bake", "made-whole", thin)
    assert {promise["text"]: promise["kept"] for promise in line["promises"]}["largest relative change of the outputs"]
    again = open_model(bench.folder / "made-whole")
    assert not is_factored(again.net) and count_parameters(again.net) == count_parameters(open_model(bench.model).net)


def test_what_is_estimated_is_what_is_stored(bench, thin):
    report = carried_out(bench, "estimate", "", thin, batch_size=4)
    assert report["parameters"] == count_parameters(open_model(thin).net) == sum(report["parameters_by_role"].values())
    assert "step_flops" in report, "it can be trained"
