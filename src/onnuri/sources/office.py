"""Documents that are a zip of XML: the text of docx and hwpx, read as a stream with limits, without any library.

Both formats name the same things alike, a paragraph `p`, a text `t`, a table `tbl` of rows `tr` of cells `tc`, so that one
reader serves both. What is written twice for older programs, deleted revisions, headers and notes are left out.
"""

import re
import zipfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NoReturn
from xml.parsers import expat

from ..errors import BadInput

PARTS = {".docx": r"word/document(\d*)\.xml", ".hwpx": r"Contents/section(\d+)\.xml"}
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # what old binary documents begin with, and docx under a password
MOST_UNPACKED = 128 * 2**20  # bytes of XML
GRACE = 16 * 2**20  # bytes of XML that a document of any size may hold
RATIO = 200  # bytes of XML for each byte on disk, beyond GRACE
MOST_PARTS = 2**16
BLOCK = 2**20
LONGEST_TAG = 4 * 2**20  # bytes: expat before 2.6 scans an unfinished one anew with every block
JOINS = {"tc": " ", "tr": "\t", "tbl": "\n"}
MARKS = {
    "tab": "\t", "br": "\n", "cr": "\n", "lineBreak": "\n", "nbSpace": " ", "fwSpace": " ", "noBreakHyphen": "-", "hyphen": "-",
}  # fmt: skip
SKIPPED = ("del", "moveFrom", "Fallback", "header", "footer", "footNote", "endNote", "hiddenComment")


def paragraphs(path: Path) -> Iterator[str]:
    """The paragraphs of a docx or hwpx that hold text; a table is one, with a line per row and tabs between its cells.

    Raises BadInput for what is no such document, is encrypted, or unpacks to more than its size or our limits allow.
    """
    try:
        check_zip(path)
        with zipfile.ZipFile(path) as archive:
            left = min(MOST_UNPACKED, max(GRACE, RATIO * path.stat().st_size))
            check_manifest(archive, path)
            for part in parts_of(archive, path):
                with archive.open(part) as file:
                    left = yield from part_text(file, left, path)
    except (BadInput, OSError):
        raise
    except Exception as error:  # a damaged zip makes its reader stumble in many ways
        what = path.suffix.lower().lstrip(".")
        raise BadInput(f"{path} cannot be read as {what}: {str(error) or type(error).__name__}") from error


def part_text(file: IO[bytes], left: int, path: Path) -> Generator[str, None, int]:
    """The paragraphs of one part, which may unpack to `left` bytes; returns how many of these are left."""
    body, parser, done = Body(), expat.ParserCreate(), 0
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = body.start, body.end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = body.write, refuse_doctype
    while block := file.read(min(BLOCK, left - done + 1)):
        done += len(block)
        if done > left:
            raise BadInput(f"{path} ({path.stat().st_size:,} bytes) unpacks to far more than a document holds")
        parser.Parse(block, False)
        if done - parser.CurrentByteIndex > LONGEST_TAG:
            raise BadInput(f"{path} holds an element of more than {LONGEST_TAG:,} bytes")
        yield from body.taken()
    parser.Parse(b"", True)
    yield from body.taken()
    return left - done


def check_zip(path: Path) -> None:
    """BadInput for an old or encrypted document, and for a zip with so many parts that their list would fill the memory."""
    with path.open("rb") as file:
        if file.read(len(OLE)) == OLE:
            raise BadInput(f"{path} is encrypted, or of an old binary format", hint="save it anew, without a password")
        file.seek(0)
        count = sum(block.count(b"PK\x01\x02") for block in iter(lambda: file.read(BLOCK), b""))
    if count > MOST_PARTS:
        raise BadInput(f"{path} holds more than {MOST_PARTS:,} parts")


def check_manifest(archive: zipfile.ZipFile, path: Path) -> None:
    """BadInput where a hwpx says that its parts are encrypted."""
    if "META-INF/manifest.xml" in archive.namelist():
        with archive.open("META-INF/manifest.xml") as file:
            if b"encryption-data" in file.read(2**20):
                raise BadInput(f"{path} is encrypted", hint="save it without its password")


def parts_of(archive: zipfile.ZipFile, path: Path) -> list[zipfile.ZipInfo]:
    """The parts with the text, in their order."""
    ending = path.suffix.lower()
    found = [(match, one) for one in archive.infolist() if (match := re.fullmatch(PARTS[ending], one.filename))]
    if not found:
        raise BadInput(f"{path} is a zip, but no {ending.lstrip('.')}")
    for _, part in found:
        if part.flag_bits & 1:
            raise BadInput(f"{path} is encrypted", hint="save it without its password")
        if part.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # the others unpack without a limit
            raise BadInput(f"{path} is packed in a way that no {ending.lstrip('.')} is")
    return [part for _, part in sorted(found, key=lambda one: int(one[0][1] or 0))]


def refuse_doctype(*_: object) -> NoReturn:
    raise ValueError("a DOCTYPE, which no document of its kind has")


@dataclass
class Body:
    """What a parser has met so far of one part. `frames`: the finished blocks outside of tables, then those of each table,
    row and cell that is open; `pieces`: the text of each paragraph that is open, for a text box stands inside of one."""

    frames: list[list[str]] = field(default_factory=lambda: [[]])
    pieces: list[list[str]] = field(default_factory=list)
    path: list[str] = field(default_factory=lambda: [""])
    skipped: int = 0
    deleted: bool = False

    def start(self, tag: str, _: object) -> None:
        name = tag.rpartition(":")[2]
        if self.skipped or name in SKIPPED:
            self.skipped += 1
            return
        if name in MARKS and self.path[-1] in ("r", "t", "run"):  # elsewhere a `tab` is a setting
            self.put(MARKS[name])
        elif name == "p":
            self.pieces.append([])
        elif name in JOINS:
            self.flush()
            self.frames.append([])
        elif name in ("deleteBegin", "deleteEnd"):  # hwpx marks both ends of what is deleted
            self.deleted = name == "deleteBegin"
        self.path.append(name)

    def end(self, _: str) -> None:
        if self.skipped:
            self.skipped -= 1
            return
        name = self.path.pop()
        if name == "p":
            self.flush()
            self.pieces.pop()
        elif name in JOINS:
            text = JOINS[name].join(self.frames.pop())
            if name == "tc":  # an empty one keeps its column
                self.frames[-1].append(" ".join(text.split()))
            elif text.strip():
                self.frames[-1].append(text)

    def write(self, text: str) -> None:
        if self.path[-1] == "t" and not self.skipped:
            self.put(text)

    def put(self, text: str) -> None:
        if self.pieces and not self.deleted:
            self.pieces[-1].append(text)

    def flush(self) -> None:
        """End the block that the open paragraph has so far."""
        self.deleted = False
        if self.pieces:
            text = "".join(self.pieces[-1]).strip()
            self.pieces[-1].clear()
            self.frames[-1].extend([text] if text else [])

    def taken(self) -> list[str]:
        """The blocks that are finished; they are forgotten here."""
        found, self.frames[0][:] = self.frames[0][:], []
        return found
