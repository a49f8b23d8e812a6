"""Ledger lines: one spelling for each value, a chain that verifies whatever stands in it, and any change is found."""

import contextlib
import json
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from onnuri import ledger
from onnuri.card import card
from onnuri.errors import BadInput
from onnuri.show import timeline
from test_ledger import JSON, LINE, TEXT

ANY = st.recursive(JSON | st.floats() | st.integers(-(10**60), 10**60), lambda inner: st.lists(inner, max_size=3))


@given(st.dictionaries(TEXT, JSON, max_size=5))
def test_one_spelling(value):
    text = ledger.canonical(value)
    again = json.loads(ledger.encoded(text).decode("utf-8", "surrogatepass"))
    assert again == value and ledger.canonical(again) == text and "\n" not in text
    turned = dict(reversed(value.items()))
    assert ledger.canonical(turned) == text and ledger.digest(turned) == ledger.digest(value)


@given(st.dictionaries(TEXT.filter(lambda name: name != "digest"), JSON, min_size=1, max_size=5), st.data())
def test_the_digest_sees_every_value_but_itself(value, data):
    name = data.draw(st.sampled_from(sorted(value)))
    changed = value | {name: [value[name]]}
    assert ledger.digest(changed) != ledger.digest(value) == ledger.digest(value | {"digest": "x"})


@settings(max_examples=40)
@given(st.lists(st.dictionaries(TEXT, JSON, max_size=4), min_size=1, max_size=4))
def test_what_is_written_is_read_and_verifies(tmp_path_factory, lives):
    folder = tmp_path_factory.mktemp("life")
    written = []
    for extra in lives:
        line = LINE | {"settings": extra, "output": {"files": ledger.file_digests(folder)}}
        written.append(ledger.write(folder, written, line))
    assert ledger.read(folder) == written and ledger.verify(folder) == []
    assert ledger.folder_digest(folder) == written[-1]["digest"]


@given(st.dictionaries(TEXT, ANY, min_size=1, max_size=3))
def test_numbers_that_are_none_and_huge_ones_stay_what_they_are(tmp_path_factory, extra):
    folder = tmp_path_factory.mktemp("numbers")
    line = ledger.write(folder, [], LINE | {"settings": extra, "output": {"files": {}}})
    again = ledger.read(folder)[0]
    assert ledger.canonical(again) == ledger.canonical(line) and ledger.verify(folder) == []
    card([again])
    timeline(folder, [again])


def test_nan_is_not_lost(tmp_path):
    ledger.write(tmp_path, [], LINE | {"settings": {"x": math.nan}, "output": {"files": {}}})
    assert math.isnan(ledger.read(tmp_path)[0]["settings"]["x"]) and ledger.verify(tmp_path) == []


@settings(max_examples=150)
@given(st.data())
def test_a_damaged_ledger_is_seen(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    line = LINE | {"settings": {"name": "값"}, "output": {"files": ledger.file_digests(folder)}}
    ledger.write(folder, [ledger.write(folder, [], line)], line)
    path = folder / ledger.FILE
    good = path.read_bytes()
    place = data.draw(st.integers(0, len(good) - 1))
    kind = data.draw(st.sampled_from(["change", "remove", "add", "cut"]))
    byte = bytes([good[place] ^ data.draw(st.integers(1, 255))])
    bad = {
        "change": good[:place] + byte + good[place + 1 :],
        "remove": good[:place] + good[place + 1 :],
        "add": good[:place] + byte + good[place:],
        "cut": good[:place],
    }[kind]
    path.write_bytes(bad)
    with contextlib.suppress(BadInput):
        assert ledger.verify(folder) or bad == good


@settings(max_examples=100)
@given(st.data())
def test_any_other_character_is_seen(tmp_path_factory, data):
    """One character for another, anywhere in the text of a chain of two lines."""
    folder = tmp_path_factory.mktemp("character")
    line = LINE | {"settings": {"이름": "값", "n": 10**30}, "output": {"files": ledger.file_digests(folder)}}
    ledger.write(folder, [ledger.write(folder, [], line)], line)
    path = folder / ledger.FILE
    good = path.read_text(encoding="utf-8")
    place = data.draw(st.integers(0, len(good) - 1))
    other = data.draw(st.characters(exclude_categories=("Cs",)).filter(lambda letter: letter != good[place]))
    path.write_bytes((good[:place] + other + good[place + 1 :]).encode())
    with contextlib.suppress(BadInput):
        assert ledger.verify(folder)
