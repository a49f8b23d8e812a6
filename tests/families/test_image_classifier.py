"""Pictures: our ConvNet and folders of transformers (ViT, ResNet, MobileNetV2, Swin), all tiny and random."""

import json
from copy import deepcopy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn import metrics
from torch.nn import functional

from onnuri import hub
from onnuri.data import records_of
from onnuri.errors import BadInput, BadSettings, Refusal
from onnuri.families import labels, widths
from onnuri.families.image_classifier import FAMILY
from onnuri.family import Generators


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch_of(records, assets):
    return FAMILY.collate(records, assets, Generators(0, range(len(records))))


def same_tensors(one, other):
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def watched(blocks):
    """A dict that the next forward pass fills with what each block puts out."""
    found = {}
    for name, (block, _) in blocks.items():
        block.register_forward_hook(lambda _, given, out, name=name: found.update({name: out}))
    return found


@pytest.fixture(scope="module")
def toy():
    return FAMILY.toy(64, 0)


@pytest.fixture(scope="module")
def own(toy):
    return FAMILY.start(FAMILY.tiny(), toy, generator())


ARCHITECTURES = ("ViT", "ResNet", "MobileNetV2", "Swin")


def design(name):
    import transformers

    sizes = {
        "ViT": {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "image_size": 16,
            "patch_size": 8,
        },
        "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        "MobileNetV2": {"depth_multiplier": 0.25, "image_size": 16},
        "Swin": {
            "image_size": 16,
            "patch_size": 4,
            "embed_dim": 8,
            "depths": [1, 1],
            "num_heads": [1, 2],
            "window_size": 2,
        },
    }[name]
    return getattr(transformers, f"{name}Config")(
        **sizes, num_labels=3, id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2}
    )


def write_folder(name, folder, kind="AutoModelForImageClassification"):
    import transformers

    torch.manual_seed(0)
    net = getattr(transformers, kind).from_config(design(name)).eval()
    net.save_pretrained(folder)
    transformers.ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return net


@pytest.fixture(scope="module", params=ARCHITECTURES)
def foreign(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return write_folder(request.param, folder), folder


def picture(seed, size=(9, 11), channels=3):
    shape = size if channels == 1 else (*size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_own_round_trip(own, toy, tmp_path):
    net, assets = own
    FAMILY.write(net, assets, tmp_path, True)
    assert FAMILY.claims(tmp_path)
    again, same = FAMILY.read(tmp_path, False)
    assert same == assets and same_tensors(net, again)
    batch = batch_of(toy[:8].list(), assets)
    assert torch.equal(FAMILY.outputs(net, batch)[0], FAMILY.outputs(again, batch)[0])
    assert FAMILY.read(tmp_path, True)[0].state_dict().keys() == net.state_dict().keys()


def test_start_is_reproducible_and_leaves_the_random_state(toy):
    before = torch.random.get_rng_state()
    one, other = (FAMILY.start(FAMILY.tiny(), toy, generator(7))[0] for _ in range(2))
    assert same_tensors(one, other)
    assert torch.equal(before, torch.random.get_rng_state())


def test_own_loss_is_cross_entropy_and_knows_no_neighbors(own, toy):
    net, assets = own
    batch = batch_of(toy[:6].list(), assets)
    total, count = FAMILY.loss(net, batch, "classifier")
    logits = FAMILY.outputs(net, batch)[0][:, 0]
    assert torch.allclose(total, functional.cross_entropy(logits, batch["labels"], reduction="none"))
    assert count.tolist() == [1.0] * 6
    alone = torch.cat([FAMILY.loss(net, batch_of([record], assets), "classifier")[0] for record in toy[:6]])
    assert torch.allclose(total, alone, atol=1e-5)


def test_a_few_steps_learn(toy):
    net, assets = FAMILY.start(FAMILY.tiny(), toy, generator())
    batch = batch_of(toy.list(), assets)
    optimizer = torch.optim.AdamW(FAMILY.players(net)["classifier"].parameters(), 3e-3)
    losses = []
    for _ in range(30):
        loss = FAMILY.loss(net, batch, "classifier")[0].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    test = FAMILY.toy(40, 1).list()
    with torch.no_grad():
        answers = FAMILY.sample(net, assets, test, Generators(0, range(40)))
    assert losses[-1] < 0.5 * losses[0]
    assert FAMILY.score(test, answers, assets)["accuracy"] > 0.85


def test_sample_does_not_look_at_the_answer(own, toy):
    net, assets = own
    records = toy[:5].list()
    blind = [{"image": record["image"], "note": "kept"} for record in records]
    with torch.no_grad():
        answers = FAMILY.sample(net, assets, blind, Generators(0, range(5)))
        assert [a["label"] for a in FAMILY.sample(net, assets, records, Generators(0, range(5)))] == [
            a["label"] for a in answers
        ]
    assert answers[0]["note"] == "kept" and "label" not in blind[0]
    assert sum(answers[0]["label_scores"].values()) == pytest.approx(1, abs=1e-5)
    assert set(FAMILY.score(records[:1], answers[:1], assets)) == {
        "accuracy",
        "macro_f1",
        "log_loss",
        "calibration_error",
    }


def test_scores_equal_scikit_learn():
    random = np.random.default_rng(0)
    names = ["x", "y", "z"]
    truth = random.choice(names, 50)
    rows = random.dirichlet(np.ones(3), 50)
    records = [{"label": value} for value in truth]
    answers = [{"label": names[row.argmax()], "label_scores": dict(zip(names, row))} for row in rows]
    guess = [answer["label"] for answer in answers]
    found = labels.label_scores(records, answers, "label")
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, guess))
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(truth, guess, average="macro"))
    assert found["log_loss"] == pytest.approx(metrics.log_loss(truth, rows, labels=names))
    assert labels.calibration_error(np.full(4, 0.9), np.array([1, 1, 0, 0])) == pytest.approx(0.4)


def test_like(own, foreign):
    net, assets = own
    check_like(net, assets)
    net, assets = FAMILY.read(foreign[1], False)
    check_like(net, assets)


def check_like(net, assets):
    def count(net):
        return sum(value.numel() for value in net.parameters())

    twin = FAMILY.like(net, assets, 1, generator())[0]
    assert [value.shape for value in twin.parameters()] == [value.shape for value in net.parameters()]
    half, same = FAMILY.like(net, assets, 0.5, generator())
    assert same == assets and count(half) < 0.75 * count(net)
    size = assets.pixels.size if assets.pixels else (16, 16)
    batch = batch_of([{"image": picture(1, size)}] * 2, assets)
    assert FAMILY.outputs(half, batch)[0].shape == (2, 1, len(assets.labels))


def test_blocks_put_out_what_they_say(own, foreign):
    for net, assets in (deepcopy(own), FAMILY.read(foreign[1], False)):
        blocks = FAMILY.blocks(net)
        found = watched(blocks)
        FAMILY.outputs(net, batch_of([{assets.question: picture(1)}] * 2, assets))
        assert len(found) == len(blocks) >= 2
        for name, (_, axis) in blocks.items():
            out = found[name][0] if isinstance(found[name], tuple) else found[name]
            assert axis == (1 if out.ndim == 4 else -1)


def test_foreign_round_trip(foreign, tmp_path):
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    original, folder = foreign
    assert FAMILY.claims(folder)
    net, assets = FAMILY.read(folder, False)
    assert assets.labels == ("a", "b", "c") == FAMILY.axis(assets) and same_tensors(net, original)
    assert FAMILY.fields(assets) == ({"image": "image"}, ("label", "category"))
    FAMILY.write(net, assets, tmp_path, True)
    again, same = FAMILY.read(tmp_path, False)
    assert same == assets and same_tensors(again, net)
    for name in ("config.json", "preprocessor_config.json"):
        assert hub.read_json(tmp_path / name) == hub.read_json(folder / name)
    library, report = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    pictures = [picture(0), picture(1)]
    pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
    batch = batch_of([{"image": one} for one in pictures], assets)
    assert torch.equal(batch["pixel_values"], pixels)
    with torch.no_grad():  # reloaded tensors may lie at other addresses, where other kernels run
        assert torch.allclose(library.eval()(pixels).logits, FAMILY.outputs(net, batch)[0][:, 0], atol=1e-5)


def test_foreign_loss_equals_the_library(foreign):
    net, assets = FAMILY.read(foreign[1], False)
    batch = batch_of([{"image": picture(i), "label": "abc"[i]} for i in range(3)], assets)
    total, count = FAMILY.loss(net, batch, "classifier")
    with torch.no_grad():
        library = net(pixel_values=batch["pixel_values"], labels=batch["labels"]).loss
    assert (total.sum() / count.sum()).item() == pytest.approx(library.item(), rel=1e-5)
    assert batch_of([{"image": picture(0, channels=1)}], assets)["pixel_values"].shape[1] == 3


def test_a_missing_tensor_is_named(foreign, tmp_path):
    _, folder = foreign
    net, assets = FAMILY.read(folder, False)
    FAMILY.write(net, assets, tmp_path, True)
    tensors = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in sorted(tensors) if "classifier" not in name and name.endswith("weight"))
    del tensors[lost]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    for wrong in (lambda: FAMILY.read(tmp_path, False), lambda: FAMILY.adopt(tmp_path, FAMILY.toy(8, 0), generator())):
        with pytest.raises(BadInput, match="missing tensor"):
            wrong()


def test_faulty_foreign_folders(tmp_path):
    net = write_folder("ViT", tmp_path)
    (tmp_path / "preprocessor_config.json").rename(tmp_path / "elsewhere.json")
    with pytest.raises(BadInput, match="preprocessor_config"):
        FAMILY.read(tmp_path, False)
    (tmp_path / "elsewhere.json").rename(tmp_path / "preprocessor_config.json")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"problem_type": "multi_label_classification"}))
    with pytest.raises(BadInput, match="multi_label"):
        FAMILY.read(tmp_path, False)
    (tmp_path / "config.json").write_text(json.dumps(config | {"onnuri_fields": ["x"]}))
    with pytest.raises(BadInput, match="onnuri_fields"):
        FAMILY.read(tmp_path, False)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").unlink()
    torch.save(net.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(BadInput):
        FAMILY.read(tmp_path, False)


def test_labels_that_occur_twice(tmp_path):
    write_folder("ViT", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = {"0": "crane", "1": "crane", "2": "owl"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert FAMILY.read(tmp_path, False)[1].labels == ("crane (0)", "crane (1)", "owl")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_adopt_a_bare_body(name, toy, tmp_path):
    body = write_folder(name, tmp_path / "bare", "AutoModel")
    assert not FAMILY.claims(tmp_path / "bare")
    (one, assets), (other, _) = (FAMILY.adopt(tmp_path / "bare", toy, generator(3)) for _ in range(2))
    assert assets.labels == ("lying", "standing") and same_tensors(one, other)
    kept = getattr(one, one.base_model_prefix).state_dict()
    assert all(torch.equal(kept[key], value) for key, value in body.state_dict().items() if "pooler" not in key)
    FAMILY.write(one, assets, tmp_path / "new", True)
    again, same = FAMILY.read(tmp_path / "new", False)
    assert same == assets and same_tensors(again, one)


def test_fields_are_remembered(toy, tmp_path):
    rows = [{"photo": record["image"], "shape": record["label"]} for record in toy]
    records = records_of(rows, {"photo": "image", "shape": "category"}, "shape")
    write_folder("ViT", tmp_path / "vit")
    for place, (net, assets) in {
        "a": FAMILY.start(FAMILY.tiny(), records, generator()),
        "b": FAMILY.adopt(tmp_path / "vit", records, generator()),
    }.items():
        FAMILY.write(net, assets, tmp_path / place, True)
        assert FAMILY.fields(FAMILY.read(tmp_path / place, False)[1]) == ({"photo": "image"}, ("shape", "category"))


def test_adopt_our_own(own, toy, tmp_path):
    net, assets = own
    FAMILY.write(net, assets, tmp_path, True)
    rows = [{"image": record["image"], "label": str(i % 5)} for i, record in enumerate(toy)]
    new, learnt = FAMILY.adopt(
        tmp_path, records_of(rows, {"image": "image", "label": "category"}, "label"), generator()
    )
    assert learnt.labels == ("0", "1", "2", "3", "4") and new.head.out_features == 5
    assert torch.equal(new.stem.weight, net.stem.weight) and learnt.pixels == assets.pixels


def test_bad_settings_and_data(toy):
    for config in (
        {"width": 1},
        {"depth": 0},
        {"channels": 2},
        {"image_size": "big"},
        {"wdith": 16},
        {"shift": 8},
        {"flip": 1},
    ):
        with pytest.raises(BadSettings):
            FAMILY.start(config, toy, generator())
    with pytest.raises(BadInput, match="image"):
        rows = [{"a": "x", "b": "y"}, {"a": "x", "b": "z"}]
        FAMILY.start({}, records_of(rows, {"a": "text", "b": "category"}, "b"), generator())
    rows = [{"image": picture(i), "y": i + 0.5} for i in range(3)]
    with pytest.raises(BadInput, match="fractions"):
        FAMILY.start({}, records_of(rows, {"image": "image", "y": "number"}, "y"), generator())


def test_faulty_own_folders(own, tmp_path):
    net, assets = own
    FAMILY.write(net, assets, tmp_path, True)
    good = json.loads((tmp_path / "config.json").read_text())
    for wrong in (
        {"width": 10**9},
        {"labels": ["a"]},
        {"image_std": [0.0]},
        {"fields": 3},
        {"channels": None},
        {"shift": -1},
        {"flip": None},
        {"smoothing": 1.0},
    ):
        (tmp_path / "config.json").write_text(json.dumps(good | wrong))
        with pytest.raises(BadInput):
            FAMILY.read(tmp_path, False)
    (tmp_path / "config.json").write_text(json.dumps(good))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("head.bias")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(BadInput, match=r"head\.bias"):
        FAMILY.read(tmp_path, False)


def test_outputs_can_be_exported(own, toy):
    net, assets = own

    class Whole(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, pixel_values):
            return FAMILY.outputs(self.net, {"pixel_values": pixel_values})

    batch = batch_of([{"image": record["image"]} for record in toy[:3]], assets)
    size = {0: torch.export.Dim("B")}
    program = torch.export.export(Whole(), (batch["pixel_values"],), dynamic_shapes=(size,))
    more = batch_of([{"image": record["image"]} for record in toy[:5]], assets)
    assert torch.allclose(program.module()(more["pixel_values"])[0], FAMILY.outputs(net, more)[0], atol=1e-5)


def test_a_design_without_known_widths_refuses(own):
    with pytest.raises(Refusal):
        widths.scaled(NoWidths(), 0.5)


class NoWidths:
    model_type = "odd"

    def to_dict(self):
        return {"size": 3}
