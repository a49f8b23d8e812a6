"""kill -9 in the middle of a search: what was found stays, and the same command ends with the same front."""

import random
import time
from pathlib import Path

from children import started

from command import SMALL, leftovers
from onnuri import ledger
from onnuri.run import execute
from onnuri.shrink import Wish, shrink

DATA, TRIALS = "builtin:iris", 13
QUICK = {"steps": 8, "epochs": 1, "save_every": 0}


def search(model: Path, out: Path) -> dict:
    return shrink(str(model), DATA, out, Wish(score=0.3, trials=TRIALS), QUICK, quiet=True)


def seen(result: dict) -> list:
    """What is the same in every run of the same search: not times, energy or places."""
    return [
        [(one["point"], one["chain"], one["tensors"], one.get("fault"), one.get("test", {}) and one["test"]["scores"])]
        for part in ("points", "front")
        for one in result[part]
    ]


def stamps(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "points").glob("*.json")}


def test_killed_anywhere_a_search_ends_with_the_same_front(tmp_path):
    model, out, seed = tmp_path / "model", tmp_path / "out", time.time_ns()
    execute("train", {"family": "tabular", "config": SMALL, "steps": 40}, {"data": DATA}, model, quiet=True)
    whole, draw = search(model, tmp_path / "whole"), random.Random(seed)
    kept: dict[str, int] = {}
    for count in (draw.randint(0, 2), draw.randint(3, 5), draw.randint(6, TRIALS)):
        child = started(search, model, out)
        while child.is_alive() and len(stamps(out)) <= count:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.2))
        child.kill()
        child.join(60)
        now = stamps(out)
        assert kept.items() <= now.items() and child.exitcode in (0, -9), f"a point was lost or made again, seed {seed}"
        kept = now
    last = search(model, out)
    assert seen(last) == seen(whole), f"seed {seed}"
    assert kept.items() <= stamps(out).items() and not ledger.verify(out / "winner"), f"seed {seed}"
    assert not leftovers(out) and not (out / ".lock").exists(), f"seed {seed}"
