"""The layout of compressed-tensors: by its bits, by transformers with the package of that name, and by what it refuses."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import folders as F
from onnuri.errors import BadInput, OnnuriError, Refusal
from onnuri.model import Model, open_model, tensor_digest, write_model
from onnuri.operation import Quiet
from onnuri.operations.quantize import Settings, apply
from onnuri.run import execute
from onnuri.sources import open_data
from onnuri.weights.attach import packed_weights, plain_copy
from onnuri.weights.compressed_tensors import STORAGES

Writer = Callable[..., tuple[Model, Path]]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Writer:
    """(name, scheme) -> the packed model and the folder that was written of it, each made once."""
    root = tmp_path_factory.mktemp("compressed")
    language, texts = F.write_texts(root / "language.jsonl", "text"), F.write_texts(root / "t.jsonl", "text", "label")
    pictures = F.write_pictures(root / "pictures", F.LABELS)
    known: dict[tuple, tuple[Model, Path]] = {}

    def make(name: str, scheme: str, **settings) -> tuple[Model, Path]:
        key = (name, scheme, *settings.items())
        if key not in known:
            source, out = root / name, root / f"{name}-{scheme}-{len(known)}"
            if not source.exists():
                F.save(name, source)
            data = open_data(str(language if name in F.LANGUAGE else texts if name in F.TEXTS else pictures))
            few = {"calibration": 8} if scheme == "int8-static" else {}
            groups = {"group": 8} if scheme == "int4" else {}
            chosen = Settings(scheme=scheme, layout="compressed-tensors", **(few | groups | settings))
            model = apply(chosen, Quiet(), open_model(source), data).model
            assert model is not None
            out.mkdir()
            write_model(model, out)
            known[key] = model, out
        return known[key]

    return make


def batch_of(model: Model) -> dict:
    name, kind = next(iter(model.family.fields(model.assets)[0].items()), ("text", "text"))
    if kind == "image":
        draw = np.random.default_rng(0)
        return model.collate([{name: draw.integers(0, 255, (F.SIDE, F.SIDE, 3), np.uint8)} for _ in range(3)])
    return model.collate([{"text": row["text"]} for row in F.sentences(3)])


NAMES = ["llama", "llama_tied", "llama_bf16", "gemma2", "bert", "roberta", "vit"]


@pytest.mark.parametrize("scheme", STORAGES)
@pytest.mark.parametrize("name", NAMES)
def test_a_written_folder_opens_packed_and_equal(name, scheme, written):
    model, folder = written(name, scheme)
    again = open_model(folder)
    assert packed_weights(again.net).keys() == packed_weights(model.net).keys()
    assert tensor_digest(again.net) == tensor_digest(model.net)
    assert {base.scheme for _, base in packed_weights(again.net).values()} == {scheme}
    batch = batch_of(model)
    torch.testing.assert_close(again.outputs(batch)[0], model.outputs(batch)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scheme", STORAGES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")
def test_transformers_computes_what_our_own_floats_give(name, scheme, written):
    """With the package. Rounded inputs are allowed a step of int8: the package's own ranges end at 127.5, ours at 127."""
    pytest.importorskip("compressed_tensors")
    model, folder = written(name, scheme)
    batch = batch_of(model)
    theirs = model.family.outputs(F.reopen(name, folder), batch)[0].detach().float()
    floats = model.family.outputs(plain_copy(model.net), batch)[0].detach().float()
    if STORAGES[scheme].inputs is None:
        assert torch.equal(theirs, floats)
    else:
        apart, size = float((theirs - model.outputs(batch)[0].float()).abs().max()), float(floats.abs().max())
        assert apart <= 0.1 * size


def test_words_are_those_of_the_formula(written):
    """Code i of a row lies at bit i * bits of its words, made positive; the scales lie beside it."""
    for scheme, bits in (("int4", 4), ("int8", 8)):
        model, folder = written("llama", scheme)
        tensors = load_file(folder / "model.safetensors")
        for name, (_, base) in packed_weights(model.net).items():
            layer = name.removesuffix(".weight")
            codes = base.form.codes(base.codes)[0].long().numpy() + 2 ** (bits - 1)
            per = 32 // bits
            padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % per))).reshape(len(codes), -1, per)
            expected = (padded << (bits * np.arange(per))).sum(-1).astype(np.uint32).view(np.int32)
            assert np.array_equal(tensors[f"{layer}.weight_packed"].numpy(), expected)
            assert tensors[f"{layer}.weight_shape"].tolist() == list(base.shape)
            assert torch.equal(tensors[f"{layer}.weight_scale"], base.scale[0]) and name not in tensors


def test_what_is_tied_or_no_linear_layer_stays_float(written):
    model, folder = written("llama_tied", "int8")
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["ignore"] == ["lm_head"]
    assert not any("embed" in name for name in packed_weights(model.net))


def test_layers_whose_columns_a_group_does_not_divide_stay_float_and_are_named(tmp_path, written):
    source = written("bert", "int8")[1].parent / "bert"
    data = open_data(str(F.write_texts(tmp_path / "t.jsonl", "text", "label")))
    log, net = Quiet(), open_model(source)
    columns = {weight.name: weight.matrix.shape[2] for weight in _linear(net)}
    group = max(columns.values())
    model = apply(Settings(scheme="int4", group=group, layout="compressed-tensors"), log, net, data).model
    assert "are float" in log.warnings[0]
    write_model(model, fresh(tmp_path / "out"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert len(config["ignore"]) == sum(count % group != 0 for count in columns.values()) > 0
    assert tensor_digest(open_model(tmp_path / "out").net) == tensor_digest(model.net)


def _linear(model: Model) -> list:
    from onnuri.weights.matrices import weights

    return weights(model.net, "linear")


def fresh(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize(("name", "told"), [("gpt2", "no linear layer"), ("mixtral", "fused experts")])
def test_nets_without_linear_layers_of_their_own_are_refused(name, told, written):
    """The linear layers of GPT-2 store their matrix turned, and its head is tied; a mixture's experts lie in one tensor."""
    with pytest.raises(Refusal, match=told):
        written(name, "int8")


def test_a_net_of_convolutions_packs_its_head(written):
    assert len(packed_weights(written("resnet", "int8")[0].net)) == 1


def test_nets_of_our_own_are_refused(tmp_path):
    execute("train", {"family": "tabular", "steps": 2}, {"data": "builtin:iris"}, tmp_path / "m", quiet=True)
    with pytest.raises(Refusal, match="only nets of transformers"):
        execute(
            "quantize",
            {"layout": "compressed-tensors"},
            {"model": tmp_path / "m", "data": "builtin:iris"},
            tmp_path / "q",
            quiet=True,
        )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("preset", ["W4A16", "W8A16", "INT8", "FP8_DYNAMIC"])
def test_a_folder_that_the_package_wrote_opens_packed(preset, tmp_path, written):
    """What llm-compressor puts on the Hub: the package rounds and stores, we open."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme, apply_quantization_config
    from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES
    from transformers import AutoModelForCausalLM

    source = written("llama", "int8")[1].parent / "llama"
    net = AutoModelForCausalLM.from_pretrained(source).eval()
    parts = copy.deepcopy(PRESET_SCHEMES[preset])
    if parts["weights"].group_size:
        parts["weights"].group_size = 8
    scheme = QuantizationScheme(targets=["Linear"], **parts)
    config = QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"], quantization_status="frozen")
    apply_quantization_config(net, config)
    for module in net.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            groups = module.weight.unflatten(1, (module.weight_scale.shape[1], -1))
            largest = 448.0 if preset.startswith("FP8") else 2 ** (parts["weights"].num_bits - 1) - 0.5
            module.weight_scale.data = groups.abs().amax(2) / largest
    compressor = ModelCompressor.from_pretrained_model(net)
    compressor.compress_model(net)
    net.save_pretrained(tmp_path / "theirs")
    compressor.update_config(str(tmp_path / "theirs"))
    for path in source.iterdir():
        if path.is_file() and not (tmp_path / "theirs" / path.name).exists():
            shutil.copy(path, tmp_path / "theirs" / path.name)
    ours = open_model(tmp_path / "theirs")
    assert packed_weights(ours.net) and not any("lm_head" in name for name in packed_weights(ours.net))
    batch = batch_of(ours)
    theirs = ours.family.outputs(AutoModelForCausalLM.from_pretrained(tmp_path / "theirs").eval(), batch)[0].detach()
    floats = ours.family.outputs(plain_copy(ours.net), batch)[0].detach()
    if parts.get("input_activations") is None:
        torch.testing.assert_close(floats, theirs, rtol=0, atol=0)
    else:
        assert float((ours.outputs(batch)[0] - theirs).abs().max()) <= 0.05 * float(theirs.abs().max())


# ------------------------------------------------------------------------------------------------------------- bad input


def spoiled(folder: Path, target: Path, change: Callable[[dict, dict], None]) -> Path:
    """A copy with another `quantization_config` or other tensors."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    tensors = load_file(target / "model.safetensors")
    change(config["quantization_config"], tensors)
    (target / "config.json").write_text(json.dumps(config))
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def first(tensors: dict, part: str) -> str:
    return next(name for name in sorted(tensors) if name.endswith(part))


FAULTS = {
    "asymmetric": lambda c, t: c["config_groups"]["group_0"]["weights"].update(symmetric=False),
    "three bits": lambda c, t: c["config_groups"]["group_0"]["weights"].update(num_bits=3),
    "unknown format": lambda c, t: c.update(format="nvfp4-pack-quantized"),
    "no groups": lambda c, t: c.update(config_groups={}),
    "groups of nothing": lambda c, t: c.update(config_groups=[]),
    "inputs of 4 bits": lambda c, t: c["config_groups"]["group_0"].update(
        input_activations={"num_bits": 4, "strategy": "token", "dynamic": True}
    ),
    "no scale": lambda c, t: t.pop(first(t, "weight_scale")),
    "scale of another shape": lambda c, t: t.update({first(t, "weight_scale"): torch.ones(3, 1)}),
    "no shape": lambda c, t: t.pop(first(t, "weight_shape")),
    "a huge shape": lambda c, t: t.update({first(t, "weight_shape"): torch.tensor([2**40, 2**40])}),
    "a shape of one": lambda c, t: t.update({first(t, "weight_shape"): torch.tensor([8])}),
    "words cut off": lambda c, t: t.update(
        {first(t, "weight_packed"): t[first(t, "weight_packed")][:, :1].contiguous()}
    ),
    "words of floats": lambda c, t: t.update({first(t, "weight_packed"): t[first(t, "weight_packed")].float()}),
    "an order of columns": lambda c, t: t.update(
        {first(t, "weight_scale").replace("_scale", "_g_idx"): torch.zeros(4)}
    ),
    "no codes": lambda c, t: t.pop(first(t, "weight_packed")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_read_is_bad_input(fault, written, tmp_path):
    with pytest.raises(BadInput) as raised:
        open_model(spoiled(written("llama", "int8")[1], tmp_path / "bad", FAULTS[fault]))
    assert "Traceback" not in str(raised.value) and isinstance(raised.value, OnnuriError)


def test_such_a_folder_is_evaluated_and_exported_as_any_other(written, tmp_path):
    _, folder = written("llama", "int4")
    texts = F.write_texts(tmp_path / "t.jsonl", "text")
    report = execute("evaluate", {}, {"model": folder, "data": texts}, quiet=True)
    assert report["scores"]["perplexity"] > 1
    with pytest.raises(Refusal, match="packed as integers"):
        execute("quantize", {}, {"model": folder, "data": texts}, tmp_path / "again", quiet=True)
