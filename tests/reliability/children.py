"""Work in a process of its own that has everything imported already: it starts at once, and may be killed, locked out or
given disks of its own."""

import ctypes
import json
import multiprocessing
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from command import SMALL

START = multiprocessing.get_context("forkserver")
START.set_forkserver_preload(
    [f"onnuri.operations.{name}" for name in ("train", "distill", "prune", "quantize", "export", "predict", "evaluate")]
    + ["onnuri.families.tabular", "onnuri.recipe", "onnuri.report", "onnxscript", "onnxruntime"]
)

LIFE = {
    "data": "builtin:iris",
    "start": "tabular",
    "steps": {
        "base": {"train": {"config": SMALL, "steps": 24, "save_every": 0}},
        "student": {"distill": {"model": "base", "size": 0.5, "steps": 16, "save_every": 0}},
        "pruned": {"prune": {"model": "student", "share": 0.3}},
        "recovered": {"train": {"model": "pruned", "steps": 12, "save_every": 0}},
        "packed": {"quantize": {"model": "recovered"}},
        "onnx": {"export": {"model": "packed"}},
    },
}
"""A whole life of a small model, a state kept after every step of its trainings."""


def spelled(config: dict[str, Any]) -> str:
    """A config as the command line takes it."""
    return ",".join(f"{name}={json.dumps(value)}" for name, value in config.items())


def started(work: Callable, *arguments: Any) -> Any:
    child = START.Process(target=work, args=arguments)
    child.start()
    return child


def inside(work: Callable, *arguments: Any) -> Any:
    """What `work(*arguments)` gives in a child. AssertionError with the child's own trace where it fails there."""
    ours, theirs = START.Pipe(duplex=False)
    child = started(told, theirs, work, arguments)
    theirs.close()
    try:
        fault, value = ours.recv()
    except EOFError:
        child.join()
        raise AssertionError(f"the child ended with {child.exitcode}") from None
    child.join()
    assert not fault, fault
    return value


def told(pipe: Any, work: Callable, arguments: tuple) -> None:
    try:
        pipe.send(("", work(*arguments)))
    except BaseException:
        pipe.send((traceback.format_exc(), None))


# ------------------------------------------------------------------------------------------------------------------ disks


LIBC = ctypes.CDLL(None, use_errno=True)
NEW_MOUNTS, NEW_USER = 0x00020000, 0x10000000
READ_ONLY, REMOUNT, RECURSIVE, PRIVATE = 1, 32, 1 << 14, 1 << 18


def checked(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def own_mounts() -> None:
    """From here on nobody else sees what this process mounts. OSError where the system does not allow it."""
    user, group = os.geteuid(), os.getegid()
    if LIBC.unshare(NEW_MOUNTS):
        checked(LIBC.unshare(NEW_MOUNTS | NEW_USER))
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    checked(LIBC.mount(None, b"/", None, RECURSIVE | PRIVATE, None))


def disk(folder: Path, size: int, flags: int = 0) -> None:
    """A disk of `size` bytes at `folder`; with REMOUNT that of before, larger, or READ_ONLY from now on."""
    checked(LIBC.mount(b"none", os.fsencode(folder), b"tmpfs", flags, f"size={size}".encode()))


def unmount(folder: Path) -> None:
    checked(LIBC.umount2(os.fsencode(folder), 2))


def can_mount() -> bool:
    try:
        own_mounts()
    except OSError:
        return False
    return True


def obey_permissions() -> None:
    """Give up root's right to write and read whatever it likes (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH)."""
    head = (ctypes.c_uint32 * 2)(0x20080522, 0)
    rights = (ctypes.c_uint32 * 6)()
    checked(LIBC.capget(head, rights))
    for place in (0, 1):  # effective and permitted
        rights[place] &= ~0b110
    checked(LIBC.capset(head, rights))
