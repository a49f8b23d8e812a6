"""torchrun with two processes on gloo gives the loss curve of one process at the same global batch; also where the loss tells the
records of all of them apart."""

import os
import subprocess
import sys

import pytest

from command import some
from onnuri import ledger

ARGUMENTS = [
    "-m", "onnuri", "train", "--family", "tabular", "--data", "builtin:wine", "--config", "dropout=0,width=32",
    "--steps", "30", "--batch-size", "25", "--precision", "fp32", "--json",
]  # fmt: skip


PAIRS = [
    "-m", "onnuri", "train", "--family", "embedder", "--data", "toy:embedder", "--config", "dropout=0,hidden_size=32,num_layers=1",
    "--steps", "12", "--batch-size", "15", "--precision", "fp32", "--json",
]  # fmt: skip


def curve(launcher: list[str], out) -> list[tuple[int, float]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([*launcher, *ARGUMENTS, "--out", str(out)], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return ledger.read(out)[-1]["curves"]["loss"]


KINDS = {
    "whole": ARGUMENTS,
    "micro": [*ARGUMENTS, "--micro-batch", "4"],
    "pairs in micro": [*PAIRS, "--micro-batch", "4"],
}


@pytest.mark.parametrize("kind", some(KINDS, ("pairs in micro",)))
def test_two_processes_give_the_curve_of_one(tmp_path, monkeypatch, kind):
    arguments = KINDS[kind]
    monkeypatch.setattr(sys.modules[__name__], "ARGUMENTS", arguments)
    one = curve([sys.executable], tmp_path / "one")
    two = curve(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"], tmp_path / "two"
    )
    assert len(one) == len(two) == int(arguments[arguments.index("--steps") + 1])
    worst = max(abs(a - b) / abs(a) for (_, a), (_, b) in zip(one, two))
    assert worst < 1e-3, "the sums are taken in another order: rounding, amplified over the steps"
    assert one[-1][1] < 0.7 * one[0][1]
