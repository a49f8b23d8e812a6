"""The harness of the benchmarks: turns, rows and goals on sides that do nothing; the page from made-up rows."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import harness, page  # noqa: E402
from benchmarks.harness import Race, Row, Side  # noqa: E402


def says(name: str, **figures: float) -> Side:
    return Side(
        name,
        (
            (
                "python",
                "-c",
                f"print('warming up'); print('{json.dumps(figures).replace('{', '{{').replace('}', '}}')}')",
            ),
        ),
    )


def race(goal: float | None, of: str = "ratio", better: str = "higher") -> dict:
    row = Row("speed", "records/s", better, goal, of)  # type: ignore[arg-type]
    one = Race("a case", says("onnuri", speed=30.0), (says("peer", speed=20.0),), {"peer": (row,)})
    return one, row


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(harness.peaks, "reference", lambda: 1.0)
    monkeypatch.setattr(harness, "RESULTS", tmp_path)


@pytest.mark.parametrize(
    ("goal", "of", "better", "ratio", "met"),
    [
        (1.3, "ratio", "higher", 1.5, True),
        (1.6, "ratio", "higher", 1.5, False),
        (0.6, "ratio", "lower", 2 / 3, True),
        (29.0, "ours", "higher", 1.5, True),
        (29.0, "ours", "lower", 2 / 3, False),
        (None, "ours", "lower", 2 / 3, None),
    ],
)
def test_a_ratio_above_one_means_that_ours_is_better(goal, of, better, ratio, met):
    one, _ = race(goal, of, better)
    (row,) = harness.run("x", (one,), repeats=2)
    assert row["ratio"] == pytest.approx(ratio) and row["met"] is met
    assert row["ours"] == 30 and row["peer"] == 20 and row["repeats"] == 2 and row["spread"]["ours"] == 0
    assert row["peak_memory_bytes"]["ours"] > 1e6, "the memory of the process itself"


def test_rows_of_other_cases_stay_and_lost_ones_too():
    one, _ = race(1.6)
    harness.run("x", (one,), repeats=1)
    other = Race("another", says("onnuri", wall=1.0), (), {"": (Row("wall_seconds", "s", "lower", 60, "ours"),)})
    rows = harness.run("x", (one, other), repeats=1, only="another")
    assert [row["case"] for row in rows] == ["a case", "another"]
    assert [row["met"] for row in rows] == [False, True] and rows[1]["peer"] is None


def test_a_busy_turn_is_taken_again_and_said_when_it_stays_busy(monkeypatch):
    times = iter([1.0, 2.0, 1.0, 1.0])
    monkeypatch.setattr(harness.peaks, "reference", lambda: next(times))
    assert "busy" not in harness.quiet_turn(says("onnuri", speed=1.0), ROOT)
    times = iter([1.0, 2.0] * 3)
    assert "longer" in harness.quiet_turn(says("onnuri", speed=1.0), ROOT)["busy"]


def test_a_side_that_fails_is_told_with_its_last_words():
    side = Side("onnuri", (("python", "-c", "raise SystemExit('no such data')"),))
    with pytest.raises(SystemExit, match="no such data"):
        harness.turn(side, ROOT)


def test_what_is_prepared_is_taken_again_from_a_folder_that_is_kept(tmp_path):
    def raced(more: str) -> Race:
        prepare = ("python", "-c", f"open('{{kept}}/made', 'a').write('x{more}')")
        return Race("a case", says("onnuri", speed=1.0), (), {"": (Row("speed", "", "higher"),)}, prepare)

    for _ in range(2):
        harness.run("x", (raced(""),), repeats=1, folder=tmp_path / "kept")
    assert (tmp_path / "kept" / "made").read_text() == "x"
    harness.run("x", (raced("y"),), repeats=1, folder=tmp_path / "kept")
    assert (tmp_path / "kept" / "made").read_text() == "xxy", "another command is another preparation"


def test_each_process_of_a_side_tells_its_own_seconds():
    side = Side("onnuri", (("python", "-c", "print('{{}}')"),) * 2, lambda lines: {"each": lines})
    found = harness.turn(side, ROOT)
    assert sum(line["process_seconds"] for line in found["each"]) == found["wall_seconds"]
    assert max(line["process_bytes"] for line in found["each"]) == found["peak_memory_bytes"]


def test_the_last_json_of_the_output_counts_on_one_line_or_several():
    assert harness.parsed(["hello", '{"a": 1}', "{", '"a": 2', "}"]) == {"a": 2} and harness.parsed(["none"]) == {}


def test_the_page_shows_every_row_and_its_picture_is_whole(tmp_path, monkeypatch):
    one, _ = race(1.6)
    rows = harness.run("x", (one,), repeats=1)
    text = page.table(rows)
    assert "**no**" in text and "1.50x" in text and ">= 1.6x" in text
    drawing = page.picture("x", rows)
    assert drawing.count("<circle") == 1 and drawing.strip().endswith("</svg>")


def test_the_page_is_that_of_the_results():
    """docs/benchmarks.md is never written by hand."""
    for file in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        assert page.table(json.loads(file.read_text())) in (ROOT / "docs" / "benchmarks.md").read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("bench_*.py")), ids=lambda path: path.stem)
def test_every_race_names_its_rows_peers_and_scripts(path):
    import importlib

    races = importlib.import_module(f"benchmarks.{path.stem}").RACES
    assert len({one.case for one in races}) == len(races)
    for one in races:
        names = {"", *(side.name for side in one.peers)}
        assert set(one.rows) <= names and one.repeats >= 1
        for word in (word for side in (one.ours, *one.peers) for command in side.commands for word in command):
            if word.startswith("{here}") and word.endswith(".py"):
                assert Path(word.format(here=ROOT / "benchmarks")).exists(), word
