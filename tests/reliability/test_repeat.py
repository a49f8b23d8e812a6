"""The same seed gives the same tensors in every process. ONNURI_REPEATS says how many (`make reliability`: 10)."""

import json
import os
import subprocess
import sys

from command import some
from onnuri import registry

REPEATS = int(os.environ.get("ONNURI_REPEATS", "2"))
FEW = ("gan", "embedder")
WORK = """
import json, sys
from pathlib import Path
from onnuri import registry
from onnuri.errors import Refusal
from onnuri.run import execute
found = {}
for family in sys.argv[2:]:
    new = {"family": family, "config": registry.family(family).tiny(), "steps": 3, "batch_size": 16, "seed": 7}
    data, place = f"toy:{family}", Path(sys.argv[1]) / family
    found[family] = execute("train", new, {"data": data}, place / "new", quiet=True)["output"]["tensors"]
    try:
        onward = {"steps": 2, "batch_size": 16, "seed": 7}
        line = execute("distill", onward, {"model": place / "new", "data": data}, place / "small", quiet=True)
        found[f"{family} distilled"] = line["output"]["tensors"]
    except Refusal:
        continue
print(json.dumps(found))
"""


def test_the_same_seed_gives_the_same_tensors_in_every_process(tmp_path):
    """Python orders sets and names anew in each process (PYTHONHASHSEED); nothing may depend on that."""
    families = some(registry.entries("families"), FEW)
    found = []
    for number in range(REPEATS):
        words = [sys.executable, "-c", WORK, str(tmp_path / str(number)), *families]
        environment = os.environ | {"PYTHONHASHSEED": str(number)}
        done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    assert all(one == found[0] for one in found) and len(found[0]) > len(families)
