"""The command `onnuri`."""

import os
import signal
import sys
from typing import Any

interrupted = False


def main() -> None:
    """Run the command line. Exit code 2 and one message for anything that is the user's to put right; 1 and one message
    for a fault of ours. `--debug` shows the trace of either."""
    # torch's threads wait for each other by spinning; on a machine that does other work too, spinning costs more than
    # the work: one small training took 18.8 s instead of 7.2 s on two busy cores
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    debug = "--debug" in sys.argv
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell told us to ignore it
        signal.signal(signal.SIGINT, interrupt)
    try:
        for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot spell must not end the command
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        from .cli import command

        command(prog_name="onnuri", args=[a for a in sys.argv[1:] if a != "--debug"], standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, Exception) as error:
        if debug and isinstance(error, Exception):
            raise
        code = explain(error)
        if interrupted:  # an interrupted exec() would have Python end itself by the signal, whatever is asked for here
            sys.stderr.flush()
            os._exit(code)
        sys.exit(code)


def interrupt(*of: Any) -> None:
    """Ctrl-C. A library in the middle of an import can make any other error of it, so it is noted too."""
    global interrupted
    interrupted = True
    signal.default_int_handler(*of)


def explain(error: BaseException) -> int:
    """Tell on stderr what went wrong, in one message; the exit code."""
    from click import Abort, ClickException

    from .errors import OnnuriError

    if interrupted or isinstance(error, (KeyboardInterrupt, Abort)):
        say(
            "stopped; everything finished is intact, and the same command goes on from the state kept last, if there is one"
        )
    elif isinstance(error, ClickException):
        error.show()
    elif isinstance(error, OnnuriError):
        say(str(error))
    elif isinstance(error, BrokenPipeError):  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    elif isinstance(error, OSError):
        say(f"{error.filename or 'a file'}: {error.strerror or error}")
    elif isinstance(error, MemoryError):
        say("there is not enough memory for this; a smaller --batch-size or model needs less")
    else:
        reason = (str(error) or "no reason given").splitlines()[0]
        say(f"a fault of Onnuri itself: {type(error).__name__}: {reason}\n  try: --debug shows where; please report it")
        return 1
    return 2


def say(message: str) -> None:
    print(f"onnuri: {message}", file=sys.stderr)


if __name__ == "__main__":
    main()
