"""The evidence: one spelling for each value, and a chain in which any change is seen."""

import os

import pytest
from hypothesis import strategies as st

from onnuri import ledger
from onnuri.errors import BadInput

LINE = {
    "operation": "train",
    "family": "tabular",
    "task": "tabular-classification",
    "started": "2026-01-01T00:00:00",
    "settings": {},
    "inputs": [],
    "output": {"tensors": "0"},
    "energy": {"joules": 1.0, "method": "estimated", "error": 0.5},
    "promises": [],
    "findings": [],
    "seconds": 1.0,
    "after": None,
}
TEXT = st.text(st.characters(exclude_categories=()))  # every code point, halves of characters too
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


def test_names_of_another_encoding(tmp_path):
    """A file whose name is not UTF-8, as an unpacked archive leaves them."""
    with open(os.fsencode(tmp_path) + b"/\xb0\xa1.txt", "wb") as file:
        file.write(b"x")
    (tmp_path / "줄\u2028끝\x85.txt").write_text("a line to Python, not to JSON")
    line = LINE | {"output": {"files": ledger.file_digests(tmp_path)}}
    assert ledger.write(tmp_path, [], line) == ledger.read(tmp_path)[0] and ledger.verify(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe", "cannot be read"),
        (b"[]\n", "not a JSON object"),
        (b"{}\n", "no ledger line"),
        (b"\n", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (ledger.canonical(LINE | {"digest": "x", "inputs": [1]}).encode(), "inputs missing or of the wrong type"),
        (ledger.canonical(LINE | {"digest": "x", "after": {}}).encode(), "after missing or of the wrong type"),
        (ledger.canonical(LINE | {"digest": 1, "energy": 2}).encode(), "digest, energy"),
    ],
)
def test_a_malformed_ledger_is_an_error(tmp_path, text, says):
    (tmp_path / "onnuri").mkdir()
    (tmp_path / ledger.FILE).write_bytes(text)
    for look in (ledger.read, ledger.verify, ledger.folder_digest):
        with pytest.raises(BadInput, match=says):
            look(tmp_path)
