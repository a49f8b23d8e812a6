"""Folders that may only be read: models in them are used as they are; a result that was to lie there is one message."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from children import LIFE, READ_ONLY, REMOUNT, disk, inside, obey_permissions, own_mounts, spelled

from command import SMALL, Done, onnuri, refused
from onnuri import ledger

NEW = ("train", "--family", "tabular", "--config", spelled(SMALL), "--steps", "2", "--data", "builtin:iris")
SHORT = {**LIFE, "steps": {"base": {"train": {"config": SMALL, "steps": 2}}, "p": {"prune": {"model": "base"}}}}


def closed_disk(folder: Path, recipe: Path) -> None:
    """A disk with a model, a recipe's results and some answers on it, that may only be read from now on."""
    own_mounts()
    folder.mkdir()
    disk(folder, 2**26)
    fill(folder, recipe)
    disk(folder, 2**26, REMOUNT | READ_ONLY)


def closed_folder(folder: Path, recipe: Path) -> None:
    """The same, closed by the permissions of its folders."""
    folder.mkdir()
    fill(folder, recipe)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    obey_permissions()


def fill(folder: Path, recipe: Path) -> None:
    assert onnuri(*NEW, "--out", folder / "m").code == 0
    assert onnuri("run", recipe, "--out", folder / "life").code == 0
    (folder / "page.md").write_text("")


def commands(close, folder: Path, recipe: Path) -> dict[str, Done]:
    """What each command says of a closed folder."""
    close(folder, recipe)
    rest, free = ("--data", "builtin:iris", "--out"), folder.parent
    before = {str(path): path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}
    done = {
        "train": onnuri(*NEW, "--out", folder / "new"),
        "deeper": onnuri(*NEW, "--out", folder / "a" / "b" / "new"),
        "quantize": onnuri("quantize", folder / "m", *rest, folder / "q"),
        "predict": onnuri("predict", folder / "m", *rest, folder / "answers.csv"),
        "evaluate": onnuri("evaluate", folder / "m", *rest, folder / "report.json"),
        "new recipe": onnuri("run", recipe, "--out", folder / "other"),
        "changed recipe": onnuri("run", recipe, "--out", folder / "life", "--set", "data=builtin:wine"),
        "matrix": onnuri("matrix", "--family", "forest", "--operation", "facts", "--out", folder / "page.md"),
        "cached recipe": onnuri("run", recipe, "--out", folder / "life", "--json"),
        "read, train": onnuri("train", folder / "m", "--steps", "2", *rest, free / "t"),
        "read, quantize": onnuri("quantize", folder / "m", *rest, free / "q"),
        "read, predict": onnuri("predict", folder / "m", *rest, free / "answers.csv"),
        "read, evaluate": onnuri("evaluate", folder / "m", "--data", "builtin:iris"),
        "read, verify": onnuri("verify", folder / "m"),
    }
    assert before == {str(path): path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}
    return done


@pytest.mark.parametrize("close", [closed_disk, closed_folder])
def test_a_folder_that_may_only_be_read(close, request, tmp_path):
    if close is closed_disk:
        request.getfixturevalue("disks")
    folder, recipe = tmp_path / "closed", tmp_path / "short.yaml"
    recipe.write_text(yaml.safe_dump(SHORT, sort_keys=False))
    try:
        done = inside(commands, close, folder, recipe)
    finally:
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755)
    for name in ("train", "deeper", "quantize", "predict", "evaluate", "new recipe", "changed recipe", "matrix"):
        said = refused(done[name], str(folder), "cannot be written")
        assert said.count("\n") == 2, said
    for name in ("cached recipe", "read, train", "read, quantize", "read, predict", "read, evaluate", "read, verify"):
        assert done[name].code == 0, (name, done[name])
    assert all(step["cached"] for step in json.loads(done["cached recipe"].out)["steps"])
    assert not ledger.verify(tmp_path / "t") and not ledger.verify(tmp_path / "q")


def unreadable(folder: Path) -> list[Done]:
    """A model folder, one file in one, and the data beside the result, that may not even be read."""
    assert onnuri(*NEW, "--out", folder / "m").code == 0
    shutil.copytree(folder / "m", folder / "n")
    (folder / "rows.csv").write_text("a,b\n1,x\n2,y\n" * 20)
    for place in (folder / "m", folder / "n" / "model.safetensors", folder / "rows.csv"):
        place.chmod(0)
    obey_permissions()
    words = [("evaluate", folder / name, "--data", "builtin:iris") for name in "mn"]
    words += [("verify", folder / name) for name in "mn"]
    return [onnuri(*line) for line in (*words, (*NEW[:-1], folder / "rows.csv", "--out", folder / "new"))]


def test_what_may_not_be_read(tmp_path):
    try:
        done = inside(unreadable, tmp_path)
    finally:
        (tmp_path / "m").chmod(0o755)
    for one in done:
        refused(one, str(tmp_path))
    assert "rows.csv" in done[-1].err and "written" not in done[-1].err and not (tmp_path / "new").exists()
