"""share: what blocks hold afterwards, and every other operation on it."""

import json

import pytest
import torch

from command import carried_out
from onnuri import registry
from onnuri.conformance.bench import Bench
from onnuri.errors import BadInput, BadSettings, OnnuriError, Refusal
from onnuri.model import Model, count_parameters, open_model, stored_bytes, tensor_digest, write_model
from onnuri.operation import Quiet
from onnuri.operations import quantize
from onnuri.operations.share import OPERATION, Settings, apply, first_of
from onnuri.plan import settings_of
from onnuri.runtimes.gguf_file import require_known
from onnuri.sources import open_data
from onnuri.weights.matrices import weights
from onnuri.weights.sharing import block_ties, ties, untie

DEEP = {
    "causal_lm": {"num_layers": 4},
    "text_classifier": {"net": "bert", "num_layers": 4},
    "sequence": {"layers": 4},
    "tabular": {"layers": 4},
    "diffusion": {},
}


def started(name: str):
    data, family = open_data(f"toy:{name}"), registry.family(name)
    config = family.tiny() | DEEP[name]
    return Model(family, *family.start(config, data.records, torch.Generator().manual_seed(0))), data


def shared(name: str, **given) -> Model:
    model, data = started(name)
    return apply(Settings(**given), Quiet(), model, data).model


@pytest.mark.parametrize(
    ("length", "count", "order", "wanted"),
    [
        (4, 2, "neighbors", [0, 0, 2, 2]),
        (5, 2, "neighbors", [0, 0, 0, 3, 3]),
        (5, 3, "neighbors", [0, 0, 2, 2, 4]),
        (7, 3, "neighbors", [0, 0, 0, 3, 3, 5, 5]),
        (5, 2, "cycle", [0, 1, 0, 1, 0]),
        (3, 1, "neighbors", [0, 0, 0]),
        (3, 1, "cycle", [0, 0, 0]),
    ],
)
def test_which_blocks_share(length, count, order, wanted):
    assert [first_of(place, length, count, order) for place in range(length)] == wanted


@pytest.mark.parametrize("given", [{}, {"size": 0.25}, {"order": "cycle", "start": "first"}], ids=str)
@pytest.mark.parametrize("name", DEEP)
def test_every_family_keeps_its_promises_and_reopens_exactly(name, given, tmp_path):
    model, data = started(name)
    settings = Settings(**given)
    result = apply(settings, Quiet(), model, data)
    values = {
        p.text: (p.measure(settings, {"model": model, "data": data}, result), p.bound) for p in OPERATION.promises
    }
    assert all(value <= bound for value, bound in values.values()), values
    assert count_parameters(result.model.net) < count_parameters(model.net)
    assert not block_ties(model.net), "the original is left as it was"
    write_model(result.model, tmp_path)
    again = open_model(tmp_path)
    assert tensor_digest(again.net) == tensor_digest(result.model.net)
    assert block_ties(again.net) == block_ties(result.model.net) != {}
    assert count_parameters(again.net) == count_parameters(result.model.net)
    file = tmp_path / "onnuri" / "packed.safetensors"
    assert 0 <= file.stat().st_size - stored_bytes(again.net) < 40_000, "each shared tensor is stored once"


def test_the_promises_can_be_broken():
    model, data = started("causal_lm")
    settings, inputs = Settings(), {"model": model, "data": data}
    result = apply(settings, Quiet(), model, data)
    with torch.no_grad():
        result.model.net.get_parameter(next(iter(block_ties(result.model.net)))).mul_(1.01)
    left, distance = (p.measure(settings, inputs, result) for p in OPERATION.promises)
    assert left == 1 and distance > 1
    untie(result.model.net)
    assert OPERATION.promises[0].measure(settings, inputs, result) > 1


def test_a_shared_tensor_begins_as_the_mean():
    model, _ = started("causal_lm")
    given = shared("causal_lm", start="mean")
    name = "model.layers.{}.mlp.up_proj.weight"
    old, new = ([one.net.get_parameter(name.format(n)) for n in range(4)] for one in (model, given))
    assert new[0] is new[1] and new[2] is new[3] and new[0] is not new[2]
    torch.testing.assert_close(new[2], (old[2] + old[3]) / 2, rtol=1e-6, atol=1e-7)


def test_the_better_start_is_kept():
    """Where all blocks are equal the mean is as good as the first; where the first alone does anything, it is better."""
    model, data = started("causal_lm")
    with torch.no_grad():
        for n in range(1, 4):
            for name in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
                model.net.get_parameter(f"model.layers.{n}.{name}").zero_()
            for name in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
                model.net.get_parameter(f"model.layers.0.{name}").zero_()
    made = apply(Settings(size=0.25), Quiet(), model, data).model
    batch = model.collate(data.split("train").some(4).list())
    torch.testing.assert_close(made.outputs(batch)[0], model.outputs(batch)[0], rtol=1e-4, atol=1e-5)


def test_tied_tables_stay_tied_and_are_no_blocks():
    model, data = started("causal_lm")
    native = ties(model.net)
    made = apply(Settings(), Quiet(), model, data).model
    assert native.items() <= ties(made.net).items() and not native.keys() & block_ties(made.net).keys()


def test_a_folder_that_stores_little_of_its_net_opens(tmp_path, monkeypatch):
    """What a folder may describe is bounded by what it stores, and a shared tensor stands for many."""
    monkeypatch.setattr("onnuri.bounds.PARAMETERS", 0)
    monkeypatch.setattr("onnuri.bounds.TIMES", 0.3)
    write_model(made := shared("causal_lm", size=0.25), tmp_path)
    assert tensor_digest(open_model(tmp_path).net) == tensor_digest(made.net)
    (tmp_path / "onnuri" / "ties.json").write_text("{}")
    with pytest.raises(BadInput, match="more parameters than its files"):
        open_model(tmp_path)


def test_ties_beside_plain_weights_count_for_nothing(tmp_path):
    model, _ = started("causal_lm")
    write_model(model, tmp_path)
    (tmp_path / "onnuri" / "ties.json").write_text(json.dumps(block_ties(shared("causal_lm").net)))
    assert tensor_digest(open_model(tmp_path).net) == tensor_digest(model.net)


def test_what_the_library_ties_is_left_to_it():
    """A net of transformers in which some layers share a block by design."""
    from transformers import Zamba2Config, Zamba2ForCausalLM

    config = Zamba2Config(
        hidden_size=32,
        num_hidden_layers=6,
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid", "mamba", "hybrid"],
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=64,
        mamba_d_state=8,
        mamba_headdim=8,
        n_mamba_heads=8,
        num_mem_blocks=1,
    )
    net = Zamba2ForCausalLM(config)
    assert any("shared" in name for name in ties(net)) and not block_ties(net)


def test_short_types_stay_within_a_rounding():
    model, data = started("causal_lm")
    model.net.to(torch.bfloat16)
    settings = Settings()
    result = apply(settings, Quiet(), model, data)
    assert OPERATION.promises[1].measure(settings, {"model": model, "data": data}, result) <= 1


def test_the_same_twice():
    assert tensor_digest(shared("causal_lm").net) == tensor_digest(shared("causal_lm").net)


def test_what_cannot_be_done_is_refused_with_a_way_out():
    for name in ("forest", "gan", "image_classifier"):
        data, family = open_data(f"toy:{name}"), registry.family(name)
        model = Model(family, *family.start(family.tiny(), data.records, torch.Generator().manual_seed(0)))
        with pytest.raises(Refusal, match="no blocks in a row that are alike"):
            apply(Settings(), Quiet(), model, data)
    model = shared("causal_lm")
    with pytest.raises(Refusal, match="share nothing yet"):
        apply(Settings(), Quiet(), model, open_data("toy:causal_lm"))
    with pytest.raises(BadSettings, match="no effect"):
        settings_of(OPERATION, {"start": "mean", "calibration": 4})


@pytest.mark.parametrize(
    "wrong",
    [
        {"model.layers.1.mlp.up_proj.weight": "model.layers.0.mlp.nothing"},
        {"model.layers.1.mlp.up_proj.weight": "model.layers.0.mlp.down_proj.weight"},
        {"nothing": "model.layers.0.mlp.up_proj.weight"},
        {"model.layers.1.mlp.up_proj.weight": 3},
        {"model.layers.9.mlp.up_proj.weight": "model.layers.0.mlp.up_proj.weight"},
    ],
)
def test_a_damaged_folder_is_refused(wrong, tmp_path):
    write_model(shared("causal_lm"), tmp_path)
    (tmp_path / "onnuri" / "ties.json").write_text(json.dumps(wrong))
    with pytest.raises(BadInput, match="not the same tensor of two blocks"):
        open_model(tmp_path)
    (tmp_path / "onnuri" / "ties.json").unlink()
    with pytest.raises(BadInput, match="missing tensor"):
        open_model(tmp_path)


# ------------------------------------------------------------------------------------------- the rest of a model's life


@pytest.fixture(scope="module", params=["causal_lm", "sequence"])
def bench(request, tmp_path_factory) -> Bench:
    return Bench(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def folder_shared(bench):
    """The folder of a model whose blocks share."""
    carried_out(bench, "share", "shared")
    return bench.folder / "shared"


def test_training_onward_moves_what_is_shared_as_one(bench, folder_shared):
    line = carried_out(bench, "train", "trained", folder_shared, steps=20, learning_rate=0.003, batch_size=16)
    before, after = open_model(folder_shared), open_model(bench.folder / "trained")
    assert block_ties(after.net) == block_ties(before.net)
    assert not torch.equal(*(next(iter(model.net.parameters())) for model in (before, after)))
    assert line["curves"]["loss"][-1][1] < line["curves"]["loss"][0][1]


@pytest.mark.parametrize("given", [{}, {"scheme": "int8", "method": "gptq"}, {"scheme": "bf16"}], ids=str)
def test_shared_matrices_are_packed_once(bench, folder_shared, given):
    out = f"packed-{len(given)}-{given.get('scheme')}"
    line = carried_out(bench, "quantize", out, folder_shared, **given)
    whole = carried_out(bench, "quantize", f"{out}-whole", **given)
    again = open_model(bench.folder / out)
    assert line["after"]["bytes"] < 0.8 * whole["after"]["bytes"]
    assert len(weights(again.net)) == len(weights(open_model(folder_shared).net))
    baked = carried_out(bench, "bake", f"{out}-baked", bench.folder / out)
    assert all(promise["kept"] for promise in baked["promises"])


def test_baking_gives_a_folder_for_every_tool(bench, folder_shared):
    line = carried_out(bench, "bake", "baked", folder_shared)
    baked = open_model(bench.folder / "baked")
    assert not block_ties(baked.net) and all(promise["kept"] for promise in line["promises"])
    assert count_parameters(baked.net) == count_parameters(open_model(bench.model).net)
    assert not (bench.folder / "baked" / "onnuri" / "ties.json").exists()
    assert line["before"]["scores"] == line["after"]["scores"]


def test_an_adapter_is_shared_too_and_can_be_taken_out_again(bench, folder_shared):
    carried_out(bench, "adapt", "adapter", folder_shared, steps=6)
    carried_out(bench, "bake", "adapted", bench.folder / "adapter")
    assert block_ties(open_model(bench.folder / "adapted").net) == block_ties(open_model(folder_shared).net)
    carried_out(bench, "unbake", "back", bench.folder / "adapted")
    old, new = (open_model(folder).net.state_dict() for folder in (folder_shared, bench.folder / "back"))
    for name, value in old.items():
        torch.testing.assert_close(new[name], value, rtol=1e-4, atol=1e-5)


def test_baking_twice_forgets_what_cannot_be_taken_out_any_more(bench, folder_shared):
    carried_out(bench, "adapt", "once", folder_shared, steps=6)
    first = carried_out(bench, "bake", "baked-once", bench.folder / "once")
    assert any("bake once more" in text for text in first["warnings"])
    carried_out(bench, "bake", "baked-twice", bench.folder / "baked-once")
    model = open_model(bench.folder / "baked-twice")
    assert not model.baked and not block_ties(model.net)
    with pytest.raises(Refusal):
        carried_out(bench, "unbake", "never", bench.folder / "baked-twice")


def test_zeros_stay_in_every_block(bench, folder_shared):
    carried_out(bench, "prune", "zeros", folder_shared, share=0.5)
    carried_out(bench, "bake", "zeros-apart", bench.folder / "zeros")
    carried_out(bench, "train", "zeros-trained", bench.folder / "zeros-apart", steps=5)
    before, after = (open_model(bench.folder / name) for name in ("zeros-apart", "zeros-trained"))
    counts = [{w.name: int((w.matrix == 0).sum()) for w in weights(one.net)} for one in (before, after)]
    assert counts[0] == counts[1] and sum(counts[0].values()) > 0
    with pytest.raises(Refusal, match="no blocks in a row"):
        carried_out(bench, "share", "again", bench.folder / "zeros")


def test_formats_that_cannot_say_it_are_refused():
    model = shared("causal_lm")
    with pytest.raises(Refusal, match="share their tensors, which that layout cannot say"):
        quantize.apply(quantize.Settings(layout="compressed-tensors"), Quiet(), model, open_data("toy:causal_lm"))
    with pytest.raises(Refusal, match="these share theirs"):
        require_known(model.net)


def test_an_export_counts_what_is_shared_once(bench, folder_shared):
    line = carried_out(bench, "export", "onnx", folder_shared)
    assert all(promise["kept"] for promise in line["promises"])
    again = open_model(bench.folder / "onnx")
    assert count_parameters(again.net) == count_parameters(open_model(folder_shared).net)


@pytest.mark.parametrize(
    "operation",
    [
        name
        for name in registry.entries("operations")
        if name not in ("share", "bake", "unbake", "export", "merge") and "model" in registry.operation(name).takes
    ],
)
def test_every_operation_keeps_its_promises_or_refuses(bench, folder_shared, operation):
    record = registry.operation(operation)
    out = {"records": f"{operation}.jsonl", "report": ""}.get(record.gives, f"then-{operation}")
    try:
        line = carried_out(bench, operation, out, folder_shared, **bench.settings(record))
    except OnnuriError as error:
        assert isinstance(error, Refusal), error
        return
    assert all(promise["kept"] for promise in line.get("promises", [])), line["promises"]
    if record.gives == "model":
        open_model(bench.folder / out)


@pytest.mark.parametrize("units", ["heads", "channels", "blocks"])
def test_units_of_shared_blocks_go_together_or_not_at_all(bench, folder_shared, units):
    try:
        line = carried_out(bench, "prune", f"fewer-{units}", folder_shared, units=units, share=0.5)
    except Refusal as refusal:
        assert units != "channels" and "no place" not in str(refusal), refusal
        return
    assert all(promise["kept"] for promise in line["promises"])
    assert block_ties(open_model(bench.folder / f"fewer-{units}").net) or units == "blocks"


def test_two_that_share_alike_merge(bench, folder_shared):
    carried_out(bench, "train", "onward", folder_shared, steps=6, seed=1)
    line = carried_out(bench, "merge", "merged", folder_shared, other=bench.folder / "onward")
    assert all(promise["kept"] for promise in line["promises"])
    assert block_ties(open_model(bench.folder / "merged").net) == block_ties(open_model(folder_shared).net)
