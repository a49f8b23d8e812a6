"""prune --units: what is taken out, that nothing else changes, and that other libraries open what is left."""

import copy
import json

import pytest
import torch
from torch import nn

import folders
from onnuri import registry
from onnuri.errors import BadSettings, Refusal
from onnuri.model import Model, count_parameters, open_model, tensor_digest, write_model
from onnuri.operation import Quiet
from onnuri.operations import distill, train
from onnuri.operations.prune import OPERATION, Settings, apply
from onnuri.operations.prune.units import cuts_of
from onnuri.plan import settings_of
from onnuri.sources import open_data
from onnuri.weights.gptq import DAMPING
from onnuri.weights.ranking import Fit, by_change, by_size
from onnuri.weights.units import Axis, Place, chosen, tensors_of

CHANNELS = ("llama_tied", "llama_bf16", "gemma2", "mixtral", "gpt2", "bert", "distilbert", "vit", "resnet", "wav2vec2")
HEADS = ("llama", "qwen3", "gemma2", "mixtral")


def data_for(name: str, folder):
    """Records that a folder of `folders.DESIGNS` takes."""
    if name in folders.PICTURES:
        return open_data(str(folders.write_pictures(folder / "data", folders.LABELS)))
    if name in folders.SOUNDS:
        return open_data(str(folders.write_sounds(folder / "data", folders.LABELS)))
    columns = ("text", "label") if name in folders.TEXTS else ("text",)
    return open_data(str(folders.write_texts(folder / "data.jsonl", *columns)))


def toy(family: str, **config):
    record, data = registry.family(family), open_data(f"toy:{family}")
    made = record.start(record.tiny() | config, data.records, torch.Generator().manual_seed(0))
    return Model(record, *made), data


def carried_out(model: Model, data, **settings):
    """(the result, {promise: value}) of a copy; every promise kept."""
    before = Model(model.family, copy.deepcopy(model.net), model.assets)
    chosen_settings = Settings(**settings)
    result = apply(chosen_settings, Quiet(), model, data)
    values = {p.text: p.measure(chosen_settings, {"model": before, "data": data}, result) for p in OPERATION.promises}
    values = {text: value for text, value in values.items() if value is not None}
    assert all(values[p.text] <= p.bound for p in OPERATION.promises if p.text in values), values
    return result, values


# ------------------------------------------------------------------------------------------------ nets of other libraries


@pytest.mark.parametrize("units, name", [("channels", n) for n in CHANNELS] + [("heads", n) for n in HEADS])
def test_the_library_opens_what_is_left(units, name, tmp_path):
    """A plain folder of transformers, an empty report, the same answers as zeros give, no zeros, the same each time."""
    model = open_model(folders.save(name, tmp_path / "model"))
    data = data_for(name, tmp_path)
    result, values = carried_out(model, data, units=units)
    assert "answers unlike those with zeros in the units' place, relative" in values
    assert result.model.pruned == ()
    (tmp_path / "less").mkdir()
    write_model(result.model, tmp_path / "less")
    again = folders.reopen(name, tmp_path / "less")  # by the library's own loader, its report checked
    assert count_parameters(again) < count_parameters(folders.reopen(name, tmp_path / "model"))
    batch = result.model.collate(data.split("test").some(4).list())
    other = Model(model.family, again, result.model.assets)
    found, expected = result.model.outputs(batch)[0], other.outputs(batch)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 if name == "wav2vec2" else 0)  # it folds a norm
    second = apply(Settings(units=units), Quiet(), open_model(tmp_path / "model"), data)
    assert tensor_digest(second.model.net) == tensor_digest(result.model.net)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
@pytest.mark.parametrize(
    "units, name", [("channels", "llama"), ("heads", "llama"), ("channels", "gpt2"), ("channels", "resnet")]
)
def test_by_what_the_layers_see(units, name, method, tmp_path):
    model = open_model(folders.save(name, tmp_path / "model"))
    carried_out(model, data_for(name, tmp_path), units=units, method=method, calibration=16)


def test_a_head_goes_with_its_group(tmp_path):
    """Two query heads read each pair of keys and values: all of them go, and the least of each layer, by hand."""
    model = open_model(folders.save("llama", tmp_path / "model"))
    attention = [copy.deepcopy(layer.self_attn) for layer in model.net.model.layers]
    result, _ = carried_out(model, data_for("llama", tmp_path), units="heads")
    assert (result.model.net.config.num_attention_heads, result.model.net.config.num_key_value_heads) == (2, 1)
    for old, layer in zip(attention, result.model.net.model.layers):
        parts = [old.q_proj.weight.view(2, 16, 32), old.k_proj.weight.view(2, 8, 32), old.v_proj.weight.view(2, 8, 32)]
        size = sum(part.square().sum((1, 2)) for part in parts) + old.o_proj.weight.view(32, 2, 16).square().sum((0, 2))
        stays = int(size.argmax())
        assert torch.equal(layer.self_attn.q_proj.weight, parts[0][stays])
        assert torch.equal(layer.self_attn.k_proj.weight, parts[1][stays])
        assert torch.equal(layer.self_attn.o_proj.weight, old.o_proj.weight[:, 16 * stays : 16 * stays + 16])


def test_as_many_heads_as_the_width_can_be_divided_by(tmp_path):
    """Three of four heads would not divide 32: two stay, and that is said."""
    name = "llama"
    model = open_model(folders.save(name, tmp_path / "model"))
    model.net.config.num_key_value_heads = 4
    net = type(model.net)(model.net.config).eval()
    model, log = Model(model.family, net, model.assets), Quiet()
    result = apply(Settings(units="heads", share=0.25), log, model, data_for(name, tmp_path))
    left = result.model.net.config.num_attention_heads
    assert left == 2 and any("num_attention_heads and num_key_value_heads: 2 stay" in text for text in log.warnings)


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_experts_go_as_if_the_router_never_chose_them(method, tmp_path):
    model = open_model(folders.save("mixtral", tmp_path / "model"))
    router = model.net.model.layers[0].mlp.gate
    with torch.no_grad():
        router.weight.mul_(20)  # so that it has a preference
    before = copy.deepcopy(model)
    data = data_for("mixtral", tmp_path)
    result, _ = carried_out(model, data, units="experts", method=method)
    assert result.model.net.config.num_local_experts == 2
    ((_, kept),) = result.report["cuts"]
    gone = sorted(set(range(4)) - set(next(iter(kept.values())).tolist()))
    hidden = torch.randn(9, 32, generator=torch.Generator().manual_seed(0))
    old, new = before.net.model.layers[0].mlp, result.model.net.model.layers[0].mlp
    logits = hidden @ old.gate.weight.T
    logits[:, gone] = -torch.inf
    best, places = logits.softmax(1).topk(2)
    expected = torch.zeros_like(hidden)
    for row in range(9):
        for share, expert in zip(best[row] / best[row].sum(), places[row]):
            gate, up = (old.experts.gate_up_proj[expert] @ hidden[row]).chunk(2)
            expected[row] += share * (old.experts.down_proj[expert] @ (nn.functional.silu(gate) * up))
    found = new(hidden[None])
    found = found[0] if isinstance(found, tuple) else found
    torch.testing.assert_close(found.reshape(9, 32), expected, rtol=1e-4, atol=1e-5)


def test_a_token_must_find_the_experts_that_it_asks_for(tmp_path):
    model = open_model(folders.save("mixtral", tmp_path / "model"))
    with pytest.raises(BadSettings, match=r"would leave 1 of 4 experts.*at least 2.*\n.*--share 0.5"):
        apply(Settings(units="experts", share=0.75), Quiet(), model, data_for("mixtral", tmp_path))


@pytest.mark.parametrize(
    "units, name, why",
    [
        ("heads", "bert", "head_dim"),
        ("heads", "gpt2", "head_dim"),
        ("heads", "vit", "head_dim"),
        ("heads", "swin", "relative_position_bias_table"),
        ("experts", "llama", "states no number of experts"),
        ("channels", "mobilenet", "states no channels that can go alone"),
        ("blocks", "resnet", "no block of this design"),
    ],
)
def test_what_the_config_cannot_say_is_refused(units, name, why, tmp_path):
    model = open_model(folders.save(name, tmp_path / "model"))
    with pytest.raises(Refusal, match=why):
        apply(Settings(units=units), Quiet(), model, data_for(name, tmp_path))


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2", "whisper_audio"])
def test_the_block_that_changes_least_goes(name, tmp_path):
    model = open_model(folders.save(name, tmp_path / "model"))
    data = data_for(name, tmp_path)
    row = [block for block in model.blocks if block.rpartition(".")[2].isdigit() and "conv" not in block]
    changes = by_change(model, data.split("train").some(128))
    least = min(row, key=changes.__getitem__)
    expected = tensors_of(model.net.get_submodule(next(block for block in row if block != least)))
    result, _ = carried_out(model, data, units="blocks")
    left = [block for block in result.model.blocks if block in row]
    assert len(left) == 1
    stays = tensors_of(result.model.net.get_submodule(left[0]))
    assert all(torch.equal(stays[key], value) for key, value in expected.items())


# ---------------------------------------------------------------------------------------------------------- our own nets


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize(
    "name", ["causal_lm", "gan", "image_classifier", "sequence", "speech_classifier", "tabular", "text_classifier"]
)
def test_every_family_with_channels(name, method):
    model, data = toy(name)
    result, values = carried_out(model, data, units="channels", method=method)
    answers = result.model.sample(result.model.asked(data.split("test").some(3).list()))
    assert len(answers) == 3 and values["parameters left, as a share of the original's"] < 0.8


@pytest.mark.parametrize("name, why", [("diffusion", "belong together"), ("forest", "no weight matrices")])
def test_families_that_refuse(name, why):
    model, data = toy(name)
    with pytest.raises(Refusal, match=why):
        apply(Settings(units="channels"), Quiet(), model, data)


def test_a_bag_of_ngrams_loses_its_faint_channels():
    """Golden: with channels of sizes 1 to 4 the two largest stay, in order."""
    data = open_data("toy:text_classifier")
    family = registry.family("text_classifier")
    model = Model(family, *family.start({"width": 4}, data.records, torch.Generator().manual_seed(0)))
    with torch.no_grad():
        for channel, size in enumerate((3.0, 1.0, 4.0, 2.0)):
            model.net.bag.table.weight[:, channel] = size
            model.net.head.weight[:, channel] = size
            model.net.bag.always[channel] = size
    result, _ = carried_out(model, data, units="channels")
    assert result.model.net.head.weight.tolist() == [[3.0, 4.0], [3.0, 4.0]]
    assert result.model.net.bag.always.tolist() == [3.0, 4.0] and result.model.net.design.width == 2


def test_channels_that_a_norm_takes_together_are_warned_of():
    model, data = toy("image_classifier")
    log = Quiet()
    apply(Settings(units="channels"), log, model, data)
    assert any("a norm takes these channels together" in text for text in log.warnings)


def test_wrong_parts_are_never_taken_for_units():
    """Widths of BERT's heads look like channels to their shapes; only its hidden units are."""
    model, data = toy("text_classifier", net="bert")
    cuts = cuts_of(Settings(units="channels"), Quiet(), model, data.split("train"))
    assert [cut.size.name for cut in cuts] == ["intermediate_size"]


# ---------------------------------------------------------------------------------------------------------------- recovery


def test_the_result_can_be_trained_and_taught(tmp_path):
    teacher, data = toy("causal_lm")
    result, _ = carried_out(Model(teacher.family, copy.deepcopy(teacher.net), teacher.assets), data, units="channels")
    settings = distill.Settings(steps=4, batch_size=8)
    taught = distill.apply(settings, Quiet(), teacher, data, student=result.model)
    trained = train.apply(train.Settings(steps=2, batch_size=8), Quiet(), data, taught.model)
    (tmp_path / "model").mkdir()
    write_model(trained.model, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["intermediate_size"] == teacher.net.config.intermediate_size // 2
    assert not (tmp_path / "model" / "onnuri" / "pruned.json").exists()


def test_zeros_of_before_stay_zeros():
    """A net with zeros that were put there loses channels by cost: what is left of the zeros is kept, and known."""
    model, data = toy("causal_lm")
    model = apply(Settings(share=0.5), Quiet(), model, data).model
    names = model.pruned
    result = apply(Settings(units="channels", method="sparsegpt", calibration=16), Quiet(), model, data)
    assert result.model.pruned == names
    down = result.model.net.get_submodule("model.layers.0.mlp.down_proj").weight
    assert float((down == 0).float().mean()) > 0.2


# ------------------------------------------------------------------------------------------------------------------ parts


def test_where_units_lie():
    assert Axis("w", 0, 6, 1).index(3).tolist() == [[0, 1], [2, 3], [4, 5]]
    assert Axis("w", 0, 6, 2).index(3).tolist() == [[0, 3], [1, 4], [2, 5]]
    place = Place("p", 4, 2, 2, ())
    assert chosen(place, torch.tensor([1.0, 2.0, 9.0, 8.0])).tolist() == [1, 2]


def test_leaving_units_out_is_least_squares():
    """What is left of the matrix is what a regression on the inputs that are left gives."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(200, 8, generator=draw) @ torch.randn(8, 8, generator=draw)
    matrix, moments = torch.randn(3, 8, generator=draw), x.T @ x / 200
    fit = Fit(matrix, torch.arange(8).view(4, 2), moments)
    cost = fit.costs()[1]
    fit.leave_out(torch.tensor([1]))
    left = [0, 1, 4, 5, 6, 7]
    damped = moments.double() + DAMPING * moments.diagonal().mean() * torch.eye(8)
    expected = matrix.double() @ damped[:, left] @ torch.linalg.inv(damped[left][:, left])
    torch.testing.assert_close(fit.matrix[:, left], expected)
    lost = fit.matrix - matrix
    torch.testing.assert_close(cost, (lost @ damped @ lost.T).trace())
    second = fit.costs()
    assert int(second.argmin()) == 1 and float(second[1].abs()) < 1e-9  # it costs nothing any more


def test_size_counts_every_slice():
    model, data = toy("causal_lm")
    (cut,) = cuts_of(Settings(units="channels"), Quiet(), model, data.split("train"))
    mlp = model.net.model.layers[0].mlp
    expected = (
        mlp.gate_proj.weight.square().sum(1) + mlp.up_proj.weight.square().sum(1) + mlp.down_proj.weight.square().sum(0)
    )
    torch.testing.assert_close(by_size(model, cut.places[0]), expected.sqrt())


def test_the_promise_of_equal_answers_can_be_broken():
    model, data = toy("causal_lm")
    before = Model(model.family, copy.deepcopy(model.net), model.assets)
    settings = Settings(units="channels")
    promise = next(promise for promise in OPERATION.promises if "zeros in the units' place" in promise.text)
    result = apply(settings, Quiet(), model, data)
    result.model.net.model.layers[0].mlp.act_fn = nn.Tanh()
    assert promise.measure(settings, {"model": before, "data": data}, result) > 10 * promise.bound


@pytest.mark.parametrize(
    "given",
    [
        {"units": "channels", "scope": "row"},
        {"units": "heads", "pattern": "2:4"},
        {"units": "blocks", "method": "wanda"},
        {"units": "experts", "method": "sparsegpt"},
        {"units": "channels", "calibration": 5},
    ],
)
def test_settings_without_effect_are_refused(given):
    with pytest.raises(BadSettings, match="no effect"):
        settings_of(OPERATION, given)


def test_a_share_that_takes_nothing_is_an_error():
    model, data = toy("image_classifier")
    with pytest.raises(BadSettings, match="has no effect: width is 16, in steps of 8"):
        apply(Settings(units="channels", share=0.2), Quiet(), model, data)
    model, data = toy("causal_lm")
    with pytest.raises(BadSettings, match="no row has so many blocks"):
        apply(Settings(units="blocks", share=0.1), Quiet(), model, data)
