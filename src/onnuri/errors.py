"""The five ways in which Onnuri says no. Each is a message for a person; the command line ends with exit code 2."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

NOT_UTF8 = re.compile("[^/\\s]*[\udc80-\udcff][^/\\s]*")
"""A part of a path, or a word, that Python could not decode. No byte of a character in CP949 is a slash or a space."""


class OnnuriError(Exception):
    """What is wrong, what was found, what would work and what to type. All faults of one input at once."""

    def __init__(self, *faults: str, hint: str = ""):
        self.faults, self.hint = tuple(map(readable, faults)), readable(hint)
        super().__init__(*self.faults)

    def __str__(self) -> str:
        return "\n".join(self.faults) + (f"\n  try: {self.hint}" if self.hint else "")

    def found_in(self, place: str) -> None:
        """Let each fault begin with where it was found; hint and class stay."""
        self.faults = tuple(f"{place}: {fault}" for fault in self.faults)


class BadInput(OnnuriError):
    """A model folder or a data source is not what it must be."""


class MissingExtra(BadInput):
    """What it is can only be told with a library that is not installed."""


class BadSettings(OnnuriError):
    """A setting is unknown, out of range, or would have no effect."""


class Refusal(OnnuriError):
    """The operation is sound but this model cannot take it: `why`, and what to do `instead`."""

    def __init__(self, why: str, instead: str):
        super().__init__(why, hint=instead)

    @property
    def why(self) -> str:
        return self.faults[0]

    @property
    def instead(self) -> str:
        return self.hint


class BrokenPromise(OnnuriError):
    """An operation ran, its result was measured, and the measurement broke a promise."""


class UnknownName(OnnuriError):
    """No family, operation, runtime or recipe has that name."""


def propose(wrong: str, known: Iterable[str]) -> str:
    """A message part: the close matches of `wrong`, else all that is known."""
    known = sorted(known)
    near = get_close_matches(wrong, known, n=2, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"


def needs_extra(extra: str, package: str) -> MissingExtra:
    """The error for an optional library that is not installed: it names the extra that brings it."""
    return MissingExtra(f"this needs {package}, which is not installed", hint=f"pip install 'onnuri[{extra}]'")


def readable(text: str) -> str:
    """Text that can be written, with the names in it of files that were not named in UTF-8: those of old Windows archives
    are in CP949, the bytes of others are written out."""

    def decoded(name: re.Match[str]) -> str:
        stored = name[0].encode("utf-8", "surrogateescape")
        try:
            return stored.decode("cp949")
        except UnicodeDecodeError:
            return stored.decode("utf-8", "backslashreplace")

    return NOT_UTF8.sub(decoded, text)
