"""What a reader of strangers' files must keep to, whatever it is given, and a judge that says when it does not.

A reader gives something valid, or raises one of our own errors with a message. It does not hang, does not ask for memory
without measure, writes no file, calls nobody, starts no process, unpickles nothing and prints nothing.
"""

import io
import os
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, NamedTuple

from onnuri.errors import OnnuriError

SECONDS = 10.0  # of the processor for one small input
MEGABYTES = 512  # by which one small input may raise the most memory that was ever used
OUT_OF_MEMORY = ("can't allocate memory", "cannot allocate", "unable to allocate", "out of memory", "bad_alloc")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FORBIDDEN = {
    "socket.connect",
    "socket.getaddrinfo",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.symlink",
    "pickle.find_class",
}
"""Events of Python's audit that no reader may cause."""


class Failure(NamedTuple):
    """A broken contract: what kind, where in the code, in words."""

    kind: str
    where: str
    message: str


class Hang(BaseException):
    """More than SECONDS; no `except Exception` holds it up."""


class Invalid(Exception):
    """What a reader gave is not what it promises."""


def judge(read: Callable[[], Any], notes: bool = False) -> Failure | None:
    """None when `read` keeps to the contract. `notes`: what native code writes to stderr is let through."""
    said, memory = io.StringIO(), peak()
    with watched() as deeds, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for ignored in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", ignored)
        before = printed()
        try:
            with redirect_stdout(said), redirect_stderr(said), time_limit():
                read()
            failure = None
        except BaseException as error:  # a panic of a native library is no Exception
            if isinstance(error, KeyboardInterrupt):
                raise
            failure = of_error(error)
        after = printed()
    if failure:
        return failure
    if deeds:
        return Failure("deed", deeds[0][0], deeds[0][1])
    if warned:
        return Failure("warning", f"{warned[0].filename}:{warned[0].lineno}", str(warned[0].message))
    if said.getvalue() or (before != after and not notes):
        return Failure("printed", "", said.getvalue()[:300] or "by native code")
    if peak() - memory > MEGABYTES:
        return Failure("memory", "", f"{peak() - memory} MiB for one input")
    return None


def of_error(error: BaseException) -> Failure | None:
    """None for an error of ours with a message that holds no other fault."""
    if isinstance(error, OnnuriError):
        words = str(error)
        if not words.strip() or not error.faults or not all(fault.strip() for fault in error.faults):
            return Failure("no message", place(error), repr(error))
        if any(text in words.lower() for text in OUT_OF_MEMORY):
            return Failure("memory", place(error), words)
        return Failure("address", place(error), words) if " object at 0x" in words or "BytesIO" in words else None
    return Failure(type(error).__name__, place(error), str(error)[:300])


def place(error: BaseException) -> str:
    """The last place in our own code, and the last of all."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}onnuri{os.sep}" in frame.filename]
    return " > ".join(
        f"{os.path.basename(frame.filename)}:{frame.lineno}" for frame in [*ours[-1:], *frames[-1:]] if frame
    )


def peak() -> int:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def printed() -> list[int]:
    """How much lies in the files that stand for stdout and stderr, where they are files."""
    return [os.fstat(number).st_size for number in (1, 2)]


@contextmanager
def time_limit() -> Iterator[None]:
    """Hang is raised after SECONDS of the processor's time, as soon as Python runs again."""

    def stop(*_: Any) -> None:
        raise Hang(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


# --------------------------------------------------------------------------------------------------------------- deeds

deeds: list[tuple[str, str]] | None = None
hooked = False


@contextmanager
def watched() -> Iterator[list[tuple[str, str]]]:
    """The forbidden things that Python does meanwhile, as (event, on what)."""
    global deeds, hooked
    if not hooked:
        sys.addaudithook(notice)  # for ever: a hook cannot be taken back
        hooked = True
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    deeds = found = []
    try:
        yield found
    finally:
        deeds, sys.dont_write_bytecode = None, bytecode


def notice(event: str, words: tuple) -> None:
    if deeds is None:
        return
    if event == "open" and isinstance(words[2], int) and words[2] & WRITES and words[0] != os.devnull:
        deeds.append((event, f"{words[0]!r:.200}"))
    elif event in FORBIDDEN:
        deeds.append((event, f"{words!r:.200}"))
