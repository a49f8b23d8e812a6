"""Personal data that rules can find for certain enough, and the marks that are written in their place.

1. A Korean resident number must begin with a date; with its hyphen that is enough, since numbers given out from October 2020
   have no check digit; without it the check digit must be right, which is another one for foreigners.
2. A card number must pass the check of Luhn and begin as cards do. 3. Of addresses in the network only public ones count.
4. A name is found where someone is spoken of by it: a Korean surname and two syllables before 씨, a title in English before
   words with capitals. Other names are not found; whoever needs that needs a model and a person.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable
from datetime import date

SURNAMES = (
    "김이박최정강조윤장임한오서신권황안송류전홍고문양손배백허유남심노하곽성차주우구민진지엄채원천방공현함변염여추도소석선설마"
    "길연위표명기반왕금옥육인맹제모탁국어은편용예봉경사부"
)
DASH = r" ?[-–.]? ?"
PATTERNS = {
    "email": r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
    r"(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}",
    "resident": rf"(?<![\d.])\d{{6}}{DASH}[1-8]\d{{6}}(?!\d)",
    "card": r"(?<![\d.-])[2-6]\d{3}([ .-]?)\d{4}\1\d{4}\1\d{1,7}(?![\d-])|(?<![\d.-])3[47]\d{2}([ -]?)\d{6}\2\d{5}(?![\d-])",
    "phone": rf"(?<![\d.])(?:(?:\+?82{DASH}(?:\(0\))?|0)(?:10|1[16-9]){DASH}\d{{3,4}}{DASH}\d{{4}}"
    rf"|(?:\+?82{DASH}(?:\(0\))?|0|\(0)(?:2|[3-6]\d|70|50\d?|80)(?:\)|(?![\d])){DASH}\d{{3,4}}{DASH}\d{{4}}"
    r"|\+[1-9]\d{0,2}[ .-]?\(?\d{1,4}\)?(?:[ .-]\d{2,4}){2,4}"
    r"|\([2-9]\d{2}\) ?[2-9]\d{2}[.-]\d{4}|[2-9]\d{2}-[2-9]\d{2}-\d{4})(?!\d|[.-]\d)",
    "address": r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?!\d|\.\d)",
    "name": rf"(?<![가-힣])[{SURNAMES}][가-힣]{{2}}(?= ?씨(?:[이가은는을를의도와과]|께|에게)?(?![가-힣]))"
    r"|(?<=\bMr\. )(?:[A-Z][a-z]+)(?: [A-Z][a-z]+)?|(?<=\bMs\. )(?:[A-Z][a-z]+)(?: [A-Z][a-z]+)?"
    r"|(?<=\bMrs\. )(?:[A-Z][a-z]+)(?: [A-Z][a-z]+)?|(?<=\bDr\. )(?:[A-Z][a-z]+)(?: [A-Z][a-z]+)?",
}
KINDS = tuple(PATTERNS)
COMPILED = {kind: re.compile(pattern) for kind, pattern in PATTERNS.items()}
MAY_BE = re.compile(r"@|\d(?:\D{0,3}\d){3}|씨|Mr\.|Ms\.|Mrs\.|Dr\.")
"""Of most texts it can be told at once that nothing of any kind is in them."""


def masked(text: str, kinds: tuple[str, ...], found: Counter[str]) -> str:
    """The text with `[kind]` in place of what was found, which is counted."""
    if not MAY_BE.search(text):
        return text
    for kind in kinds:

        def mark(match: re.Match[str], kind: str = kind) -> str:
            if not CHECKS[kind](match[0]):
                return match[0]
            found[kind] += 1
            return f"[{kind}]"

        text = COMPILED[kind].sub(mark, text)
    return text


# ----------------------------------------------------------------------------------------------------------- checks


def is_resident(text: str) -> bool:
    digits = [int(digit) for digit in text if digit.isdigit()]
    year, month, day = (10 * digits[place] + digits[place + 1] for place in (0, 2, 4))
    century = 1900 if digits[6] in (1, 2, 5, 6) else 2000
    try:
        date(century + year, month, day)
    except ValueError:
        return False
    weights = (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5)
    rest = sum(weight * digit for weight, digit in zip(weights, digits)) % 11
    check = ((13 if digits[6] > 4 else 11) - rest) % 10
    return not text.isdigit() or check == digits[12]


def is_card(text: str) -> bool:
    digits = [int(digit) for digit in reversed(text) if digit.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return 13 <= len(digits) <= 19 and (sum(digits[::2]) + sum(doubled)) % 10 == 0


def is_phone(text: str) -> bool:
    """Eight digits at least, and no date behind a sign."""
    return sum(map(str.isdigit, text)) >= 8 and not re.search(r"(?:19|20)\d\d-\d\d-\d\d", text)


def is_public(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


CHECKS: dict[str, Callable[[str], bool]] = dict.fromkeys(KINDS, lambda text: True) | {
    "resident": is_resident,
    "card": is_card,
    "address": is_public,
    "phone": is_phone,
}
