"""A wall clock that jumps by hours at every look: times spent stay right, caches and states stay ours."""

import json
import os
import random
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from children import LIFE

from command import leftovers
from onnuri import ledger, run
from onnuri.fit import loop as fit
from onnuri.recipe import run_recipe
from onnuri.run import execute


@pytest.fixture
def jumping(monkeypatch) -> random.Random:
    """Every look at the wall clock is up to 100 hours off, forward or backward."""
    draw = random.Random(1)
    wall, wall_ns = time.time, time.time_ns

    class Jumping(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(hours=draw.uniform(-100, 100))

    monkeypatch.setattr(time, "time", lambda: wall() + draw.uniform(-360_000, 360_000))
    monkeypatch.setattr(time, "time_ns", lambda: wall_ns() + draw.randrange(-(10**14), 10**14))
    monkeypatch.setattr(run, "datetime", Jumping)
    return draw


def test_a_life_under_a_clock_that_jumps(tmp_path, jumping, monkeypatch):
    path = tmp_path / "life.yaml"
    path.write_text(yaml.safe_dump(LIFE, sort_keys=False))
    began = time.perf_counter()
    jumped = run_recipe(str(path), tmp_path / "jumped", quiet=True)
    spent = time.perf_counter() - began
    lines = [line for step in jumped["steps"] for line in ledger.read(Path(step["path"]))[-1:]]
    assert all(0 < line["seconds"] <= spent and line["energy"]["joules"] >= 0 for line in lines)
    assert sum(line["seconds"] for line in lines) <= spent and jumped["seconds"] <= spent + 0.01
    stamps = [datetime.fromisoformat(line["started"]) for line in lines]
    assert stamps != sorted(stamps), "the clock did not jump"
    assert all(abs(stamp - datetime.now(UTC)) < timedelta(hours=101) for stamp in stamps)
    assert all(line["after"]["latency_ms"]["p50"] > 0 for line in lines)
    assert not any(ledger.verify(Path(step["path"])) for step in jumped["steps"]) and not leftovers(tmp_path)

    for place in (tmp_path / "jumped").rglob("*"):  # files from the future and from long ago
        stamp = time.time() + jumping.choice((-(10**8), 10**6))
        os.utime(place, (stamp, stamp))
    again = run_recipe(str(path), tmp_path / "jumped", quiet=True)
    assert all(step["cached"] for step in again["steps"])
    monkeypatch.undo()
    plain = run_recipe(str(path), tmp_path / "plain", quiet=True)
    assert [s["tensors"] for s in plain["steps"]] == [s["tensors"] for s in again["steps"]]


def test_a_training_goes_on_under_a_clock_that_jumps(tmp_path, jumping, monkeypatch):
    given = LIFE["steps"]["base"]["train"] | {"family": "tabular", "steps": 60}
    step, steps = fit.Loop.step, list[int]()

    def stopped(loop: fit.Loop, *given: object, **named: object) -> None:
        steps.append(loop.progress.step)
        step(loop, *given, **named)  # type: ignore[arg-type]
        if loop.progress.step in (20, 41) and steps.count(loop.progress.step) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(fit.Loop, "step", stopped)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            execute("train", given, {"data": "builtin:iris"}, tmp_path / "m", quiet=True)
    line = execute("train", given, {"data": "builtin:iris"}, tmp_path / "m", quiet=True)
    assert steps == [*range(21), *range(20, 42), *range(41, 60)], "a state that was kept was not taken up"
    assert line["seconds"] > 0 and line["curves"]["loss"] == sorted(line["curves"]["loss"], key=lambda pair: pair[0])
    monkeypatch.undo()
    plain = execute("train", given, {"data": "builtin:iris"}, tmp_path / "plain", quiet=True)
    assert line["output"]["tensors"] == plain["output"]["tensors"] and line["curves"] == plain["curves"]
    assert json.dumps(line["after"]["scores"]) == json.dumps(plain["after"]["scores"])
