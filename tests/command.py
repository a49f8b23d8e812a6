"""The command line for tests: as a process of its own, or in this one, which starts no second torch."""

import io
import os
import subprocess
import sys
from collections.abc import Iterable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from onnuri.__main__ import main
from onnuri.conformance.bench import Bench
from onnuri.run import execute

SMALL = {"width": 8, "bins": 4, "embedding": 2, "dropout": 0.0}
"""A table net that is trained in a moment."""


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str


def onnuri(*words: object) -> Done:
    """`onnuri WORDS...` in this process, through the same `main`."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    code = 0
    with redirect_stdout(out), redirect_stderr(err), patch.object(sys, "argv", ["onnuri", *map(str, words)]):
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return Done(code, *(stream.buffer.getvalue().decode() for stream in (out, err)))  # type: ignore[attr-defined]


def process(*words: object, folder: Path | None = None, python: tuple[str, ...] = ()) -> Done:
    """`python -m onnuri WORDS...` as a user runs it."""
    command = [sys.executable, *python, "-m", "onnuri", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=os.environ, timeout=120)
    return Done(done.returncode, done.stdout, done.stderr)


def some(all_of: Iterable[Any], few: Iterable[Any]) -> list[Any]:
    """A few of a kind, unlike each other; with ONNURI_ALL=1 all, which is many minutes more."""
    return list(all_of if "ONNURI_ALL" in os.environ else few)


def refused(done: Done, *texts: str) -> str:
    """Check that a command ended as one must on bad input: exit code 2, one message that says `texts`, nothing else."""
    assert done.code == 2, done
    assert done.out == "" and "Traceback" not in done.err, done
    assert done.err.count("onnuri: ") == 1 or done.err.count("Error: ") == 1, done
    for text in texts:
        assert text in done.err, done
    return done.err


def leftovers(folder: Path) -> list[Path]:
    """Everything unfinished below a folder."""
    return [path for path in folder.rglob(".*") if "partial" in path.name]


def carried_out(bench: Bench, operation: str, out: str = "", model=None, **settings) -> dict:
    """An operation on a bench, into the folder `out` of it: on its first model, or on this one. The ledger line."""
    inputs = {"model": str(model or bench.model), "data": bench.data}
    inputs |= {role: str(settings.pop(role)) for role in ("student", "other") if role in settings}
    return execute(operation, settings, inputs, bench.folder / out if out else None, quiet=True)
