"""Real Hugging Face folders, tiny and random: what transformers and diffusers save, we open, change and write, and they
open again; every operation keeps its promises on them."""

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils import parametrize

import folders as F
from command import some
from onnuri import measure, registry
from onnuri.errors import BadInput, Refusal
from onnuri.graph import on_a_grid
from onnuri.model import Model, count_parameters, open_model, tensor_digest, write_model
from onnuri.operations.quantize import ROLES
from onnuri.run import execute
from onnuri.sources import open_data
from onnuri.weights.attach import is_packed, pack, packed_weights
from onnuri.weights.matrices import weights
from onnuri.weights.packed import FORMATS
from onnuri.weights.weightnorm import fold_norms

FEW = ("llama_tied", "mobilenet")
Maker = Callable[..., Path]


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Callable[[str], str]:
    """name of a folder -> records that it can be asked about."""
    root = tmp_path_factory.mktemp("data")
    language = F.write_texts(root / "language.jsonl", "text")
    texts = F.write_texts(root / "texts.jsonl", "text", "label")
    pictures = F.write_pictures(root / "pictures", F.LABELS)
    sounds = F.write_sounds(root / "sounds", F.LABELS)
    known = dict.fromkeys((*F.LANGUAGE, *F.MASKED), language)
    known |= dict.fromkeys((*F.TEXTS, "bert_body", "bert_tagger"), texts)
    known |= dict.fromkeys(F.SOUNDS, sounds)
    return lambda name: str(known.get(name, pictures))


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Maker:
    """name -> its folder, made once; nobody writes into it."""
    root = tmp_path_factory.mktemp("folders")

    def make(name: str) -> Path:
        if not (root / name).exists():
            F.save(name, root / name)
        return root / name

    return make


@pytest.fixture(scope="session")
def packed(tmp_path_factory, made, data) -> Maker:
    """name -> the ledgered folder of its int8 form, made once."""
    root = tmp_path_factory.mktemp("packed")

    def make(name: str, scheme: str = "int8", **settings: int) -> Path:
        out = root / f"{name}-{scheme}"
        if not out.exists():
            run("quantize", made(name), data(name), out, scheme=scheme, **settings)
        return out

    return make


def run(operation: str, folder: Path, data: str, out: Path | None = None, **settings: Any) -> dict:
    """The ledger line of an operation, every promise of it kept."""
    images = {"fields": {"image": "image"}, "answer": "image"}
    options = images if registry.family("diffusion").claims(folder) else {}
    line = execute(operation, settings, {"model": str(folder), "data": data}, out, options, quiet=True)
    if registry.operation(operation).gives == "model":
        assert line["promises"] and all(promise["kept"] for promise in line["promises"])
    return line


def outputs(model: Model, data: str, count: int = 6) -> torch.Tensor:
    records = open_data(data).records[:count]
    if model.family.name == "diffusion":
        return model.outputs(model.collate([{} for _ in records]))[0]
    return model.outputs(model.collate(records.list()))[0].float()


def library_tensors(name: str, folder: Path) -> dict[str, torch.Tensor]:
    """What the library's own loader finds, weight norms folded."""
    return fold_norms(F.reopen(name, folder)).state_dict()


# --------------------------------------------------------------------------------------------------------- the round trip


@pytest.mark.parametrize("name", F.ARCHITECTURES)
def test_opened_as_the_library_opens_it_and_written_so_that_it_opens_it(name, made, tmp_path):
    """Tensors are bitwise those of the library's loader, but for weight norms, which are equal as values; what we write it
    opens with an empty report."""
    model, original = open_model(made(name)), F.reopen(name, made(name))
    normed = {
        f"{path}.weight": m.weight.detach() for path, m in original.named_modules() if parametrize.is_parametrized(m)
    }
    mine, theirs = model.net.state_dict(), library_tensors(name, made(name))
    assert mine.keys() == theirs.keys() and normed.keys() <= mine.keys()
    assert all(torch.equal(mine[key], theirs[key]) and mine[key].dtype == theirs[key].dtype for key in mine)
    assert all(float((mine[key] - value).abs().max()) <= 1e-6 for key, value in normed.items())
    write_model(model, tmp_path)
    again = F.reopen(name, tmp_path)
    assert float((F.logits(name, again) - F.logits(name, original)).abs().max()) <= 1e-5
    assert normed or tensor_digest(again) == tensor_digest(original)
    assert tensor_digest(fold_norms(again)) == tensor_digest(model.net) == tensor_digest(open_model(tmp_path).net)
    files = {str(path.relative_to(made(name))) for path in made(name).rglob("*") if path.is_file()}
    assert files <= {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}


def test_a_pipeline_opens_as_a_pipeline(made, tmp_path):
    from diffusers import DDPMPipeline

    write_model(open_model(made("ddpm")), tmp_path)
    pipeline = DDPMPipeline.from_pretrained(tmp_path, use_safetensors=True)
    assert tensor_digest(pipeline.unet) == tensor_digest(open_model(made("ddpm")).net)
    assert pipeline.scheduler.config.num_train_timesteps == 20


def test_tokenizers_and_processors_survive(made, tmp_path):
    """Reopened by the library's own auto classes, they give the same numbers."""
    from transformers import AutoImageProcessor, AutoTokenizer

    texts = [row["text"] for row in F.sentences()]
    for name in ("gpt2", "llama", "bert", "roberta"):
        write_model(open_model(made(name)), (folder := tmp_path / name))
        one, other = (AutoTokenizer.from_pretrained(place)(texts).input_ids for place in (made(name), folder))
        assert one == other
    picture = torch.arange(3 * F.SIDE * F.SIDE).reshape(3, F.SIDE, F.SIDE).numpy() % 255
    for name in ("vit", "convnext", "mobilenet"):
        write_model(open_model(made(name)), (folder := tmp_path / name))
        one, other = (
            AutoImageProcessor.from_pretrained(place, backend="pil")(picture, return_tensors="pt")["pixel_values"]
            for place in (made(name), folder)
        )
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["llama_tied", "mixtral"])
def test_shards_and_cache_snapshots(name, made, data, tmp_path):
    """A checkpoint in shards, and the same as the links of a Hugging Face cache; the result is plain files."""
    shards = F.save(name, tmp_path / "shards", max_shard_size="30KB")
    assert len(list(shards.glob("*.safetensors"))) > 1
    snapshot = F.as_cache_snapshot(shards, tmp_path / "cache")
    assert all(path.is_symlink() for path in snapshot.iterdir())
    whole = tensor_digest(open_model(made(name)).net)
    assert tensor_digest(open_model(shards).net) == tensor_digest(open_model(snapshot).net) == whole
    run("prune", snapshot, data(name), tmp_path / "out")
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    F.reopen(name, tmp_path / "out")


def test_an_index_that_leads_outside_is_refused(made, tmp_path):
    shards = F.save("llama", tmp_path / "shards", max_shard_size="30KB")
    index = shards / "model.safetensors.index.json"
    shutil.copyfile(made("llama") / "model.safetensors", tmp_path / "stolen.safetensors")
    named = json.loads(index.read_text())
    named["weight_map"] = dict.fromkeys(named["weight_map"], "../stolen.safetensors")
    index.write_text(json.dumps(named))
    with pytest.raises(BadInput, match="leads outside the folder"):
        open_model(shards)


def test_foreign_files_survive_and_pickles_do_not(made, data, tmp_path):
    folder = shutil.copytree(made("llama"), tmp_path / "in")
    foreign = {"LICENSE": "yours", "chat_template.jinja": "{{ messages }}", "deep/extra.json": '{"a": 1}'}
    for path, text in foreign.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    (folder / "README.md").write_text("the old card")
    for operation in ("prune", "quantize"):
        run(operation, folder, data("llama"), out := tmp_path / operation)
        assert {path: (out / path).read_text() for path in foreign} == foreign
        assert not (out / "pytorch_model.bin").exists() and (out / "README.md").read_text() != "the old card"


# ------------------------------------------------------------------------------------------------------- folders with faults


@pytest.mark.parametrize(
    "name, tensor",
    [
        ("llama", "model.layers.1.self_attn.v_proj.weight"),
        ("mixtral", "model.layers.0.block_sparse_moe.experts.2.w1.weight"),
        ("gpt2", "transformer.h.1.attn.c_attn.weight"),
        ("bert", "classifier.weight"),
        ("resnet", "resnet.embedder.embedder.normalization.running_mean"),
        ("ddpm", "conv_in.weight"),
    ],
)
@pytest.mark.parametrize("fault", ["one too few", "one too many", "another shape"])
def test_a_tensor_that_does_not_fit_is_named(name, tensor, fault, made, tmp_path):
    folder = shutil.copytree(made(name), tmp_path / "in")
    [path] = folder.rglob("*.safetensors")
    tensors, said = load_file(path), tensor.split(".experts.")[0].split(".block_sparse_moe")[0]
    if fault == "one too few":
        del tensors[tensor]
    elif fault == "one too many":
        tensors["stranger.weight"], said = torch.zeros(3), "stranger.weight"
    else:
        tensors[tensor] = torch.zeros(5, 7)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(BadInput, match=said.replace(".", r"\.")):
        open_model(folder)


def test_no_pickle_is_read(made, tmp_path):
    folder = shutil.copytree(made("bert"), tmp_path / "in")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="pickled"):
        open_model(folder)


# ----------------------------------------------------------------------------------------------------------- every operation


def quick(name: str, made: Maker, folder: Path) -> Path:
    """The folder; a diffusion model samples in two steps, so that its measurement is no matter of minutes."""
    if name not in F.DIFFUSION:
        return made(name)
    shutil.copytree(made(name), folder)
    (folder / "onnuri_sampling.json").write_text(json.dumps({"answer": "image", "steps": 2}))
    return folder


@pytest.mark.parametrize("name", F.ARCHITECTURES)
def test_a_whole_life(name, made, data, tmp_path):
    """evaluate, predict, train, distill and prune; what they write the library opens."""
    folder, records = quick(name, made, tmp_path / "in"), data(name)
    before = library_tensors(name, folder)
    report = run("evaluate", folder, records)
    assert report["parameters"] == count_parameters(open_model(folder).net) > 0
    run("predict", folder, records, tmp_path / ("answers.parquet" if name in F.DIFFUSION else "answers.jsonl"))
    run("prune", folder, records, tmp_path / "pruned", share=0.4)
    pruned = library_tensors(name, tmp_path / "pruned")
    assert pruned.keys() == before.keys()
    changed = [key for key, value in pruned.items() if value.dim() >= 2 and not torch.equal(value, before[key])]
    assert changed and all(bool(((pruned[key] == 0) | (pruned[key] == before[key])).all()) for key in changed)
    run("train", folder, records, tmp_path / "trained", steps=2, batch_size=8)
    trained = library_tensors(name, tmp_path / "trained")
    assert {key: value.dtype for key, value in trained.items()} == {key: v.dtype for key, v in before.items()}
    assert any(not torch.equal(value, before[key]) for key, value in trained.items())
    line = run("distill", folder, records, tmp_path / "student", steps=2, batch_size=8, size=0.5)
    assert line["after"]["parameters"] <= 0.55 * report["parameters"]
    F.reopen(name, tmp_path / "student")


@pytest.mark.parametrize("name", some(F.ARCHITECTURES, FEW))
def test_packed_and_exported(name, made, data, tmp_path, packed):
    """int8 reopens bit for bit and no other tool mistakes it for weights; its ONNX file holds int8 and answers alike."""
    import onnx

    folder, records = quick(name, made, tmp_path / "in"), data(name)
    model = open_model(folder)
    plain = outputs(model, records)
    small = packed(name) if name not in F.DIFFUSION else tmp_path / "packed"
    if name in F.DIFFUSION:
        run("quantize", folder, records, small)
    for weight in weights(model.net, *ROLES):
        pack(weight, "int8")
    again = open_model(small)
    assert tensor_digest(again.net) == tensor_digest(model.net)
    # the same numbers at other addresses in memory: a convolution may then run by another kernel
    rounding = 0.0 if name in (*F.LANGUAGE, *F.TEXTS, *F.MASKED) else 1e-5
    assert float((outputs(again, records) - outputs(model, records)).abs().max()) <= rounding
    assert float((outputs(again, records) - plain).abs().max()) > 0
    assert count_parameters(again.net) == count_parameters(open_model(folder).net)
    assert measure.folder_bytes(small) < (0.75 if name.endswith("bf16") else 0.45) * measure.folder_bytes(folder)
    with pytest.raises(OSError):
        F.reopen(name, small)

    line = run("export", small, records, tmp_path / "exported")
    [parity] = [promise for promise in line["promises"] if "outputs" in promise["text"]]
    assert parity["value"] <= 1e-4
    assert line["after"]["parameters"] == count_parameters(again.net) and line["after"]["runtime"] == "onnx"
    graph = onnx.load(tmp_path / "exported" / "onnuri" / "model.onnx").graph
    sizes = {1: 0, 3: 0}  # numbers in float and in int8 initializers
    for initializer in graph.initializer:
        if initializer.data_type in sizes:
            sizes[initializer.data_type] += torch.Size(initializer.dims).numel()
    packed_numbers = sum(base.codes.numel() for _, base in packed_weights(again.net).values())
    assert sizes[3] >= 0.95 * packed_numbers, "the matrices are stored as int8"
    assert sizes[1] < 0.5 * sizes[3]


@pytest.mark.parametrize("scheme", ["int4", "fp8-e4m3", "fp8-e5m2", "bf16"])
@pytest.mark.parametrize("name", ["llama_tied", "mixtral", "gpt2", "resnet"])
def test_every_scheme_reopens_bit_for_bit_and_has_the_bytes_it_says(name, scheme, made, data, packed):
    group = {"group": 4} if scheme == "int4" else {}
    folder = packed(name, scheme, **group)
    packed_parts = packed_weights(open_model(folder).net)
    assert {base.scheme for _, base in packed_parts.values()} <= {scheme, "int8"}
    bits = sum(base.codes.nbytes * 8 for _, base in packed_parts.values() if base.scheme == scheme)
    assert bits == FORMATS[scheme].bits * sum(
        base.shape.numel() for _, base in packed_parts.values() if base.scheme == scheme
    )


@pytest.mark.parametrize("name", ["llama_tied", "llama_bf16", "mixtral", "gpt2", "bert", "resnet"])
def test_dynamic_int8_reopens_bit_for_bit(name, made, data, packed):
    model = open_model(made(name))
    for weight in weights(model.net, *ROLES):
        pack(weight, "int8-dynamic")
    rounded, static = outputs(model, data(name)), outputs(open_model(packed(name)), data(name))
    assert not torch.equal(rounded, static), "inputs are rounded too, in transposed Linears as well"
    again = outputs(open_model(packed(name, "int8-dynamic")), data(name))
    assert float((again - rounded).abs().max()) <= (1e-3 if name == "resnet" else 0.0)


@pytest.mark.parametrize("name", some(("llama_tied", "llama_bf16", "resnet"), ("llama_bf16", "resnet")))
def test_a_float_export_holds_no_codes_and_is_larger(name, made, data, packed, tmp_path):
    import onnx

    line = run("export", made(name), data(name), tmp_path / "float")
    graph = onnx.load(tmp_path / "float" / "onnuri" / "model.onnx").graph
    assert not any(node.op_type == "DequantizeLinear" for node in graph.node)
    assert not any(initializer.data_type == 3 for initializer in graph.initializer)
    if not name.endswith("bf16"):
        run("export", packed(name), data(name), tmp_path / "int8")
        sizes = [(tmp_path / form / "onnuri" / "model.onnx").stat().st_size for form in ("int8", "float")]
        assert sizes[0] < 0.6 * sizes[1]
    assert line["after"]["parameters"] == count_parameters(open_model(made(name)).net)
    exported = open_model(tmp_path / "float")
    with pytest.raises(OSError):
        F.reopen(name, tmp_path / "float")
    for operation in ("prune", "quantize", "train", "export"):
        with pytest.raises(Refusal):
            run(operation, tmp_path / "float", data(name), tmp_path / "never")
    write_model(exported, tmp_path)
    assert torch.equal(outputs(open_model(tmp_path), data(name)), outputs(exported, data(name)))


@pytest.mark.parametrize("operation", ["prune", "quantize", "train"])
def test_a_packed_model_refuses_what_would_change_its_matrices(operation, data, packed, tmp_path):
    with pytest.raises(Refusal, match="packed as integers"):
        run(operation, packed("bert"), data("bert"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_packed_model_teaches(data, packed, tmp_path):
    run("distill", packed("bert"), data("bert"), tmp_path / "out", steps=2, batch_size=8, size=0.5)
    assert not is_packed(open_model(tmp_path / "out").net)
    F.reopen("bert", tmp_path / "out")


# ----------------------------------------------------------------------------------------------------- adopting other bodies


@pytest.mark.parametrize(
    "name, family, auto",
    [
        ("bert_body", "text_classifier", "AutoModelForSequenceClassification"),
        ("bert_tagger", "text_classifier", "AutoModelForSequenceClassification"),
        ("vit_body", "image_classifier", "AutoModelForImageClassification"),
    ],
)
def test_a_body_is_adopted_for_the_users_labels(name, family, auto, made, data, tmp_path):
    """It is no model of ours until a head is trained: opening it says so and what to type."""
    import transformers

    with pytest.raises(BadInput, match=r"--family"):
        open_model(made(name))
    out = tmp_path / "out"
    line = run("train", made(name), data(name), out, family=family, steps=2, batch_size=8, learning_rate=1e-5)
    assert line["before"] is None
    net, report = getattr(transformers, auto).from_pretrained(out, output_loading_info=True)
    assert not any(report.values()) and sorted(net.config.id2label.values()) == F.LABELS
    old = F.build(name).base_model.state_dict()
    kept = {key: value for key, value in net.base_model.state_dict().items() if key in old}
    assert len(kept) >= 0.9 * len(net.base_model.state_dict())
    assert all(float((value - old[key]).abs().max()) < 1e-3 for key, value in kept.items())


def test_a_folder_with_other_labels_gets_a_new_head(made, tmp_path):
    pictures = F.write_pictures(tmp_path / "pictures", ["lying", "standing"])
    with pytest.raises(BadInput, match="labels that the model never saw"):
        run("train", made("vit"), str(pictures), tmp_path / "out", steps=2)
    settings = {"family": "image_classifier", "new_head": True, "steps": 2, "batch_size": 8}
    run("train", made("vit"), str(pictures), tmp_path / "out", **settings)
    assert sorted(F.reopen("vit", tmp_path / "out").config.id2label.values()) == ["lying", "standing"]


# ----------------------------------------------------------------------------------------------------- the hazards, one by one


@pytest.mark.parametrize("name", ["llama_tied", "mixtral"])
def test_deepcopy_tie_pack_save_reopen(name, made, data, tmp_path):
    """One chain; the original of the copy is left as it was."""
    model = open_model(made(name))
    digest = tensor_digest(model.net)
    twin = Model(model.family, copy.deepcopy(model.net), model.assets, model.folder)
    twin.net.tie_weights()
    for weight in weights(twin.net, *ROLES):
        pack(weight, "int8")
    copied = Model(model.family, copy.deepcopy(twin.net), model.assets, model.folder)
    write_model(copied, tmp_path)
    again = open_model(tmp_path)
    assert torch.equal(outputs(again, data(name)), outputs(twin, data(name)))
    assert tensor_digest(model.net) == digest and not is_packed(model.net)
    tied = [weight.homes for weight in weights(again.net) if len(weight.homes) > 1]
    assert len(tied) == (name == "llama_tied")
    assert {weight.role for weight, _ in packed_weights(again.net).values()} == (
        {"embedding", "linear"} if tied else {"embedding", "linear", "expert"}
    )


def test_a_short_type_stays_what_it_is(made, data, tmp_path):
    """bf16 is trained in fp32 masters and written as bf16; exported it computes in fp32."""
    run("train", made("llama_bf16"), data("llama_bf16"), tmp_path / "out", steps=2, batch_size=8)
    assert F.reopen("llama_bf16", tmp_path / "out").dtype == torch.bfloat16
    again = open_model(tmp_path / "out")
    assert {value.dtype for value in again.net.state_dict().values()} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["resnet", "mobilenet"])
def test_statistics_after_pruning_are_the_better_ones(name, made, data, tmp_path):
    """Measured again or kept, whichever answers better; the ledger says which."""
    from onnuri.observe import mean_loss

    line = run("prune", made(name), data(name), tmp_path / "out", share=0.7)
    [said] = [warning for warning in line["warnings"] if "batch-norm" in warning]
    result, records = open_model(tmp_path / "out"), open_data(data(name)).split("train")
    old = library_tensors(name, made(name))
    same = all(torch.equal(value, old[key]) for key, value in result.net.state_dict().items() if "running" in key)
    assert same == said.endswith("put back")
    pruned_only = Model(result.family, copy.deepcopy(result.net), result.assets)
    statistics = {key: value for key, value in old.items() if "running" in key}
    pruned_only.net.load_state_dict(result.net.state_dict() | statistics)
    assert mean_loss(result, records) <= mean_loss(pruned_only, records)


def test_micro_batches_freeze_statistics_and_say_so(made, data, tmp_path):
    before = library_tensors("resnet", made("resnet"))
    line = run("train", made("resnet"), data("resnet"), tmp_path / "cut", steps=2, batch_size=8, micro_batch=4)
    assert any("batch-norm layers keep their statistics" in warning for warning in line["warnings"])
    after = library_tensors("resnet", tmp_path / "cut")
    assert all(torch.equal(after[key], before[key]) for key in before if "running" in key)
    assert not torch.equal(after["classifier.1.weight"], before["classifier.1.weight"])
    line = run("train", made("resnet"), data("resnet"), tmp_path / "whole", steps=2, batch_size=8)
    assert not any("batch-norm" in warning for warning in line["warnings"])
    after = library_tensors("resnet", tmp_path / "whole")
    assert not any(torch.equal(after[key], before[key]) for key in before if "running_mean" in key)


def test_differences_are_never_overlooked(made, data):
    """A comparison of nothing is no comparison, and an output that is no number is no agreement."""
    model, records = open_model(made("llama")), open_data(data("llama")).records[:4]
    assert measure.largest_difference(model, model, records) == 0.0
    other = Model(model.family, copy.deepcopy(model.net), model.assets)
    with torch.no_grad():
        other.net.get_output_embeddings().weight[7] = float("nan")
    assert measure.largest_difference(model, other, records) == float("inf")
    assert measure.largest_difference(other, model, records) == float("inf")
    nothing = (torch.zeros(2, 9, 3), torch.zeros(2, 9, dtype=torch.bool))
    bare = replace(model, family=replace(model.family, outputs=lambda net, batch: nothing))
    assert measure.largest_difference(bare, bare, records) is None


def test_only_grids_are_taken_for_grids():
    torch.manual_seed(0)
    codes = torch.randint(-127, 128, (4, 6, 50)).float()
    codes[..., 0] = 127  # every row reaches its largest code, as packing makes it
    scale = torch.rand(4, 6, 1) + 0.1
    for values, rows in ((codes * scale, (4, 6, 1)), ((codes * scale).transpose(1, 2), (4, 1, 6))):
        found = on_a_grid(values.contiguous())
        assert found is not None and found[1].shape == rows
        assert torch.allclose(found[0] * found[1], values, rtol=1e-6)
    two = (codes * scale)[0]
    assert on_a_grid(two)[1].shape == (6, 1) and on_a_grid(two.t().contiguous())[1].shape == (1, 6)
    assert on_a_grid(torch.randn(8, 8)) is None and on_a_grid(torch.randn(4, 1)) is None
