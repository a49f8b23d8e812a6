"""Answers of an interrupted command are kept, and not given anew."""

import json
import os
import signal
from importlib import import_module
from pathlib import Path

import pytest

from command import leftovers
from onnuri import data_folder, ledger, run, unfinished
from onnuri.operation import Quiet
from onnuri.operations.clean import reading

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
    goes_on("predict", {"batch_size": 2}, {"model": table, "data": "builtin:wine"}, tmp_path, monkeypatch)


def test_generate_goes_on(writer, tmp_path, monkeypatch):
    (tmp_path / "asked.jsonl").write_text(
        "".join(f'{{"prompt": "a {word}"}}\n' for word in ("cat", "dog", "", "c", "d"))
    )
    inputs = {"model": writer, "data": tmp_path / "asked.jsonl"}
    how = {"batch_size": 2, "max_new_tokens": 4, "temperature": 1.0}
    whole, again = goes_on("generate", how, inputs, tmp_path, monkeypatch)
    assert whole["tokens"] == again["tokens"] and whole["finished"] == again["finished"]


@pytest.fixture
def heap(tmp_path, monkeypatch) -> Path:
    """Documents of which some are copies, lines are repeated, and dates stand beside; read, and written, in small pieces."""
    monkeypatch.setattr(reading, "CHARACTERS", 1_500)
    monkeypatch.setattr(data_folder, "PIECE", 9_000)
    rows = []
    for number in range(400):
        words = " ".join(f"{chr(0xAC00 + (number * place) % 1000)}다 the a" for place in range(1, 12 + number % 7))
        again = "이 줄은 모든 문서에 똑같이 나오는 아주 긴 줄이라서 한 번만 남아야 합니다\n" if number % 3 == 0 else ""
        rows.append(
            {"text": again + (rows[number // 2]["text"] if number % 5 == 4 else words), "year": f"20{number % 25:02d}"}
        )
    (tmp_path / "heap.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "heap.jsonl"


@pytest.mark.parametrize("how", ["interrupted", "killed"])
@pytest.mark.parametrize("batches", [1, 9])
def test_clean_goes_on(heap, tmp_path, monkeypatch, how, batches):
    """What it knew of the documents before is known again: the copies that come later are found, and the files are the same."""
    changed, calls, stop = data_folder.changed, [], 2 * batches

    def counted(*given):  # once for what stays of a batch, once for what goes
        calls.append(given)
        if len(calls) == stop and how == "interrupted":
            os.kill(os.getpid(), signal.SIGINT)
        if len(calls) == stop + 1 and how == "killed":
            raise RuntimeError("killed")
        return changed(*given)

    def carried_out(name: str) -> dict:
        calls.clear()
        return run.execute("clean", {"rules": "none"}, {"data": heap}, tmp_path / name, quiet=True)

    def files(name: str) -> dict:
        return {
            str(path.relative_to(tmp_path / name)): path.read_bytes() for path in (tmp_path / name).rglob("*.parquet")
        }

    monkeypatch.setattr(data_folder, "changed", counted)
    monkeypatch.setattr(unfinished.Saving, "due", lambda saving: how == "killed" and len(calls) == stop)
    with pytest.raises((KeyboardInterrupt, RuntimeError)):
        carried_out("cut")
    assert not (tmp_path / "cut").exists()
    (tmp_path / ".cut.partial" / "pieces" / "README.md").write_text(
        "as if it was killed in the moment before it appeared"
    )
    (tmp_path / ".cut.partial" / "pieces" / "stray").mkdir()
    stop = -1
    again, left = carried_out("cut"), len(calls)
    whole = carried_out("whole")
    assert left == len(calls) - 2 * batches and not leftovers(tmp_path)
    assert not (tmp_path / "cut" / "stray").exists()
    assert files("cut") == files("whole") and len(files("whole")) > 4
    assert again["found"] == whole["found"] and not ledger.verify(tmp_path / "cut")
    assert {"copy", "near_copy"} <= whole["found"]["removed"].keys() and whole["found"]["edited"]


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
