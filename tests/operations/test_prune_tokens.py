"""Fewer tokens: every text is still read, what stays answers as before, and the folder is one that transformers opens."""

import json

import numpy as np
import pytest
import torch

import folders as F
from onnuri import plan, registry, run
from onnuri.errors import BadSettings, Refusal
from onnuri.families import fewer_tokens
from onnuri.family import Vocabulary
from onnuri.model import open_model, write_model
from onnuri.operation import Quiet
from onnuri.operations.prune.tokens import staying
from onnuri.sources import open_data

PRUNE = registry.operation("prune")
DECODERS = ("llama", "llama_tied", "gpt2", "gemma2", "mixtral")
ODD = "정말 좋아요 the book 🙂 ok\t한글  two"


def cut(folder, data, **settings):
    chosen = plan.settings_of(PRUNE, {"units": "tokens", "share": 0.1, "method": "wanda", **settings})
    found = run.opened(PRUNE, chosen, {"model": str(folder), "data": str(data)}, {})
    result = PRUNE.apply(chosen, Quiet(), **found)
    kept = {promise.text: promise.measure(chosen, found, result) for promise in PRUNE.promises}
    assert kept["answers unlike those of the whole net given the same tokens, relative"] <= 1e-6
    assert kept["tokens left besides the share asked for"] <= 0
    return found["model"], result.model


@pytest.mark.parametrize("name", [*DECODERS, "bert", "roberta"])
def test_every_text_is_read_and_the_folder_opens(name, tmp_path):
    F.save(name, tmp_path / "m")
    texts = F.write_texts(tmp_path / "texts.jsonl", "text", *(() if name in DECODERS else ("label",)))
    before, after = cut(tmp_path / "m", texts)
    write_model(after, tmp_path / "out")
    again = open_model(tmp_path / "out")
    rows = len(before.net.get_input_embeddings().weight)
    assert len(again.net.get_input_embeddings().weight) == again.net.config.vocab_size == round(0.9 * rows)
    old, new = before.assets.tokenizer, again.assets.tokenizer
    assert max(new.get_vocab().values()) < round(0.9 * rows)
    if name != "bert":  # its tokenizer has no smiles
        assert new.decode(new(ODD).input_ids, skip_special_tokens=True) == old.decode(
            old(ODD).input_ids, skip_special_tokens=True
        )
    tokens = [new.convert_ids_to_tokens(new(ODD).input_ids), old.convert_ids_to_tokens(old(ODD).input_ids)]
    assert tokens[0][0] == tokens[1][0] and len(tokens[0]) >= len(tokens[1]), "marks stand where they stood"
    for role in ("bos_token", "eos_token", "pad_token", "unk_token"):
        assert getattr(old, role) == getattr(new, role)
        stated = getattr(again.net.config, f"{role}_id", None)
        assert (
            stated is None
            or getattr(old, f"{role}_id") is None
            or new.convert_ids_to_tokens(stated) == old.convert_ids_to_tokens(getattr(before.net.config, f"{role}_id"))
        )
    F.reopen(name, tmp_path / "out")


def test_tokens_that_the_records_hold_stay(tmp_path):
    """The records are about one thing; tokens of others go first."""
    F.save("bert", tmp_path / "m")
    tokenizer = open_model(tmp_path / "m").assets.tokenizer
    rows = [{"text": "the book is great", "label": F.LABELS[i % 2]} for i in range(40)]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, after = cut(tmp_path / "m", tmp_path / "some.jsonl", share=0.3)
    used = tokenizer.convert_ids_to_tokens(tokenizer(rows[0]["text"]).input_ids)
    assert set(used) <= after.assets.tokenizer.get_vocab().keys()
    assert after.assets.tokenizer.tokenize(rows[0]["text"]) == tokenizer.tokenize(rows[0]["text"])


def test_ngrams_that_tell_little_go(tmp_path):
    data = open_data("toy:text_classifier")
    run.execute(
        "train", {"family": "text_classifier", "steps": 30}, {"data": "toy:text_classifier"}, tmp_path / "m", quiet=True
    )
    before, after = cut(tmp_path / "m", "toy:text_classifier", share=0.5)
    assert len(after.assets.ngrams) <= 0.5 * len(before.assets.ngrams)
    assert set(after.assets.ngrams.prints.tolist()) < set(before.assets.ngrams.prints.tolist())
    rows = data.split("test").list()
    hits = [
        sum(a["label"] == b["label"] for a, b in zip(rows, model.sample(model.asked(rows))))
        for model in (before, after)
    ]
    assert hits[1] == hits[0] == len(rows)
    write_model(after, tmp_path / "out")
    again = open_model(tmp_path / "out")
    assert torch.equal(again.outputs(again.collate(rows))[0], after.outputs(after.collate(rows))[0])
    assert sum(p.stat().st_size for p in (tmp_path / "out").glob("*.safetensors")) < 0.55 * sum(
        p.stat().st_size for p in (tmp_path / "m").glob("*.safetensors")
    )


def unigram():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(set("thebookisgreat한국어"))
    pieces = [
        ("<unk>", 0.0),
        ("<s>", 0.0),
        ("▁", -2.0),
        *((letter, -5.0) for letter in letters),
        ("▁the", -1.0),
        ("▁book", -1.5),
        ("great", -1.2),
    ]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>")


def test_pieces_of_a_unigram_tokenizer_are_spared():
    """Single letters and marks stay; a piece that goes is written with letters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = unigram()
    size = len(tokenizer)
    net = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            bos_token_id=1,
            eos_token_id=None,
            pad_token_id=None,
        )
    )
    found = fewer_tokens.vocabulary_of(net.eval(), tokenizer, lambda net, tokenizer: tokenizer)
    book = tokenizer.convert_tokens_to_ids("▁book")
    assert (
        book not in found.needed
        and tokenizer.convert_tokens_to_ids("한") in found.needed
        and {0, 1} <= set(found.needed)
    )
    _, less = found.kept(torch.tensor([number for number in range(size) if number != book]))
    assert less.tokenize("the book great") == ["▁the", "▁", "b", "o", "o", "k", "▁", "great"]
    assert less.decode(less("the book great").input_ids) == "the book great"
    assert less.unk_token_id == 0 and less("☃").input_ids[-1] == 0


def test_a_token_stays_with_what_it_is_made_of():
    numbers = torch.zeros(8, 2)
    found = Vocabulary(("x",), numbers, {0}, {7: [5, 6], 6: [1, 2]}, *[lambda numbers: (None, None)] * 2)
    scores = torch.tensor([0.0, 1, 1, 5, 4, 1, 1, 9])
    assert staying(found, scores, 6).tolist() == [0, 1, 2, 5, 6, 7]
    assert staying(found, scores, 5).tolist() == [0, 1, 2, 3, 4], "no room for the parts of the best"
    assert staying(found, scores, 1).tolist() == [0]


def test_both_promises_can_be_broken(tmp_path):
    F.save("llama", tmp_path / "m")
    texts = F.write_texts(tmp_path / "texts.jsonl", "text")
    chosen = plan.settings_of(PRUNE, {"units": "tokens", "share": 0.1})
    found = run.opened(PRUNE, chosen, {"model": str(tmp_path / "m"), "data": str(texts)}, {})
    result = PRUNE.apply(chosen, Quiet(), **found)
    alike, count = (promise for promise in reversed(PRUNE.promises) if "tokens" in promise.text)
    entries, kept, left = result.report["tokens"]
    for changed in (kept.roll(1), torch.cat([kept[:-1], kept[-1:] - 1])):
        result.report["tokens"] = (entries, changed, left)
        assert alike.measure(chosen, found, result) > 10 * alike.bound, "rows under other numbers"
    result.report["tokens"] = (entries, kept, left - 1)
    assert count.measure(chosen, found, result) > count.bound


def test_what_cannot_go_is_refused(tmp_path):
    F.save("llama", tmp_path / "m")
    texts = F.write_texts(tmp_path / "texts.jsonl", "text")
    with pytest.raises(BadSettings, match="would leave 150 of 300 tokens; 260 of them no text can be read without"):
        cut(tmp_path / "m", texts, share=0.5)
    with pytest.raises(BadSettings, match="has no effect: there are 300 tokens"):
        cut(tmp_path / "m", texts, share=0.001)
    with pytest.raises(BadSettings, match="no effect on tokens"):
        plan.settings_of(PRUNE, {"units": "tokens", "method": "sparsegpt"})
    run.execute("train", {"family": "tabular", "steps": 3}, {"data": "builtin:wine"}, tmp_path / "t", quiet=True)
    with pytest.raises(Refusal, match="reads no tokens"):
        cut(tmp_path / "t", "builtin:wine")


def test_training_onward_and_other_operations_take_it(tmp_path):
    F.save("llama_tied", tmp_path / "m")
    texts = str(F.write_texts(tmp_path / "texts.jsonl", "text"))
    inputs = {"model": str(tmp_path / "m"), "data": texts}
    line = run.execute(
        "prune", {"units": "tokens", "share": 0.1, "method": "wanda"}, inputs, tmp_path / "less", quiet=True
    )
    assert all(promise["kept"] for promise in line.get("promises", []))
    assert np.isfinite(line["after"]["scores"]["bits_per_byte"])
    for operation, settings in (("train", {"steps": 3}), ("quantize", {"scheme": "int8"}), ("evaluate", {})):
        out = tmp_path / operation if operation != "evaluate" else None
        line = run.execute(operation, settings, {"model": str(tmp_path / "less"), "data": texts}, out, quiet=True)
        assert all(promise["kept"] for promise in line.get("promises", []))
