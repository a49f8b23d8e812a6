"""A disk that is full at any moment: one message, everything finished intact, and the same command goes on to the same end.

Each case runs on a small disk of its own (tmpfs) in a child. ONNURI_DISKS says how many sizes of it
are tried beside the smallest.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from children import LIFE, REMOUNT, disk, inside, own_mounts, spelled, unmount

from command import SMALL, Done, leftovers, onnuri, refused, some
from onnuri import ledger

SIZES = int(os.environ.get("ONNURI_DISKS", "1"))
PAGE = 4096  # the least that a file takes there
ROOMY = 2**28
NEW = ("--config", spelled(SMALL), "--steps", "4", "--save-every", "0", "--data", "builtin:iris")
TINY = ("--steps", "2", "--save-every", "0", "--batch-size", "8")
FAMILIES = ("tabular", "forest", "text_classifier", "causal_lm", "diffusion")


def used(folder: Path) -> int:
    """Bytes of the disk that lies there."""
    state = os.statvfs(folder)
    return (state.f_blocks - state.f_bfree) * state.f_frsize


def sizes(needed: int) -> list[int]:
    """Disks from one that holds nothing to one on which the last page is missing."""
    last = max(needed // PAGE - 1, 1)
    return sorted({max(1, round(last * part / SIZES)) * PAGE for part in range(1, SIZES + 1)} | {PAGE})


def on_small_disks(folder: Path, words: list[str], prepare: list[str], finished: Callable[[Path], str]) -> int:
    """Run `words`, in which DISK stands for the disk, on disks of every size; how often it was refused. `prepare` runs
    before while there is room; `finished`: the digest of the result."""
    own_mounts()
    folder.mkdir(exist_ok=True)
    words, prepare = ([word.replace("DISK", str(folder)) for word in line] for line in (words, prepare))

    def fresh() -> int:
        disk(folder, ROOMY)
        done = onnuri(*prepare) if prepare else None
        assert done is None or done.code == 0, done
        return used(folder)

    before = fresh()
    done = onnuri(*words)
    assert done.code == 0, done
    wanted, needed = finished(folder), used(folder)
    unmount(folder)
    full = 0
    for size in sizes(needed - before):
        fresh()
        kept = {path: ledger.file_digest(path) for path in folder.rglob("*") if path.is_file()}
        disk(folder, before + size, REMOUNT)
        done = onnuri(*words)
        if done.code:
            full += 1
            said = refused(done, str(folder), "No space left on device", "bytes were free", "make room")
            assert said[said.index("onnuri: ") :].count("\n") == 2, said
        assert all(ledger.file_digest(path) == digest for path, digest in kept.items()), size
        for line in folder.rglob(ledger.FILE):  # whatever appeared is whole
            if ".partial" not in str(line):
                assert not ledger.verify(line.parent.parent), (size, line)
        disk(folder, ROOMY, REMOUNT)
        again = onnuri(*words)
        assert again.code == 0 or (done.code == 0 and "already exists" in again.err), (size, again)
        assert finished(folder) == wanted and not leftovers(folder), size
        unmount(folder)
    return full


def tensors(folder: Path) -> str:
    return json.dumps({str(path): ledger.read(path)[-1]["output"]["tensors"] for path in models(folder)})


def models(folder: Path) -> list[Path]:
    return sorted(line.parent.parent for line in folder.rglob(ledger.FILE))


def answers(folder: Path) -> str:
    return ledger.file_digest(folder / "answers.jsonl")


def scores(folder: Path) -> str:
    return json.dumps(json.loads((folder / "report.json").read_text())["scores"])


TRAIN = ["train", "--family", "tabular", *NEW, "--out", "DISK/m"]
MODEL = ["--data", "builtin:iris", "--out"]


@pytest.mark.parametrize(
    ("words", "prepare", "finished"),
    [
        (TRAIN, [], tensors),
        (["quantize", "DISK/m", *MODEL, "DISK/q"], TRAIN, tensors),
        (["export", "DISK/m", *MODEL, "DISK/e"], TRAIN, tensors),
        (["predict", "DISK/m", *MODEL, "DISK/answers.jsonl"], TRAIN, answers),
        (["evaluate", "DISK/m", *MODEL, "DISK/report.json"], TRAIN, scores),
    ],
    ids=lambda value: value[0] if isinstance(value, list) and value else "",
)
def test_a_disk_that_is_full(words, prepare, finished, disks, tmp_path):
    assert inside(on_small_disks, tmp_path / "disk", words, prepare, finished) >= 1


@pytest.mark.parametrize("family", some(FAMILIES[1:], FAMILIES[1:3]))
def test_every_writer_of_a_family_tells_that_its_disk_is_full(family, disks, tmp_path):
    """The libraries that write have errors of their own."""
    words = ["train", "--family", family, "--data", f"toy:{family}", "--config", tiny(family), "--out", "DISK/m"]
    assert inside(on_small_disks, tmp_path / "disk", [*words, *TINY], [], tensors) >= 2


def tiny(family: str) -> str:
    from onnuri import registry

    return spelled(registry.family(family).tiny())


def test_a_recipe_whose_disk_is_full(disks, tmp_path):
    steps = {name: {op: dict(given) for op, given in body.items()} for name, body in LIFE["steps"].items()}
    for body, few in ((steps["base"]["train"], 4), (steps["student"]["distill"], 3), (steps["recovered"]["train"], 2)):
        body["steps"] = few
    path = tmp_path / "life.yaml"
    path.write_text(yaml.safe_dump({**LIFE, "steps": steps}, sort_keys=False))
    words = ["run", str(path), "--out", "DISK/life", "--json"]
    assert inside(on_small_disks, tmp_path / "disk", words, [], tensors) >= 2


def matrix_on_a_full_disk(folder: Path) -> Done:
    own_mounts()
    folder.mkdir()
    disk(folder, PAGE)
    (folder / "page.md").write_text("a page of before" * (PAGE // 16))
    done = onnuri("matrix", "--family", "forest", "--operation", "facts", "--out", folder / "page.md")
    assert set((folder / "page.md").read_text().split("a page of before")) == {""}
    return done


def test_a_page_whose_disk_is_full(disks, tmp_path):
    done = inside(matrix_on_a_full_disk, tmp_path / "disk")
    assert done.code == 2 and "page.md cannot be written: No space left on device; it needs at least" in done.err


def test_a_file_that_may_not_grow(tmp_path):
    """A limit on the size of a file is told in the same way."""
    done = inside(limited, tmp_path / "m")
    refused(done, "File too large", "bytes were free")
    assert not list(tmp_path.iterdir())


def limited(out: Path) -> Done:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (PAGE // 2, PAGE // 2))
    return onnuri("train", "--family", "tabular", *NEW, "--out", out)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_result_that_the_screen_cannot_take():
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-m", "onnuri", "families"]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "No space left on device" in done.stderr, done
