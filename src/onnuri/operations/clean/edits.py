"""What is changed in a text before it is judged: its spelling in Unicode, boilerplate lines, personal data."""

import re
import unicodedata
from collections import Counter

from .personal import masked
from .settings import Settings

BREAKS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
INVISIBLE = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060\ufeff]")
HALVES = re.compile("[\ud800-\udfff]")  # of characters: no file can hold them
TRAILING = re.compile(r"(?<![ \t\u00a0\u3000])[ \t\u00a0\u3000]+(?=\n)")
GAPS = re.compile(r"\n{3,}")
BOILERPLATE = (
    "javascript",
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
    "all rights reserved",
    "이용약관",
    "개인정보처리방침",
    "개인정보 처리방침",
    "쿠키를 사용",
    "무단 전재",
    "무단전재",
    "재배포 금지",
    "자바스크립트",
)
"""C4's phrases (arXiv:1910.10683), and what stands at the foot of Korean pages. A line that holds one is left out."""

LONGEST = 200  # characters of such a line: a longer one speaks of these things


def edited(texts: list[str], settings: Settings, found: dict[int, Counter[str]]) -> list[str]:
    """The texts as they are judged and kept; what was masked, and how many lines were left out, is counted in `found`:
    {place: {what: how often}}."""
    return [edited_one(text, settings, found, place) for place, text in enumerate(texts)]


def edited_one(text: str, settings: Settings, found: dict[int, Counter[str]], place: int) -> str:
    counts = Counter[str]()
    text = tidy(text)
    if settings.rules == "web":
        text = without_boilerplate(text, counts)
    text = masked(text, settings.kinds, counts)
    if counts:
        found[place] = found.get(place, Counter()) + counts
    return text


def tidy(text: str) -> str:
    """Composed characters (NFC: Hangul from some systems comes in pieces), line feeds alone, nothing invisible."""
    if not text.isascii() and not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
    if BREAKS.search(text):
        text = BREAKS.sub("\n", text)
    if INVISIBLE.search(text):
        text = INVISIBLE.sub("", text)
    if HALVES.search(text):
        text = HALVES.sub("\ufffd", text)
    return GAPS.sub("\n\n", TRAILING.sub("", text)).strip() if "\n" in text else text.strip()


def without_boilerplate(text: str, found: Counter[str]) -> str:
    """The text without short lines that hold a phrase of boilerplate; a text of one line is left to the rules."""
    lower = text.lower()
    if "\n" not in text or not any(phrase in lower for phrase in BOILERPLATE):
        return text
    lines = text.split("\n")
    kept = [line for line in lines if not is_boilerplate(line)]
    found["boilerplate lines"] += len(lines) - len(kept)
    return "\n".join(kept).strip()


def is_boilerplate(line: str) -> bool:
    lower = line.lower()
    return len(line) < LONGEST and any(phrase in lower for phrase in BOILERPLATE)
