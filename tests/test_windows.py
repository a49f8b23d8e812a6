"""Series as values of a table, and tables cut into windows: what is in a window, and that none leaks over a border."""

import json

import numpy as np
import polars as pl
import pytest

from command import onnuri
from onnuri.errors import BadInput, BadSettings
from onnuri.sources import open_data


def table(rows: int = 100, **columns) -> pl.DataFrame:
    """A clock, and two channels that tell in which row they stand."""
    clock = [f"2024-01-{1 + hour // 24:02d} {hour % 24:02d}:00:00" for hour in range(rows)]
    row = np.arange(rows, dtype=np.float64)
    return pl.DataFrame({"date": clock, "load": -row, "heat": row, **columns})


@pytest.fixture
def write(tmp_path):
    def to_csv(frame: pl.DataFrame) -> str:
        frame.write_csv(tmp_path / "series.csv")
        return str(tmp_path / "series.csv")

    return to_csv


def futures(records) -> set[int]:
    """The rows that lie in the future of a window."""
    return {int(value) for future in records.column("future") for value in future[:, 0]}


def test_a_window_is_what_was_and_what_came(write):
    data = open_data(write(table()), window="8,3")
    assert data.records.fields == {"past": "series", "channels": "category", "future": "series"}
    assert (
        data.records.answer == "future"
        and data.records[0]["channels"].count(",") == data.records[0]["past"].shape[1] - 1
    )
    record = data.records[20]
    assert record["past"].dtype == np.float32 and record["past"].tolist() == [[i, -i] for i in range(20, 28)]
    assert record["future"].tolist() == [[i, -i] for i in range(28, 31)]
    assert len(data.split("all")) == 100 - 8 - 3 + 1
    one, other = data.records[0]["past"], data.records[1]["past"]
    assert np.shares_memory(one, other) and not one.flags.writeable


def test_the_order_of_the_columns_means_nothing(write):
    one = open_data(write(table()), window="8,3").records[20]
    other = open_data(write(table().select("heat", "date", "load")), window="8,3").records[20]
    assert one["past"].tolist() == other["past"].tolist() and one["future"].tolist() == other["future"].tolist()


def test_parts_follow_each_other_in_time(write):
    data = open_data(write(table()), window=[8, 3])
    rows = {name: futures(data.split(name)) for name in ("train", "validation", "test")}
    assert rows == {"train": set(range(8, 70)), "validation": set(range(70, 80)), "test": set(range(80, 100))}
    assert data.split("validation")[0]["past"][0, 0] == 62, "a past may reach back"
    assert data.digest == open_data(data.name, window="8,3", answer="heat").digest != open_data(data.name).digest


def test_borders_that_are_given(write):
    data = open_data(write(table()), window="8,3,40,20,30")
    assert [len(data.split(name)) for name in ("train", "validation", "test")] == [30, 18, 28]
    assert futures(data.split("test")) == set(range(60, 90))


def test_etth1_is_divided_as_in_the_literature(real_data):
    data = open_data(str(real_data / "ett" / "ETTh1.csv"), window="336,96,8640,2880,2880")
    assert [len(data.split(name)) for name in ("train", "validation", "test")] == [8209, 2785, 2785]


def test_the_answer_names_the_channels_that_are_forecast(write):
    path = write(table(third=np.ones(100)))
    one = open_data(path, window="8,3", answer="load").records[0]
    assert one["past"][1].tolist() == [1, 1, -1] and one["future"].tolist() == [[-8], [-9], [-10]]
    two = open_data(path, window="8,3", answer="third, load").records[0]
    assert two["past"][1].tolist() == [1, 1, -1] and two["future"][0].tolist() == [1, -8]
    some = open_data(path, window="8,3", fields={"heat": "number"}, answer="load").records[0]
    assert some["past"][1].tolist() == [1, -1]


def test_without_a_future_the_newest_past_is_asked(write):
    data = open_data(write(table()), window="8,0")
    assert data.records.fields == {"past": "series", "channels": "category"} and data.records.answer is None
    assert [record["past"][-1, 0] for record in data.split("all")] == [99]


@pytest.mark.parametrize(
    "clock",
    [
        [f"2024/{month:02d}/01" for month in range(1, 13)],
        [f"2024.01.{day:02d}" for day in (1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 15, 16)],
        [f"2024-01-01T00:{minute:02d}:00+09:00" for minute in range(12)],
        list(range(1700000000, 1700043200, 3600)),
    ],
    ids=["months", "weekdays", "minutes", "seconds"],
)
def test_clocks_that_are_even_enough(write, clock):
    frame = pl.DataFrame({"time": clock, "x": np.arange(12.0)})
    assert open_data(write(frame), window="2,1").records[0]["past"].shape == (2, 1)


@pytest.mark.parametrize(
    "frame,option,words",
    [
        (table(), "8", "two whole numbers, or five"),
        (table(), "8,x", "two whole numbers"),
        (table(), "0,3", "past of 1 or more"),
        (table(), [8, 3, 40], "two whole numbers|past of 1 or more"),
        (table(), {"past": 8}, "two whole numbers"),
        (table(), "90,20", "100 rows, one window of 90 and 20 needs 110"),
        (table(), "8,15", "the validation part has 10 rows, too few for a window"),
        (table(), "8,3,90,20,30", "have 140"),
        (table().with_columns(load=pl.Series([None, *range(99)])), "8,3", "'load' is empty.* first in row 0"),
        (table(huge=[1e300] * 100), "8,3", "'huge' is empty, or beyond float32, in 100 of 100"),
        (table(place=["Seoul"] * 100), "8,3", "the column 'place' holds category"),
        (table().reverse(), "8,3", "'date' does not rise in 99 rows: first '2024-01-05 02:00:00' in row 1"),
        (pl.concat([table(50), table(50)]), "8,3", "'date' does not rise in 1 rows"),
        (pl.concat([table()[:40], table()[60:]]), "8,3", "rows are missing in 1 places, first between '2024-01-02 15"),
        (table().with_columns(date=pl.Series(["2024-01-01", *["soon"] * 99])), "8,3", "holds no time in 99 rows"),
        (table().select("date"), "8,3", "no column of numbers"),
    ],
)
def test_what_no_window_can_be_cut_from(write, frame, option, words):
    with pytest.raises((BadInput, BadSettings), match=words):
        open_data(write(frame), window=option)


def test_columns_that_are_not_there_or_not_channels(write):
    path = write(table(place=["Seoul"] * 100))
    for options in ({"answer": "lod"}, {"answer": "load,place"}, {"answer": "date"}, {"fields": {"load": "text"}}):
        with pytest.raises(BadInput):
            open_data(path, window="8,3", **options)
    assert open_data(path, window="8,3", fields={"load": "number"}).records[0]["past"].shape == (8, 1)


def test_windows_of_a_source_that_is_divided_already(tmp_path):
    for name in ("train", "test"):
        table().write_csv(tmp_path / f"{name}.csv")
    with pytest.raises(BadInput, match="divided already"):
        open_data(str(tmp_path), window="8,3")


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_lists_of_numbers_are_series(tmp_path, ending):
    rows = [{"past": [[i + 0.0, 1.5], [i + 1.0, 2.0]], "future": [i + 2, i + 3]} for i in range(12)]
    path = tmp_path / f"series.{ending}"
    frame = pl.DataFrame(rows)
    frame.write_parquet(path) if ending == "parquet" else frame.write_ndjson(path)
    records = open_data(str(path)).records
    assert records.fields == {"past": "series", "future": "series"} and records.answer == "future"
    assert records[3]["past"].tolist() == [[3, 1.5], [4, 2]] and records[3]["future"].tolist() == [[5], [6]]
    with pytest.raises(BadInput, match="'past' holds series, not number"):
        open_data(str(path), fields={"past": "number"})


@pytest.mark.parametrize(
    "value,words",
    [
        ([1.0, None], "missing or infinite"),
        ([], "empty series"),
        (None, "empty series|more than two"),
        ([float("inf")], "missing or infinite"),
    ],
)
def test_lists_that_are_no_series(tmp_path, value, words):
    frame = pl.DataFrame({"past": [[1.0, 2.0], value], "future": [[1.0], [2.0]]})
    frame.write_parquet(tmp_path / "series.parquet")
    with pytest.raises(BadInput, match=f"row 1.*({words})"):
        open_data(str(tmp_path / "series.parquet")).records.list()
    unlike = pl.DataFrame({"past": [[[1.0], [2.0, 3.0]]]})
    unlike.write_parquet(tmp_path / "series.parquet")
    with pytest.raises(BadInput, match="unlike numbers of channels"):
        open_data(str(tmp_path / "series.parquet")).records.list()


def test_from_the_command_to_the_chart(write, tmp_path):
    """The option reaches the ledger, a recipe has it too, the report draws, and the newest past is answered."""
    path = write(table(120))
    trained = onnuri("train", "--family", "sequence", "--data", path, "--window", "16,4", "--answer", "load",
                     "--steps", "4", "--out", tmp_path / "m", "--json")  # fmt: skip
    assert trained.code == 0, trained.err
    assert json.loads(trained.out)["data_options"] == {"answer": "load", "window": "16,4"}
    coming = onnuri("predict", tmp_path / "m", "--data", path, "--window", "16,0", "--answer", "load",
                    "--out", tmp_path / "coming.jsonl")  # fmt: skip
    [answer] = (tmp_path / "coming.jsonl").read_text().splitlines()
    assert coming.code == 0 and np.shape(json.loads(answer)["future"]) == (4, 1)
    for options, words in (([], "--window PAST,FUTURE"), (["--window", "8,4"], "16 steps or more")):
        refused = onnuri("evaluate", tmp_path / "m", "--data", path, *options)
        assert refused.code == 2 and words in refused.err
    recipe = {"data": path, "start": "sequence", "window": [16, 4], "steps": {"first": {"train": {"steps": 4}}}}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    ran = onnuri("run", tmp_path / "r.yaml", "--out", tmp_path / "r")
    page = (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    assert ran.code == 0 and page.count("<title>forecast / 예측</title>") == 21  # windows in 24 rows
