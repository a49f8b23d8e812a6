"""Two processes at one place: one works, the other is told who is there; or both succeed with evidence that verifies."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import yaml
from children import LIFE, START, spelled, started, told

from command import SMALL, Done, leftovers, onnuri, refused
from onnuri import ledger, look, run
from onnuri.errors import BadInput
from onnuri.files import locked, staging, write_text

NEW = ("train", "--family", "tabular", "--config", spelled(SMALL), "--steps", "40", "--save-every", "0")
IRIS = ("--data", "builtin:iris", "--out")


def together(*lines: tuple) -> list[Done]:
    """What commands say that begin at the same moment, each in a process of its own."""
    gate = START.Barrier(len(lines))
    pipes = []
    for words in lines:
        ours, theirs = START.Pipe(duplex=False)
        started(told, theirs, at_the_gate, (gate, *words))
        theirs.close()
        pipes.append(ours)
    found = [pipe.recv() for pipe in pipes]
    assert not any(fault for fault, _ in found), found
    return [done for _, done in found]


def at_the_gate(gate, *words: object) -> tuple[Done, int]:
    gate.wait(60)
    return onnuri(*words), os.getpid()


def one_of(found: list) -> tuple[Done, Done]:
    """(the one that worked, the one that was refused, in one message that names the other process)."""
    (good, number), (bad, _) = sorted(found, key=lambda pair: pair[0].code)
    assert good.code == 0 and bad.code == 2 and bad.err.count("onnuri: ") == 1, found
    assert f"another process ({number}) is writing" in bad.err or "already exists" in bad.err, bad
    return good, bad


def test_two_trainings_into_one_folder(tmp_path):
    words = (*NEW, *IRIS, tmp_path / "m")
    one_of(together(words, words))
    assert not ledger.verify(tmp_path / "m") and not leftovers(tmp_path)


def test_two_predictions_into_one_file(tmp_path):
    assert onnuri(*NEW, *IRIS, tmp_path / "m").code == 0
    words = ("predict", tmp_path / "m", *IRIS, tmp_path / "answers.jsonl")
    one_of(together(words, words))
    assert onnuri(*words[:-1], tmp_path / "again.jsonl").code == 0
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "answers.jsonl").read_bytes()
    assert not leftovers(tmp_path)


def test_one_recipe_twice_at_once(tmp_path):
    path, out = tmp_path / "life.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(LIFE, sort_keys=False))
    words = ("run", path, "--out", out, "--json")
    good, _ = one_of(together(words, words))
    again = json.loads(onnuri(*words).out)
    assert all(step["cached"] for step in again["steps"]) and not leftovers(out)
    assert [s["tensors"] for s in again["steps"]] == [s["tensors"] for s in json.loads(good.out)["steps"]]
    assert not any(ledger.verify(out / name) for name in LIFE["steps"])


def test_two_operations_on_one_model(tmp_path):
    """Both write a ledger that goes on from the same line."""
    assert onnuri(*NEW, *IRIS, tmp_path / "m").code == 0
    found = together(
        ("prune", tmp_path / "m", *IRIS, tmp_path / "p"),
        ("quantize", tmp_path / "m", *IRIS, tmp_path / "q"),
        ("train", tmp_path / "m", "--steps", "20", *IRIS, tmp_path / "t"),
    )
    assert all(done.code == 0 for done, _ in found), found
    first = ledger.read(tmp_path / "m")
    for name in "pqt":
        assert not ledger.verify(tmp_path / name) and ledger.read(tmp_path / name)[:1] == first
    assert not ledger.verify(tmp_path / "m") and not leftovers(tmp_path)


def written_over(place: Path) -> None:
    """A model that appears, and goes, and appears."""
    for _ in range(4):
        done = onnuri(*NEW[:-4], "--steps", "2", *IRIS, place)
        assert done.code == 0, done
        place.rename(place.with_name(f"old{time.monotonic_ns()}"))
    assert onnuri(*NEW[:-4], "--steps", "2", *IRIS, place).code == 0


def test_a_model_is_evaluated_while_it_is_written(tmp_path):
    writer = started(written_over, tmp_path / "m")
    seen = []
    while writer.exitcode is None:
        seen.append(onnuri("evaluate", tmp_path / "m", "--data", "builtin:iris", "--json"))
    assert writer.exitcode == 0
    for done in seen:
        assert done.code == 0 or (done.code == 2 and f"\n{done.err}".count("\nonnuri: ") == 1), done
    last = onnuri("evaluate", tmp_path / "m", "--data", "builtin:iris", "--json")
    good = {json.dumps(json.loads(done.out)["scores"]) for done in [*seen, last] if done.code == 0}
    assert last.code == 0 and len(good) == 1, "half a model was opened"


@pytest.mark.parametrize("words", [("evaluate",), ("prune",), ("predict",)], ids="".join)
def test_a_model_is_replaced_while_it_is_read(tmp_path, monkeypatch, words):
    """What was opened and what the ledger says would be of two models: the one as it was, and one that took its place."""
    assert onnuri(*NEW, *IRIS, tmp_path / "m").code == 0
    shutil.copytree(tmp_path / "m", tmp_path / "other")
    home = run if words == ("prune",) else look
    opened = home.opened

    def replaced(*inputs):
        found = opened(*inputs)
        (tmp_path / "m").rename(tmp_path / "old")
        (tmp_path / "other").rename(tmp_path / "m")
        return found

    monkeypatch.setattr(home, "opened", replaced)
    out = () if words == ("evaluate",) else ("--out", tmp_path / "out.jsonl")
    refused(onnuri(*words, tmp_path / "m", "--data", "builtin:iris", *out), "was moved or replaced while it was read")
    assert not (tmp_path / "out.jsonl").exists() and not leftovers(tmp_path)


def test_a_model_appears_while_it_is_read_and_goes_again(tmp_path, monkeypatch):
    """The net would be opened, and its ledger not be found: the rows that it was trained with would be scored as new ones."""
    assert onnuri(*NEW, *IRIS, tmp_path / "hidden").code == 0
    opened = look.opened

    def briefly_there(*inputs):
        (tmp_path / "hidden").rename(tmp_path / "m")
        found = opened(*inputs)
        (tmp_path / "m").rename(tmp_path / "hidden")
        return found

    monkeypatch.setattr(look, "opened", briefly_there)
    refused(onnuri("evaluate", tmp_path / "m", "--data", "builtin:iris"), "was moved or replaced while it was read")


# ------------------------------------------------------------------------------------------------ the locks themselves


def contend(out: Path, rounds: int) -> list[int]:
    """Take the place again and again; how often it was ours, and how often another's."""
    mine = others = 0
    while mine < rounds:
        try:
            with staging(out) as partial:
                token = partial / "token"
                token.touch(exist_ok=False)  # FileExistsError where two are inside
                assert list(partial.iterdir()) and token.exists()
                token.unlink()
                mine += 1
        except BadInput:
            others += 1
    return [mine, others]


def write_often(path: Path, letter: str, rounds: int) -> None:
    for _ in range(rounds):
        write_text(path, letter * 100_000)


def test_never_two_inside(tmp_path):
    """The folder with the lock is made and removed all the time."""
    children = []
    for _ in range(3):
        ours, theirs = START.Pipe(duplex=False)
        started(told, theirs, contend, (tmp_path / "m", 60))
        theirs.close()
        children.append(ours)
    found = [pipe.recv() for pipe in children]
    assert all(not fault and value[0] == 60 for fault, value in found), found
    assert not list(tmp_path.iterdir())


def test_two_writers_of_one_file_give_one_of_the_texts(tmp_path):
    writers = [started(write_often, tmp_path / "page", letter, 60) for letter in "ab"]
    seen = set()
    while any(writer.exitcode is None for writer in writers):
        if (tmp_path / "page").exists():
            text = (tmp_path / "page").read_text()
            assert len(text) == 100_000 and len(set(text)) == 1
            seen.add(text[0])
    assert [writer.exitcode for writer in writers] == [0, 0] and seen and not leftovers(tmp_path)


def test_a_lock_goes_with_its_process(tmp_path):
    holder = started(hold, tmp_path / "lock")
    while not (tmp_path / "lock").exists() or not (tmp_path / "lock").read_text():
        assert holder.exitcode is None
    try:
        with locked(tmp_path / "lock", tmp_path / "m"):
            raise AssertionError("two inside")
    except BadInput as error:
        assert f"({holder.pid})" in str(error)
    holder.kill()
    holder.join()
    with locked(tmp_path / "lock", tmp_path / "m"):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


def hold(lock: Path) -> None:
    with locked(lock, lock):
        time.sleep(600)
