"""Every reader keeps to its contract over its corpus and over changes of it, the same ones in every run.

`make fuzz` reads more, guided by coverage. ONNURI_FUZZ says how many changed inputs are read here in all.
"""

import os
import random
from contextlib import suppress

import beds
import pytest
from contract import Failure, Invalid, judge
from drive import shares
from mutate import LONGEST, mutated
from readers import CORPUS, READERS, Reader

from onnuri import registry
from onnuri.errors import BadInput, OnnuriError

INPUTS = int(os.environ.get("ONNURI_FUZZ", "2000"))
SHARES = shares(INPUTS, list(READERS))


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    beds.warm()
    return tmp_path


@pytest.mark.parametrize("name", READERS)
def test_a_reader_keeps_to_its_contract(name, place):
    reader, draw = READERS[name], random.Random(f"{name} 0")
    seeds = reader.seeds
    inputs = [*((path.name, path.read_bytes()) for path in reader.corpus)]
    inputs += [
        (f"change {number}", mutated(draw.choice(seeds), draw, seeds, reader.form)) for number in range(SHARES[name])
    ]
    for told, data in inputs:
        asked = reader.put(data, place)
        failure = judge(lambda asked=asked: reader.read(asked), reader.notes)
        assert failure is None, f"{told}: {failure}; the input: {data[:2000]!r}"


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_what_the_corpus_starts_from_is_read(reader: Reader, place):
    """Else the changes would only ever be refused at the door."""
    read = 0
    for data in reader.seeds:
        with suppress(OnnuriError):
            reader.read(reader.put(data, place))
            read += 1
    assert read, "no input that is changed is a good one"


def test_the_corpus_is_small_and_complete():
    assert {path.name for path in CORPUS.iterdir()} == READERS.keys()
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < 300_000
    assert all(path.stat().st_size <= LONGEST for path in CORPUS.rglob("*"))
    assert {name.partition("-")[0] for name in READERS} >= set(registry.entries("families"))


# ---------------------------------------------------------------------------------------------------- the judge is judged


def hang() -> None:
    while True:
        pass


def write() -> None:
    open("left.txt", "w").close()


def fetch() -> None:
    import socket

    with socket.socket() as wire:
        wire.settimeout(0.01)
        try:
            wire.connect(("127.0.0.1", 9))
        except OSError:
            raise BadInput("no wire") from None


def print_below() -> None:
    os.write(2, b"a library speaks")


def empty_message() -> None:
    raise BadInput("")


def address() -> None:
    raise BadInput(f"{object()!r} is bad")


def fill() -> None:
    b"x" * 2**30


def wrong() -> None:
    raise Invalid("x")


def unpickle() -> None:
    import pickle

    pickle.loads(pickle.dumps(Failure("a", "b", "c")))


@pytest.mark.parametrize(
    ("deed", "kind"),
    [
        (lambda: {}["x"], "KeyError"),
        (hang, "Hang"),
        (write, "deed"),
        (fetch, "deed"),
        (unpickle, "deed"),
        (lambda: os.system("true"), "deed"),
        (lambda: print("x"), "printed"),
        (print_below, "printed"),
        (empty_message, "no message"),
        (address, "address"),
        (fill, "memory"),
        (wrong, "Invalid"),
    ],
    ids=lambda part: part if isinstance(part, str) else part.__name__,
)
def test_a_broken_contract_is_noticed(deed, kind, place, monkeypatch, capfd):
    if deed is hang:
        monkeypatch.setattr("contract.SECONDS", 0.2)
    failure = judge(deed)
    assert failure is not None and failure.kind == kind


def test_what_keeps_to_the_contract_is_let_through(place):
    def refuse() -> None:
        raise BadInput("rows.csv cannot be read", hint="another one")

    assert judge(refuse) is None and judge(lambda: len("x")) is None
