"""Texts: our own small BERT and folders of transformers (BERT, RoBERTa, DistilBERT), all tiny and random."""

import json
import subprocess
import sys
from copy import deepcopy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from onnuri import hub
from onnuri.data import records_of
from onnuri.errors import BadInput, BadSettings
from onnuri.families import vocabulary
from onnuri.families.text_classifier import FAMILY
from onnuri.family import Generators

TEXTS = ["영화 정말 좋아요", "the show is awful", "노래 싫어요, 지루했다! " * 4]


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


ARCHITECTURES = ("Bert", "Roberta", "DistilBert")


def write_folder(name, folder, kind="ForSequenceClassification"):
    """A random net of three labels with a tokenizer learnt from TEXTS."""
    import transformers

    tokenizer = vocabulary.learnt(iter(TEXTS * 3), vocabulary.READ, 120, 24, "characters")
    bert = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    sizes = {"Bert": bert, "Roberta": bert, "DistilBert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}}
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        **sizes[name],
        vocab_size=len(tokenizer),
        max_position_embeddings=24 + (name == "Roberta"),
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        id2label={0: "a", 1: "b", 2: "c"},
        label2id={"a": 0, "b": 1, "c": 2},
    )
    net = getattr(transformers, name + kind)(config).eval()
    net.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return net


@pytest.fixture(scope="module", params=ARCHITECTURES)
def foreign(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return write_folder(request.param, folder), folder


def check_library_opens(folder, net, assets):
    """transformers' own loaders find every tensor and answer alike."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    library, report = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    tokens = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, truncation=True, return_tensors="pt")
    batch = batch_of([{assets.question: text} for text in TEXTS], assets)
    assert torch.equal(tokens["input_ids"], batch["input_ids"])
    with torch.no_grad():  # reloaded tensors may lie at other addresses, where other kernels run
        assert torch.allclose(library.eval()(**tokens).logits, FAMILY.outputs(net, batch)[0][:, 0], atol=1e-5)


def test_own_round_trip(own, tmp_path):
    net, assets = own
    FAMILY.write(net, assets, tmp_path, True)
    assert FAMILY.claims(tmp_path)
    again, same = FAMILY.read(tmp_path, False)
    assert same == assets and same_tensors(net, again) and same.labels == ("kind", "unkind")
    assert same.tokenizer.backend_tokenizer.to_str() == assets.tokenizer.backend_tokenizer.to_str()
    check_library_opens(tmp_path, net, assets)
    assert hub.read_json(tmp_path / "config.json")["id2label"] == {"0": "kind", "1": "unkind"}
    assert FAMILY.read(tmp_path, True)[0].state_dict().keys() == net.state_dict().keys()


def test_korean_is_cut_and_joined_again(own):
    tokenizer = own[1].tokenizer
    ids = tokenizer("영화 정말 좋아요, GREAT")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True).startswith("영화 정말 좋아요")
    assert len(tokenizer("영화 정말 좋아요")["input_ids"]) <= 5  # [CLS], three words, [SEP]
    assert tokenizer("\u1100\u1161")["input_ids"] == tokenizer("가")["input_ids"]  # NFC


def test_start_is_reproducible(toy):
    before = torch.random.get_rng_state()
    (one, first), (other, second) = (FAMILY.start(FAMILY.tiny(), toy, generator(7)) for _ in range(2))
    assert same_tensors(one, other) and first == second
    assert torch.equal(before, torch.random.get_rng_state())


def test_vocabulary_is_the_same_in_another_process(own):
    code = (
        "from onnuri.families.text_classifier import FAMILY as F; import torch;"
        "print(F.start(F.tiny(), F.toy(64, 0), torch.Generator())[1].digest)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == own[1].digest


def check_neighbors(net, assets):
    records = [{assets.question: text, assets.answer: assets.labels[i % 2]} for i, text in enumerate(TEXTS)]
    with torch.no_grad():
        total, count = FAMILY.loss(net, batch_of(records, assets), "classifier")
        alone = torch.cat([FAMILY.loss(net, batch_of([one], assets), "classifier")[0] for one in records])
    assert torch.allclose(total, alone, atol=1e-5) and count.tolist() == [1.0] * 3


def test_a_longer_neighbor_changes_nothing(own, foreign):
    check_neighbors(*own)
    check_neighbors(*FAMILY.read(foreign[1], False))


def test_loss_equals_the_library(foreign):
    net, assets = FAMILY.read(foreign[1], False)
    batch = batch_of([{"text": text, "label": label} for text, label in zip(TEXTS, "cab")], assets)
    total, count = FAMILY.loss(net, batch, "classifier")
    assert batch["labels"].tolist() == [2, 0, 1]
    assert (total.sum() / count.sum()).item() == pytest.approx(net(**batch).loss.item(), rel=1e-5)
    logits = FAMILY.outputs(net, batch)[0][:, 0]
    assert torch.allclose(total, functional.cross_entropy(logits, batch["labels"], reduction="none"))


def test_a_few_steps_learn(toy):
    net, assets = FAMILY.start(FAMILY.tiny(), toy, generator())
    batch = batch_of(toy.list(), assets)
    optimizer = torch.optim.AdamW(FAMILY.players(net)["classifier"].parameters(), 3e-3)
    losses = []
    for _ in range(40):
        loss = FAMILY.loss(net, batch, "classifier")[0].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    test = FAMILY.toy(40, 1).list()
    with torch.no_grad():
        questions = [{"text": one["text"]} for one in test]
        answers = FAMILY.sample(net, assets, questions, Generators(0, range(40)))
    assert losses[-1] < 0.3 * losses[0]
    assert FAMILY.score(test, answers, assets)["accuracy"] > 0.9
    assert set(answers[0]["label_scores"]) == {"kind", "unkind"}
    assert FAMILY.score(test[:1], answers[:1], assets).keys() == FAMILY.score(test, answers, assets).keys()


def test_foreign_round_trip(foreign, tmp_path):
    original, folder = foreign
    assert FAMILY.claims(folder)
    net, assets = FAMILY.read(folder, False)
    assert assets.labels == ("a", "b", "c") == FAMILY.axis(assets) and assets.max_length == 24
    assert same_tensors(net, original) and FAMILY.fields(assets) == ({"text": "text"}, ("label", "category"))
    batch_of([{"text": TEXTS[0]}], assets)
    FAMILY.write(net, assets, tmp_path, True)
    again, same = FAMILY.read(tmp_path, False)
    assert same == assets and same_tensors(again, net)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert hub.read_json(tmp_path / name) == hub.read_json(folder / name)
    check_library_opens(tmp_path, net, assets)


def test_a_missing_tensor_is_named(foreign, tmp_path):
    net, assets = FAMILY.read(foreign[1], False)
    FAMILY.write(net, assets, tmp_path, True)
    tensors = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in sorted(tensors) if ".0." in name and name.endswith("weight"))
    del tensors[lost]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    for wrong in (lambda: FAMILY.read(tmp_path, False), lambda: FAMILY.adopt(tmp_path, FAMILY.toy(8, 0), generator())):
        with pytest.raises(BadInput, match=lost.replace(".", r"\.")):
            wrong()


def test_faulty_folders(tmp_path):
    net = write_folder("Bert", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for wrong in (
        {"problem_type": "multi_label_classification"},
        {"problem_type": "regression"},
        {"id2label": {"0": "a"}},
        {"id2label": {"0": "a", "5": "b", "6": "c"}},
        {"onnuri_fields": 3},
        {"vocab_size": 20},
        {"hidden_size": 12},
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | wrong))
        with pytest.raises(BadInput):
            FAMILY.read(tmp_path, False)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").unlink()
    torch.save(net.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(BadInput):
        FAMILY.read(tmp_path, False)
    net.save_pretrained(tmp_path)
    for path in tmp_path.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(BadInput):
        FAMILY.read(tmp_path, False)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Bert", "Model"),
        ("Bert", "ForMaskedLM"),
        ("Roberta", "ForMaskedLM"),
        ("DistilBert", "Model"),
        ("DistilBert", "ForMaskedLM"),
    ],
)
def test_adopt_a_body(name, kind, toy, tmp_path):
    body = write_folder(name, tmp_path / "bare", kind)
    assert not FAMILY.claims(tmp_path / "bare")
    rows = [{"title": row["label"], "review": row["text"], "mood": row["label"]} for row in toy]
    records = records_of(rows, {"title": "category", "review": "text", "mood": "category"}, "mood")
    (one, assets), (other, _) = (FAMILY.adopt(tmp_path / "bare", records, generator(3)) for _ in range(2))
    assert assets.labels == ("kind", "unkind") and same_tensors(one, other)
    kept, prefix = one.state_dict(), "" if kind == "ForMaskedLM" else f"{one.base_model_prefix}."
    inside = [key for key in body.state_dict() if (prefix + key).startswith(f"{one.base_model_prefix}.")]
    assert inside and all(
        torch.equal(kept[prefix + key], body.state_dict()[key]) for key in inside if prefix + key in kept
    )
    FAMILY.write(one, assets, tmp_path / "new", True)
    again, same = FAMILY.read(tmp_path / "new", False)
    assert same == assets and same_tensors(again, one)
    assert FAMILY.fields(same) == ({"review": "text"}, ("mood", "category"))


def test_like(own, foreign):
    for net, assets in (own, FAMILY.read(foreign[1], False)):
        twin = FAMILY.like(net, assets, 1, generator())[0]
        assert [value.shape for value in twin.parameters()] == [value.shape for value in net.parameters()]
        half, same = FAMILY.like(net, assets, 0.5, generator())
        assert same == assets and half.num_parameters() < 0.75 * net.num_parameters()
        batch = batch_of([{assets.question: "x"}], assets)
        assert FAMILY.outputs(half, batch)[0].shape == (1, 1, len(assets.labels))


def test_blocks_put_out_what_they_say(own, foreign):
    for net, assets in (deepcopy(own), FAMILY.read(foreign[1], False)):
        blocks = FAMILY.blocks(net)
        found = watched(blocks)
        FAMILY.outputs(net, batch_of([{assets.question: "x"}] * 2, assets))
        assert len(found) == len(blocks) >= 2 and {axis for _, axis in blocks.values()} == {-1}


def test_bad_settings_and_data(toy):
    for config in ({"num_heads": 3}, {"dropout": 1}, {"max_length": 2}, {"num_layers": "two"}, {"vocab": 9}):
        with pytest.raises(BadSettings):
            FAMILY.start({"net": "bert"} | config, toy, generator())
    rows = [{"n": 1.0, "label": "a"}, {"n": 2.0, "label": "b"}]
    with pytest.raises(BadInput, match="text"):
        FAMILY.start({}, records_of(rows, {"n": "number", "label": "category"}, "label"), generator())


def test_empty_texts_have_an_answer(own):
    net, assets = own
    with torch.no_grad():
        answers = FAMILY.sample(net, assets, [{"text": ""}, {"text": None}], Generators(0, range(2)))
    assert answers[0]["label"] in assets.labels and answers[0]["label_scores"] == answers[1]["label_scores"]


def test_outputs_can_be_exported(own, toy):
    net, assets = own

    class Whole(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, batch):
            return FAMILY.outputs(self.net, batch)

    def questions(records):
        return batch_of([{"text": record["text"]} for record in records], assets)

    batch = questions(toy[:3])
    size = {0: torch.export.Dim("B"), 1: torch.export.Dim("T", max=assets.max_length)}
    program = torch.export.export(Whole(), (batch,), dynamic_shapes=(dict.fromkeys(batch, size),))
    more = batch_of([{"text": text} for text in TEXTS + TEXTS], assets)
    assert torch.allclose(program.module()(more)[0], FAMILY.outputs(net, more)[0], atol=1e-5)
