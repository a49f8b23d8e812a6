"""Sources, kinds, splits: the same rows fall into the same splits whatever their order or file format."""

import json

import numpy as np
import polars as pl
import pytest
from PIL import Image

from onnuri.data import SPLITS, check_answers, check_fields, digest_of, labels_of
from onnuri.errors import BadInput, BadSettings, UnknownName
from onnuri.sources import open_data, rows


@pytest.fixture
def table(tmp_path):
    draw = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "size": draw.normal(size=300),
            "color": [["red", "blue", None][i] for i in draw.integers(3, size=300)],
            "review": [f"글 {i} " + "그럭저럭 볼만한 영화였다 " * (i % 3 + 1) for i in range(300)],
            "label": draw.integers(3, size=300),
        }
    )
    path = tmp_path / "table.csv"
    frame.write_csv(path)
    return path, frame


def contents(records) -> list[int]:
    return sorted(digest_of(record) for record in records)


def test_kinds_and_answer_are_inferred(table):
    data = open_data(str(table[0]))
    assert data.records.fields == {"size": "number", "color": "category", "review": "text", "label": "category"}
    assert data.records.answer == "label" and data.records[0]["label"] in {"0", "1", "2"}


def test_whole_numbers_keep_their_digits_and_have_the_digest_of_their_floats(tmp_path):
    whole = pl.DataFrame({"id": [1234567890123456789, None, -1000]})
    whole.write_csv(tmp_path / "whole.csv")
    whole.cast(pl.Float64).write_parquet(tmp_path / "floats.parquet")
    one, other = (open_data(str(tmp_path / name)) for name in ("whole.csv", "floats.parquet"))
    assert list(one.records.column("id")) == [1234567890123456789, None, -1000] and one.digest == other.digest


@pytest.mark.parametrize("write", ["write_parquet", "write_ndjson"])
def test_formats_agree(table, tmp_path, write):
    path = tmp_path / f"t.{ {'write_parquet': 'parquet', 'write_ndjson': 'jsonl'}[write] }"
    getattr(table[1], write)(path)
    assert open_data(str(path)).digest == open_data(str(table[0])).digest


def test_splits_are_stable_under_row_order_and_disjoint(table, tmp_path):
    path = tmp_path / "shuffled.csv"
    table[1].sample(fraction=1, shuffle=True, seed=5).write_csv(path)
    one, other = open_data(str(table[0])), open_data(str(path))
    for name in SPLITS:
        assert contents(one.split(name)) == contents(other.split(name))
    assert sum(len(one.split(name)) for name in SPLITS) == 300
    assert one.digest == other.digest
    more = pl.concat([table[1], table[1].head(50)])
    more.write_csv(path)
    leaks = set(contents(open_data(str(path)).split("train"))) & set(contents(open_data(str(path)).split("test")))
    assert not leaks, "equal rows fall into the same split"


def test_larger_than_memory_equals_in_memory(table, tmp_path, monkeypatch):
    pictures = tmp_path / "pictures.parquet"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "x.png")
    pl.DataFrame({"image": [(tmp_path / "x.png").read_bytes()] * 5, "label": ["a", "b", "a", "b", "a"]}).write_parquet(
        pictures
    )
    for path in (table[0], pictures):
        small = open_data(str(path))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(rows, "LARGE", 10)
        large = open_data(str(path))
        monkeypatch.undo()
        assert large.digest == small.digest and contents(large.split("all")) == contents(small.split("all"))
        assert digest_of(large.records[3]) == digest_of(small.records[3])
    assert len(list((tmp_path / "cache" / "onnuri").iterdir())) == 2


def test_train_and_test_files_keep_their_division(table, tmp_path):
    table[1][:200].write_csv(tmp_path / "train.csv")
    table[1][200:].write_csv(tmp_path / "test.csv")
    (tmp_path / "table.csv").unlink()
    data = open_data(str(tmp_path))
    assert contents(data.split("test")) == contents(data.records[200:])
    assert len(data.split("train")) + len(data.split("validation")) == 200


def test_a_folder_of_images_by_class(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for i in range(20):
            Image.fromarray(np.full((6, 5, 3), i * 10, np.uint8)).save(tmp_path / label / f"{i}.png")
    data = open_data(str(tmp_path))
    assert labels_of(data.records) == ["cat", "dog"] and data.records[0]["image"].shape == (6, 5, 3)
    (tmp_path / "cat" / "bad.png").write_bytes(b"no picture")
    with pytest.raises(BadInput, match=r"bad\.png"):
        open_data(str(tmp_path)).split("train")


def test_texts(tmp_path):
    (tmp_path / "a.txt").write_text("첫째 글\n\n" * 2000)
    assert len(open_data(str(tmp_path / "a.txt")).records) > 4
    (tmp_path / "b.txt").write_text("둘째 글")
    assert len(open_data(str(tmp_path)).records) == len(open_data(str(tmp_path / "a.txt")).records) + 1
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="not UTF-16"):
        open_data(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "rows", "answer"),
    [
        ("digits", 1797, "category"),
        ("iris", 150, "category"),
        ("wine", 178, "category"),
        ("breast_cancer", 569, "category"),
        ("diabetes", 442, "number"),
    ],
)
def test_builtin(name, rows, answer):
    data = open_data(f"builtin:{name}")
    assert len(data.records) == rows and data.records.fields[data.records.answer] == answer


def test_the_users_own_choice_of_columns(table):
    data = open_data(str(table[0]), answer="color", fields={"label": "number", "size": "number"})
    assert data.records.fields == {"size": "number", "color": "category", "label": "number"}
    assert isinstance(data.records[0]["label"], int)


def test_a_number_that_is_read_as_text_is_not_lost(tmp_path):
    path = write(tmp_path / "codes.csv", "code,label\n0,a\n1.5,b\n,a\n-2,b\n")
    records = open_data(str(path), answer="label", fields={"code": "text"}).records
    assert [record["code"] for record in records] == ["0", "1.5", "", "-2"]


def test_bad_input_says_what_to_do(table, tmp_path):
    cases = {
        "builtin:digit": (UnknownName, "digits"),
        str(tmp_path / "no.csv"): (BadInput, "does not exist"),
        str(write(tmp_path / "empty.csv", "")): (BadInput, "empty"),
        str(write(tmp_path / "head.csv", "a,b\n")): (BadInput, "no rows"),
        str(write(tmp_path / "x.xlsx", "a")): (BadInput, "unknown ending"),
        str(write(tmp_path / "bad.jsonl", '{"a": 1}\n{"a": \n')): (BadInput, "cannot be read"),
        str(write(tmp_path / "bad.parquet", "PAR1")): (BadInput, "cannot be read"),
        str(write(tmp_path / "inf.csv", "a,label\ninf,x\n1,y\n")): (BadInput, "infinite"),
    }
    for source, (kind, text) in cases.items():
        with pytest.raises(kind, match=text):
            open_data(source)
    with pytest.raises(BadInput, match="did you mean size"):
        open_data(str(table[0]), answer="sise")
    with pytest.raises(BadSettings, match="no kind"):
        open_data(str(table[0]), fields={"size": "numeric"})
    with pytest.raises(BadInput, match="missing; did you mean size"):
        check_fields(open_data(str(table[0])).records, {"sizes": "number"}, None)
    with pytest.raises(BadInput, match="never saw: '2'"):
        check_answers(open_data(str(table[0])).records, "label", ["0", "1"])


def test_one_class_and_missing_answers(tmp_path):
    one = write(tmp_path / "one.jsonl", "".join(json.dumps({"x": i, "label": "a"}) + "\n" for i in range(30)))
    with pytest.raises(BadInput, match="only one class"):
        labels_of(open_data(str(one)).records)
    hole = write(tmp_path / "hole.csv", "x,label\n1,a\n2,\n3,b\n")
    with pytest.raises(BadInput, match="empty in 1 of 3 rows, first in row 1"):
        labels_of(open_data(str(hole)).records)


def write(path, text):
    path.write_text(text)
    return path


def test_the_digest_knows_the_division_and_not_the_choice_of_columns(table, tmp_path):
    whole = open_data(str(table[0]))
    chosen = open_data(str(table[0]), answer="color", fields={"size": "number"})
    assert chosen.digest == whole.digest
    assert all((chosen.parts[name] == whole.parts[name]).all() for name in SPLITS)
    table[1][:200].write_csv(tmp_path / "train.csv")
    table[1][200:].write_csv(tmp_path / "test.csv")
    (tmp_path / "table.csv").unlink()
    assert open_data(str(tmp_path)).digest != whole.digest


def test_some_records_are_spread_over_a_sorted_source(table):
    records = open_data(str(table[0])).records
    assert [record["review"][:4] for record in records.some(3)] == ["글 0 ", "글 14", "글 29"]


def test_pictures_of_16_bits_keep_their_shades(tmp_path):
    (tmp_path / "a").mkdir()
    Image.fromarray((np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)).save(tmp_path / "a" / "x.png")
    found = open_data(str(tmp_path)).records[0]["image"]
    assert found.dtype == np.uint8 and len(np.unique(found)) > 50
