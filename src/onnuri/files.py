"""Files and folders that appear whole or not at all: written aside, put on the disk, renamed to their place.

What stands in the way (a full disk, a folder that may only be read, another process at the same place) is one message that
names the place. What a killed process leaves beside it is cleaned when the same place is written or looked at again.
"""

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import BadInput, BrokenPromise, OnnuriError

STATE = "state.safetensors"
"""The state of unfinished work, inside the staging folder."""
PIECES = "pieces"
"""The folder of what unfinished work has written for good, beside its state; without a state it is nothing."""
LOCK = "lock"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)
TRIES = 100  # as often may another process take a folder away in the moment in which it is to be used


def partial_of(place: Path) -> Path:
    """Where a result is built before it takes its place."""
    return place.with_name(f".{place.name}.partial")


@contextmanager
def whole_file(path: Path, needed: int = 0) -> Iterator[Path]:
    """A path to write to; when that is done, the file takes its place. `needed`: its bytes, where they are known."""
    partial = partial_of(path)
    with writing(path, needed):
        path.parent.mkdir(parents=True, exist_ok=True)
        with turn(path.parent):
            try:
                yield partial
                sync(partial)
                os.replace(partial, path)
                sync(path.parent)
            finally:
                with suppress(OSError):  # the fault that led here is the one to tell
                    partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """A text file that appears whole or not at all."""
    content = text.encode("utf-8")
    with whole_file(path, len(content)) as partial:
        partial.write_bytes(content)


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """`.NAME.partial` beside the place of a result, for this process alone. It goes when the work succeeds, or fails
    without a state to go on from."""
    partial = partial_of(out)
    if not is_main_process():  # it reads the state that the main process keeps, and writes nothing
        yield partial
        return
    with writing(out), tidied(out.parent), locked(partial / LOCK, out):
        clear(partial, *unfinished(partial))
        try:
            yield partial
            forget(partial)
        except BrokenPromise:  # going on from that state would only break it again
            forget(partial)
            raise
        finally:
            clear(partial, *unfinished(partial))


def unfinished(partial: Path) -> tuple[str, ...]:
    """The names in a staging folder of what the next try goes on from."""
    return (STATE, PIECES) if (partial / STATE).exists() else ()


def clear(partial: Path, *kept: str) -> None:
    """Remove all of a folder of unfinished work but its lock and what is `kept`."""
    for path in list(partial.iterdir()) if partial.is_dir() else ():
        if path.name in (LOCK, *kept):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def forget(partial: Path) -> None:
    """Remove the state of work that is done."""
    (partial / STATE).unlink(missing_ok=True)


def sweep(place: Path) -> None:
    """Remove what a killed process left beside a result: a file that was never whole, or a staging folder although the
    result is there. What a living process holds stays."""
    if place.name in ("", ".."):  # no name of a result
        return
    partial = partial_of(place)
    if partial.is_file():
        with turn(place.parent), suppress(OSError):
            partial.unlink(missing_ok=True)
    elif partial.is_dir() and os.path.lexists(place):
        with suppress(BadInput, OSError), locked(partial / LOCK, place):
            clear(partial)


def fresh_folder(folder: Path) -> Path:
    """An empty folder, whatever was there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def appear(whole: Path, place: Path) -> None:
    """Put a file, or a folder with every file in it, on the disk; then rename it to its place, which must be free."""
    for path in [*whole.rglob("*"), whole]:
        sync(path)
    os.rename(whole, place)
    sync(place.parent)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def standing(folders: Iterable[Path]) -> Callable[[], None]:
    """A check to call when they have been read: BadInput where one of these came, went or was replaced since: what was
    read may be of two, or of a part of one."""
    before = {folder: identity(folder) for folder in folders}

    def check() -> None:
        if moved := [folder for folder, was in before.items() if not was or identity(folder) != was]:
            raise BadInput(
                *(f"{one} was moved or replaced while it was read" for one in moved), hint="give the command again"
            )

    return check


def identity(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from another one under the same name; None where there is none."""
    try:
        found = os.stat(folder)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def is_main_process() -> bool:
    """Of several processes of one training, the one that writes."""
    return os.environ.get("RANK", "0") == "0"


# ------------------------------------------------------------------------------------------------ what stands in the way


@contextmanager
def writing(place: Path, needed: int = 0) -> Iterator[None]:
    """Inside, a write that fails is a BadInput that names `place`, the bytes that were free when it began and those that
    it needs at least, where they are known."""
    free = free_bytes(place)
    try:
        yield
    except OnnuriError:
        raise
    except Exception as error:  # a library in another language has an exception of its own for the system's errors
        code = obstacle(error, place)
        if code is None:
            raise
        raise unwritable(place, code, free, needed) from error


def obstacle(error: Exception, place: Path) -> int | None:
    """The system's number for what kept something from being written at `place`; None where it was something else."""
    if isinstance(error, OSError):
        named = None if error.filename is None else Path(os.path.abspath(os.fsdecode(error.filename)))
        ours = [Path(os.path.abspath(path)) for path in (place, partial_of(place))]
        here = named is None or any(named.is_relative_to(path) or path.is_relative_to(named) for path in ours)
        return error.errno if here and error.errno in (*FULL, *CLOSED) else None
    return next((code for code in (*FULL, errno.EROFS) if os.strerror(code) in str(error)), None)


def unwritable(place: Path, code: int | None, free: int, needed: int) -> BadInput:
    """The message for a place that cannot be written."""
    reason = os.strerror(code or errno.EIO)
    if code not in FULL:
        return BadInput(f"{place} cannot be written: {reason}", hint="another --out")
    least = f"it needs at least {needed:,} bytes, " if needed else ""
    return BadInput(
        f"{place} cannot be written: {reason}; {least}{free:,} bytes were free in its folder",
        hint="make room and give the same command again, or another --out",
    )


def free_bytes(place: Path) -> int:
    """What is left for us on the disk of a place that need not be there yet."""
    there = next(folder for folder in [place.absolute(), *place.absolute().parents] if folder.exists())
    return shutil.disk_usage(there).free


@contextmanager
def tidied(folder: Path) -> Iterator[None]:
    """A folder and its parents that are made inside go again if they end empty."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        for path in new:
            with suppress(OSError):
                path.rmdir()


# ------------------------------------------------------------------------------------------------------ other processes


@contextmanager
def locked(lock: Path, place: Path) -> Iterator[None]:
    """Inside, no other process is at `place`. BadInput names the one that is there already.

    The lock is the system's, on an open file: it goes with its process, however that ends. The file is removed by its holder
    alone, at the end, and its folder where that is left empty: whoever waits for it notices, and makes another.
    """
    handle = take(lock, place)
    try:
        yield
    finally:
        with suppress(OSError):
            lock.unlink()
            lock.parent.rmdir()
        os.close(handle)


def take(lock: Path, place: Path) -> int:
    """An open file that is locked and lies at `lock`, with the number of this process in it."""
    tries = 0
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(lock, os.O_RDWR | os.O_CREAT)
            if claim(handle, lock, place):
                return handle
        except OSError as error:
            tries += 1
            if not isinstance(error, FileNotFoundError) or tries == TRIES:
                raise unwritable(place, error.errno, free_bytes(place), 0) from error


def claim(handle: int, lock: Path, place: Path) -> bool:
    """Lock an open file; False, and closed, where it lies at `lock` no more."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(handle).st_ino == os.stat(lock).st_ino:
            os.truncate(handle, 0)
            os.write(handle, str(os.getpid()).encode())
            return True
    except BlockingIOError:
        number = holder(handle)
        os.close(handle)
        raise BadInput(
            f"another process{f' ({number})' if number else ''} is writing {place}", hint="wait for its end"
        ) from None
    except OSError:
        os.close(handle)
        raise
    os.close(handle)
    return False


def holder(handle: int) -> str:
    """The number of the process that locked an open file; "" where it does not write it within a second."""
    for _ in range(TRIES):
        if number := os.pread(handle, 20, 0).decode():
            return number
        time.sleep(0.01)
    return ""


@contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Wait until no other process writes a file of this folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network folders know no lock of a folder
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
