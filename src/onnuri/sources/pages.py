"""Pages of the web: their characters, and their main text by trafilatura, else all that stands in their body.

trafilatura is given a tree that is parsed already, without an address: it neither fetches, unpacks nor dates anything.
"""

import copy
import functools
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ..errors import needs_extra

LARGEST = 16 * 2**20  # bytes: as a tree, a page takes a hundred times as much
MOST_NODES = 100_000  # elements and attributes: of more, trafilatura would think for minutes
DEEPEST = 300  # elements within each other: it thinks longer by the square of that
AS_BROWSERS = {
    **dict.fromkeys(("euc-kr", "ks_c_5601-1987", "ks_c_5601", "ksc5601", "korean", "windows-949", "uhc"), "cp949"),
    "iso-8859-1": "cp1252",
}
"""{what a page calls its charset: the larger one that is meant}."""
CHARSETS = (
    r"(utf-?8|cp949|cp1252|euc-|iso-|windows-125|shift_?jis|big5|gb|koi8-)"  # Python knows others that are no text
)
DAMAGED = 0.01  # the share of characters that cannot be read and still do not spoil a page
BOILERPLATE = (
    "head", "script", "style", "noscript", "template", "nav", "footer", "aside", "iframe", "svg", "object", "button", "select",
)  # fmt: skip
BLOCKS = {
    "p", "div", "section", "article", "main", "header", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "table", "pre",
    "blockquote", "figure", "form", "hr", "address", "head", "list", "quote",
}  # fmt: skip
"""Of HTML, and of trafilatura's own trees, as in the sets below."""
LINES = {"li", "dt", "dd", "tr", "br", "caption", "item", "row", "lb"}
CELLS = {"td", "th", "cell"}
ITEMS = {"li", "item"}


def as_declared(content: bytes) -> str:
    """A page's characters as its meta element says, or "" where it says nothing that gives a text."""
    found = re.search(
        rb"<(?:meta|\?xml)[^>]{,500}?(?:charset|encoding)\s*=\s*[\"']?\s*([\w:.-]{1,40})", content[:4096], re.I
    )
    name = found[1].decode("ascii", "replace").lower() if found else ""
    name = AS_BROWSERS.get(name, name)
    if not re.match(CHARSETS, name):
        return ""
    try:
        text = content.decode(name, "replace")
    except LookupError:
        return ""
    return text if text.count("\ufffd") <= DAMAGED * len(text) else ""


def main_text(page: str) -> str:
    """The text of a page without its navigation, footer, scripts and banners. Where nothing of it looks like a main text,
    or it is no ordinary page, all the text of its body but that of BOILERPLATE; "" where there is none."""
    try:
        import trafilatura
        from lxml import etree, html  # type: ignore[attr-defined]
    except ImportError:
        raise needs_extra("documents", "trafilatura") from None
    parser = html.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True, huge_tree=True)
    try:
        tree = html.document_fromstring(page.replace("\0", "").encode("utf-8", "replace"), parser=parser)
    except (etree.ParserError, etree.XMLSyntaxError):  # no element at all
        return ""
    found: Any = None
    if is_ordinary(tree):
        try:
            found = trafilatura.bare_extraction(tree, include_comments=False, include_formatting=False, config=config())
        except Exception:  # a page that is too odd for it has still a text
            found = None
    if found is not None and (text := written(found.body)):
        return text
    etree.strip_elements(tree, *BOILERPLATE, with_tail=False)
    return written(tree)


@functools.cache
def config():
    """Trafilatura's settings, without its last resort for short pages, which takes menus for text and parts words."""
    from trafilatura.settings import DEFAULT_CONFIG

    found = copy.deepcopy(DEFAULT_CONFIG)
    found["DEFAULT"]["MIN_EXTRACTED_SIZE"] = "0"
    return found


def is_ordinary(tree) -> bool:
    """Whether a tree is neither larger nor deeper than what trafilatura reads within seconds."""
    from lxml import etree  # type: ignore[attr-defined]

    nodes = depth = 0
    for event, node in etree.iterwalk(tree, events=("start", "end")):
        depth += 1 if event == "start" else -1
        nodes += 1 + len(node.attrib) if event == "start" else 0
        if nodes > MOST_NODES or depth > DEEPEST:
            return False
    return True


def written(tree) -> str:
    """The text of a tree: blocks divided by an empty line, items and rows on lines of their own, tabs between cells."""
    from lxml import etree  # type: ignore[attr-defined]

    text = Text()
    for event, node in etree.iterwalk(tree, events=("start", "end")):
        if event == "start":
            text.start(node.tag, node.tag == "pre" or (node.tag == "code" and "\n" in "".join(node.itertext())))
            text.put(node.text or "")
        else:
            text.end(node.tag)
            text.put(node.tail or "")
    return "".join(text.parts).strip("\n ")


@dataclass
class Text:
    """What is written so far. `gap`: what stands before the next words; `within`: {tag: how many of it are open}."""

    parts: list[str] = field(default_factory=list)
    gap: str = ""
    within: Counter[str] = field(default_factory=Counter)
    literal: list[str] = field(default_factory=list)

    def start(self, tag: str, literal: bool) -> None:
        self.divide(tag, literal)
        self.within[tag] += 1
        if literal:
            self.literal.append(tag)
        if tag in ITEMS:
            self.gap += "- "

    def end(self, tag: str) -> None:
        self.within[tag] -= 1
        literal = self.literal[-1:] == [tag]
        if literal:
            self.literal.pop()
            self.parts[-1:] = [part.rstrip() for part in self.parts[-1:]]
        self.divide(tag, literal)
        if tag in CELLS and not self.inside(CELLS):
            self.gap = self.gap.rstrip(" ") + "\t"

    def inside(self, tags: set[str]) -> bool:
        return any(self.within[tag] for tag in tags)

    def divide(self, tag: str, literal: bool) -> None:
        """The gap at an element's edge: within a cell a blank, within an item a line, since each is one of its kind."""
        if literal or tag in BLOCKS or tag in LINES:
            within = " " if self.inside(CELLS) else "\n" if self.inside(ITEMS) else ""
            self.widen(within or ("\n" if tag in LINES else "\n\n"))

    def widen(self, gap: str) -> None:
        """The wider of two gaps that meet; the empty cells at a row's end are none, and an item begins on its line."""
        if self.gap.endswith("- "):
            return
        self.gap = max(gap, self.gap.rstrip("\t "), key=len) if "\n" in gap else self.gap or gap

    def put(self, text: str) -> None:
        if self.literal:
            self.emit(text.lstrip("\n") if self.gap or not self.parts else text)
            return
        if text[:1].isspace():
            self.gap = self.gap or " "
        if words := " ".join(text.split()):
            self.emit(words)
            self.gap = " " if text[-1:].isspace() else ""

    def emit(self, text: str) -> None:
        if text:
            self.parts += [self.gap if self.parts else self.gap.lstrip("\n "), text]
            self.gap = ""
