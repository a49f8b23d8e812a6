"""Offline is tested, not promised: a recipe runs where there is no network at all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCHER = [sys.executable, str(Path(__file__).parent / "offline.py")]
REACH = "import socket; socket.create_connection(('192.0.2.1', 80), 2)"  # an address that is nobody's (RFC 5737)


@pytest.fixture(scope="module", autouse=True)
def namespace() -> None:
    if subprocess.run([*LAUNCHER, "true"]).returncode == 77:
        pytest.skip("this system allows no network namespace")


def test_there_is_no_network_in_it():
    run = subprocess.run([*LAUNCHER, sys.executable, "-c", REACH], capture_output=True, text=True)
    assert run.returncode == 1 and "unreachable" in run.stderr


def test_the_quickstart_needs_none(tmp_path):
    """The recipe of the first page, with fewer epochs. A home without caches: nothing was fetched before."""
    source = Path(__file__).parents[1] / "src" / "onnuri" / "recipes" / "quickstart.yaml"
    text = source.read_text(encoding="utf-8").replace("epochs: 30", "steps: 4").replace("epochs: 60", "steps: 4")
    (tmp_path / "quick.yaml").write_text(text, encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    run = subprocess.run(
        [*LAUNCHER, sys.executable, "-m", "onnuri", "run", str(tmp_path / "quick.yaml"), "--json", "--out", str(tmp_path / "out")],
        env=environment | {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert [step["operation"] for step in json.loads(run.stdout)["steps"]][-1] == "export"
