"""Runs a command where there is no network but this machine's own loopback: python tests/offline.py COMMAND ...

Linux gives an unprivileged process a network namespace of its own (`unshare -rn`). Where it is not allowed to, the exit code
is 77 and nothing was run; with --if-possible first, the command then runs as it is and a line on stderr says so.
"""

import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys

SIOCSIFFLAGS, IFF_UP, IFF_RUNNING = 0x8914, 0x1, 0x40
NOT_ALLOWED = 77


def loopback_up() -> None:
    """A new namespace has its loopback down; processes that work together on one machine need it."""
    with socket.socket() as any_socket:
        request = struct.pack("16sH14s", b"lo", IFF_UP | IFF_RUNNING, b"")
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, request)


def allowed() -> bool:
    tool = shutil.which("unshare")
    return tool is not None and subprocess.run([tool, "-rn", "true"], capture_output=True).returncode == 0


def main(words: list[str]) -> None:
    if words[0] == "--inside":
        loopback_up()
        os.execvp(words[1], words[1:])
    willing = words[0] == "--if-possible"
    command = words[1:] if willing else words
    if allowed():
        os.execvp("unshare", ["unshare", "-rn", sys.executable, __file__, "--inside", *command])
    if not willing:
        sys.exit(NOT_ALLOWED)
    print("offline: this system allows no network namespace; the network is left as it is", file=sys.stderr)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
