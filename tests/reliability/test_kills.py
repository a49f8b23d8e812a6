"""kill -9 at random moments of a whole life: what is finished stays, and the end is the same to the bit.

ONNURI_KILLS says how many times (`make kills`: 200). A moment is a time, a file event of the writer (a file opened to write,
a rename, a removal), or shortly after one, when the bytes are on their way.
"""

import os
import random
import select
import shutil
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from children import LIFE, START, started

from command import SMALL, leftovers, onnuri, refused
from onnuri import ledger
from onnuri.files import STATE, locked, staging
from onnuri.recipe import run_recipe

KILLS = int(os.environ.get("ONNURI_KILLS", "3"))
KINDS = ("at a time", "at a file event", "shortly after a file event")
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
STEPS = [*LIFE["steps"], "report"]
Aim = tuple[str, int]
"""A step and the number of one of its file events."""
SHORTLY = 0.03  # seconds: as long as writing and syncing a small file takes


@dataclass(frozen=True)
class Run:
    """One process: its exit code, and to which step each of its file events belonged."""

    code: int
    steps: tuple[str, ...]


def step_of(name: str) -> str:
    """The step to which a file of a recipe's folder belongs; '' for none."""
    return next((step for part in Path(name).parts for step in STEPS if part.strip(".").split(".")[0] == step), "")


def is_reached(steps: list[str], aim: Aim) -> bool:
    """Whether the file events so far, each by its step, are so many of the step aimed at, or go beyond that step."""
    name, count = aim
    return steps.count(name) >= count or any(step in STEPS[STEPS.index(name) + 1 :] for step in steps)


def live(path: Path, out: Path, pipe: Any, aim: Aim | None) -> None:
    """Run the recipe; each file event below `out` is told through the pipe, and the one that is aimed at is the end."""
    steps = list[str]()

    def hook(event: str, arguments: tuple) -> None:
        if (
            event not in EVENTS
            or not isinstance(arguments[0], (str, Path))
            or not str(arguments[0]).startswith(f"{out}/")
        ):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        name = str(arguments[0])[len(str(out)) + 1 :]
        os.write(pipe.fileno(), f"{name}\n".encode())
        steps.append(step_of(name))
        if aim and is_reached(steps, aim):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    run_recipe(str(path), out, None, True)


def run(
    path: Path, out: Path, kind: str = "", seconds: float = 600.0, aim: Aim | None = None, delay: float = 0.0
) -> Run:
    """Run the recipe in a child and kill it as `kind` says, if it is not done before."""
    ours, theirs = START.Pipe(duplex=False)
    child = started(live, path, out, theirs, aim if kind == KINDS[1] else None)
    theirs.close()
    told, end = b"", time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if select.select([ours], [], [], left)[0]:
            part = os.read(ours.fileno(), 2**16)
            told += part
            if not part or (kind == KINDS[2] and aim and is_reached(list(map(step_of, lines_of(told))), aim)):
                break
    time.sleep(delay)
    if kind and child.exitcode is None:
        child.kill()
    while part := os.read(ours.fileno(), 2**16):
        told += part
    child.join(60)
    return Run(child.exitcode, tuple(map(step_of, lines_of(told))))


def lines_of(told: bytes) -> list[str]:
    return told.decode(errors="replace").split("\n")[:-1]


def digests(out: Path) -> dict[str, str]:
    return {name: ledger.read(out / name)[-1]["digest"] for name in LIFE["steps"] if (out / name).exists()}


def test_killed_at_any_moment_it_ends_with_the_same_digests(tmp_path, capsys):
    path, seed = tmp_path / "life.yaml", random.randrange(2**32)
    path.write_text(yaml.safe_dump(LIFE, sort_keys=False))
    began = time.monotonic()
    whole = run(path, tmp_path / "whole")
    seconds, last = time.monotonic() - began, f"seed {seed}"
    assert whole.code == 0
    wanted = tensors(run_recipe(str(path), tmp_path / "whole", quiet=True))

    draw, out, kept, kills, lives = random.Random(seed), tmp_path / "out", {}, Counter(), 0
    while kills.total() < KILLS:
        kind, left = KINDS[kills.total() % 3], [name for name in STEPS if name not in kept]
        name = draw.choice(left[:2])  # often the next one, so that a life meets several kills
        aim = name, draw.randint(1, whole.steps.count(name))
        limit = draw.uniform(0.02, seconds) * draw.random() if kind == KINDS[0] else 600.0
        done = run(path, out, kind, limit, aim, draw.uniform(0, SHORTLY) if kind == KINDS[2] else 0.0)
        assert done.code in (0, -9), last
        now = digests(out)
        assert kept.items() <= now.items(), f"a finished step was lost or made again, {last}"
        assert not any(ledger.verify(out / name) for name in now), f"half a folder appeared, {last}"
        assert not list(out.glob("*.previous")), f"a finished step was made again, {last}"
        kept = now
        if done.code:
            kills[next((step for step in reversed(done.steps) if step), ""), kind] += 1
        else:
            lives += 1
            check_whole(path, out, wanted, kept, last)
            shutil.rmtree(out)
            kept = {}
    assert run(path, out).code == 0
    check_whole(path, out, wanted, {**digests(out), **kept}, last)
    with capsys.disabled():
        print(f"\n{kills.total()} kills over {lives + 1} lives, 0 losses; in each step {', '.join(KINDS)}:")
        for name in ("", *STEPS):
            print(f"  {name or 'start':10} {' '.join(f'{kills[name, kind]:4}' for kind in KINDS)}")


def tensors(result: dict) -> dict[str, str]:
    return {step["name"]: step["tensors"] for step in result["steps"]}


def check_whole(path: Path, out: Path, wanted: dict[str, str], kept: dict[str, str], last: str) -> None:
    """A life that came to its end has the result of an undisturbed one, its own evidence, and nothing beside."""
    assert not leftovers(out) and not (out / ".keys" / ".lock").exists(), f"{leftovers(out)}, {last}"
    result = run_recipe(str(path), out, quiet=True)
    assert tensors(result) == wanted and all(step["cached"] for step in result["steps"]), last
    assert digests(out) == kept and not any(ledger.verify(out / name) for name in kept), last
    assert (out / "report.html").read_text(encoding="utf-8").rstrip().endswith("</html>"), last


# ------------------------------------------------------------------------------------------------- moments of their own


def test_what_a_kill_left_beside_a_finished_result_is_cleaned(tmp_path):
    """Killed after a result appeared, before its staging folder, a note or a lock was gone."""
    path, out = tmp_path / "short.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump({**LIFE, "steps": {"base": {"train": {"config": SMALL, "steps": 2}}}}))
    assert not run_recipe(str(path), out, quiet=True)["steps"][0]["cached"]
    left = [out / ".base.partial" / "lock", out / ".base.partial" / STATE, out / ".base.partial" / "result" / "x"]
    left += [out / ".report.html.partial", out / ".keys" / ".base.partial", out / ".keys" / ".lock"]

    def litter() -> None:
        for place in left:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text("1")

    litter()
    assert run_recipe(str(path), out, quiet=True)["steps"][0]["cached"]
    assert not leftovers(out) and not any(place.exists() for place in left)
    litter()
    words = ("train", "--family", "tabular", "--data", "builtin:iris", "--out", out / "base")
    with locked(left[0], out / "base"):  # a living process has it: it stays
        refused(onnuri(*words), "already exists")
        assert left[1].exists()
    refused(onnuri(*words), "already exists")
    assert not (out / ".base.partial").exists() and not ledger.verify(out / "base")


def test_what_fails_at_once_leaves_nothing(tmp_path):
    path, empty = tmp_path / "short.yaml", tmp_path / "empty"
    empty.mkdir()
    path.write_text(yaml.safe_dump({**LIFE, "start": str(empty), "steps": {"base": {"train": {"steps": 2}}}}))
    refused(onnuri("run", path, "--out", tmp_path / "a" / "b" / "out"), "empty")
    refused(onnuri("train", empty, "--data", "builtin:iris", "--out", tmp_path / "a" / "b" / "m"), "empty")
    assert sorted(tmp_path.iterdir()) == [empty, path]


def test_a_state_outlives_the_litter_around_it(tmp_path):
    """What a killed process left in a staging folder goes at the next start; the state to go on from stays."""
    with suppress(KeyboardInterrupt), staging(tmp_path / "m") as partial:
        (partial / STATE).write_text("state")
        (partial / ".tmpAbCdEf").write_text("half a state")
        (partial / "result").mkdir()
        raise KeyboardInterrupt
    assert [place.name for place in (tmp_path / ".m.partial").iterdir()] == [STATE]
    with staging(tmp_path / "m") as partial:
        assert (partial / STATE).read_text() == "state"
    assert not list(tmp_path.iterdir())
