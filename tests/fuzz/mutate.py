"""Changed inputs: bytes at random, and where a format has a form inside, changes that leave the form whole.

A checksum or a length that no longer fits would end the reading at once; the forms put them right again.
"""

import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

LONGEST = 2**16  # bytes of an input
NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    255,
    256,
    65_535,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**53,
    2**63 - 1,
    2**63,
    2**64,
    10**12,
    10**40,
)
FLOATS = (0.0, -0.0, 0.5, -1.5, 1e-40, 1e38, 1e39, 1e308, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    "",
    " ",
    "x",
    "\0",
    "가",
    "\ud800",
    "\ufeff",
    "../x",
    "/",
    "nan",
    "1e999",
    "null",
    "None",
    "a" * 300,
    "😀",
    "__class__",
)
VALUES: tuple[Any, ...] = (
    *NUMBERS, *FLOATS, *TEXTS, None, True, False, [], {}, [[]], [0], [1, 2, 3], ["x"], {"x": 1}, {"0": "x"}, [None], [{}],
)  # fmt: skip
WORDS = [str(number).encode() for number in NUMBERS] + [
    b'"', b"'", b",", b":", b"{", b"}", b"[", b"]", b"\n", b"\r\n", b"\t", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"nan",
    b"-inf", b"1e999", b"null", b"true", b"&a", b"*a", b"<<", b"!!", b"---", b"=", b"--", b"#", b"%", b"[" * 200,
    b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x00\x00\x00\x00", b"\x00\x00\x00\x80", b"\xff" * 8, b"\x80\x02.", b"\xea\xb0\x80",
]  # fmt: skip

Mutate = Callable[[bytes, random.Random, Sequence[bytes]], bytes]
"""(an input, the dice, other inputs) -> another one."""


def mutated(data: bytes, draw: random.Random, others: Sequence[bytes], form: Mutate) -> bytes:
    """One to four changes; half of them leave the form whole where there is one."""
    for _ in range(draw.choice((1, 1, 1, 2, 2, 4))):
        change = form if draw.random() < 0.5 else plain
        data = change(data, draw, others)[:LONGEST]
    return data


def plain(data: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """A change of any bytes."""
    start = draw.randrange(len(data) + 1)
    end = min(len(data), start + draw.choice((1, 1, 2, 4, 8, draw.randrange(len(data) + 1))))
    part = data[start:end]
    new = draw.choice(
        (
            lambda: bytes([draw.randrange(256)]) * len(part),
            lambda: bytes(byte ^ (1 << draw.randrange(8)) for byte in part),
            lambda: b"",
            lambda: draw.randbytes(draw.choice((1, 2, 4, 8))),
            lambda: draw.choice(WORDS),
            lambda: part * draw.choice((2, 3, 50)),
            lambda: piece_of(draw.choice(others), draw) if others else b"",
            lambda: part + draw.choice(WORDS),
            lambda: struct.pack(draw.choice(("<q", ">q")), draw.choice(NUMBERS) % 2**63),
        )
    )()
    cut = draw.random() < 0.03  # all that follows is lost
    return data[:start] + new + (b"" if cut else data[end:])


def piece_of(data: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(data) + 1)
    return data[start : start + draw.choice((4, 16, 64, 1000))]


# --------------------------------------------------------------------------------------------------------------- forms


def changed_value(value: Any, draw: random.Random) -> Any:
    """A JSON value with one place in it changed."""
    if isinstance(value, (dict, list)) and value and draw.random() < 0.93:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = draw.choice(keys)
        copy: Any = dict(value) if isinstance(value, dict) else list(value)
        way = draw.random()
        if way < 0.75:
            copy[key] = changed_value(copy[key], draw)
        elif way < 0.85:
            del copy[key]
        elif isinstance(copy, dict):
            copy[draw.choice((*TEXTS, *keys))] = draw.choice((copy[key], draw.choice(VALUES)))
        else:
            copy.insert(key, draw.choice((copy[key], draw.choice(VALUES))))
        return copy
    if isinstance(value, (int, float)) and draw.random() < 0.4:
        return draw.choice((value + 1, value - 1, -value, value * 2, value * 10**6, str(value), [value]))
    return draw.choice(VALUES)


def json_form(data: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    try:
        value = json.loads(data.decode("utf-8", "surrogatepass"))
        return json.dumps(changed_value(value, draw)).encode()
    except (ValueError, RecursionError, OverflowError):
        return plain(data, draw, others)


def lines_form(data: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """Lines of JSON: one is changed, doubled, moved or lost."""
    lines = data.split(b"\n")
    place = draw.randrange(len(lines))
    way = draw.random()
    if way < 0.8:
        lines[place] = json_form(lines[place], draw, others)
    elif way < 0.9:
        lines.insert(draw.randrange(len(lines) + 1), lines[place])
    else:
        del lines[place]
    return b"\n".join(lines)


def cells_form(data: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """A table as text: one cell is another."""
    lines = [line.split(b",") for line in data.split(b"\n")]
    row = draw.choice(lines)
    row[draw.randrange(len(row))] = draw.choice((*WORDS, *draw.choice(lines)))
    return b"\n".join(map(b",".join, lines))


def words_form(data: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """Lines that are words of a command: one is another, or of another command."""
    words = data.split(b"\n")
    more = draw.choice(others).split(b"\n") if others else words
    place = draw.randrange(len(words))
    words[place : place + draw.choice((0, 1, 1))] = [draw.choice((*more, *WORDS, *words))]
    return b"\n".join(words)


def header_form(data: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """Safetensors: a length, a header of JSON, numbers. The length is that of the new header."""
    size = int.from_bytes(data[:8], "little")
    header = json_form(data[8 : 8 + size], draw, others)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def png_form(data: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """The content of a chunk changed, its length and checksum right."""
    chunks, place = [], 8
    while place + 12 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + size]))
        place += 12 + size
    if not chunks:
        return plain(data, draw, others)
    chosen = draw.randrange(len(chunks))
    name, content = chunks[chosen]
    if name == b"IDAT" and draw.random() < 0.5:
        try:
            content = zlib.compress(plain(zlib.decompress(content), draw, ()))
        except zlib.error:
            content = plain(content, draw, ())
    else:
        content = plain(content, draw, ())
    chunks[chosen] = (draw.choice((name, name, name, b"tRNS", b"eXIf", b"iTXt", b"acTL", b"PLTE")), content)
    written = [len(c).to_bytes(4, "big") + n + c + zlib.crc32(n + c).to_bytes(4, "big") for n, c in chunks]
    return data[:8] + b"".join(written)


def zip_form(data: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """The content of a zip's part changed, or an element of it lost, doubled or moved; its lengths and checksums right."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = [[one.filename, archive.read(one)] for one in archive.infolist()[:50]]
    except Exception:  # after another change
        return plain(data, draw, others)
    if not parts:
        return plain(data, draw, others)
    chosen = draw.choice(parts)
    tags = chosen[1].split(b"<")
    if draw.random() < 0.5:
        start = draw.randrange(len(tags))
        tags[start : start + draw.choice((0, 1, 1, 5))] = draw.sample(tags, draw.choice((0, 1, min(5, len(tags)))))
        chosen[1] = b"<".join(tags)
    else:
        chosen[1] = plain(chosen[1], draw, ())
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts:
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return held.getvalue()
