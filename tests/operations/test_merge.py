"""merge against the formulas in numpy, figures of mergekit, its identities, and parents that do not fit together."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import folders as F
from command import onnuri, refused, some
from onnuri import ledger, registry
from onnuri.errors import BadInput, Refusal
from onnuri.model import Model, open_model, read_pruned, write_model
from onnuri.observe import mean_loss
from onnuri.operation import Quiet
from onnuri.operations.merge import OPERATION, Settings, apply, merge_into, stored
from onnuri.run import execute
from onnuri.sources import open_data
from onnuri.weights.attach import attach, pack
from onnuri.weights.matrices import weights

BOTH = pytest.mark.parametrize("method", ["linear", "slerp"])


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    """name -> two folders of one architecture with other numbers, made once; nobody writes into them."""
    root = tmp_path_factory.mktemp("parents")

    def make(name: str) -> tuple[Path, Path]:
        one, other = root / name / "one", root / name / "other"
        if not one.exists():
            changed(name, F.save(name, one), other)
        return one, other

    return make


def changed(name: str, folder: Path, out: Path, seed: int = 1) -> Path:
    """A copy of the folder whose every number is another one; variances stay positive."""
    shutil.copytree(folder, out)
    net, draw = F.reopen(name, folder), torch.Generator().manual_seed(seed)
    for key, value in net.state_dict(keep_vars=True).items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=draw).to(value.dtype)
            value.data = value.data * noise.abs() if "var" in key else value.data + 0.05 * noise
    net.save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    language = F.write_texts(root / "language.jsonl", "text")
    texts = F.write_texts(root / "texts.jsonl", "text", "label")
    pictures = F.write_pictures(root / "pictures", F.LABELS)
    kinds = dict.fromkeys(F.LANGUAGE, language) | dict.fromkeys(F.TEXTS, texts)
    return lambda name: str(kinds.get(name, pictures))


def formula(a: np.ndarray, b: np.ndarray, method: str, w: float) -> np.ndarray:
    """The definition, in fp64: written down apart from the operation's."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    u, v = (x / n if (n := np.linalg.norm(x)) > 1e-8 else x for x in (a, b))
    cosine = np.sum(u * v)
    if method == "linear" or abs(cosine) > 0.9995:
        return (1 - w) * a + w * b
    t = np.arccos(cosine)
    return (np.sin((1 - w) * t) * a + np.sin(w * t) * b) / np.sin(t)


def merge(folders, source: str, out: Path | None = None, **settings) -> dict:
    inputs = {"model": folders[0], "other": folders[1], "data": source}
    return execute("merge", settings, inputs, out, quiet=True)


def toy(family: str, seed: int = 0) -> Model:
    """A fresh tiny model; all seeds share what is learned from the data."""
    facts = registry.family(family)
    records = open_data(f"toy:{family}").records
    return Model(facts, *facts.start(facts.tiny(), records, torch.Generator().manual_seed(seed)))


# ------------------------------------------------------------------------------------------------------- the numbers


@BOTH
@pytest.mark.parametrize("name", ["llama", "llama_tied", "llama_bf16", "mixtral", "bert", "resnet"])
def test_equals_the_formula_and_opens_in_the_library(name, method, parents, data, tmp_path):
    """Read from the disk by the library, with an empty report; 1e-6 is eight roundings of fp32 below 1."""
    settings, models = Settings(method=method, weight=0.3), [open_model(folder) for folder in parents(name)]
    write_model(apply(settings, Quiet(), *models, open_data(data(name))).model, tmp_path)
    one, other, found = (F.reopen(name, folder).state_dict() for folder in (*parents(name), tmp_path))
    assert found.keys() == one.keys()
    for key, value in found.items():
        assert value.dtype == one[key].dtype
        if not value.is_floating_point():
            assert torch.equal(value, one[key]) or "num_batches" in key
        elif "running" not in key:
            expected = formula(one[key].float().numpy(), other[key].float().numpy(), method, 0.3)
            bound = 1e-6 if value.dtype == torch.float32 else 2**-8 * np.abs(expected).max()
            assert np.abs(value.float().numpy() - expected).max() <= bound, key


@BOTH
def test_mergekit_gives_these_figures(method):
    """mergekit 0.1.5, `slerp` and `linear_merge`: at an angle, nearly parallel, and beside a tensor of zeros."""
    a, b = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.0, -1.0]]), torch.tensor([[0.5, 1.0, 2.0], [-1.0, 2.0, 0.25]])
    figures = {
        "slerp": [
            [1.2924542427062988, -1.467440128326416, 1.6240119934082031],
            [2.48052716255188, 1.1174684762954712, -0.8734036087989807],
        ],
        "near": [
            [1.0015000104904175, -1.996999979019165, 0.5059999823570251],
            [2.996999979019165, 0.006000000052154064, -0.9992499947547913],
        ],
        "zeros": [
            [0.8910065293312073, -1.7820130586624146, 0.44550326466560364],
            [2.6730196475982666, 0.0, -0.8910065293312073],
        ],
        "linear": [[0.85, -1.1, 0.95], [1.8, 0.6, -0.625]],
    }
    cases = {"slerp": b, "near": a + 0.01 * b, "zeros": torch.zeros_like(a)} if method == "slerp" else {"linear": b}
    for name, other in cases.items():
        merge_into(found := a.clone(), other.clone(), Settings(method=method, weight=0.3))
        assert torch.allclose(found, torch.tensor(figures[name]), rtol=0, atol=1e-6), name


@pytest.mark.parametrize(
    ("settings", "figures"),
    [
        ({"method": "task-arithmetic"}, [[0.82, -1.1, 0.95], [1.8, 0.67, -0.625]]),
        ({"method": "task-arithmetic", "scale": 2}, [[1.14, -1.7, 1.65], [2.6, 1.34, -0.5]]),
        ({"method": "ties"}, [[1.0, -2.0, 2.0], [3.0, 2.0, -0.75]]),
        ({"method": "ties", "density": 0.34, "scale": 1.5}, [[0.5, -2.75, 0.25], [4.0, 3.0, -0.75]]),
        ({"method": "ties", "density": 1}, [[1.0, -2.0, 0.95], [3.0, 0.67, 0.25]]),
        ({"method": "dare-ties", "density": 1}, [[0.85, -1.55, 0.95], [2.4, 0.67, -0.45]]),
    ],
)
def test_mergekit_gives_these_figures_from_a_base(settings, figures):
    """mergekit 0.1.5, `task_arithmetic`, `ties` and `dare_ties`, weights 0.7 and 0.3."""
    base = torch.tensor([[0.5, -0.5, 0.25], [1.0, 0.0, -0.75]])
    a, b = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.1, -1.0]]), torch.tensor([[0.4, 1.0, 2.0], [-1.0, 2.0, 0.25]])
    merge_into(a, b, Settings(weight=0.3, **settings), base)
    assert torch.allclose(a, torch.tensor(figures), rtol=0, atol=1e-6)


def test_dare_keeps_what_was_asked_for_and_its_mean():
    base = torch.zeros(200, 200)
    for density in (0.1, 0.9):
        merge_into(a := torch.ones(200, 200), base.clone(), Settings(method="dare", density=density, weight=0), base)
        assert float((a != 0).float().mean()) == pytest.approx(density, abs=0.01)
        assert float(a.mean()) == pytest.approx(1, abs=4 * ((1 - density) / density / 40_000) ** 0.5)


def test_dare_draws_by_the_name_and_the_seed():
    def kept(name: str, seed: int) -> torch.Tensor:
        settings = Settings(method="dare", weight=0, seed=seed)
        merge_into(a := torch.ones(64), torch.zeros(64), settings, torch.zeros(64), name)
        return a

    assert torch.equal(kept("x", 0), kept("x", 0))
    assert not torch.equal(kept("x", 0), kept("y", 0)) and not torch.equal(kept("x", 0), kept("x", 1))


@BOTH
def test_the_ends_are_the_parents_and_the_ways_meet(method):
    draw = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(7, 5, generator=draw).to(dtype) for _ in range(2))
        for weight, expected in ((0.0, a), (1.0, b)):
            merge_into(found := a.clone(), b.clone(), Settings(method=method, weight=weight))
            assert torch.equal(found, expected) and found.dtype == dtype
        merge_into(there := a.clone(), b.clone(), Settings(method=method, weight=0.3))
        merge_into(back := b.clone(), a.clone(), Settings(method=method, weight=0.7))
        assert torch.allclose(there, back, rtol=2 * torch.finfo(dtype).eps, atol=1e-7)


def test_an_arc_keeps_the_length():
    """Between tensors of one length every point of the arc has that length; a line cuts the corner."""
    a = nn.functional.normalize(torch.randn(50, generator=torch.Generator().manual_seed(0)), dim=0)
    b = nn.functional.normalize(torch.randn(50, generator=torch.Generator().manual_seed(1)), dim=0)
    length = {}
    for method in ("linear", "slerp"):
        merge_into(found := a.clone(), b.clone(), Settings(method=method))
        length[method] = float(found.norm())
    assert length["slerp"] == pytest.approx(1, abs=1e-6) and length["linear"] < 0.9


def test_tied_tensors_are_merged_once_and_stay_tied(parents, data):
    one, other = (open_model(folder) for folder in parents("llama_tied"))
    before = one.net.get_input_embeddings().weight.detach().clone()
    theirs = other.net.get_input_embeddings().weight.detach().clone()
    net = apply(Settings(weight=0.25), Quiet(), one, other, open_data(data("llama_tied"))).model.net
    assert net.get_output_embeddings().weight is net.get_input_embeddings().weight
    assert torch.allclose(net.get_input_embeddings().weight, 0.75 * before + 0.25 * theirs, atol=1e-7)


@BOTH
def test_promises_are_kept_and_batch_norm_statistics_measured_again(method, parents, data, tmp_path):
    line = merge(parents("resnet"), data("resnet"), tmp_path / "out", method=method, weight=0.3)
    assert all(promise["kept"] for promise in line["promises"]) and len(line["promises"]) == 3
    assert any("batch-norm statistics measured again" in text for text in line["warnings"])


def test_two_fine_tunes_of_one_model_have_it_between_them(tmp_path):
    """One was trained a little, one much: the loss of the mean lies between theirs."""
    start = {"family": "causal_lm", "steps": 30, "config": registry.family("causal_lm").tiny()}
    execute("train", start, {"data": "toy:causal_lm"}, tmp_path / "base", quiet=True)
    for name, steps in (("little", 5), ("much", 150)):
        inputs = {"model": tmp_path / "base", "data": "toy:causal_lm"}
        execute("train", {"steps": steps, "seed": steps}, inputs, tmp_path / name, quiet=True)
    line = merge((tmp_path / "little", tmp_path / "much"), "toy:causal_lm", tmp_path / "mean")
    records = open_data("toy:causal_lm").split("test")
    little, mean, much = (mean_loss(open_model(tmp_path / name), records) for name in ("little", "mean", "much"))
    assert much < mean < little
    metric = line["after"]["headline"][0]
    scores = [line[at]["scores"][metric] for at in ("before", "after")] + [line["parents"]["other"]["scores"][metric]]
    assert scores[2] < scores[1] < scores[0]  # a perplexity: both parents' scores stand beside the result's


@pytest.mark.parametrize("method", ["task-arithmetic", "ties", "dare", "dare-ties"])
@pytest.mark.parametrize("name", some(["llama_tied", "llama_bf16", "resnet"], ["llama_bf16", "resnet"]))
def test_from_a_base_all_promises_are_kept(name, method, parents, data, tmp_path):
    base = changed(name, parents(name)[0], tmp_path / "base", seed=2)
    inputs = dict(zip(("model", "other"), parents(name))) | {"base": base, "data": data(name)}
    line = execute("merge", {"method": method, "weight": 0.3}, inputs, tmp_path / "out", quiet=True)
    assert all(promise["kept"] for promise in line["promises"]) and len(line["promises"]) == 3
    assert line["parents"].keys() == {"other", "base"}
    again = execute("merge", {"method": method, "weight": 0.3}, inputs, tmp_path / "again", quiet=True)
    assert again["output"]["tensors"] == line["output"]["tensors"]


def test_a_promise_from_a_base_can_be_broken(parents, data, tmp_path):
    places = (*parents("llama"), changed("llama", parents("llama")[0], tmp_path / "base", seed=2))
    settings = Settings(method="ties", weight=0.3)
    model, other, base = (open_model(place) for place in places)
    result = apply(settings, Quiet(), model, other, open_data(data("llama")), base)
    inputs = dict(zip(("model", "other", "base"), map(open_model, places)))
    formula_kept = OPERATION.promises[0]
    assert formula_kept.measure(settings, inputs, result) <= formula_kept.bound
    for wrong in ({"method": "ties", "weight": 0.31}, {"method": "dare-ties", "weight": 0.3}):
        assert formula_kept.measure(Settings(**wrong), inputs, result) > formula_kept.bound


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--method", "ties"), "is needed for ties"),
        (("--base", "BASE"), "has no effect on linear"),
        (("--method", "ties", "--base", "OTHER KIND"), "different families"),
        (("--method", "slerp", "--density", "0.2"), "density has no effect on slerp"),
        (("--method", "ties", "--base", "BASE", "--seed", "1"), "seed has no effect on ties"),
    ],
)
def test_a_base_that_does_not_belong(words, says, parents, data, tmp_path):
    one, other = parents("bert")
    words = tuple({"BASE": one, "OTHER KIND": parents("llama")[0]}.get(word, word) for word in words)
    done = onnuri("merge", one, "--other", other, "--data", data("bert"), "--out", tmp_path / "out", *words)
    refused(done, says)
    assert not (tmp_path / "out").exists()


def test_zeros_that_only_one_was_pruned_to_are_filled():
    one, other = toy("tabular"), toy("tabular", 1)
    names = [weight.name for weight in weights(one.net, "linear")]
    result = apply(
        Settings(),
        log := Quiet(),
        replace(one, pruned=tuple(names[:2])),
        replace(other, pruned=tuple(names[1:])),
        open_data("toy:tabular"),
    )
    assert result.model.pruned == (names[1],) and "pruned" in log.warnings[0]


# ---------------------------------------------------------------------------------------------------------- promises


def test_promises_can_be_broken(parents, data):
    formula_kept, copies = OPERATION.promises
    inputs = {"model": open_model(parents("llama")[0]), "other": open_model(parents("llama")[1])}
    settings = Settings(method="slerp", weight=0.3)
    result = apply(settings, Quiet(), *(open_model(folder) for folder in parents("llama")), open_data(data("llama")))
    assert formula_kept.measure(settings, inputs, result) <= formula_kept.bound
    for wrong in (Settings(method="linear", weight=0.3), Settings(method="slerp", weight=0.3001)):
        assert formula_kept.measure(wrong, inputs, result) > formula_kept.bound
    with torch.no_grad():
        result.model.net.get_output_embeddings().weight[3, 3] *= 1 + 1e-5
    assert formula_kept.measure(settings, inputs, result) > formula_kept.bound
    with torch.no_grad():
        result.model.net.get_output_embeddings().weight[3, 3] = float("nan")
    assert formula_kept.measure(settings, inputs, result) > formula_kept.bound
    for model, number in ((inputs["model"], 3), (result.model, 4)):
        model.net.register_buffer("places", torch.full((2,), number))
    assert copies.measure(settings, inputs, result) == 1.0


# ----------------------------------------------------------------------------------------- what cannot be merged


def variant(name: str, one: Path, folder: Path, **entries) -> Path:
    """A folder like `one` whose config has other entries and whose numbers are others."""
    kind, config, known = F.DESIGNS[name]
    F.DESIGNS["variant"] = (kind, config, {**known, **entries})
    try:
        net = F.build("variant")
    finally:
        del F.DESIGNS["variant"]
    for value in net.parameters():
        value.data += 0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(2))
    shutil.copytree(one, folder)
    net.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "entries", "says"),
    [
        ("llama", {"num_hidden_layers": 3}, "model.layers.2.self_attn.q_proj.weight (32, 32) is missing in the first"),
        ("llama", {"num_hidden_layers": 1}, "model.layers.1.self_attn.q_proj.weight (32, 32) is missing in the other"),
        ("llama", {"hidden_size": 16}, "model.embed_tokens.weight is (300, 32) in the first model, (300, 16) in"),
        ("llama", {"tie_word_embeddings": True}, "lm_head.weight is tied to another in only one"),
        ("llama", {"hidden_act": "gelu"}, "model.layers.0.mlp.act_fn is SiLU"),
        ("llama", {"rope_theta": 50.0}, "the constants model.rotary_emb.inv_freq"),
        ("bert", {"num_attention_heads": 2}, "something in their configs"),
        ("bert", {"id2label": {0: "unkind", 1: "kind"}, "label2id": {"unkind": 0, "kind": 1}}, "in another order"),
        ("resnet", {"depths": [1, 2]}, "resnet.encoder.stages.1.layers.1."),
    ],
)
def test_unlike_parents(name, entries, says, parents, data, tmp_path):
    """Exit code 2, and the first difference by its name; attention heads show in no tensor and no layer."""
    if "rope_theta" in entries:
        entries = {"rope_parameters": {"rope_type": "default", **entries}}
    one = parents(name)[0]
    other = variant(name, one, tmp_path / "other", **entries)
    done = onnuri("merge", one, "--other", other, "--data", data(name), "--out", tmp_path / "out")
    refused(done, says)
    assert not (tmp_path / "out").exists()


def test_another_family_and_another_tokenizer(parents, data, tmp_path):
    words = ("--data", data("bert"), "--out", tmp_path / "out")
    done = onnuri("merge", parents("bert")[0], "--other", parents("llama")[0], *words)
    refused(done, "different families: text_classifier and causal_lm")
    other = shutil.copytree(parents("bert")[1], tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    first, last = "great", "awful"
    vocabulary[first], vocabulary[last] = vocabulary[last], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    done = onnuri("merge", parents("bert")[0], "--other", other, *words)
    refused(done, "read the same records as other numbers; the first that differ: input_ids")


def test_training_only_settings_do_not_count(parents, data, tmp_path):
    """Dropout changes no answer."""
    one = parents("bert")[0]
    other = variant("bert", one, tmp_path / "other", hidden_dropout_prob=0.3)
    apply(Settings(), Quiet(), open_model(one), open_model(other), open_data(data("bert")))


def test_a_model_with_itself_has_no_effect(parents, data, tmp_path):
    one = parents("bert")[0]
    with pytest.raises(BadInput, match="no effect"):
        merge((one, one), data("bert"), tmp_path / "out")


def test_numbers_that_are_none(parents, data):
    one, other = (open_model(folder) for folder in parents("bert"))
    stored(other.net)["classifier.weight"].data[0, 0] = float("nan")
    with pytest.raises(BadInput, match=r"classifier\.weight of the other model holds numbers that are not finite"):
        apply(Settings(), Quiet(), one, other, open_data(data("bert")))


def test_what_holds_no_plain_weights_is_refused():
    records = open_data("toy:tabular")
    one, other = toy("tabular"), toy("tabular", 1)
    packed, attached = (Model(other.family, copy.deepcopy(other.net), other.assets) for _ in range(2))
    pack(weights(packed.net, "linear")[0], "int8")
    attach(weights(attached.net, "linear")[0], nn.Identity())
    for pair in ((one, packed), (packed, one), (one, attached)):
        with pytest.raises(Refusal, match=r"packed|attached|adapter"):
            apply(Settings(), Quiet(), *pair, records)
    with pytest.raises(Refusal, match="no weights that could be averaged"):
        apply(Settings(), Quiet(), toy("forest"), toy("forest", 1), open_data("toy:forest"))


# --------------------------------------------------------------------------------------------- licenses and evidence


def test_licenses_of_both_parents_are_seen_everywhere(parents, data, tmp_path):
    """A conflict is a warning, not a refusal: what one does for oneself is free."""
    folders = [shutil.copytree(folder, tmp_path / folder.name) for folder in parents("bert")]
    for folder, license in zip(folders, ("cc-by-nc-4.0", "cc-by-sa-4.0")):
        (folder / "README.md").write_text(f"---\nlicense: {license}\n---\n# x\n")
        (folder / "NOTICE").write_text(f"by the makers of {folder.name}")
    line = merge(folders, data("bert"), out := tmp_path / "out")
    assert line["license"]["name"] == "conflict"
    assert any("no license meets the terms of both" in text for text in line["warnings"])
    assert line["license"]["permitted"]["may be used commercially"] == f"no, because {folders[0]} is cc-by-nc-4.0"
    card = (out / "README.md").read_text()
    page = (out / "onnuri" / "reports" / "001-merge.html").read_text()
    shown = onnuri("show", out).out
    for text in (card.replace("\\", ""), page, shown):
        assert "may be used commercially" in text and "is cc-by-nc-4.0" in text and "accuracy" in text
    assert card.count("| accuracy") == 4 and "license: other\nlicense_name: " in card
    assert (out / "NOTICE").read_text() == "by the makers of one"
    assert (out / "licenses" / "001-other" / "NOTICE").read_text() == "by the makers of other"
    assert ledger.verify(out) == [] and read_pruned(out) == ()


def test_no_license_text_is_overwritten(tmp_path):
    """Merged twice, each further parent's text has a place of its own, and those kept before are kept."""
    parents = {}
    for name in "abc":
        out = tmp_path / name
        settings = {"family": "tabular", "config": {"width": 8, "layers": 1}, "steps": 2, "seed": ord(name)}
        execute("train", settings, {"data": "builtin:iris"}, out, quiet=True)
        (out / "LICENSE").write_text(f"the text of {name}")
        parents[name] = str(out)
    data = {"data": "builtin:iris"}
    execute("merge", {}, {"model": parents["a"], "other": parents["b"], **data}, tmp_path / "ab", quiet=True)
    execute("merge", {}, {"model": parents["c"], "other": str(tmp_path / "ab"), **data}, tmp_path / "cab", quiet=True)
    texts = {path.read_text() for path in (tmp_path / "cab").rglob("LICENSE")}
    assert texts == {f"the text of {name}" for name in "abc"}
