"""One document as text: plain text, web pages, PDF, docx and hwpx, each with limits on what a hostile file can ask for.

`office` reads docx and hwpx, `pages` reads HTML; plain text and PDF are read here. Nothing is fetched, run or written.
"""

import codecs
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import BadInput, needs_extra
from . import office, pages

ENDINGS = (".txt", ".md", ".html", ".htm", ".pdf", ".docx", ".hwpx")
UNREAD = {".hwp": "hwpx"}
UNREAD |= dict.fromkeys((".doc", ".rtf", ".odt"), "docx") | dict.fromkeys((".ppt", ".pptx", ".odp"), "pdf")
UNREAD |= dict.fromkeys((".epub", ".mht", ".mhtml"), "html") | dict.fromkeys((".eml", ".msg"), "txt")
"""Documents that none of our libraries reads, and what to save them as."""
LARGEST = 256 * 2**20  # bytes on disk
LONGEST = 64 * 2**20  # characters of text
BLOCK = 2**20
SAMPLE = 2**20  # characters that say whether a text is Korean
MAGIC = {
    b"%PDF-": "a PDF",
    b"PK\x03\x04": "a zip file",
    b"\x1f\x8b": "a gzip file",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
    b"{\\rtf": "rich text (RTF)",
    office.OLE: "an old office document",
}
MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def read_document(path: Path) -> str:
    """The text of a document that ends in one of ENDINGS, paragraphs divided by an empty line.

    Of a PDF the pages are divided by an empty line and lines stay as they were set: what a paragraph is, the format does
    not say. Words that a hyphen divides at a line's end are joined where a small Latin letter follows. Headers, footnotes,
    comments and deleted revisions of docx and hwpx are left out; of a page, all but its main text. Raises BadInput for
    what cannot be read, is larger than LARGEST (a page: `pages.LARGEST`) or LONGEST, or, unless it is plain text, holds no
    text.
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise unknown_ending(path, ENDINGS)
    if not path.is_file():
        raise BadInput(f"{path} is no file")
    try:
        page = ending in (".html", ".htm")
        size, most = path.stat().st_size, pages.LARGEST if page else LARGEST
        if size > most:
            raise BadInput(f"{path} is too large for its kind: {size:,} bytes, at most {most:,}", hint="divide it")
        if ending in (".txt", ".md"):
            return read_text(path)
        text = read_page(path) if page else read_marked(path, ending)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}") from error
    if not text:
        raise BadInput(f"{path} holds no text")
    return text


def unknown_ending(path: Path, known: Iterable[str]) -> BadInput:
    """The error for a file that nothing here reads; for those of documents it says what to save them as."""
    newer = UNREAD.get(path.suffix.lower())
    return BadInput(
        f"{path} has an unknown ending", hint=f"save it as {newer}" if newer else f"one of {', '.join(known)}"
    )


def read_marked(path: Path, ending: str) -> str:
    """The text of a docx, hwpx or PDF."""
    parts = pdf_pages(path) if ending == ".pdf" else office.paragraphs(path)
    return "\n\n".join(limited(parts, path)).strip()


def limited(pieces: Iterable[str], path: Path) -> Iterator[str]:
    """The pieces of a text, up to LONGEST characters; BadInput beyond."""
    length = 0
    for piece in pieces:
        length += len(piece)
        if length > LONGEST:
            raise BadInput(
                f"{path} ({path.stat().st_size:,} bytes) holds more than {LONGEST:,} characters of text",
                hint="divide it",
            )
        yield piece


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """A library logs nothing meanwhile: what it would tell is in our own message, or concerns no one."""
    log = logging.getLogger(name)
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(level)


# ------------------------------------------------------------------------------------------------------------ plain text


def read_text(path: Path) -> str:
    """UTF-8, or UTF-16 with its mark; else CP949, where that gives Korean."""
    with path.open("rb") as file:
        head = file.read(2**16)
    encoding = next((encoding for mark, encoding in MARKS if head.startswith(mark)), "utf-8")
    check_text(head, encoding, path)
    try:
        text = "".join(limited(decoded(path, encoding), path))
    except UnicodeDecodeError as error:
        text = "" if encoding != "utf-8" else korean(lambda: "".join(limited(decoded(path, "cp949"), path)))
        if not text:
            raise bad_encoding(path, encoding, error) from error
    if "\0" in text:
        raise BadInput(f"{path} is not text: it holds zero bytes")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def check_text(head: bytes, encoding: str, path: Path) -> None:
    """BadInput where the first bytes of a file are those of another format."""
    if what := next((what for magic, what in MAGIC.items() if head.startswith(magic)), None):
        raise BadInput(f"{path} is not text but {what}", hint="give it the ending of what it is")
    if encoding != "utf-16" and b"\0" in head:
        raise BadInput(f"{path} is not text: it holds zero bytes")


def decoded(path: Path, encoding: str) -> Iterator[str]:
    """A file's text, block by block; the place of an error counts from the file's begin."""
    decoder, done = codecs.getincrementaldecoder(encoding)(), 0
    with path.open("rb") as file:
        while True:
            block = file.read(BLOCK)
            held = len(decoder.getstate()[0])
            try:
                yield decoder.decode(block, not block)
            except UnicodeDecodeError as error:
                error.start += done - held
                raise
            done += len(block)
            if not block:
                return


def korean(decode: Callable[[], str]) -> str:
    """What decodes as CP949, or "" where it does not, or not to Korean."""
    try:
        text = decode()
    except UnicodeDecodeError:
        return ""
    return text if is_korean(text) else ""


def is_korean(text: str) -> bool:
    """Whether most of the characters beyond ASCII are Hangul or Hanja, and no fewer are Hangul than Hanja: Chinese and
    Western bytes often make characters of CP949 too, but mostly rare Hanja."""
    sample = text[:SAMPLE]
    hangul, hanja = (len(re.findall(kind, sample)) for kind in ("[\u3131-\u318e가-힣]", "[\u3400-\u9fff\uf900-\ufaff]"))
    beyond = len(sample) - len(re.findall("[\0-\x7f]", sample))
    return hangul >= hanja and hangul + hanja > beyond / 2


def bad_encoding(path: Path, encoding: str, error: UnicodeDecodeError) -> BadInput:
    name, hint = "UTF-16", ""
    if encoding != "utf-16":
        name, hint = "UTF-8", f"iconv -f CP949 -t UTF-8 {path}, or whatever its encoding is"
    return BadInput(f"{path} is not {name} text: {error.reason} at byte {error.start}", hint=hint)


# ----------------------------------------------------------------------------------------------------- pages of the web


def read_page(path: Path) -> str:
    """The main text of a page; its characters by its mark, as UTF-8, as it declares itself, or as CP949."""
    content = path.read_bytes()
    encoding = next((encoding for mark, encoding in MARKS if content.startswith(mark)), "")
    check_text(content, encoding, path)
    try:
        text = content.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        text = pages.as_declared(content) or korean(lambda: content.decode("cp949"))
        if not text:
            raise bad_encoding(path, encoding, error) from error
    with quiet("trafilatura"):
        return pages.main_text(text)


# ------------------------------------------------------------------------------------------------------------------ PDF


def pdf_pages(path: Path) -> Iterator[str]:
    """The text of each page that has any."""
    try:
        import pypdf
        from pypdf.errors import DependencyError
    except ImportError:
        raise needs_extra("documents", "pypdf") from None
    found = False
    try:
        with quiet("pypdf"), path.open("rb") as file:
            reader = pypdf.PdfReader(file)
            if reader.is_encrypted and not reader.decrypt(""):
                raise BadInput(f"{path} is encrypted", hint="save it without its password")
            for page in reader.pages:
                if text := joined_words(page.extract_text()):
                    found = True
                    yield text
    except (BadInput, OSError):
        raise
    except DependencyError:
        raise needs_extra("documents", "cryptography") from None
    except Exception as error:  # pypdf lets through whatever a damaged file makes it stumble over
        raise BadInput(f"{path} cannot be read as a PDF: {str(error) or type(error).__name__}") from error
    if not found:
        raise BadInput(f"{path}: its pages are pictures without text", hint="run OCR on it first, e.g. ocrmypdf")


def joined_words(text: str) -> str:
    """A page's text without the hyphens that only ended a line."""
    lines = "\n".join(line.rstrip() for line in text.replace("\0", "").splitlines())
    return re.sub(r"(?<=[^\W\d_])-\n(?=[a-zß-öø-ÿ])", "", lines).strip()
