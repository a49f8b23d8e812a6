"""Adapters on real folders, with PEFT itself as the reference: what we write it reads, what it writes we read."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import folders as F
from command import some
from onnuri import measure
from onnuri.errors import BadInput, BadSettings, Refusal
from onnuri.model import open_model, tensor_digest, write_model
from onnuri.run import execute
from onnuri.weights.adapters import metadata
from onnuri.weights.attach import attach, bake, pack, updates
from onnuri.weights.lowrank import LowRank, fresh
from onnuri.weights.matrices import weights

peft = pytest.importorskip("peft")
EXACT = 2e-6  # fp32 logits of size one, summed in another order
FEW = ("llama_tied", "mixtral", "gpt2", "vit", "resnet", "wav2vec2")
SHARED = ("llama", "llama_tied", "qwen3", "gemma2", "mixtral", "gpt2", "bert", "roberta", "distilbert", "vit", "swin")
PICTURES = ("resnet", "convnext")
SOUNDS = ("wav2vec2", "whisper_audio")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    F.write_texts(folder / "language.jsonl", "text")
    F.write_texts(folder / "texts.jsonl", "text", "label")
    F.write_pictures(folder / "pictures", F.LABELS)
    F.write_sounds(folder / "sounds", F.LABELS)
    return folder


def base_of(name: str, root: Path) -> Path:
    return root / name if (root / name).exists() else F.save(name, root / name)


def run(operation: str, name: str, folder: Path, out: Path, root: Path, **settings) -> dict:
    files = {F.LANGUAGE: "language.jsonl", F.TEXTS: "texts.jsonl", F.PICTURES: "pictures", F.SOUNDS: "sounds"}
    data = next(file for names, file in files.items() if name in names)
    line = execute(operation, settings, {"model": str(folder), "data": str(root / data)}, out, quiet=True)
    assert all(promise["kept"] for promise in line["promises"])
    return line


def adapted(name: str, root: Path, out: Path, **settings) -> Path:
    quick = {"steps": 3, "batch_size": 8, "learning_rate": 0.01, "rank": 3} | settings
    run("adapt", name, base_of(name, root), out, root, **quick)
    return out


def in_peft(name: str, root: Path, adapter: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(F.reopen(name, base_of(name, root)), str(adapter)).eval()


def gap(name: str, one, other) -> float:
    return float((F.logits(name, one) - F.logits(name, other)).abs().max())


# ------------------------------------------------------------------------------------------------------- the whole chain


@pytest.mark.parametrize("name", some([*SHARED, *PICTURES, *SOUNDS], FEW))
def test_adapt_bake_unbake(name, root, tmp_path):
    """PEFT gives our logits; the baked folder opens in the library with them; unbaked it is the base again."""
    ranks = {"ranks": {"q_proj": 2, "k_proj": 0}} if name in ("llama", "mixtral") else {}
    adapter = adapted(name, root, tmp_path / "adapter", **ranks)
    base, mine = F.reopen(name, base_of(name, root)), open_model(adapter)
    assert gap(name, mine.net, base) > 1e-3, "something was learnt"
    assert gap(name, mine.net, in_peft(name, root, adapter)) <= EXACT
    assert not (adapter / "model.safetensors").exists() and measure.model_bytes(mine) > measure.folder_bytes(adapter)
    run("bake", name, adapter, tmp_path / "baked", root)
    assert gap(name, F.reopen(name, tmp_path / "baked"), mine.net) <= EXACT
    run("unbake", name, tmp_path / "baked", tmp_path / "again", root)
    assert gap(name, F.reopen(name, tmp_path / "again"), base) <= EXACT
    with pytest.raises(Refusal, match="no adapter was baked"):
        run("unbake", name, tmp_path / "again", tmp_path / "never", root)
    if ranks:
        found = {key: update.rank for key, (_, update) in updates(mine.net).items()}
        assert {r for key, r in found.items() if "q_proj" in key} == {2} and not any("k_proj" in key for key in found)
        assert {r for key, r in found.items() if "q_proj" not in key} == {3}


def test_what_peft_has_no_form_for_is_said(root, tmp_path):
    """MobileNetV2 reads the stride of its convolutions, which PEFT's wrapper hides: our layout takes all of them, PEFT's
    those that it can run."""
    own = adapted("mobilenet", root, tmp_path / "own")
    assert not (own / "adapter_config.json").exists() and (own / "onnuri" / "adapter.safetensors").exists()
    assert len(updates(open_model(own).net)) > 50
    shared = adapted("mobilenet", root, tmp_path / "shared", layout="peft")
    assert list(updates(open_model(shared).net)) == ["classifier.weight"]
    assert gap("mobilenet", open_model(shared).net, in_peft("mobilenet", root, shared)) <= EXACT
    run("bake", "mobilenet", own, tmp_path / "baked", root)
    assert gap("mobilenet", F.reopen("mobilenet", tmp_path / "baked"), open_model(own).net) <= EXACT


def test_an_adapter_is_trained_onward_and_nothing_else_of_it(root, tmp_path):
    adapter = adapted("llama", root, tmp_path / "adapter")
    run("adapt", "llama", adapter, tmp_path / "onward", root, steps=2, batch_size=8)
    assert gap("llama", open_model(tmp_path / "onward").net, open_model(adapter).net) > 0
    with pytest.raises(BadSettings, match="'rank' has no effect"):
        run("adapt", "llama", adapter, tmp_path / "never", root, rank=4)
    for operation in ("train", "prune", "quantize"):
        with pytest.raises(Refusal, match="onnuri bake"):
            run(operation, "llama", adapter, tmp_path / "never", root)


@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic"])
def test_on_a_packed_base(scheme, root, tmp_path):
    """Codes stay, the update is apart; PEFT cannot open such a base, so the layout is ours. Baking makes it float."""
    run("quantize", "bert", base_of("bert", root), tmp_path / "packed", root, scheme=scheme)
    run("bake", "bert", tmp_path / "packed", tmp_path / "float", root)
    run("adapt", "bert", tmp_path / "packed", tmp_path / "adapter", root, steps=2, batch_size=8, learning_rate=0.01)
    assert (tmp_path / "adapter" / "onnuri" / "adapter.safetensors").exists()
    run("bake", "bert", tmp_path / "adapter", tmp_path / "baked", root)
    F.reopen("bert", tmp_path / "baked")


def test_the_same_seed_gives_the_same_adapter(root, tmp_path):
    one, other = (
        load_file(adapted("bert", root, tmp_path / n) / "adapter_model.safetensors") for n in ("one", "other")
    )
    assert all(torch.equal(one[key], other[key]) for key in one)


# ------------------------------------------------------------------------------------------------------------ PEFT's own


@pytest.mark.parametrize(
    "name, config",
    [
        ("llama", {"target_modules": ["q_proj", "down_proj"], "alpha_pattern": {"down_proj": 7}, "use_rslora": True}),
        ("llama", {"target_modules": "all-linear", "rank_pattern": {r"layers\.1\..*_proj": 5}}),
        ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
        ("bert", {"target_modules": ["query", "word_embeddings"], "modules_to_save": ["classifier"]}),
        ("resnet", {"target_modules": ["convolution"]}),
        ("mixtral", {"target_modules": ["v_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}),
        ("mixtral", {"target_parameters": ["mlp.experts.down_proj"]}),
        ("llama", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    ],
)
def test_adapters_of_peft_open_here(name, config, root, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(F.reopen(name, base_of(name, root)), peft.LoraConfig(r=4, lora_alpha=9, **config))
        torch.manual_seed(1)
        for key, parameter in theirs.named_parameters():
            if "lora_" in key or "modules_to_save" in key:
                parameter.data = torch.randn_like(parameter) * 0.1
        theirs.eval().save_pretrained(tmp_path / "adapter")
    said = tmp_path / "adapter" / "adapter_config.json"
    said.write_text(json.dumps(json.loads(said.read_text()) | {"base_model_name_or_path": str(root / name)}))
    mine = open_model(tmp_path / "adapter")
    assert gap(name, mine.net, theirs) <= EXACT < gap(name, mine.net, F.reopen(name, root / name))
    run("bake", name, tmp_path / "adapter", tmp_path / "baked", root)
    assert gap(name, F.reopen(name, tmp_path / "baked"), theirs) <= EXACT
    if "modules_to_save" in config:
        (tmp_path / "again").mkdir()
        write_model(mine, tmp_path / "again")
        assert gap(name, open_model(tmp_path / "again").net, theirs) <= EXACT
        assert gap(name, in_peft(name, root, tmp_path / "again"), theirs) <= EXACT


# -------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "fault", ["another base", "no base", "no such layer", "a layer of another shape", "dora", "biases"]
)
def test_an_adapter_that_does_not_fit_is_refused(fault, root, tmp_path):
    adapter = adapted("llama", root, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    path = adapter / "adapter_model.safetensors"
    tensors, header = load_file(path), metadata(path)
    key = next(key for key in tensors if "q_proj.lora_A" in key)
    said = {
        "another base": "made for another base",
        "no base": "which is not here",
        "no such layer": "no such layer in the base",
        "a layer of another shape": "the base has",
        "dora": "use_dora",
        "biases": "trains biases",
    }[fault]
    if fault == "another base":
        changed = shutil.copytree(base_of("llama", root), tmp_path / "changed")
        values = load_file(changed / "model.safetensors")
        values["lm_head.weight"] = values["lm_head.weight"] + 1
        save_file(values, changed / "model.safetensors", metadata={"format": "pt"})
        config["base_model_name_or_path"] = str(changed)
    elif fault == "no base":
        config["base_model_name_or_path"] = "nobody/nothing"
    elif fault == "no such layer":
        tensors[key.replace("q_proj", "x_proj")] = tensors.pop(key)
    elif fault == "a layer of another shape":
        tensors[key] = tensors[key][:, :5].contiguous()
    else:
        config |= {"dora": {"use_dora": True}, "biases": {"bias": "all"}}[fault]
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, path, metadata=header)
    with pytest.raises(BadInput, match=said):
        open_model(adapter)


def test_a_base_that_moved_with_its_adapter_is_found(root, tmp_path):
    shutil.copytree(base_of("bert", root), tmp_path / "one" / "base")
    run("adapt", "bert", tmp_path / "one" / "base", tmp_path / "one" / "adapter", root, steps=1, batch_size=8)
    (tmp_path / "one").rename(tmp_path / "two")
    assert open_model(tmp_path / "two" / "adapter").base.folder == tmp_path / "two" / "base"


@pytest.mark.parametrize("ranks, said", [({"nothing": 3}, "no weight's name holds"), ({"q_proj": -1}, "whole number")])
def test_ranks_that_mean_nothing(ranks, said, root, tmp_path):
    with pytest.raises(BadSettings, match=said):
        adapted("llama", root, tmp_path / "never", ranks=ranks)


# --------------------------------------------------------------------------------------------------------- any layer at all


class Zoo(torch.nn.Module):
    """Layers that no other test here has."""

    def __init__(self):
        super().__init__()
        nn = torch.nn
        self.lstm, self.gru = nn.LSTM(6, 5, 2, bidirectional=True), nn.GRU(10, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.one, self.three = nn.Conv1d(4, 6, 3, groups=2, padding=1), nn.Conv3d(1, 2, 2)
        self.up, self.down = nn.ConvTranspose1d(6, 3, 2), nn.ConvTranspose2d(2, 4, 2, groups=2)

    def forward(self, x):
        h = self.gru(self.lstm(x)[0])[0]
        h = self.attention(h, h, h)[0]
        h = self.up(self.one(h.transpose(1, 2)))
        return (
            h.mean()
            + self.three(x[None, None, :4, :4, :4]).sum()
            + self.down(x[None, :2, :3, :4].expand(1, 2, 3, 4)).sum()
        )


def test_every_kind_of_layer_takes_an_update_and_gives_it_back():
    torch.manual_seed(0)
    net, x = Zoo().eval(), torch.randn(5, 6, 6)
    before, digest = net(x), tensor_digest(net)
    plain = {weight.name: weight.value.detach().clone() for weight in weights(net)}
    generator = torch.Generator().manual_seed(0)
    for weight in weights(net):
        attach(weight, fresh(weight, 2, 2.0, generator))
    assert torch.equal(net(x), before), "an update is zero at first"
    for _, update in updates(net).values():
        update.up.data = torch.randn(update.up.shape, generator=generator)
    moved = net(x)
    net(x).backward()
    assert all(update.up.grad is not None and bool(update.up.grad.any()) for _, update in updates(net).values())
    kept = {name: LowRank(u.view, u.down.detach(), u.up.detach(), u.scale) for name, (_, u) in updates(net).items()}
    bake(net)
    again, moved, before = net(x).item(), moved.item(), before.item()
    assert abs(again - moved) <= 1e-5 * abs(moved) and abs(moved - before) > 1e-3
    for weight in weights(net):
        delta = kept[weight.name].delta(weight.value.shape)
        rank = torch.linalg.matrix_rank(weight.view.matrix(delta.detach())[0])
        assert int(rank) <= 2
        weight.value.data -= delta.detach()
        assert torch.allclose(weight.value, plain[weight.name], atol=1e-6)
    assert tensor_digest(net) != digest  # rounding, and no more


def test_updates_on_packed_layers_get_their_gradient():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 4))
    for weight in weights(net):
        pack(weight, "int8-dynamic")
        attach(weight, fresh(weight, 2, 2.0, torch.Generator().manual_seed(0)))
    net(torch.randn(3, 8)).sum().backward()
    first = updates(net)["0.weight"][1]
    assert bool(first.up.grad.any()), "rounded activations do not stop it"
