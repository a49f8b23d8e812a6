"""Models that are merged from files to files, without a net and without data."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import folders as F
from command import onnuri, refused
from onnuri import ledger, machine
from onnuri.model import open_model
from onnuri.run import execute
from onnuri.stored import Stored, first_unlike_file, head_of, write_alike


def moved(name: str, folder: Path, out: Path, seed: int, **options) -> Path:
    """A copy of the folder whose every number is another one."""
    shutil.copytree(folder, out)
    net, draw = F.reopen(name, folder), torch.Generator().manual_seed(seed)
    for value in net.parameters():
        value.data += 0.05 * torch.randn(value.shape, generator=draw).to(value.dtype)
    for path in out.glob("*.safetensors"):
        path.unlink()
    net.save_pretrained(out, **options)
    return out


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """name -> {"model", "other", "base"}: folders of one design, made once; nobody writes into them."""
    root = tmp_path_factory.mktemp("parents")

    def make(name: str) -> dict[str, Path]:
        place = root / name
        if not place.exists():
            F.save(name, place / "base")
            for seed, role in enumerate(("model", "other")):
                moved(name, place / "base", place / role, seed)
        return {role: place / role for role in ("model", "other", "base")}

    return make


@pytest.mark.parametrize("method", ["linear", "slerp", "task-arithmetic", "ties", "dare", "dare-ties"])
@pytest.mark.parametrize("name", ["llama_tied", "llama_bf16", "bert"])
def test_gives_the_tensors_that_nets_give(name, method, family, tmp_path):
    inputs = family(name) if method not in ("linear", "slerp") else {k: family(name)[k] for k in ("model", "other")}
    settings = {"method": method, "weight": 0.3}
    source = F.write_texts(tmp_path / "d.jsonl", "text", *["label"] * (name == "bert"))
    line = execute("merge", settings, inputs, tmp_path / "rest", quiet=True)
    execute("merge", settings, {**inputs, "data": source}, tmp_path / "nets", quiet=True)
    one, other = (load_file(tmp_path / place / "model.safetensors") for place in ("rest", "nets"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert len(line["promises"]) == 2 and all(promise["kept"] for promise in line["promises"])
    assert line["after"] is None and ledger.verify(tmp_path / "rest") == []
    assert open_model(tmp_path / "rest").family.name == line["family"]
    assert "not measured" not in (tmp_path / "rest" / "README.md").read_text()


def test_shards_stay_and_open_in_the_library(family, tmp_path):
    base = family("llama")["base"]
    places = [moved("llama", base, tmp_path / str(seed), seed, max_shard_size="30KB") for seed in (1, 2)]
    assert len(list(places[0].glob("*.safetensors"))) > 1
    execute("merge", {}, {"model": places[0], "other": places[1]}, tmp_path / "out", quiet=True)
    assert [p.name for p in sorted(tmp_path.glob("out/*.safetensors"))] == [
        p.name for p in sorted(places[0].glob("*.safetensors"))
    ]
    one, other, mean = (F.reopen("llama", place).state_dict() for place in (*places, tmp_path / "out"))
    assert all(torch.allclose(mean[key], (one[key] + other[key]) / 2, atol=1e-7) for key in mean)
    again = moved("llama", base, tmp_path / "whole", 2)  # the other need not lie in as many files
    line = execute("merge", {}, {"model": places[0], "other": again}, tmp_path / "out2", quiet=True)
    assert line["output"]["tensors"] == ledger.read(tmp_path / "out")[-1]["output"]["tensors"]


def test_parts_of_a_pipeline_lie_in_sub_folders(tmp_path):
    base = F.save("ddpm", tmp_path / "base")
    for seed in (1, 2):
        place = shutil.copytree(base, tmp_path / str(seed))
        for path in place.rglob("*.safetensors"):
            tensors = load_file(path)
            for value in tensors.values():
                value += 0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(seed))
            save_file(tensors, path)
    line = execute("merge", {}, {"model": tmp_path / "1", "other": tmp_path / "2"}, tmp_path / "out", quiet=True)
    assert line["family"] == "diffusion" and any("/" in name for name in Stored(tmp_path / "out"))
    assert open_model(tmp_path / "out")


def test_only_the_tensor_at_hand_is_in_memory(tmp_path):
    """Thirty-two tensors of 4 MB: the process grows by a few of them, not by all that are read or written."""
    place = tmp_path / "source"
    place.mkdir()
    save_file({f"{i:02d}": torch.full((2**20,), float(i)) for i in range(32)}, place / "model.safetensors")
    source = Stored(place)
    machine.forget_peak()
    before = machine.peak_memory()
    write_alike(source, ((name, source[name] * 2) for name in source), tmp_path)
    assert machine.peak_memory() - before < 32e6
    assert head_of(tmp_path / "model.safetensors") == head_of(place / "model.safetensors")
    written = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(written[name], value * 2) for name, value in load_file(place / "model.safetensors").items())


# --------------------------------------------------------------------------------------------------------- bad input


def config(folder: Path, **entries) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: config(f, rms_norm_eps=0.5), "do not say the same in config.json: rms_norm_eps"),
        (lambda f: (f / "tokenizer_config.json").write_text("{"), "tokenizer_config.json"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "do not say the same in tokenizer.json"),
        (lambda f: (f / "onnuri").mkdir() or save_file({}, f / "onnuri/packed.safetensors"), "its weights are packed"),
        (lambda f: (f / "model.safetensors").unlink(), "holds no tensor"),
    ],
)
def test_folders_that_do_not_belong_together(spoil, says, family, tmp_path):
    folders = family("llama")
    other = shutil.copytree(folders["other"], tmp_path / "other")
    spoil(other)
    done = onnuri("merge", folders["model"], "--other", other, "--out", tmp_path / "out")
    refused(done, says)
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.partial").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("model.norm.weight"), "tensor model.norm.weight (32,) is missing in the other model"),
        (lambda t: t.update({"model.norm.weight": torch.ones(3)}), "(32,) in the first model, (3,) in the other"),
        (lambda t: t.update({"model.norm.weight": torch.full((32,), torch.nan)}), "not finite"),
    ],
)
def test_the_first_tensor_that_does_not_fit_is_named(change, says, family, tmp_path):
    folders = family("llama")
    other = shutil.copytree(folders["other"], tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    change(tensors)
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    refused(onnuri("merge", folders["model"], "--other", other, "--out", tmp_path / "out"), says)
    assert not (tmp_path / "out").exists()


def test_what_needs_records_says_so(family, tmp_path):
    pictures, folders = family("resnet"), family("llama")
    done = onnuri("merge", pictures["model"], "--other", pictures["other"], "--out", tmp_path / "out")
    refused(done, "batch norms", "--data")
    words = ("--other", folders["other"], "--answer", "text", "--out", tmp_path / "out")
    refused(onnuri("merge", folders["model"], *words), "'answer' says how data are read")
    words = ("--other", folders["model"], "--out", tmp_path / "out")
    refused(onnuri("merge", folders["model"], *words), "the same numbers")


def test_provenance_is_no_difference(family, tmp_path):
    folders = family("llama")
    other = shutil.copytree(folders["other"], tmp_path / "other")
    config(other, _name_or_path="elsewhere", transformers_version="4.0")
    (other / "README.md").write_text("another")
    assert first_unlike_file(folders["model"], other) is None
    config(other, hidden_act="gelu")
    assert first_unlike_file(folders["model"], other) == "config.json: hidden_act"
