"""Masked language models, on tiny folders that transformers built, against its own loader, loss and pipeline."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForMaskedLM, pipeline

from folders import bert_tokenizer, roberta_tokenizer, save, sentences
from onnuri import registry
from onnuri.data import records_of
from onnuri.errors import BadInput, BadSettings, Refusal
from onnuri.families import vocabulary
from onnuri.families.masked_lm import FAMILY
from onnuri.families.masked_tokens import asked_logits
from onnuri.family import Generators
from onnuri.run import execute

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
MARKED = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "cls_token_id": 2}
DESIGNS = {
    # class of transformers: the entries of its config
    "BertForMaskedLM": SMALL,
    "RobertaForMaskedLM": SMALL | {"max_position_embeddings": 66, "pad_token_id": 1},
    "DistilBertForMaskedLM": {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
    "ModernBertForMaskedLM": SMALL,
    "ElectraForMaskedLM": SMALL | {"embedding_size": 16},
    "DebertaV2ForMaskedLM": SMALL,
    "XLMRobertaForMaskedLM": SMALL | {"max_position_embeddings": 65},
    "AlbertForMaskedLM": SMALL | {"embedding_size": 16},
    "LongformerForMaskedLM": SMALL | {"attention_window": 8},
}
RECORDS = [{"text": row["text"]} for row in sentences(16)]
TEXTS = records_of(RECORDS, {"text": "text"}, "text")
CLASSIFIER = registry.family("text_classifier")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(name: str, folder: Path) -> Path:
    """The folder of a tiny random model of that class, written by transformers."""
    kind = getattr(transformers, name)
    words = roberta_tokenizer() if name == "RobertaForMaskedLM" else bert_tokenizer()
    config = {"max_position_embeddings": 64, **MARKED, "vocab_size": len(words), **DESIGNS[name]}
    torch.manual_seed(1)
    kind(kind.config_class(**config)).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: build(name, root / name) for name in DESIGNS}


@pytest.fixture(scope="module")
def started():
    return FAMILY.start(FAMILY.tiny(), FAMILY.toy(60, 0), generator())


def batch_of(records: list[dict], assets, seed: int = 0, keys=None) -> dict:
    return FAMILY.collate(records, assets, Generators(seed, keys or range(len(records))))


def same_tensors(one, other) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def taken(batch: dict) -> dict:
    """What a net of transformers itself takes of a batch."""
    return {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch}


def body_of(net) -> dict[str, torch.Tensor]:
    """The tensors of the library's base model, without a pooler, which belongs to the head."""
    return {name: value for name, value in net.base_model.state_dict().items() if "pooler" not in name}


# ------------------------------------------------------------------------------------ folders of transformers


@pytest.mark.parametrize("name", DESIGNS)
def test_a_folder_survives_read_and_write_bitwise_and_opens_in_transformers(name, folders, tmp_path):
    assert FAMILY.claims(folders[name])
    net, assets = FAMILY.read(folders[name], False)
    FAMILY.write(net, assets, tmp_path, True)
    again, same = FAMILY.read(tmp_path, False)
    theirs, report = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert same_tensors(net, again) and same_tensors(net, theirs) and same == assets
    batch = batch_of(RECORDS, assets)
    with torch.no_grad():
        values, mask = FAMILY.outputs(net, batch)
        assert torch.equal(values, FAMILY.outputs(again, batch)[0])
        assert torch.equal(values, theirs(**taken(batch)).logits)
    assert torch.equal(mask, batch["labels"] != -100)


@pytest.mark.parametrize("name", DESIGNS)
def test_the_loss_and_its_gradient_are_those_of_transformers(name, folders):
    """Though the head is given the hidden places alone: sums in fp32 in another order."""
    net, assets = FAMILY.read(folders[name], False)
    batch = batch_of(RECORDS, assets)
    total, count = FAMILY.loss(net, batch, "net")
    (total.sum() / count.sum()).backward()
    mine = {key: p.grad.clone() for key, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    theirs = net(**taken(batch), labels=batch["labels"]).loss
    theirs.backward()
    assert total.sum().item() / count.sum().item() == pytest.approx(theirs.item(), abs=1e-5)
    found = {key: p.grad for key, p in net.named_parameters() if p.grad is not None}
    assert mine.keys() == found.keys()
    for key in mine:
        torch.testing.assert_close(mine[key], found[key], rtol=1e-4, atol=1e-6)
    for row in range(len(RECORDS)):
        part = {key: value[row : row + 1] for key, value in batch.items()}
        with torch.no_grad():
            alone = net(**taken(part), labels=part["labels"]).loss.item()
        assert total[row].item() / count[row].item() == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("name", DESIGNS)
def test_what_is_asked_for_is_what_outputs_say_there(name, folders):
    net, assets = FAMILY.read(folders[name], False)
    batch = batch_of(RECORDS, assets)
    with torch.no_grad():
        values, mask = FAMILY.outputs(net, batch)
        torch.testing.assert_close(asked_logits(net, batch), values[mask], rtol=1e-5, atol=1e-6)
    assert not net.base_model._forward_hooks


def test_the_head_stays_tied_when_read_and_when_started(folders, started):
    for net in (FAMILY.read(folders["BertForMaskedLM"], False)[0], started[0]):
        assert net.get_input_embeddings().weight is net.get_output_embeddings().weight


def test_a_folder_without_a_mask_or_without_a_tokenizer_is_told(folders, tmp_path):
    net, _ = FAMILY.read(folders["BertForMaskedLM"], False)
    net.save_pretrained(tmp_path)
    with pytest.raises(BadInput):
        FAMILY.read(tmp_path, False)
    words = bert_tokenizer()
    words.mask_token = None
    words.save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="has no mask"):
        FAMILY.read(tmp_path, False)


# ----------------------------------------------------------------------------------------------- what is hidden


def long_texts(n: int) -> list[dict]:
    words = [row["text"] for row in sentences(200)]
    return [{"text": " ".join(words[i % 97 : i % 97 + 6])} for i in range(n)]


def test_of_the_tokens_15_percent_are_asked_for_and_80_10_10_of_them_hidden(started):
    """About 20,000 tokens asked for: three standard deviations of a share of 0.8 are 0.009."""
    _, assets = started
    asked = masked = kept = there = 0
    for part in range(20):
        batch = batch_of(long_texts(300), assets, part)
        labels, ids, predicted = batch["labels"], batch["input_ids"], batch["predicted"]
        assert torch.equal(predicted, labels != -100) and bool((predicted.sum(1) > 0).all())
        assert not torch.isin(labels[predicted], assets.marks).any(), "a mark is asked for"
        assert not torch.isin(ids[predicted][ids[predicted] != assets.mask], assets.marks).any()
        plain = torch.where(predicted, labels, ids)
        there += int((~torch.isin(plain, assets.marks) & (batch["attention_mask"] > 0)).sum())
        asked, masked = asked + int(predicted.sum()), masked + int((ids[predicted] == assets.mask).sum())
        kept += int((ids == labels)[predicted].sum())
    assert asked > 20_000 and asked / there == pytest.approx(0.15, abs=0.005)
    assert masked / asked == pytest.approx(0.8, abs=0.009)
    by_chance = 0.1 / len(assets.others)  # another token may be the same one
    assert kept / asked == pytest.approx(0.1 + by_chance, abs=0.007)


def test_the_masks_of_a_record_are_the_same_however_the_batch_is_cut_and_others_in_the_next_epoch(started):
    _, assets = started
    records, keys = long_texts(12), list(range(5, 17))
    whole = batch_of(records, assets, 3, keys)
    for start, end in ((0, 1), (1, 5), (5, 12)):
        part = batch_of(records[start:end], assets, 3, keys[start:end])
        for name, value in part.items():
            assert torch.equal(value, whole[name][start:end, : value.shape[1]])
    assert not torch.equal(whole["predicted"], batch_of(records, assets, 4, keys)["predicted"])


def test_what_is_not_hidden_is_the_text(started):
    _, assets = started
    batch = batch_of(RECORDS, assets)
    whole = torch.where(batch["predicted"], batch["labels"], batch["input_ids"])
    for ids, record, there in zip(whole, RECORDS, batch["attention_mask"].bool()):
        assert ids[there].tolist() == assets.tokenizer(record["text"], truncation=True, max_length=48).input_ids


@pytest.mark.parametrize("text", ["", " ", "a", "\u0000뷁", None, "[MASK]", "<mask> a"])
def test_each_record_is_asked_for_something(text, started):
    net, assets = started
    total, count = FAMILY.loss(net, batch_of([{"text": text}, *RECORDS[:1]], assets), "net")
    assert count[0] >= 1 and bool(torch.isfinite(total).all())


# ------------------------------------------------------------------------------------------------------ answers


def test_a_record_is_judged_by_what_its_text_alone_hides(folders):
    """Whatever the generators, the place and the neighbors; the figures are those of transformers' loss on that batch."""
    net, assets = FAMILY.read(folders["BertForMaskedLM"], False)
    with torch.no_grad():
        one = FAMILY.sample(net, assets, RECORDS, Generators(0, range(16)))
        other = FAMILY.sample(net, assets, RECORDS[::-1], Generators(9, range(16)))[::-1]
    for a, b in zip(one, other):
        assert a["text"] == b["text"] and a["text_scores"]["tokens"] == b["text_scores"]["tokens"]
        assert a["text_scores"]["nll"] == pytest.approx(b["text_scores"]["nll"], rel=1e-5)
    scores = FAMILY.score(RECORDS, one, assets)
    nll, tokens = (sum(found["text_scores"][name] for found in one) for name in ("nll", "tokens"))
    assert scores["masked_cross_entropy"] == pytest.approx(nll / tokens) and 0 <= scores["masked_accuracy"] <= 1
    assert scores["masked_cross_entropy"] == pytest.approx(math.log(len(assets.tokenizer)), abs=0.5)  # a random net


@pytest.mark.parametrize("mask", ["[MASK]", "<mask>"])
@pytest.mark.parametrize("name", ["BertForMaskedLM", "RobertaForMaskedLM"])
def test_masks_are_filled_in_as_the_pipeline_does(name, mask, folders):
    net, assets = FAMILY.read(folders[name], False)
    theirs = pipeline("fill-mask", model=str(folders[name]), top_k=5)
    text = f"the book{mask} a walk"
    expected = theirs(text.replace(mask, assets.tokenizer.mask_token))
    for record in ({"text": text}, {"masked": text}, {"masked": text.replace(mask, f" {mask}"), "text": None}):
        with torch.no_grad():
            [found] = FAMILY.sample(net, assets, [record], Generators(0, [0]))
        [candidates] = found["text_scores"]["candidates"]
        chances = [each["probability"] for each in candidates]
        assert chances == pytest.approx([each["score"] for each in expected], abs=1e-6)
        plain = [each["token_str"].replace(" ", "").removeprefix("##") for each in expected]
        assert [each["text"].strip() for each in candidates] == plain
        assert found["text"] == f"the book{candidates[0]['text']} a walk"


def test_a_text_keeps_all_but_its_masks(started):
    net, assets = started
    text = "Ünknown 뷁 [MASK], twice <mask>!  Spaces stay"
    with torch.no_grad():
        [found] = FAMILY.sample(net, assets, [{"text": text}], Generators(0, [0]))
        [nothing] = FAMILY.sample(net, assets, [{}], Generators(0, [0]))
    first, second = (each[0]["text"] for each in found["text_scores"]["candidates"])
    assert found["text"] == f"Ünknown 뷁{first}, twice{second}!  Spaces stay"
    assert len(nothing["text_scores"]["candidates"]) == 1
    assert math.isnan(FAMILY.score([{}], [found], assets)["masked_cross_entropy"])


def test_masks_beyond_the_longest_text_stay(started):
    net, assets = started
    text = "[MASK] " + "sleeps " * 60 + "[MASK]"
    with torch.no_grad():
        [found] = FAMILY.sample(net, assets, [{"masked": text}], Generators(0, [0]))
    assert len(found["text_scores"]["candidates"]) == 1 and found["text"].endswith("[MASK]")
    assert not found["text"].startswith("[MASK]")


# --------------------------------------------------------------------------------------------------- new models


def test_starting_twice_gives_the_same_model_and_leaves_the_random_state_alone(started, tmp_path):
    before = torch.get_rng_state()
    net, assets = FAMILY.start(FAMILY.tiny(), FAMILY.toy(60, 0), generator())
    assert torch.equal(before, torch.get_rng_state())
    assert same_tensors(net, started[0]) and assets == started[1]
    FAMILY.write(net, assets, tmp_path, True)
    theirs, report = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()) and same_tensors(theirs, net)


def test_all_wrong_settings_are_named_at_once():
    with pytest.raises(BadSettings, match=r"(?s)num_layers.*dropout"):
        FAMILY.start({"num_layers": 0, "dropout": 2}, FAMILY.toy(5, 0), generator())
    with pytest.raises(BadSettings, match="hidden_size"):
        FAMILY.start({"hiden_size": 3}, FAMILY.toy(5, 0), generator())
    with pytest.raises(BadInput, match="no column holds the text"):
        FAMILY.start(FAMILY.tiny(), records_of([{"n": 1.0}], {"n": "number"}, None), generator())


def test_a_few_steps_lower_the_headline():
    data, held = FAMILY.toy(256, 0).list(), FAMILY.toy(64, 1).list()
    net, assets = FAMILY.start(FAMILY.tiny(), FAMILY.toy(256, 0), generator())

    @torch.no_grad()
    def headline() -> float:
        return FAMILY.score(held, FAMILY.sample(net, assets, held, Generators(0, range(64))), assets)[
            FAMILY.headline(assets)[0]
        ]

    before, optimizer = headline(), torch.optim.AdamW(net.parameters(), 3e-3)
    for step in range(120):
        total, count = FAMILY.loss(net, batch_of(data[step % 8 * 32 :][:32], assets, step), "net")
        (total.sum() / count.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert headline() < 0.6 * before


# ------------------------------------------------------------------------------------------------- other bodies


def test_a_bare_body_is_adopted_whole(tmp_path):
    save("bert_body", tmp_path / "body")
    one, other = (FAMILY.adopt(tmp_path / "body", TEXTS, generator(3))[0] for _ in range(2))
    theirs = transformers.BertModel.from_pretrained(tmp_path / "body").state_dict()
    kept = body_of(one)
    assert same_tensors(one, other) and kept and all(torch.equal(value, theirs[name]) for name, value in kept.items())


def test_a_net_that_reads_in_one_direction_is_refused(folders, tmp_path):
    save("llama", tmp_path / "llama")
    with pytest.raises(Refusal, match="no llama that fills in"):
        FAMILY.adopt(tmp_path / "llama", TEXTS, generator())
    net, _ = FAMILY.read(folders["BertForMaskedLM"], False)
    config = type(net.config)(**{**net.config.to_dict(), "is_decoder": True, "architectures": None})
    transformers.BertLMHeadModel(config).save_pretrained(tmp_path / "decoder")
    bert_tokenizer().save_pretrained(tmp_path / "decoder")
    with pytest.raises(Refusal, match="from left to right"):
        FAMILY.adopt(tmp_path / "decoder", TEXTS, generator())
    save("bert_body", tmp_path / "body")
    words = vocabulary.learnt(iter(["a"]), vocabulary.WRITTEN, 258, 64)
    for path in (tmp_path / "body").glob("tokenizer*"):
        path.unlink()
    words.save_pretrained(tmp_path / "body")
    with pytest.raises(BadInput, match="has no mask"):
        FAMILY.adopt(tmp_path / "body", TEXTS, generator())


@pytest.fixture(scope="module")
def learnt(tmp_path_factory) -> Path:
    """The folder of a model that learnt from texts alone."""
    folder = tmp_path_factory.mktemp("learnt") / "model"
    settings = {"family": "masked_lm", "config": FAMILY.tiny(), "steps": 20}
    execute("train", settings, {"data": "toy:masked_lm"}, folder, quiet=True)
    return folder


def test_a_classifier_takes_the_body_that_was_learnt_and_gives_it_back(learnt, tmp_path):
    net, assets = FAMILY.read(learnt, False)
    learnt_body = body_of(net)
    fresh = body_of(FAMILY.start(FAMILY.tiny(), FAMILY.toy(200, 0), generator())[0])
    assert any(not torch.equal(fresh[name], value) for name, value in learnt_body.items() if name in fresh)
    classifier, labels = CLASSIFIER.adopt(learnt, CLASSIFIER.toy(40, 0), generator())
    kept = body_of(classifier)
    assert kept.keys() == learnt_body.keys()
    assert all(torch.equal(kept[name], value) for name, value in learnt_body.items())
    with torch.no_grad():
        words = assets.tokenizer(RECORDS[0]["text"], return_tensors="pt")
        hidden = [each.base_model(**taken(words)).last_hidden_state for each in (net, classifier)]
    assert torch.equal(*hidden)
    CLASSIFIER.write(classifier, labels, tmp_path / "classifier", True)
    back, same = FAMILY.adopt(tmp_path / "classifier", FAMILY.toy(40, 0), generator())
    assert all(torch.equal(body_of(back)[name], value) for name, value in learnt_body.items())
    assert same.vocabulary == assets.vocabulary and FAMILY.fields(same) == FAMILY.fields(assets)


@pytest.mark.parametrize("new_head", [True, False])
def test_the_command_puts_a_head_for_labels_on_the_body_that_was_learnt(new_head, learnt, tmp_path):
    settings = {"family": "text_classifier", "new_head": new_head, "steps": 1, "batch_size": 8}
    run = partial(execute, "train", quiet=True)
    inputs = {"model": str(learnt), "data": "toy:text_classifier"}
    run(settings | {"learning_rate": 1e-6}, inputs, tmp_path / "classifier")
    net, _ = CLASSIFIER.read(tmp_path / "classifier", False)
    before, after = body_of(FAMILY.read(learnt, False)[0]), body_of(net)
    moved = max(float((after[name] - value).abs().max()) for name, value in before.items())
    assert after.keys() == before.keys() and moved <= 1e-5  # one step of 1e-6, and its decay
