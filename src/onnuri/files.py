"""Files and folders that appear whole or not at all: written aside, put on the disk, renamed to their place."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import BadInput, BrokenPromise

STATE = "state.safetensors"
"""The state of unfinished work, inside the staging folder."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to; when that is done, the file takes its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
        sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """A text file that appears whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """`.NAME.partial` beside the place of a result, locked. It goes when the work succeeds, or fails without a state to
    go on from."""
    partial = out.with_name(f".{out.name}.partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        lock = open(partial / "lock", "w")  # noqa: SIM115  closed below, after the folder is gone
    except OSError as error:
        raise BadInput(f"{out} cannot be written: {error.strerror}") from error
    try:
        if is_main_process():
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise BadInput(f"another process is writing {out}") from None
    try:
        yield partial
        forget(partial)
    except BrokenPromise:  # going on from that state would only break it again
        forget(partial)
        raise
    finally:
        if is_main_process() and not (partial / STATE).exists():
            shutil.rmtree(partial, ignore_errors=True)
        lock.close()


def forget(partial: Path) -> None:
    """Remove the state of work that is done."""
    if is_main_process():
        (partial / STATE).unlink(missing_ok=True)


def fresh_folder(folder: Path) -> Path:
    """An empty folder, whatever was there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def appear(folder: Path, place: Path) -> None:
    """Put every file of a folder on the disk, then rename it to its place, which must be free."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)
    os.rename(folder, place)
    sync(place.parent)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_main_process() -> bool:
    """Of several processes of one training, the one that writes."""
    return os.environ.get("RANK", "0") == "0"
