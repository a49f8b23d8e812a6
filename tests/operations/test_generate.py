"""Answers written token by token: a draft changes none, a form is kept, what is stated of them is true."""

import json
import math
import re
from functools import cache

import numpy as np
import pytest
import torch
import torch._inductor

from command import onnuri, refused
from onnuri import plan, registry
from onnuri.data import Data, records_of
from onnuri.decoding import compiled
from onnuri.decoding.choosing import Noise, Sampling
from onnuri.errors import BadInput, BadSettings, MissingExtra, Refusal
from onnuri.families import next_token
from onnuri.families.causal_lm import FAMILY as LM
from onnuri.model import Model, write_model
from onnuri.operation import Quiet
from onnuri.operations.generate import compiling, confidence

GENERATE = registry.operation("generate")
PROMPTS = ["", "the cat", "고양이가", "a child at home", "아이가 학교에서", "x" * 9]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def model(seed: int = 0) -> Model:
    net, assets = LM.start(LM.tiny(), LM.toy(64, 0), generator(seed))
    return Model(LM, net, assets)


@cache
def smaller() -> Model:
    return Model(LM, *LM.like(model().net, model().assets, 0.5, generator(5)))


def asked(prompts=PROMPTS, **more) -> Data:
    columns = {"prompt": prompts, **more}
    rows = [dict(zip(columns, values)) for values in zip(*columns.values())]
    records = records_of(rows, dict.fromkeys(columns, "text"), "text" if more else None)
    return Data("asked", records, {}, records)


def generate(settings: dict | None = None, data: Data | None = None, **inputs):
    """(answers, what is known of each, the result, the log)."""
    log, found = Quiet(), {"model": model(), "data": data or asked(), **inputs}
    result = GENERATE.apply(plan.settings_of(GENERATE, settings or {}), log, **found)
    answers = [record["text"] for record in result.records]
    return answers, [record["text_scores"] for record in result.records], result, log


def test_a_compiled_step_writes_the_same(monkeypatch):
    """Whatever the number of answers; what a step before it gave goes on in it."""
    monkeypatch.setattr(compiling, "GAIN", 1e9)  # of a net this small it may not pay
    monkeypatch.setattr(compiled, "HOW", {"freezing": True})  # trying products takes half a minute more
    plain, told, _, _ = generate({"max_new_tokens": 6, "batch_size": 4})
    fast, again, _, log = generate({"max_new_tokens": 6, "batch_size": 4, "compile": True})
    assert fast == plain and "compiled in" in log.warnings[-1] and log.warnings[-1].endswith(": kept")
    assert [one["logprob"] for one in again] == pytest.approx([one["logprob"] for one in told], abs=1e-4)


def test_what_cannot_be_compiled_is_written_eagerly(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no C++ compiler here\nand more")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    answers, _, _, log = generate({"max_new_tokens": 3, "compile": True})
    assert answers == generate({"max_new_tokens": 3})[0]
    assert log.warnings[-1] == "not compiled, written eagerly: no C++ compiler here"
    monkeypatch.setattr(compiled, "program", lambda step, *_: lambda *given: [2 * x for x in step(*given)])
    _, _, _, log = generate({"max_new_tokens": 3, "compile": True})
    assert log.warnings[-1].endswith("not kept"), "another program than the net"
    with pytest.raises(BadSettings, match="reads one token"):
        generate({"compile": True}, draft=smaller())


DRAWN = {"temperature": 1.3, "top_k": 40, "top_p": 0.9, "seed": 4}


@pytest.mark.parametrize("settings", [{}, DRAWN], ids=["likeliest", "drawn"])
def test_neither_the_batch_nor_a_draft_changes_an_answer(settings):
    plain, scores, _, _ = generate(settings)
    one_by_one, _, _, _ = generate({**settings, "batch_size": 1})
    again, more, result, _ = generate({**settings, "ahead": 3}, draft=smaller())
    assert plain == one_by_one == again
    assert [s["logprob"] for s in scores] == pytest.approx([s["logprob"] for s in more], abs=1e-3)
    tally = result.report["draft"]
    assert tally["guessed"] > 0 and 0 <= tally["kept"] < tally["guessed"]


def test_a_net_is_its_own_best_draft():
    """Every guess is right, whatever is drawn."""
    for settings in ({}, DRAWN):
        tally = generate(settings, draft=model())[2].report["draft"]
        assert tally["kept"] == tally["guessed"] > 20


def test_the_log_probability_is_what_the_net_says_of_the_whole_answer():
    """Against one reading of prompt and answer together."""
    writing = LM.writing(model().net, model().assets)
    found = GENERATE.apply(plan.settings_of(GENERATE, {"logprobs": 3}), Quiet(), model=model(), data=asked())
    for prompt, record in zip(writing.prompts([{"prompt": text} for text in PROMPTS]), found.records):
        told = record["text_scores"]["tokens"]
        ids = model().assets.tokenizer.convert_tokens_to_ids([one["token"] for one in told])
        with torch.no_grad():
            (values, _), _ = writing.step(writing.batch([prompt + ids], [[]]), ())
        nats = values[0].log_softmax(-1)[len(prompt) - 1 : -1]
        wanted = nats.gather(1, torch.tensor(ids)[:, None]).sum()
        assert record["text_scores"]["logprob"] == pytest.approx(float(wanted), abs=1e-3)
        best = nats.topk(3).values.tolist()
        assert [list(one["likeliest"].values()) for one in told] == [pytest.approx(row, abs=1e-4) for row in best]


def test_tokens_are_drawn_from_those_that_the_library_keeps():
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(200, 50, generator=generator(0)) * 3
    for temperature, top_k, top_p in [(0.7, 0, 1.0), (1.0, 5, 1.0), (1.4, 0, 0.6), (0.8, 12, 0.8)]:
        wanted = TemperatureLogitsWarper(temperature)(None, logits)
        wanted = TopKLogitsWarper(top_k)(None, wanted) if top_k else wanted
        wanted = TopPLogitsWarper(top_p)(None, wanted) if top_p < 1 else wanted
        found = torch.stack([Sampling(temperature, top_k, top_p).kept(row) for row in logits])
        torch.testing.assert_close(found, wanted)


def test_the_noise_of_a_place_is_the_same_however_often_it_is_asked_for():
    one, other = Noise(generator(1)), Noise(generator(1))
    wanted = [one.at(place, 7) for place in range(6)]
    assert torch.equal(other.at(3, 7), wanted[3]) and torch.equal(other.at(1, 7), wanted[1])
    other.forget(3)
    assert torch.equal(other.at(5, 7), wanted[5]) and len(other.kept) == 3


# ------------------------------------------------------------------------------------------------------------------- forms

PERSON = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 99}, "ok": {"type": "boolean"}},
    "required": ["n", "ok"],
    "additionalProperties": False,
}


def long() -> dict:
    return {"temperature": 1.0, "max_new_tokens": 40}


def test_answers_are_json_of_the_schema():
    pytest.importorskip("llguidance")
    data = asked(["a"] * 12)
    answers, scores, result, log = generate({**long(), "json_schema": json.dumps(PERSON)}, data)
    assert result.report["complete"] == sum(one["finished"] for one in scores) == 12 and not log.warnings
    for text in answers:
        found = json.loads(text)
        assert found.keys() == {"n", "ok"} and type(found["ok"]) is bool and 1 <= found["n"] <= 99
    assert len(set(answers)) > 6, "each is drawn for itself"
    with_draft, _, _, _ = generate({**long(), "json_schema": json.dumps(PERSON)}, data, draft=smaller())
    assert with_draft == answers


@pytest.mark.parametrize(
    ("form", "text", "kept"),
    [
        ("regex", "[가-힣]{2,4}!", re.compile("[가-힣]{2,4}!")),
        ("grammar", 'start: "예" | "아니오"', re.compile("예|아니오")),
        ("grammar", 'root ::= [a-c]+ "." ', re.compile(r"[a-c]+\.")),
    ],
)
def test_answers_keep_to_a_form(form, text, kept):
    pytest.importorskip("llguidance")
    answers, scores, _, _ = generate({**long(), form: text}, asked(["a"] * 6))
    finished = [answer for answer, score in zip(answers, scores) if score["finished"]]
    assert finished and all(kept.fullmatch(answer) for answer in finished)


def test_a_form_that_has_no_room_is_told():
    pytest.importorskip("llguidance")
    _, scores, result, log = generate({"regex": "[0-9]{30}", "max_new_tokens": 4})
    assert result.report["complete"] == 0 and not any(one["finished"] for one in scores)
    assert any("6 answers were cut before their form was complete" in one for one in log.warnings)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"json_schema": '{"type": "integer", "minimum": 5, "maximum": 3}'}, "cannot be met"),
        ({"regex": "[0-9"}, "'regex' cannot be read: unclosed character class"),
        ({"grammar": "start: start"}, "no text begins it"),
        ({"json_schema": '{"type":'}, "cannot be read"),
        ({"json_schema": '{"type": "shape"}'}, "json_schema"),
        ({"grammar": "start: other"}, "grammar"),
        ({"regex": "a", "grammar": 'start: "a"'}, "one form, found grammar and regex"),
        ({"top_k": 3}, "top_k have no effect at temperature 0"),
        ({"ahead": 2}, "no effect without a draft"),
        ({"prompt": "a"}, "stands in place of data"),
        ({"json_schema": "@no/such/file"}, "cannot be read as text"),
    ],
)
def test_what_cannot_be_is_said(settings, told):
    pytest.importorskip("llguidance")
    with pytest.raises(BadSettings, match=re.escape(told)):
        generate(settings)


def test_what_cannot_write_refuses():
    net, assets = registry.family("tabular").start(
        registry.family("tabular").tiny(), registry.family("tabular").toy(32, 0), generator(0)
    )
    with pytest.raises(Refusal, match="comes at once"):
        generate({}, model=Model(registry.family("tabular"), net, assets))
    other = Model(LM, *LM.start({**LM.tiny(), "vocab_size": 300}, LM.toy(64, 0), generator(0)))
    with pytest.raises(BadInput, match="the draft writes other tokens"):
        generate({}, draft=other)


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(MissingExtra, match=r"onnuri\[grammar\]"):
        generate({"regex": "a"})


def test_a_question_that_is_too_long_is_told():
    _, _, _, log = generate({}, asked(["a cat " * 60, "a"]))
    assert "1 questions are longer than the 40 tokens" in log.warnings[0]
    with pytest.raises(BadSettings, match="100 new tokens leave no room for the question: this model reads 48"):
        generate({"max_new_tokens": 100})


def test_where_a_folder_asks_for_more_than_the_net_reads_half_is_left_to_the_question():
    config = registry.family("causal_lm").tiny() | {"max_length": 32, "max_new_tokens": 64}
    family = registry.family("causal_lm")
    writing = family.writing(*family.start(config, family.toy(32, 0), torch.Generator().manual_seed(0)))
    assert writing is not None and writing.most == 16 and writing.room(writing.most) == 16


def test_a_long_question_to_be_translated_is_cut_as_in_training():
    family = registry.family("seq2seq")
    net, assets = family.start(family.tiny(), family.toy(32, 0), torch.Generator().manual_seed(0))
    rows = [{"text": "가나다 the cat sleeps outside " * 9}, {"text": "a cat"}]
    writing = family.writing(net, assets)
    assert writing is not None
    prompts = [writing.shortened(ids, writing.room(writing.most)) for ids in writing.prompts(rows)]
    read, trained = writing.batch(prompts, [[], []]), family.collate(rows, assets, [])
    assert read["input_ids"].shape[1] == assets.max_length and torch.equal(read["input_ids"], trained["input_ids"])


def test_questions_must_stand_in_the_column_that_is_continued():
    rows = records_of([{"query": "the cat"}], {"query": "text"}, None)
    with pytest.raises(BadInput, match="the column 'prompt' that is answered is missing"):
        generate({}, Data("asked", rows, {}, rows))


def test_answers_that_are_numbers_are_compared_as_they_are_written():
    rows = [{"prompt": f"{i}", "text": float(i)} for i in range(4)]
    records = records_of(rows, {"prompt": "text", "text": "number"}, "text")
    assert generate({}, Data("sums", records, {}, records))[2].report["share_right"] == 0


def test_a_model_that_reads_one_text_and_writes_another():
    """With a draft of its own kind, drawn and not; its question has places of its own."""
    family = registry.family("seq2seq")
    records = family.toy(64, 0)
    net, assets = family.start(family.tiny(), records, generator(0))
    whole, small = Model(family, net, assets), Model(family, *family.like(net, assets, 0.5, generator(1)))
    rows = records_of([{"text": row["text"]} for row in records[:6]], {"text": "text"}, None)
    data = Data("asked", rows, {}, rows)
    for settings in ({}, DRAWN):
        chosen = plan.settings_of(GENERATE, settings)
        one, other = (
            [r["target"] for r in GENERATE.apply(chosen, Quiet(), model=whole, data=data, **more).records]
            for more in ({}, {"draft": small})
        )
        assert one == other


# -------------------------------------------------------------------------------------------------------------- confidence


def test_a_temperature_is_found_again():
    """Answers of one token of two, right as often as their probability says; stated three times too sharply."""
    draw = np.random.default_rng(0)
    margin = draw.normal(0, 1.5, 20_000)
    first = 1 / (1 + np.exp(-np.abs(margin)))
    right = draw.random(20_000) < first
    nats = np.stack([np.log1p(np.exp(-3 * np.abs(margin) / heat)) for heat in confidence.GRID], 1)
    found = confidence.fitted(nats, right)
    assert found.temperature == pytest.approx(3, rel=0.1), "a step of the grid is 19 %"
    assert found.error["fitted"] < 0.02 < 0.1 < found.error["as it is"]
    assert "<svg" in confidence.picture(found)
    sure, unsure = (confidence.fitted(nats[:10], np.full(10, right)).temperature for right in (True, False))
    assert (sure, unsure) == (confidence.GRID[0], confidence.GRID[-1]), "of all alike only that can be said"


def test_the_calibration_error_is_the_distance_of_what_is_stated_from_what_is_true():
    stated, right = np.array([0.2] * 50 + [0.9] * 50), np.array([True] * 10 + [False] * 40 + [True] * 25 + [False] * 25)
    wanted = (0.8 + 4 * 0.2 + 0.1 + 0.1 + 0.4 + 0.9 + 0.9) / 10  # ten parts of ten, in the order in which they stand
    assert confidence.error(stated, right) == pytest.approx(wanted)
    assert confidence.error(np.array([1.0] * 40), np.ones(40, bool)) == 0


def test_unsure_answers_are_withheld_and_the_fitted_temperature_goes_to_the_others():
    texts = [f"{PROMPTS[i % 6]} {i}" for i in range(24)]
    wanted = generate({}, asked(texts))[0]
    known = asked(texts, text=[text if i % 2 else "other" for i, text in enumerate(wanted)])
    answers, scores, result, _ = generate({"abstain_below": 0.5}, known, calibration=known)
    heat = result.report["calibration"]["temperature"]
    again, same, _, _ = generate({"confidence_temperature": heat, "abstain_below": 0.5}, known)
    assert answers == again and [s["confidence"] for s in scores] == [s["confidence"] for s in same]
    assert result.report["withheld"] == sum(s["confidence"] < 0.5 for s in scores) == answers.count(None)
    assert result.report["calibration"]["share_right"] == 0.5 and len(result.charts) == 1
    assert all(0 <= s["confidence"] <= 1 and s["logprob"] <= 0 and math.isfinite(s["logprob"]) for s in scores)


# ------------------------------------------------------------------------------------------------------------- the command


def test_one_question_is_answered_on_the_screen(tmp_path):
    (tmp_path / "m").mkdir()
    write_model(model(), tmp_path / "m")
    done = onnuri("generate", tmp_path / "m", "--prompt", "the cat", "--json")
    found = json.loads(done.out)["answers"][0]
    assert done.code == 0 and found["text_scores"]["new_tokens"] <= 8 and next_token.PROMPT in found
    shown = onnuri("generate", tmp_path / "m", "--prompt", "the cat")
    assert shown.code == 0 and found["text"] in shown.out and "confidence" in shown.out
    refused(onnuri("generate", tmp_path / "m"), "nothing is asked", "--prompt TEXT")
