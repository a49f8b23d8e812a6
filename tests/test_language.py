"""The recipe of a language model of one's own, from raw texts to a file for llama.cpp, on texts that are made here."""

import json
import random

import pytest

from onnuri import ledger
from onnuri.errors import BadInput
from onnuri.plain_yaml import changed
from onnuri.recipe import read_recipe, run_recipe

TINY = {
    "lm.config": {"depth": 1, "max_length": 48},
    "lm.steps": 12,
    "lm.batch_size": 16,
    "sentiment.steps": 8,
    "packed.method": "nearest",
}


@pytest.fixture
def texts(tmp_path):
    """Reviews without labels, some of them twice or with an address of mail, and others with."""
    draw = random.Random(0)
    who = ("이 영화는", "배우들이", "음악이 너무", "이야기가")
    what = ("정말 좋았어요", "아주 지루했다", "참 아름답다", "별로였습니다")

    def review() -> str:
        return " ".join(f"{draw.choice(who)} {draw.choice(what)} {draw.randint(1, 99)}" for _ in range(3)) + "."

    plain = [{"text": review()} for _ in range(160)]
    plain += [*plain[:20], *({"text": f"{review()} 문의는 me{i}@example.com 으로"} for i in range(10))]
    told = [{"document": (text := review()), "label": str(int("좋았" in text or "아름" in text))} for _ in range(120)]
    for name, rows in (("unlabelled", plain), ("train", told)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return tmp_path


def test_from_raw_texts_to_a_file_for_llama_cpp(texts, tmp_path):
    pytest.importorskip("llama_cpp")
    changes = {**TINY, "data": str(texts / "unlabelled.jsonl"), "sentiment.data": str(texts / "train.jsonl")}
    result = run_recipe("language", tmp_path / "out", changes, quiet=True)
    assert [step["name"] for step in result["steps"]] == ["corpus", "lm", "sentiment", "packed", "llama-cpp"]
    corpus = ledger.read(tmp_path / "out" / "corpus")[-1]
    assert 150 < corpus["found"]["documents"]["kept"] <= 170, "the 20 that stand there twice are out, and near copies"
    assert all(
        promise["kept"]
        for step in result["steps"]
        for promise in ledger.read(tmp_path / "out" / step["name"])[-1]["promises"]
    )
    assert (tmp_path / "out" / "llama-cpp" / "onnuri" / "model.gguf").exists()
    again = run_recipe("language", tmp_path / "out", changes, quiet=True)
    assert all(step["cached"] for step in again["steps"])


def test_an_entry_of_a_step_is_changed(texts):
    changes = {
        "data": str(texts / "unlabelled.jsonl"),
        "sentiment.data": str(texts / "train.jsonl"),
        "lm.config.depth": 2,
    }
    steps = {step.name: step for step in read_recipe("language", changes).steps}
    assert steps["lm"].settings["config"]["depth"] == 2 and steps["lm"].settings["config"]["max_length"] == 128
    with pytest.raises(BadInput, match="changes a step that is not there; did you mean lm"):
        read_recipe("language", {"lmm.steps": 1})
    assert changed({"steps": {"a": {"train": None}}}, {"a.steps": 3}) == {"steps": {"a": {"train": {"steps": 3}}}}
