"""Answers of an interrupted command are kept, and not given anew."""

import os
import signal
from importlib import import_module
from pathlib import Path

import pytest

from command import leftovers
from onnuri import run, unfinished
from onnuri.operation import Quiet

TOTAL, AT_ONCE = 10, 4


def answering(seen: list[int], fails_at: int = -1):
    def answer(places: range):
        if fails_at in places:
            raise RuntimeError("killed")
        seen.extend(places)
        return [{"place": place, "text": f"한\n{place}", "share": place / 7} for place in places], {"done": len(places)}

    return answer


def test_what_was_kept_is_not_answered_again(monkeypatch):
    whole = unfinished.answered(TOTAL, AT_ONCE, answering([]), Quiet(), "answered")
    monkeypatch.setattr(unfinished.Saving, "due", lambda saving: True)
    log, first, second = Quiet(), [], []
    with pytest.raises(RuntimeError):
        unfinished.answered(TOTAL, AT_ONCE, answering(first, fails_at=9), log, "answered")
    assert unfinished.answered(TOTAL, AT_ONCE, answering(second), log, "answered") == whole
    assert (first, second) == (list(range(8)), [8, 9]) and whole[1] == {"done": TOTAL}


def test_a_first_interrupt_waits_for_the_answers_at_hand_and_keeps_them():
    log, seen = Quiet(), []

    def answer(places: range):
        if 4 in places:
            os.kill(os.getpid(), signal.SIGINT)
        return answering(seen)(places)

    with pytest.raises(KeyboardInterrupt):
        unfinished.answered(TOTAL, AT_ONCE, answer, log, "answered")
    assert seen == list(range(8)) and len(unfinished.kept(log)[0]) == 8


@pytest.fixture(scope="module")
def writer(tmp_path_factory) -> Path:
    """A model that writes."""
    texts = tmp_path_factory.mktemp("texts") / "t.jsonl"
    texts.write_text("".join(f'{{"body": "a cat and {number} dogs"}}\n' for number in range(60)))
    config = {"hidden_size": 32, "num_layers": 2, "max_length": 32, "vocab_size": 300}
    how = {"family": "causal_lm", "config": config, "steps": 2, "batch_size": 4}
    run.execute("train", how, {"data": str(texts)}, texts.with_name("m"), {"answer": "body"}, quiet=True)
    return texts.with_name("m")


def test_predict_goes_on(table, tmp_path, monkeypatch):
    goes_on("predict", {"batch_size": 40}, {"model": table, "data": "builtin:wine"}, tmp_path, monkeypatch)


def test_generate_goes_on(writer, tmp_path, monkeypatch):
    (tmp_path / "asked.jsonl").write_text(
        "".join(f'{{"prompt": "a {word}"}}\n' for word in ("cat", "dog", "", "c", "d"))
    )
    inputs = {"model": writer, "data": tmp_path / "asked.jsonl"}
    how = {"batch_size": 2, "max_new_tokens": 4, "temperature": 1.0}
    whole, again = goes_on("generate", how, inputs, tmp_path, monkeypatch)
    assert whole["tokens"] == again["tokens"] and whole["finished"] == again["finished"]


def goes_on(operation, settings, inputs, folder: Path, monkeypatch) -> list[dict]:
    """A command that is interrupted ends with the file that it would have written, and answers no question twice; one with other
    settings takes up nothing. The reports of a whole run and of the one that went on."""
    asked, stop = [], 0

    def told(total, at_once, answering, log, doing):
        def answer(places):
            asked.append(places)
            if len(asked) == stop:
                os.kill(os.getpid(), signal.SIGINT)
            return answering(places)

        return unfinished.answered(total, at_once, answer, log, doing)

    def carried_out(name: str, **more):
        asked.clear()
        return run.execute(operation, settings | more, inputs, folder / name, quiet=True)

    monkeypatch.setattr(import_module(f"onnuri.operations.{operation}"), "answered", told)
    whole, parts = carried_out("whole.jsonl"), list(asked)
    stop = 2
    with pytest.raises(KeyboardInterrupt):
        carried_out("cut.jsonl")
    assert asked == parts[:2] and not (folder / "cut.jsonl").exists()
    stop = 0
    again = carried_out("cut.jsonl")
    assert asked == parts[2:] and not leftovers(folder)
    assert (folder / "cut.jsonl").read_bytes() == (folder / "whole.jsonl").read_bytes()
    stop = 2
    with pytest.raises(KeyboardInterrupt):
        carried_out("other.jsonl")
    stop = 0
    carried_out("other.jsonl", seed=1)
    assert asked == parts
    return [one.get("report", one) for one in (whole, again)]
