"""Fuzzes every reader: `make fuzz INPUTS=100000`, or this file with --help.

Each reader gets its share of the inputs in a process of its own, guided by coverage where atheris is installed, else by
dice. The process notes every input before it reads it, in memory that the parent shares: where native code dies or hangs,
the parent still has the input, and starts another process for the rest. Whatever breaks the contract is kept, one input
per kind and place, as OUT/READER-KIND-DIGEST. The exit code is 1 when there is any.
"""

import argparse
import faulthandler
import hashlib
import json
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
for name, value in {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "HF_HUB_OFFLINE": "1"}.items():
    os.environ.setdefault(name, value)

try:
    import atheris
except ImportError:  # it is not to be had everywhere
    atheris = None

if atheris and "--plain" not in sys.argv:
    with atheris.instrument_imports(include=["onnuri"]):
        from readers import READERS, Reader
else:
    from readers import READERS, Reader

import beds  # noqa: E402
from contract import Failure, judge  # noqa: E402  the reason for the order is above: imports are instrumented
from mutate import LONGEST, mutated  # noqa: E402

ROOM = 24 * 2**30  # bytes of address space: native code that asks for more dies, and is noticed
STALLED = 60.0  # seconds without a new input after which a process is taken for hung
HEAD = struct.Struct("<QQ")  # how many inputs were begun, and the length of the last


class Note:
    """What parent and child share: how many inputs were begun, and the last one."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, HEAD.size + LONGEST)

    def write(self, count: int, data: bytes) -> None:
        self.memory[: HEAD.size + len(data)] = HEAD.pack(count, len(data)) + data

    def read(self) -> tuple[int, bytes]:
        count, size = HEAD.unpack(self.memory[: HEAD.size])
        return count, self.memory[HEAD.size : HEAD.size + size]


def keep(out: Path, reader: str, failure: Failure, data: bytes) -> None:
    """One input for each kind and place of failure, the shortest."""
    digest = hashlib.sha256(f"{failure.kind}{failure.where}".encode()).hexdigest()[:8]
    path = out / f"{reader}-{failure.kind.replace(' ', '-')}-{digest}"
    if path.exists() and len(path.read_bytes()) <= len(data):
        return
    path.write_bytes(data)
    path.with_name(f"{path.name}.json").write_text(json.dumps({"reader": reader, **failure._asdict()}, indent=2))


def child(reader: Reader, runs: int, seed: int, out: Path, note: Note, guided: bool) -> None:
    """Read `runs` inputs; the process ends with it."""
    resource.setrlimit(resource.RLIMIT_AS, (ROOM, ROOM))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    log = os.open(out / f"{reader.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.enable()
    folder = Path(tempfile.mkdtemp(prefix="onnuri-fuzz-"))
    os.chdir(folder)
    count = 0

    def one(data: bytes) -> None:
        nonlocal count
        count += 1
        note.write(count, data[:LONGEST])
        asked = reader.put(data[:LONGEST], folder)
        if failure := judge(lambda: reader.read(asked), reader.notes):
            keep(out, reader.name, failure, data)

    seeds = reader.seeds
    beds.warm()
    for data in seeds[:runs]:
        one(data)
    try:
        (guided_runs if guided else plain_runs)(reader, seeds, runs - count, seed, one)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def plain_runs(reader: Reader, seeds: list[bytes], runs: int, seed: int, one: Callable[[bytes], None]) -> None:
    """The same inputs whenever the seed is the same."""
    draw = random.Random(f"{reader.name} {seed}")
    for _ in range(runs):
        one(mutated(draw.choice(seeds), draw, seeds, reader.form))


def guided_runs(reader: Reader, seeds: list[bytes], runs: int, seed: int, one: Callable[[bytes], None]) -> None:
    """libFuzzer chooses which inputs to change further: those that reached new code."""
    assert atheris

    def change(data: bytes, longest: int, seed: int) -> bytes:
        draw = random.Random(seed)
        made = atheris.Mutate(data, longest) if draw.random() < 0.25 else mutated(data, draw, seeds, reader.form)
        return made[:longest]

    grown = tempfile.mkdtemp(prefix="onnuri-fuzz-grown-")
    words = [f"-runs={runs}", f"-seed={seed + 1}", f"-max_len={LONGEST}", "-len_control=0", "-rss_limit_mb=0"]
    words += ["-handle_segv=0", "-handle_abrt=0", "-print_final_stats=0", f"-artifact_prefix={grown}/"]
    for place, data in enumerate(seeds):
        Path(grown, f"seed{place}").write_bytes(data)
    atheris.Setup(["fuzz", *words, grown], one, custom_mutator=change)
    atheris.Fuzz()  # ends the process


def fuzz(reader: Reader, runs: int, seed: int, out: Path, guided: bool) -> tuple[int, float]:
    """(inputs read, seconds that they took). A process that dies or hangs is followed by another."""
    note, done, began = Note(), 0, time.monotonic()
    while done < runs:
        note.write(0, b"")
        process = os.fork()
        if not process:
            status = 1
            try:
                child(reader, runs - done, seed + done, out, note, guided)
                status = 0
            except BaseException:
                traceback.print_exc()
                raise
            finally:
                os._exit(status)
        status = watch(process, note)
        count, data = note.read()
        if status and not count:
            raise RuntimeError(f"the bed of {reader.name} cannot be made: see {out / reader.name}.log")
        if status:
            ended = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"code {os.WEXITSTATUS(status)}"
            keep(out, reader.name, Failure("died", ended, "the process; see the end of its log"), data)
        done += count
    return done, time.monotonic() - began


def watch(process: int, note: Note) -> int:
    """The status with which the process ended; one that begins no new input is killed."""
    last, since = -1, time.monotonic()
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return status
        count = note.read()[0]
        if count != last:
            last, since = count, time.monotonic()
        elif time.monotonic() - since > STALLED:
            os.kill(process, signal.SIGKILL)
            return os.waitpid(process, 0)[1]
        time.sleep(0.02)


def shares(total: int, names: list[str]) -> dict[str, int]:
    """How many inputs each reader gets, all together `total` or a few more."""
    parts = sum(READERS[name].share for name in names)
    return {name: -(-total * READERS[name].share // parts) for name in names}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--reader", choices=sorted(READERS), action="append", help="these alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs", "fuzz"))
    parser.add_argument("--plain", action="store_true", help="dice, even where atheris is installed")
    asked: Any = parser.parse_args()
    out = asked.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    guided = bool(atheris) and not asked.plain
    print(f"guided by {'coverage (atheris)' if guided else 'dice'}", flush=True)
    total, began = 0, time.monotonic()
    for name, runs in shares(asked.inputs, asked.reader or list(READERS)).items():
        done, seconds = fuzz(READERS[name], runs, asked.seed, out, guided)
        found = len(list(out.glob(f"{name}-*.json")))
        print(f"{name:44} {done:7,} inputs {done / seconds:7,.0f} a second  {found or ''}", flush=True)
        total += done
    failures = sorted(out.glob("*.json"))
    for path in failures:
        told = json.loads(path.read_text())
        print(f"{path.stem}: {told['kind']} at {told['where']}: {told['message'][:200]}")
    print(f"{len(failures)} failures in {total:,} inputs, {time.monotonic() - began:,.0f} seconds")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
