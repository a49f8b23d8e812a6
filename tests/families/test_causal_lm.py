"""Language models, on tiny folders that transformers built, against its own loader, loss and generate."""

import json
import math
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    GenerationConfig,
    GPT2Model,
    LlamaForSequenceClassification,
    LlamaModel,
    PreTrainedTokenizerFast,
)

from onnuri.data import records_of
from onnuri.decoding import Chooser, by_library, padded, written
from onnuri.errors import BadInput, BadSettings, Refusal
from onnuri.families import vocabulary, widths
from onnuri.families.causal_lm import FAMILY, columns_of
from onnuri.families.nats import Nats
from onnuri.families.next_token import Assets, aligned, collate, keys_and_values, outputs, steps, writing
from onnuri.family import Generators, Session

LM = FAMILY
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
DESIGNS = {
    "llama": {**SMALL, "num_key_value_heads": 2, "tie_word_embeddings": False},
    "tied llama": {**SMALL, "num_key_value_heads": 4, "tie_word_embeddings": True},
    "qwen3": {**SMALL, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True},
    "gemma2": {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "mixtral": {**SMALL, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
}
TEXTS = ["the cat sleeps at home.", "고양이가 집에서 잔다 🙂", "a", "a child sings, and the cat is outside."]
RECORDS = [{"text": text} for text in TEXTS]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def learnt(records: int, size: int) -> PreTrainedTokenizerFast:
    return vocabulary.learnt((record["text"] for record in LM.toy(records, 0)), vocabulary.WRITTEN, size, 64)


@cache
def tokenizer(pad: bool) -> PreTrainedTokenizerFast:
    """As found in the wild: nothing is put before a text and, unless `pad`, there is no pad token."""
    made = learnt(50, 300)
    bare = made.backend_tokenizer
    bare.post_processor = None
    return PreTrainedTokenizerFast(
        tokenizer_object=bare, eos_token="<|endoftext|>", **({"pad_token": "<|pad|>"} if pad else {})
    )


def build(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """The folder of a tiny model of that design, written by transformers."""
    words = tokenizer(name != "gpt2")
    ids = {"vocab_size": len(words), "eos_token_id": 0, "bos_token_id": 0, "pad_token_id": words.pad_token_id}
    config = AutoConfig.for_model(name.split()[-1], **DESIGNS[name], **ids)
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: build(name, root / name.replace(" ", "_")) for name in DESIGNS}


@pytest.fixture(scope="module")
def started():
    return LM.start(LM.tiny(), LM.toy(60, 0), generator())


def totals(net, assets: Assets, records: list[dict]) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        return LM.loss(net, LM.collate(records, assets, Generators(0, range(len(records)))), "net")


def same_tensors(one, other) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


# ------------------------------------------------------------------------------------ folders of transformers


@pytest.mark.parametrize("name", DESIGNS)
def test_a_folder_survives_read_and_write_bitwise_and_opens_in_transformers(name, folders, tmp_path):
    assert LM.claims(folders[name])
    net, assets = LM.read(folders[name], False)
    LM.write(net, assets, tmp_path, True)
    again, same = LM.read(tmp_path, False)
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert same_tensors(net, again) and same_tensors(net, theirs) and same == assets
    words = AutoTokenizer.from_pretrained(tmp_path)
    batch = LM.collate(RECORDS, assets, [])
    for text, ids in zip(TEXTS, batch["input_ids"]):
        assert words(text).input_ids == ids.tolist()[: len(words(text).input_ids)]
    with torch.no_grad():
        expected = theirs(**{k: batch[k] for k in ("input_ids", "attention_mask", "position_ids")}).logits
        torch.testing.assert_close(LM.outputs(net, batch)[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", DESIGNS)
def test_the_loss_of_a_record_is_that_of_transformers(name, folders):
    net, assets = LM.read(folders[name], False)
    for record in RECORDS:
        ids = torch.tensor([[*assets.tokenizer(record["text"]).input_ids, assets.end]])
        total, count = totals(net, assets, [record])
        with torch.no_grad():
            mean = net(input_ids=ids, labels=ids).loss
        assert count.item() == ids.shape[1] - 1
        assert (total / count).item() == pytest.approx(mean.item(), abs=1e-5)


@pytest.mark.parametrize("name", DESIGNS)
def test_a_longer_neighbor_changes_no_loss(name, folders):
    net, assets = LM.read(folders[name], False)
    together, counts = totals(net, assets, RECORDS)
    for i, record in enumerate(RECORDS):
        alone, count = totals(net, assets, [record])
        assert count == counts[i]
        assert alone.item() / count.item() == pytest.approx(together[i].item() / count.item(), abs=1e-6)


@pytest.mark.parametrize("name", DESIGNS)
def test_like_keeps_or_scales_every_design(name, folders):
    net, assets = LM.read(folders[name], False)
    shapes = {k: v.shape for k, v in net.state_dict().items()}
    same, kept = LM.like(net, assets, 1.0, generator())
    assert {k: v.shape for k, v in same.state_dict().items()} == shapes and kept is assets
    assert not same_tensors(net, same)
    for scale in (0.5, 0.3, 2.0):
        other, _ = LM.like(net, assets, scale, generator())
        assert (other.num_parameters() < net.num_parameters()) == (scale < 1)
        assert len(LM.blocks(other)) == len(LM.blocks(net)) == 2
        assert torch.isfinite(totals(other, assets, RECORDS)[0]).all()


def test_a_config_whose_widths_cannot_be_found_is_refused():
    with pytest.raises(Refusal, match="does not state its widths"):
        widths.scaled(SimpleNamespace(to_dict=lambda: {"d": 8}), 0.5)


def test_a_bf16_folder_opens_in_bf16_also_empty(tmp_path):
    folder = build("llama", tmp_path / "a", torch.bfloat16)
    GenerationConfig(eos_token_id=[0, 1], max_length=9).save_pretrained(folder)
    net, assets = LM.read(folder, False)
    empty, same = LM.read(folder, True)
    assert net.dtype == empty.dtype == torch.bfloat16 and same == assets and assets.stops == (0, 1)
    total, _ = totals(net, assets, RECORDS)
    assert total.dtype == torch.float32
    LM.write(empty.to("meta"), assets, tmp_path / "b", False)
    assert not list((tmp_path / "b").glob("*.safetensors"))
    again, same = LM.read(tmp_path / "b", True)
    assert again.dtype == torch.bfloat16 and same == assets and again.generation_config.max_length == 9
    assert LM.claims(tmp_path / "b")


# ----------------------------------------------------------------------------------------------- started ones


def test_a_started_model_opens_in_transformers_with_equal_logits(started, tmp_path):
    net, assets = started
    LM.write(net, assets, tmp_path, True)
    again, same = LM.read(tmp_path, False)
    assert same_tensors(net, again) and same == assets and LM.claims(tmp_path)
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    ids = AutoTokenizer.from_pretrained(tmp_path)(TEXTS[1], return_tensors="pt")
    with torch.no_grad():
        logits = theirs(**ids).logits
        values, _ = LM.outputs(net, LM.collate(RECORDS[1:2], assets, []))
    torch.testing.assert_close(values[:, :-1], logits[:, : values.shape[1] - 1], rtol=0, atol=1e-6)


def test_starting_twice_gives_the_same_model_and_leaves_the_random_state_alone(started):
    before = torch.get_rng_state()
    net, assets = LM.start(LM.tiny(), LM.toy(60, 0), generator())
    assert torch.equal(before, torch.get_rng_state())
    assert same_tensors(net, started[0]) and assets == started[1]
    assert not same_tensors(net, LM.start(LM.tiny(), LM.toy(60, 0), generator(1))[0])


@pytest.mark.parametrize(
    "text", ["한국어 뷁 🙂👩‍👩‍👧 don't", "  two  spaces\n\ttab ", "\u0000\ufffd¡ß漢字", "café e\u0301"]
)
def test_any_text_comes_back_as_it_went_in(text, started):
    words = started[1].tokenizer
    assert words.decode(words(text).input_ids, skip_special_tokens=True) == text


def test_experts_make_a_mixture(tmp_path):
    net, assets = LM.start(LM.tiny() | {"experts": 4}, LM.toy(20, 0), generator())
    assert net.config.num_local_experts == 4 and net.config.num_experts_per_tok == 2
    LM.write(net, assets, tmp_path, True)
    assert same_tensors(net, LM.read(tmp_path, False)[0])


def test_all_wrong_settings_are_named_at_once():
    with pytest.raises(BadSettings, match=r"(?s)num_layers.*vocab_size.*experts") as error:
        LM.start({"num_layers": 0, "vocab_size": "many", "experts": 1}, LM.toy(5, 0), generator())
    assert len(error.value.faults) == 3
    with pytest.raises(BadSettings, match="hidden_size"):
        LM.start({"hiden_size": 3}, LM.toy(5, 0), generator())
    for wrong in ({"hidden_size": 30, "num_heads": 4}, {"hidden_size": 12, "num_heads": 2, "experts": 4}):
        with pytest.raises(BadSettings, match="multiple of 8"):
            LM.start(wrong, LM.toy(5, 0), generator())


def test_a_few_steps_lower_the_headline():
    data = LM.toy(64, 0)
    net, assets = LM.start(LM.tiny(), data, generator())
    records, held = data.list(), LM.toy(16, 1).list()

    def headline() -> float:
        return LM.score(held, LM.sample(net, assets, held, Generators(0, range(16))), assets)["bits_per_byte"]

    before, optimizer = headline(), torch.optim.AdamW(net.parameters(), 1e-2)
    for step in range(30):
        batch = LM.collate(records[step % 4 * 16 :][:16], assets, Generators(0, range(16)))
        total, count = LM.loss(net, batch, "net")
        (total.sum() / count.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert headline() < 0.4 * before


# ------------------------------------------------------------------------------------------- records, answers


def test_the_chunked_loss_has_the_gradient_of_the_plain_one(folders, monkeypatch):
    net, assets = LM.read(folders["llama"], False)
    batch = LM.collate(RECORDS, assets, [])

    def gradient() -> torch.Tensor:
        net.zero_grad()
        LM.loss(net, batch, "net")[0].sum().backward()
        return net.lm_head.weight.grad.clone()

    whole = gradient()
    monkeypatch.setattr("onnuri.families.nats.CHUNK", 3 * 300)
    torch.testing.assert_close(gradient(), whole, rtol=0, atol=1e-5)
    net.zero_grad()
    logits = net(**{k: batch[k] for k in ("input_ids", "attention_mask")}).logits
    torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
    ).backward()
    torch.testing.assert_close(net.lm_head.weight.grad, whole, rtol=0, atol=1e-5)


def test_the_loss_weighs_its_gradient_and_leaves_out_what_is_not_asked_for():
    logits, targets, above = torch.randn(6, 11), torch.tensor([3, -100, 0, 10, -100, 7]), torch.rand(6)
    found, wanted = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    (Nats.apply(found, targets) * above).sum().backward()
    losses = torch.nn.functional.cross_entropy(wanted, targets, reduction="none", ignore_index=-100)
    (losses * above).sum().backward()
    torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-5, atol=1e-6)  # fp32 sums in another order
    torch.testing.assert_close(Nats.apply(logits, targets), losses.detach(), rtol=1e-5, atol=1e-6)


def test_scores_are_those_of_the_loss_and_count_every_byte(started):
    net, assets = started
    records = [*RECORDS, {"text": "고"}]
    with torch.no_grad():
        answers = LM.sample(net, assets, records, Generators(0, range(5)))
    total, count = totals(net, assets, records)
    for i, (record, answer) in enumerate(zip(records, answers)):
        found = answer["text_scores"]
        assert answer["text"] == record["text"] and found["tokens"] == count[i]
        assert found["nll"] == pytest.approx(total[i].item(), abs=1e-4)
        if found["tokens"] < assets.max_length - 1:
            assert found["bytes"] == len(record["text"].encode())
    result = LM.score(records, answers, assets)
    assert result["perplexity"] == pytest.approx(math.exp(total.sum().item() / count.sum().item()), rel=1e-4)
    assert 0 <= result["next_token_accuracy"] <= 1 and result["bits_per_byte"] > 0
    assert LM.score(records[:1], answers[:1], assets).keys() == result.keys()
    nothing = LM.score([{}], [{"text": "", "text_scores": {"new_tokens": 0}}], assets)
    assert math.isnan(nothing["bits_per_byte"])


@pytest.mark.parametrize("name", DESIGNS)
def test_a_continuation_is_the_same_with_and_without_memory(name, folders):
    """The library's own loop, ours with what a net keeps of the tokens before, and ours without, which reads all again."""
    net, assets = LM.read(folders[name], False)
    prompts = [assets.tokenizer(text).input_ids for text in TEXTS]
    ways = {
        "kept": writing(net, assets),
        "plain": replace(writing(net, assets), step=lambda batch, _: (outputs(net, batch), ())),
        "library": replace(writing(net, assets), alone=partial(by_library, net, assets.stops, assets.pad)),
    }

    def noise():
        return [None, *(generator(i) for i in range(1, len(prompts)))]

    with torch.no_grad():
        found = {name: written(way, prompts, 6, Chooser(noise(), assets.stops)) for name, way in ways.items()}
    assert found["library"] == found["kept"] == found["plain"]


@pytest.mark.parametrize("name", DESIGNS)
def test_tokens_in_two_parts_give_what_they_give_at_once(name, folders):
    """Sequences of unlike lengths, so that the memory of the shorter holds places that are not there."""
    net, assets = LM.read(folders[name], False)
    assert keys_and_values(net)
    texts = [assets.tokenizer(text * 3).input_ids[: 12 + place] for place, text in enumerate(TEXTS)]
    cuts = [9, 1, 2, 5]
    with torch.no_grad():
        whole, _ = outputs(net, {**padded(texts, 0), "predicted": torch.ones(1)})
        first, second = (
            {**padded(part, 0), "predicted": torch.ones(1)}
            for part in ([t[:cut] for t, cut in zip(texts, cuts)], [t[cut:] for t, cut in zip(texts, cuts)])
        )
        (before, _), memory = steps(net, first, ())
        (after, _), memory = steps(net, second, aligned(memory))
    for row, (text, cut) in enumerate(zip(texts, cuts)):
        found = torch.cat([before[row, :cut], after[row, : len(text) - cut]])
        torch.testing.assert_close(found, whole[row, : len(text)], rtol=1e-4, atol=1e-5)
    assert memory[0].sum(1).tolist() == list(map(len, texts))


def test_a_token_is_drawn_by_its_probability():
    logits = torch.tensor([0.0, 1.0, 2.0])
    chooser = Chooser([generator(i) for i in range(4000)], ())
    found = chooser(logits.repeat(4000, 1), range(4000)).argmax(1).bincount() / 4000
    torch.testing.assert_close(found, logits.softmax(0), rtol=0, atol=4 * math.sqrt(0.25 / 4000))  # four deviations
    assert torch.equal(Chooser([None], ())(logits[None], [0]), logits[None])


def test_from_nothing_each_record_draws_its_own_text(started):
    net, assets = started
    with torch.no_grad():
        one, other, again = (
            [row["text"] for row in LM.sample(net, assets, [{}] * 4, Generators(seed, range(4)))] for seed in (0, 1, 0)
        )
        asked = LM.sample(net, assets, [{"prompt": "the"}] * 2, Generators(0, range(2)))
    assert one == again and one != other and len(set(one)) == 4
    assert asked[0]["text"] == asked[1]["text"]  # after a prompt the likeliest


def test_records_without_text_are_continued_on_any_runtime(started):
    net, assets = started

    class Other(Session):
        def forward(self, batch):
            return net(**{k: batch[k] for k in ("input_ids", "attention_mask", "position_ids")}).logits, batch[
                "predicted"
            ]

    records = [{"prompt": "the cat"}, RECORDS[0], {"text": ""}, {"prompt": "a" * 500}]
    with torch.no_grad():
        here, there = (LM.sample(one, assets, records, Generators(0, range(4))) for one in (net, Other()))
    assert [a["text"] for a in here] == [a["text"] for a in there] and here[1]["text"] == TEXTS[0]
    assert all(a["text_scores"]["new_tokens"] <= 8 for a in (here[0], here[2], here[3]))


def test_a_prompt_is_read_but_not_judged(started):
    rows = [{"prompt": "where is the cat?", "completion": "at home"}, {"prompt": "고양이", "completion": "cat"}]
    data = records_of(rows, {"prompt": "text", "completion": "text"}, None)
    net, assets = LM.start(LM.tiny(), data, generator())
    assert LM.fields(assets) == ({"prompt": "text"}, ("completion", "text"))
    batch = collate(rows, assets, [])
    for row, labels, ids in zip(rows, batch["labels"], batch["input_ids"]):
        asked = labels[labels >= 0]
        assert asked[-1] == assets.end and assets.tokenizer.decode(asked[:-1]) == row["completion"]
        assert assets.tokenizer.decode(ids).startswith("<|endoftext|>" + row["prompt"] + row["completion"])
    question = collate([{"prompt": row["prompt"]} for row in rows], assets, [])
    assert "labels" not in question and question["predicted"].sum(1).tolist() == [1, 1]
    long = collate([{"prompt": "x" * 500, "completion": "at home"}], assets, [])
    assert long["input_ids"].shape[1] <= assets.max_length and long["predicted"].sum() > 2
    with torch.no_grad():
        scores = LM.sample(net, assets, rows, Generators(0, range(2)))[0]["completion_scores"]
    assert scores["bytes"] == len("at home")


def test_the_column_of_the_text():
    def chosen(named: str | None, **fields: str) -> tuple[str, str]:
        return columns_of(records_of([], fields, named))

    assert chosen(None, text="text") == ("text", "")
    assert chosen("label", text="text", label="category") == ("text", "")
    assert chosen(None, title="text", text="text") == ("text", "")
    assert chosen("answer", question="text", answer="text") == ("answer", "question")
    assert chosen("prompt", prompt="text") == ("prompt", "")
    with pytest.raises(BadInput, match="no column"):
        chosen("y", x="number", y="category")


# ------------------------------------------------------------------------------------- other people's folders


@pytest.mark.parametrize("name, body", [("llama", LlamaModel), ("gpt2", GPT2Model)])
def test_adopting_a_bare_decoder_keeps_its_body(name, body, folders, tmp_path):
    bare = body.from_pretrained(folders[name])
    bare.save_pretrained(tmp_path)
    tokenizer(True).save_pretrained(tmp_path)
    assert not LM.claims(tmp_path)
    net, assets = LM.adopt(tmp_path, LM.toy(5, 0), generator())
    again, _ = LM.adopt(tmp_path, LM.toy(5, 0), generator())
    assert same_tensors(net.base_model, bare) and same_tensors(net, again)
    LM.write(net, assets, tmp_path / "new", True)
    assert LM.claims(tmp_path / "new") and same_tensors(LM.read(tmp_path / "new", False)[0], net)


def test_adopting_a_language_model_takes_the_columns_of_the_records(folders):
    data = records_of([{"question": "q", "answer": "a"}], {"question": "text", "answer": "text"}, "answer")
    net, assets = LM.adopt(folders["llama"], data, generator())
    original, before = LM.read(folders["llama"], False)
    assert same_tensors(net, original) and assets == replace(before, answer="answer", prompt="question")


def test_a_body_of_other_shape_or_depth_is_not_filled_up_with_random_numbers(folders, tmp_path):
    LlamaModel.from_pretrained(folders["llama"]).save_pretrained(tmp_path)
    tokenizer(True).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change in ({"hidden_size": 64}, {"num_hidden_layers": 3}, {"num_hidden_layers": 1}):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(BadInput):
            LM.adopt(tmp_path, LM.toy(5, 0), generator())


def test_adopting_a_classifier_forgets_its_columns(folders, tmp_path):
    net = LlamaForSequenceClassification.from_pretrained(folders["llama"])
    net.config.onnuri_fields = {"question": "review", "answer": "mood"}
    net.save_pretrained(tmp_path)
    tokenizer(True).save_pretrained(tmp_path)
    adopted, assets = LM.adopt(tmp_path, LM.toy(5, 0), generator())
    assert same_tensors(adopted.base_model, net.base_model) and LM.fields(assets) == ({}, ("text", "text"))


def test_a_net_that_looks_ahead_is_refused(tmp_path):
    BertModel(
        BertConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    ).save_pretrained(tmp_path)
    tokenizer(True).save_pretrained(tmp_path)
    with pytest.raises(Refusal, match="both directions"):
        LM.adopt(tmp_path, LM.toy(5, 0), generator())


def test_malformed_folders_are_bad_input(folders, tmp_path):
    config = json.loads((folders["llama"] / "config.json").read_text())

    def rewrite(folder: Path, **change) -> None:
        (folder / "config.json").write_text(json.dumps(config | change))

    damages = {
        "no weights": lambda f: (f / "model.safetensors").unlink(),
        "no tokenizer": lambda f: [(f / n).unlink() for n in ("tokenizer.json", "tokenizer_config.json")],
        "more layers": lambda f: rewrite(f, num_hidden_layers=3),
        "no such model": lambda f: rewrite(f, model_type="nothing"),
        "bad notes": lambda f: rewrite(f, onnuri_fields={"max_length": 0}),
        "other tokenizer": lambda f: learnt(99, 400).save_pretrained(f),
    }
    for name, damage in damages.items():
        folder = tmp_path / name
        folder.mkdir()
        for path in folders["llama"].iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        damage(folder)
        with pytest.raises(BadInput):
            LM.read(folder, False)
            pytest.fail(name)
    assert not LM.claims(tmp_path)
    for architectures in (None, [], "LlamaForCausalLM", [3], ["LlamaForSequenceClassification"]):
        (tmp_path / "config.json").write_text(json.dumps({"architectures": architectures}))
        assert not LM.claims(tmp_path)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_outputs_can_be_traced(name, folders):
    net, assets = LM.read(folders[name], False)
    batch = LM.collate(RECORDS, assets, [])

    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, batch):
            return LM.outputs(self.net, batch)

    asked = {k: v for k, v in batch.items() if k != "labels"}
    with torch.no_grad():
        program = torch.export.export(Wrapped(), (asked,)).module()
        torch.testing.assert_close(program(asked), LM.outputs(net, batch), rtol=0, atol=1e-5)


def test_the_axis_is_the_vocabulary(started, folders):
    net, assets = LM.read(folders["llama"], False)
    assert LM.axis(assets) != LM.axis(started[1])
    assert LM.axis(assets) == LM.axis(LM.like(net, assets, 0.5, generator())[1])
    assert LM.kind(assets) == "logits" and LM.headline(assets) == ("bits_per_byte", "down")
    assert LM.players(net) == {"net": net}


def test_a_net_that_counts_places_itself_keeps_no_memory_here():
    """Of unlike prompts in one batch the shorter would go on where the longest ends."""
    from transformers import TrOCRConfig, TrOCRForCausalLM

    sizes = {"d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16}
    assert not keys_and_values(TrOCRForCausalLM(TrOCRConfig(vocab_size=50, **sizes)))


def test_prompts_are_read_a_few_at_a_time(folders, monkeypatch):
    net, assets = LM.read(folders["llama"], False)
    prompts = [assets.tokenizer(text).input_ids for text in TEXTS]
    read, usual = [], writing(net, assets)

    def step(batch, memory):
        read.append(len(batch["input_ids"]))
        return usual.step(batch, memory)

    def made():
        return written(replace(usual, step=step), prompts, 5, Chooser([None] * len(prompts), assets.stops))

    with torch.no_grad():
        many = made()
        monkeypatch.setattr("onnuri.decoding.loop.AT_ONCE", 1)
        few = made()
    assert many == few and read[:2] == [1, 3] and read[-8:].count(1) >= 4


def test_a_context_longer_than_the_positions_of_the_net_is_told(folders, tmp_path):
    net, assets = LM.read(folders["gpt2"], False)
    LM.write(net, replace(assets, max_length=65), tmp_path, True)
    with pytest.raises(BadInput, match="reads 65 tokens at once, the net has 64 positions"):
        LM.read(tmp_path, False)
    LM.write(net, replace(assets, max_length=33), tmp_path, True)
    assert LM.read(tmp_path, False)[1].max_length == 33
