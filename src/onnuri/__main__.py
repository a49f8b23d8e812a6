"""The command `onnuri`."""

import os
import sys


def main() -> None:
    """Run the command line. Exit code 2 and one message for anything that is the user's to put right."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from .errors import OnnuriError

    debug = "--debug" in sys.argv
    try:
        from .cli import command

        command(prog_name="onnuri", args=[a for a in sys.argv[1:] if a != "--debug"], standalone_mode=False)
    except KeyboardInterrupt:
        fail("stopped; everything finished is intact, and the same command goes on where it stopped")
    except OnnuriError as error:
        if debug:
            raise
        fail(str(error))
    except OSError as error:
        if debug:
            raise
        fail(f"{error.filename or 'a file'}: {error.strerror or error}")
    except Exception as error:
        from click import Abort, ClickException

        if isinstance(error, ClickException):
            error.show()
            sys.exit(2)
        if isinstance(error, Abort):
            fail("stopped; everything finished is intact, and the same command goes on where it stopped")
        raise


def fail(message: str) -> None:
    print(f"onnuri: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
