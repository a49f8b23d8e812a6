"""Models that read one text and write another: tiny folders of transformers, against its own loader, loss and generation."""

import math
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForSeq2SeqLM, GenerationConfig, PreTrainedTokenizerFast

from command import some
from folders import bpe, save, write_texts
from onnuri.data import records_of
from onnuri.errors import BadInput, BadSettings, Refusal
from onnuri.families import likeness, seq2seq, text_pairs
from onnuri.families.question_memory import goes_on
from onnuri.families.seq2seq import FAMILY
from onnuri.family import Generators
from onnuri.model import open_model
from onnuri.run import execute

MARKS = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
MARKED = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "vocab_size": 308}
MARKED |= {"forced_eos_token_id": None, "forced_bos_token_id": None}
PAIR = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64,
}  # fmt: skip
RELATIVE = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
SPOKEN = {name: value for name, value in PAIR.items() if name != "d_model"} | {
    "hidden_size": 32, "speech_encoder_layers": 1, "speech_encoder_attention_heads": 4, "t2u_encoder_layers": 1,
    "speech_encoder_intermediate_size": 48, "t2u_decoder_layers": 1,
}  # fmt: skip
HALF = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 308,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
GEMMA = HALF | {"num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 1, "eos_token_id": 2, "sliding_window": 4}
SEEING = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
}
DESIGNS = {
    # class of transformers: the entries of its config
    "T5ForConditionalGeneration": RELATIVE,
    "MT5ForConditionalGeneration": RELATIVE,
    "UMT5ForConditionalGeneration": RELATIVE,
    "LongT5ForConditionalGeneration": RELATIVE,
    "SwitchTransformersForConditionalGeneration": RELATIVE
    | {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "num_experts": 4},
    "BartForConditionalGeneration": PAIR,
    "MBartForConditionalGeneration": PAIR,
    "MarianMTModel": PAIR,
    "PegasusForConditionalGeneration": PAIR,
    "PegasusXForConditionalGeneration": PAIR | {"block_size": 8, "num_global_tokens": 4},
    "BigBirdPegasusForConditionalGeneration": PAIR | {"block_size": 4, "num_random_blocks": 1},
    "BlenderbotForConditionalGeneration": PAIR,
    "BlenderbotSmallForConditionalGeneration": PAIR,
    "LEDForConditionalGeneration": PAIR
    | {"attention_window": 8, "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 32},
    "M2M100ForConditionalGeneration": PAIR,
    "NllbMoeForConditionalGeneration": PAIR | {"num_experts": 4, "encoder_sparse_step": 2, "decoder_sparse_step": 2},
    "MvpForConditionalGeneration": PAIR,
    "PLBartForConditionalGeneration": PAIR,
    "FSMTForConditionalGeneration": PAIR | {"src_vocab_size": 308, "tgt_vocab_size": 308, "langs": ["en", "de"]},
    "ProphetNetForConditionalGeneration": {
        "hidden_size": 32, "encoder_ffn_dim": 48, "num_encoder_layers": 2, "num_encoder_attention_heads": 4, "ngram": 2,
        "decoder_ffn_dim": 48, "num_decoder_layers": 2, "num_decoder_attention_heads": 4, "max_position_embeddings": 64,
    },
    "SeamlessM4TForTextToText": SPOKEN,
    "SeamlessM4Tv2ForTextToText": SPOKEN,
    "T5GemmaForConditionalGeneration": {},
    "T5Gemma2ForConditionalGeneration": {},
    "EncoderDecoderModel": {},
}  # fmt: skip
KEEP_NOTHING = {"FSMTForConditionalGeneration", "ProphetNetForConditionalGeneration"}  # go on wrongly in the library
SEE_OTHERS = {  # by the length of the longest, which says where blocks of attention are; by room that experts have
    "ProphetNetForConditionalGeneration",
    "BigBirdPegasusForConditionalGeneration",
    "NllbMoeForConditionalGeneration",
}
SMALL = ("T5ForConditionalGeneration",)
WORDS = ("고양이가", "the cat sleeps", "집에서", "x", "a child reads at home", "")
RECORDS = [
    {"source": f"{WORDS[i % 5]} {i} {WORDS[i % 3]}", "target": f"{WORDS[(i + 1) % 6]}{' !' * (i % 4)}"}
    for i in range(12)
]
PAIRS = records_of(RECORDS, {"source": "text", "target": "text"}, "target")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def words(template: str = "$A </s>") -> PreTrainedTokenizerFast:
    """Marks 0 to 3, two languages, and a template of where they stand."""
    made = bpe([*MARKS.values(), "<en>", "<ko>"], template)
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=48, **MARKS)


def config_of(name: str):
    kind = getattr(transformers, name)
    ours = {key: MARKED[key] for key in ("pad_token_id", "bos_token_id", "eos_token_id")}
    if name == "T5GemmaForConditionalGeneration":
        halves = {side: transformers.T5GemmaModuleConfig(**GEMMA) for side in ("encoder", "decoder")}
        return transformers.T5GemmaConfig(**halves, **ours, vocab_size=308)
    if name == "T5Gemma2ForConditionalGeneration":
        encoder = {"text_config": GEMMA, "vision_config": SEEING | {"patch_size": 8}}
        return transformers.T5Gemma2Config(encoder=encoder, decoder=GEMMA, **ours)
    if name == "EncoderDecoderModel":
        halves = (transformers.BertConfig(**HALF), transformers.BertConfig(**HALF))
        return transformers.EncoderDecoderConfig.from_encoder_decoder_configs(*halves)
    return kind.config_class(**{**MARKED, **DESIGNS[name]})


def build(name: str, folder: Path, template: str = "$A </s>", **generation) -> Path:
    """The folder of a tiny random model of that class, written by transformers."""
    torch.manual_seed(1)
    net = getattr(transformers, name)(config_of(name))
    for key, value in generation.items():
        setattr(net.generation_config, key, value)
    net.save_pretrained(folder)
    words(template).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: build(name, root / name) for name in DESIGNS}


@pytest.fixture(scope="module")
def started():
    return FAMILY.start(FAMILY.tiny(), FAMILY.toy(60, 0), generator())


def batch_of(records: list[dict], assets) -> dict:
    return FAMILY.collate(records, assets, Generators(0, range(len(records))))


def same_tensors(one, other) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def theirs(batch: dict) -> dict:
    """What a net of transformers itself takes of a batch."""
    return {key: value for key, value in batch.items() if key not in ("predicted", "labels")}


def asked(records: list[dict]) -> list[dict]:
    return [{name: value for name, value in record.items() if name != "target"} for record in records]


@torch.no_grad()
def sampled(net, assets, records: list[dict]) -> list[dict]:
    return FAMILY.sample(net, assets, records, Generators(0, range(len(records))))


# ------------------------------------------------------------------------------------ folders of transformers


def test_all_that_transformers_has_are_built_here():
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES as known

    assert {known[kind] for kind in known if transformers.CONFIG_MAPPING[kind].is_encoder_decoder} == DESIGNS.keys()


@pytest.mark.parametrize("name", DESIGNS)
def test_a_folder_survives_read_and_write_bitwise_and_opens_in_transformers(name, folders, tmp_path):
    assert FAMILY.claims(folders[name])
    net, assets = FAMILY.read(folders[name], False)
    FAMILY.write(net, assets, tmp_path, True)
    again, same = FAMILY.read(tmp_path, False)
    opened, report = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert same_tensors(net, again) and same_tensors(net, opened) and same == assets
    batch = batch_of(RECORDS, assets)
    with torch.no_grad():
        values, mask = FAMILY.outputs(net, batch)
        assert torch.equal(values, FAMILY.outputs(again, batch)[0])
        assert torch.equal(values, opened(**theirs(batch), use_cache=False).logits)
    assert torch.equal(mask, batch["labels"] != -100)


@pytest.mark.parametrize("name", DESIGNS)
def test_the_loss_is_that_of_transformers_and_of_each_record_alone(name, folders):
    net, assets = FAMILY.read(folders[name], False)
    batch = batch_of(RECORDS, assets)
    with torch.no_grad():
        total, count = FAMILY.loss(net, batch, "net")
        if name != "ProphetNetForConditionalGeneration":  # its own loss is of several tokens ahead
            found = net(**theirs(batch), labels=batch["labels"], use_cache=False).loss
            assert total.sum().item() / count.sum().item() == pytest.approx(found.item(), abs=1e-5)
        for row in range(len(RECORDS)):
            alone, places = FAMILY.loss(net, batch_of(RECORDS[row : row + 1], assets), "net")
            assert places.item() == count[row].item()
            off = 5e-3 if name in SEE_OTHERS else 1e-5
            assert alone.item() / places.item() == pytest.approx(total[row].item() / count[row].item(), abs=off)


@pytest.mark.parametrize("name", ["T5ForConditionalGeneration", "BartForConditionalGeneration", "MarianMTModel"])
def test_the_decoder_is_given_the_labels_shifted_as_the_library_shifts_them(name, folders):
    net, assets = FAMILY.read(folders[name], False)
    batch = batch_of(RECORDS, assets)
    shifted = net.prepare_decoder_input_ids_from_labels(batch["labels"])
    assert torch.equal(shifted[batch["predicted"]], batch["decoder_input_ids"][batch["predicted"]])
    assert (batch["decoder_input_ids"][:, 0] == MARKED["decoder_start_token_id"]).all()


@pytest.mark.parametrize("name", DESIGNS)
def test_what_is_kept_of_both_texts_says_what_reading_all_at_once_says(name, folders):
    """Token by token, the question read once. Sums in fp32 in another order."""
    net, assets = FAMILY.read(folders[name], False)
    assert goes_on(net) == (name not in KEEP_NOTHING)
    batch = batch_of([RECORDS[4], {**RECORDS[7], "target": RECORDS[4]["target"]}], assets)
    wanted, memory, made = FAMILY.outputs(net, batch)[0], (), []
    answer = ("decoder_input_ids", "decoder_attention_mask", "predicted")
    for place in range(batch["predicted"].shape[1]):
        part = {key: value[:, place : place + 1] if key in answer else value for key, value in batch.items()}
        if memory:
            part |= {key: part[key][:, :0] for key in ("input_ids", "attention_mask")}
        with torch.no_grad():
            (values, _), memory = FAMILY.steps(net, part, memory)
        made.append(values)
        assert bool(memory) == (name not in KEEP_NOTHING)
        assert all(len(tensor) == 2 for tensor in memory)
    if memory:
        torch.testing.assert_close(torch.cat(made, 1), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", DESIGNS)
def test_the_answers_are_those_that_the_library_generates_one_by_one(name, folders):
    net, assets = FAMILY.read(folders[name], False)
    settings = {"num_beams": 1, "do_sample": False, "eos_token_id": list(assets.stops), "pad_token_id": assets.pad}
    settings |= {"decoder_start_token_id": assets.begins[0], "max_new_tokens": 12, "suppress_tokens": [assets.pad]}
    object.__setattr__(assets, "max_new_tokens", 12)
    found = sampled(net, assets, asked(RECORDS[:4]))
    for record, answer in zip(RECORDS, found):
        batch = batch_of(asked([record]), assets)
        ids = {key: batch[key] for key in ("input_ids", "attention_mask")}
        made = net.generate(**ids, generation_config=GenerationConfig(**settings))[0, 1:].tolist()
        end = next((n for n, token in enumerate(made) if token in assets.stops), None)
        assert answer["target"] == assets.tokenizer.decode(made[:end], skip_special_tokens=True)
        assert answer["target_scores"] == {"new_tokens": len(made[:end]), "finished": end is not None}


# ------------------------------------------------------------------------------- where answers begin and end


@pytest.mark.parametrize(
    "template, forced, begins, label",
    [
        ("$A </s>", None, (2,), []),
        ("<s> $A </s>", None, (2, 1), [1]),
        ("<ko> $A </s>", None, (2, 5), [5]),
        ("<ko> $A </s>", 4, (2, 4), [4]),  # the folder says another language than the tokenizer
        ("$A </s> <ko>", 5, (2, 5), [5]),  # the language behind the end, as it was written of old
        ("$A", None, (2,), []),
    ],
)
def test_answers_begin_as_the_folder_and_its_tokenizer_say_and_end_once(template, forced, begins, label, tmp_path):
    net, assets = FAMILY.read(
        build("MBartForConditionalGeneration", tmp_path, template, forced_bos_token_id=forced), False
    )
    assert assets.begins == begins and assets.stops == (2,)
    for text in ("x y", ""):
        batch = batch_of([{"source": "a", "target": text}], assets)
        plain = assets.tokenizer(text, add_special_tokens=False).input_ids
        assert batch["labels"][0].tolist() == [*label, *plain, 2]
        assert batch["decoder_input_ids"][0].tolist() == [2, *label, *plain]
    question = batch_of(asked(RECORDS[:2]), assets)
    assert question["decoder_input_ids"].tolist() == [list(begins)] * 2
    assert question["predicted"].tolist() == [[False] * (len(begins) - 1) + [True]] * 2
    one, together = sampled(net, assets, asked(RECORDS[:1])), sampled(net, assets, asked(RECORDS[:4]))
    assert one[0] == together[0]


def test_a_net_that_does_not_say_where_its_decoder_starts_learns_it(folders, tmp_path):
    net, assets = FAMILY.read(folders["EncoderDecoderModel"], False)
    assert assets.begins == (1,)
    FAMILY.write(net, assets, tmp_path, True)
    assert AutoModelForSeq2SeqLM.from_pretrained(tmp_path).generation_config.decoder_start_token_id == 1


def test_long_texts_are_cut_where_the_net_has_no_more_places(folders):
    net, assets = FAMILY.read(folders["LEDForConditionalGeneration"], False)
    assert (assets.max_length, assets.max_answer) == (48, 32)
    batch = batch_of([{"source": "x " * 200, "target": "y " * 200}], assets)
    assert batch["input_ids"].shape == (1, 48) and batch["input_ids"][0, -1] == 2
    assert batch["labels"].shape == (1, 32) and batch["labels"][0, -1] != 2
    assert math.isfinite(FAMILY.loss(net, batch, "net")[0].item())


def test_long_answers_are_cut_where_the_net_states_no_places(started):
    """By what the reader reads at once, or what is written at most."""
    net, assets = started
    assert assets.max_answer == assets.max_length == 48
    assert batch_of([{"source": "x", "target": "y " * 500}], assets)["labels"].shape == (1, 48)
    noted = {name: getattr(assets, name) for name in seq2seq.NOTES}
    assert seq2seq.assets_of(net, assets.tokenizer, noted | {"max_new_tokens": 100}).max_answer == 100


# ------------------------------------------------------------------------------------------------------ answers


def test_a_question_is_read_once(started):
    net, assets = started
    seen = []
    handle = net.get_encoder().register_forward_hook(lambda *_: seen.append(1))
    goes_on(net)
    seen.clear()
    found = sampled(net, assets, asked(FAMILY.toy(1, 0).list()))
    handle.remove()
    assert len(seen) == 1 and found[0]["target_scores"]["new_tokens"] > 1


def test_an_answer_that_is_there_is_judged_and_never_looked_at(started):
    net, assets = started
    records = FAMILY.toy(8, 1).list()
    blind, told = sampled(net, assets, asked(records)), sampled(net, assets, records)
    assert [one["target"] for one in blind] == [one["target"] for one in told]
    assert {"nll", "tokens", "bytes", "correct"} <= told[0]["target_scores"].keys()
    scores, unknown = FAMILY.score(records, told, assets), FAMILY.score(records, blind, assets)
    assert all(math.isfinite(value) for value in scores.values())
    assert {name for name, value in unknown.items() if math.isnan(value)} == {
        "bits_per_byte", "perplexity", "next_token_accuracy",
    }  # fmt: skip
    assert all(unknown[name] == scores[name] for name in ("chrf", "exact_match", "rouge_l"))
    batch = batch_of(records, assets)
    with torch.no_grad():
        total, count = FAMILY.loss(net, batch, "net")
    assert scores["perplexity"] == pytest.approx(math.exp(total.sum() / count.sum()), rel=1e-4)
    size = sum(len(record["target"].encode()) for record in records)
    assert scores["bits_per_byte"] == pytest.approx(float(total.sum()) / math.log(2) / size, rel=1e-4)


def test_the_padding_is_never_written(started):
    net, assets = started

    def only_padding(module, inputs, found):
        found.logits[..., assets.pad] = 1e9

    handle = net.register_forward_hook(only_padding)
    found = sampled(net, assets, asked(FAMILY.toy(2, 0).list()))
    handle.remove()
    assert all(one["target"] for one in found)


EXACTLY = [
    # found, wanted, chrF of sacrebleu 2.6.0, ROUGE-L of rouge-score 0.1.2 over words as they stand
    ("the cat sleeps at home", "the cat sleeps at home", 100.0, 1.0),
    ("a child read", "a child reads outside every day", 36.55641197275903, 0.4444444444444444),
    ("", "the student", 0.0, 0.0),
    ("고양이가 잔다", "고양이가 집에서 잔다", 29.23632880529432, 0.8),
    ("ab", "a", 83.33333333333334, 0.0),
    ("  spaces   stay ", "spaces stay", 100.0, 1.0),
    ("x", "", 0.0, 0.0),
]


def test_likeness_is_that_of_sacrebleu_and_rouge_score():
    for found, wanted, chrf, rouge in EXACTLY:
        scores = likeness.scores([found], [wanted])
        assert scores["chrf"] == pytest.approx(chrf, abs=1e-9) and scores["rouge_l"] == pytest.approx(rouge, abs=1e-9)
        assert scores["exact_match"] == float(found.strip() == wanted.strip())
    together = likeness.scores([row[0] for row in EXACTLY], [row[1] for row in EXACTLY])
    assert together["chrf"] == pytest.approx(58.622316267922955, abs=1e-9)
    assert all(math.isnan(value) for value in likeness.scores([], []).values())


# --------------------------------------------------------------------------------------------------- new models


def test_starting_twice_gives_the_same_model_that_opens_in_transformers(started, tmp_path):
    before = torch.get_rng_state()
    net, assets = FAMILY.start(FAMILY.tiny(), FAMILY.toy(60, 0), generator())
    assert torch.equal(before, torch.get_rng_state())
    assert same_tensors(net, started[0]) and assets == started[1]
    assert net.get_input_embeddings().weight is net.get_output_embeddings().weight
    FAMILY.write(net, assets, tmp_path, True)
    opened, report = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()) and same_tensors(opened, net)


def test_any_text_comes_back_as_it_went_in(started):
    _, assets = started
    text = "Ünknown 뷁!  Spaces\tstay 🙂"
    ids = text_pairs.answer_ids([{"target": text}], assets)[0]
    assert text_pairs.decoded(assets.tokenizer, ids) == text and ids[-1] == assets.end


def test_all_wrong_settings_are_named_at_once():
    with pytest.raises(BadSettings, match=r"(?s)num_layers.*dropout"):
        FAMILY.start({"num_layers": 0, "dropout": 2}, FAMILY.toy(5, 0), generator())
    with pytest.raises(BadSettings, match="does not divide"):
        FAMILY.start({"num_heads": 3}, FAMILY.toy(5, 0), generator())
    with pytest.raises(BadSettings, match="hidden_size"):
        FAMILY.start({"hiden_size": 3}, FAMILY.toy(5, 0), generator())


@pytest.mark.parametrize(
    "columns, answer, expected",
    [
        (("text", "summary"), None, ("text", "summary")),
        (("summary", "article"), None, ("article", "summary")),
        (("source", "target"), None, ("source", "target")),
        (("id", "question", "answer"), None, ("question", "answer")),
        (("prompt", "completion"), None, ("prompt", "completion")),
        (("ko", "en"), "ko", ("en", "ko")),
        (("ko", "en"), None, None),
        (("text",), None, None),
    ],
)
def test_the_columns_are_found_by_name_or_by_what_is_named(columns, answer, expected):
    records = records_of([dict.fromkeys(columns, "a b")], dict.fromkeys(columns, "text"), answer)
    if expected is None:
        with pytest.raises(BadInput, match="which columns of text"):
            FAMILY.start(FAMILY.tiny(), records, generator())
    else:
        assets = FAMILY.start(FAMILY.tiny(), records, generator())[1]
        assert FAMILY.fields(assets) == ({expected[0]: "text"}, (expected[1], "text"))


def test_a_toy_is_learnt_until_most_answers_are_right():
    data, held = FAMILY.toy(512, 0).list(), FAMILY.toy(48, 1).list()
    net, assets = FAMILY.start(FAMILY.tiny(), FAMILY.toy(512, 0), generator())
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    for step in range(100):
        total, count = FAMILY.loss(net, batch_of(data[step % 16 * 32 :][:32], assets), "net")
        (total.sum() / count.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    scores = FAMILY.score(held, sampled(net, assets, held), assets)
    assert scores["exact_match"] > 0.7 and scores["chrf"] > 80


# ------------------------------------------------------------------------------------------------- other bodies


@pytest.mark.parametrize("kind", ["T5Model", "BartModel", "BartForSequenceClassification", "MBartModel"])
def test_an_encoder_and_its_decoder_are_adopted_whole(kind, tmp_path):
    torch.manual_seed(0)
    config = getattr(transformers, kind).config_class
    body = getattr(transformers, kind)(config(**{**MARKED, **(RELATIVE if kind == "T5Model" else PAIR)}))
    body.save_pretrained(tmp_path)
    words().save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="seq2seq comes near"):
        assert kind != "BartForSequenceClassification" or pytest.skip("a text_classifier's own")
        open_model(tmp_path)
    one, other = (FAMILY.adopt(tmp_path, PAIRS, generator(3)) for _ in range(2))
    assert same_tensors(one[0], other[0]) and one[1] == other[1]
    assert FAMILY.fields(one[1]) == ({"source": "text"}, ("target", "text"))
    known = {name.removeprefix("model."): value for name, value in one[0].state_dict().items()}
    inside = body.base_model.state_dict()
    assert inside and all(torch.equal(known[name], value) for name, value in inside.items())


def test_a_net_that_only_reads_or_only_writes_is_refused(tmp_path):
    for name in ("bert_body", "llama"):
        with pytest.raises(Refusal, match="has no encoder whose text"):
            FAMILY.adopt(save(name, tmp_path / name), PAIRS, generator())
    transformers.T5EncoderModel(config_of("T5ForConditionalGeneration")).save_pretrained(tmp_path / "encoder")
    words().save_pretrained(tmp_path / "encoder")
    with pytest.raises((BadInput, Refusal), match="decoder"):
        FAMILY.adopt(tmp_path / "encoder", PAIRS, generator())


def test_a_model_that_continues_what_it_hears_is_nobodys(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "qwen2_audio", "architectures": ["Qwen2AudioForConditionalGeneration"]}'
    )
    assert not FAMILY.claims(tmp_path)


def test_fields_that_we_did_not_write_are_told(folders, tmp_path):
    net, assets = FAMILY.read(folders["T5ForConditionalGeneration"], False)
    FAMILY.write(net, assets, tmp_path, True)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"max_new_tokens": 128', '"max_new_tokens": "many"'))
    with pytest.raises(BadInput, match="onnuri_fields is malformed"):
        FAMILY.read(tmp_path, False)


# ------------------------------------------------------------------------------------------------- a whole life


@pytest.mark.parametrize("name", some(DESIGNS, SMALL))
def test_the_life_of_a_folder(name, folders, tmp_path):
    """Trained, adapted and baked, pruned, quantized and merged; what is written transformers opens with our logits."""
    data = write_texts(tmp_path / "pairs.jsonl", "text", "label")

    def run(operation: str, source: str, out: str | None, **settings) -> dict:
        other = {"other": str(tmp_path / settings.pop("other"))} if "other" in settings else {}
        folder = folders[name] if source == "base" else tmp_path / source
        inputs = {"model": str(folder), "data": str(data), **other}
        line = execute(operation, settings, inputs, tmp_path / out if out else None, quiet=True)
        assert all(promise["kept"] for promise in line.get("promises", []))
        return line

    choice = {"new_head": True, "family": "seq2seq", "steps": 1, "batch_size": 8}
    run("train", "base", "trained", **choice)
    run("train", "base", "other", **choice | {"seed": 1})
    found = run("evaluate", "trained", None)
    assert {"chrf", "exact_match", "rouge_l", "bits_per_byte"} <= found["scores"].keys()
    run("predict", "trained", "answers.jsonl")
    run("adapt", "trained", "adapter", steps=2, batch_size=8, rank=2, learning_rate=0.01)
    run("bake", "adapter", "baked")
    run("prune", "trained", "pruned")
    run("merge", "trained", "merged", other="other")
    run("quantize", "trained", "packed")
    for written in ("trained", "baked", "pruned", "merged"):
        model = open_model(tmp_path / written)
        opened, report = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / written, output_loading_info=True)
        assert not any(report.values())
        batch = model.collate([{"text": "the book is great", "label": "kind"}, {"text": "x", "label": "no"}])
        with torch.no_grad():
            apart = opened.eval()(**theirs(batch), use_cache=False).logits - model.outputs(batch)[0]
        assert float(apart.abs().max()) <= 1e-5, written


def test_a_graph_writes_the_same_answers(tmp_path):
    pytest.importorskip("onnxruntime")
    config = FAMILY.tiny() | {"num_layers": 1}
    settings = {"family": "seq2seq", "config": config, "steps": 30, "learning_rate": 3e-3}
    execute("train", settings, {"data": "toy:seq2seq"}, tmp_path / "m", quiet=True)
    inputs = {"model": str(tmp_path / "m"), "data": "toy:seq2seq"}
    line = execute("export", {}, inputs, tmp_path / "exported", quiet=True)
    assert len(line["promises"]) >= 2 and all(promise["kept"] for promise in line["promises"])
    one, other = open_model(tmp_path / "m"), open_model(tmp_path / "exported")
    records = one.asked(FAMILY.toy(8, 5).list())
    assert one.sample(records) == other.sample(records)
    memory = other.family.steps(other.net, other.collate(records), ())[1]
    nothing = {
        key: value[:, :0] for key, value in other.collate(records).items() if key in ("input_ids", "attention_mask")
    }
    grown = other.family.steps(other.net, other.collate(records) | nothing, memory)[1]
    sizes = [[b - a for a, b in zip(one.shape, two.shape) if a != b] for one, two in zip(memory, grown)]
    half = (len(memory) - 2) // 2
    assert sizes == [[1], [], *[[1]] * half, *[[]] * half], "what was asked is kept as it is"
