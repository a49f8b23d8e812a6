"""Long sequences of tokens: cut into stretches that can be read at once, laid side by side in rows, kept on the disk."""

import tempfile
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from math import ceil

import numpy as np

from ..errors import BadInput

Stretch = tuple[int, int, int]
"""(first place, end, first place that is asked for)."""


def count(length: int, most: int, context: int) -> int:
    """How many stretches there are of a sequence."""
    return 1 + max(0, ceil((length - most) / (most - context)))


def stretches(length: int, most: int, context: int) -> list[Stretch]:
    """Stretches of at most `most` places in which each place is asked for once; behind the first stretch no place has fewer than
    `context` places before it in its own."""
    starts = [number * (most - context) for number in range(count(length, most, context))]
    return [(start, min(length, start + most), start + context if start else 0) for start in starts]


def first_fit(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Rows of `width` places, each with the numbers of those that share it: the longest first, each into the fullest row that
    has room for it (best fit decreasing). The order of equal ones is theirs, so the rows are a function of `lengths`."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (places left, row), ascending
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        at = bisect_left(room, (lengths[number], -1))
        if at == len(room):
            rows.append([])
            left, row = width, len(rows) - 1
        else:
            left, row = room.pop(at)
        rows[row].append(number)
        left -= lengths[number]
        room.insert(bisect_left(room, (left, row)), (left, row))
    return rows


def stored(sequences: Iterable[Sequence[int]], tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """(all tokens behind each other, where each sequence ends). The tokens lie in a file without a name, 2 bytes each where
    there are 2^16 of them or fewer, so that they may be more than the memory holds; it goes when the array goes."""
    kind, ends = np.uint16 if tokens <= 2**16 else np.uint32, [0]
    try:
        with tempfile.TemporaryFile() as file:
            for sequence in sequences:
                file.write(np.asarray(sequence, kind).tobytes())
                ends.append(ends[-1] + len(sequence))
            file.flush()
            return np.memmap(file, kind, "r"), np.asarray(ends[1:])
    except OSError as error:
        found = f"the tokens of the texts, {np.dtype(kind).itemsize} bytes each, found no room: {error.strerror}"
        raise BadInput(found, hint=f"free space in {tempfile.gettempdir()}, or TMPDIR=another folder") from error
