"""`verify` finds every change of one byte, anywhere in the folder of a model that was trained here, and in its base.

ONNURI_CHANGES says how many changes are tried (`make reliability`: 1,000).
"""

import os
import random
import shutil
from pathlib import Path

import pytest

from command import SMALL, onnuri
from onnuri import ledger
from onnuri.errors import BadInput
from onnuri.run import execute

CHANGES = int(os.environ.get("ONNURI_CHANGES", "100"))
IRIS = {"data": "builtin:iris"}


@pytest.fixture(scope="module")
def life(tmp_path_factory) -> Path:
    """A net that was trained, packed, exported; an adapter on it; a text model with its tokenizer; a license that came in."""
    place = tmp_path_factory.mktemp("life")
    execute("train", {"family": "tabular", "config": SMALL, "steps": 5}, IRIS, place / "base", quiet=True)
    (place / "base" / "LICENSE").write_text("MIT License\n")
    execute("quantize", {}, IRIS | {"model": place / "base"}, place / "packed", quiet=True)
    execute("export", {}, IRIS | {"model": place / "packed"}, place / "onnx", quiet=True)
    execute("train", {"steps": 3}, IRIS | {"model": place / "base"}, place / "onward", quiet=True)
    execute("adapt", {"steps": 3, "rank": 1}, IRIS | {"model": place / "onward"}, place / "adapter", quiet=True)
    text = {"family": "text_classifier", "steps": 1, "batch_size": 8, "config": tiny("text_classifier")}
    execute("train", text, {"data": "toy:text_classifier"}, place / "text", quiet=True)
    return place


def tiny(family: str) -> dict:
    from onnuri import registry

    return registry.family(family).tiny()


def found(folder: Path) -> bool:
    try:
        return bool(ledger.verify(folder))
    except BadInput:  # the ledger is no ledger any more, and that is said
        return True


@pytest.mark.parametrize(
    ("name", "changed"),
    [("packed", "packed"), ("onnx", "onnx"), ("text", "text"), ("adapter", "adapter"), ("adapter", "onward")],
)
def test_every_changed_byte_is_found(life, name, changed):
    files = sorted(path for path in (life / changed).rglob("*") if path.is_file())
    assert len(files) >= 5 and not ledger.verify(life / name)
    seed = random.randrange(2**32)
    draw = random.Random(seed)
    for number in range(max(CHANGES // 5, len(files))):
        path = files[number] if number < len(files) else draw.choice(files)  # small files as often as large ones
        whole = path.read_bytes()
        place = draw.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ draw.randint(1, 255)]) + whole[place + 1 :])
        seen = found(life / name)
        path.write_bytes(whole)
        assert seen, f"byte {place} of {path}, seed {seed}"
    assert not ledger.verify(life / name)


def test_files_that_come_go_or_move_are_found(life, tmp_path):
    for number, harm in enumerate(("add", "remove", "rename", "swap", "link", "empty", "hidden")):
        folder = tmp_path / str(number)
        shutil.copytree(life / "packed", folder)
        card, config = folder / "README.md", folder / "config.json"
        if harm == "add":
            (folder / "onnuri" / "new").write_bytes(b"")
        elif harm == "remove":
            card.unlink()
        elif harm == "rename":
            card.rename(folder / "readme.md")
        elif harm == "swap":
            one, other = card.read_bytes(), config.read_bytes()
            card.write_bytes(other)
            config.write_bytes(one)
        elif harm == "link":
            (folder / "there").symlink_to(tmp_path)
        elif harm == "empty":
            config.write_bytes(b"")
        else:
            (folder / ".hidden").write_text("x")
        assert ledger.verify(folder), harm


def test_the_base_of_an_adapter_is_looked_at(life, tmp_path):
    for name in ("onward", "adapter"):
        shutil.copytree(life / name, tmp_path / name)
    adapter = tmp_path / "adapter"
    assert ledger.verify(adapter) == [], "the base lies where it lay"
    (life / "onward").rename(life / "hidden")
    try:
        assert ledger.verify(adapter) == [], "the base lies beside it"
        with open(tmp_path / "onward" / "config.json", "a") as file:
            file.write(" ")
        assert ledger.verify(adapter) == [f"its base {tmp_path / 'onward'}: config.json was changed"]
        shutil.rmtree(tmp_path / "onward")
        execute("train", {"family": "tabular", "config": SMALL, "steps": 5}, IRIS, tmp_path / "onward", quiet=True)
        assert ledger.verify(adapter) == [f"its base {tmp_path / 'onward'} was changed or replaced"]
        (tmp_path / "onward" / ledger.FILE).write_text("[")
        assert "its base" in ledger.verify(adapter)[0]
        shutil.rmtree(tmp_path / "onward")
        done = onnuri("verify", adapter)
        assert done.code == 2 and "is not here" in done.out
    finally:
        (life / "hidden").rename(life / "onward")
