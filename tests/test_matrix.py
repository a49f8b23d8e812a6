"""The central test: every family's facts, and the family under every operation: promises kept or refused, as the page says."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from command import onnuri, refused
from onnuri import matrix, registry
from onnuri.errors import Refusal
from onnuri.matrix import Cell, columns, counts, run_cell, run_matrix, run_row
from onnuri.matrix_page import markdown

PAGE = Path(__file__).parents[1] / "docs" / "matrix.md"


@pytest.mark.parametrize("family", registry.entries("families"))
def test_family(family, tmp_path):
    cells = list(run_row(family, columns(), tmp_path))
    assert {cell.operation: cell.outcome for cell in cells} == stated(family)
    assert all(len(cell.text) > 5 for cell in cells)
    assert not [cell for cell in cells if cell.outcome == "failed"]
    assert len({cell.parameters for cell in cells if cell.operation in columns()[:2]}) == 1, (
        "facts and model are one design"
    )


def stated(family: str) -> dict[str, str]:
    """{operation: outcome} of the page that is published."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {family}\n")[1].split("\n## ")[0]
    rows = [line.split("|") for line in section.splitlines() if line.startswith("| ") and "operation" not in line]
    return {row[1].strip(): row[2].strip() for row in rows}


def test_what_is_refused_at_first_is_tried_on_what_others_gave(tmp_path):
    """Registered in any order: of three, each takes what the next one gives."""
    first, order = columns()[1], ("unbake", "bake", "adapt")
    cells = {cell.operation: cell for cell in run_row("tabular", [first, *order], tmp_path)}
    assert [cells[name].on for name in order] == ["bake", "adapt", ""]
    assert all(cell.outcome == "passed" for cell in cells.values()), cells
    assert "on what bake gave" in cells["unbake"].text
    assert cells["adapt"].parameters > cells[first].parameters > 0


def test_one_column_alone_is_carried_out_on_what_it_needs(tmp_path):
    (cell,) = run_row("tabular", ["unbake"], tmp_path)
    assert cell.outcome == "passed" and cell.on == "bake"


def test_a_second_model_is_made_where_an_operation_takes_two(tmp_path):
    assert not (tmp_path / "other").exists()
    assert run_cell("tabular", "prune", tmp_path).outcome == "passed" and not (tmp_path / "other").exists()
    assert run_cell("tabular", "merge", tmp_path).outcome == "passed" and (tmp_path / "other").is_dir()


def test_a_refusal_without_a_way_out_is_a_failure(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise Refusal("no", "")

    original = registry.operation
    silent = replace(original("prune"), apply=refuse)
    monkeypatch.setattr(registry, "operation", lambda name: silent if name == "prune" else original(name))
    assert run_cell("tabular", "prune", tmp_path).outcome == "failed"


def test_two_processes_run_the_same_rows(tmp_path):
    names = ["tabular", "forest"]
    cells = list(run_matrix(names, ["prune"], tmp_path, processes=2))
    assert {(cell.family, cell.outcome) for cell in cells} == {("tabular", "passed"), ("forest", "refused")}


def test_the_page_counts_its_cells():
    cells = [
        Cell("a", "x", "passed", "1", 1234, 2.04),
        Cell("a", "y", "refused", "why | not"),
        Cell("b", "x", "failed", "line\nline"),
    ]
    page = markdown(cells)
    assert "2 families x 2 operations: 1 passed, 1 refused, 1 failed, 1 untested." in page
    assert "| a | yes | refuses |\n| b | **FAILED** | **UNTESTED** |" in page
    assert "| x | passed | 1 | 1,234 | 2.0 |\n| y | refused | why / not | - | 0.0 |" in page
    assert "| x | failed | line line | - | 0.0 |" in page
    assert page.index("| family |") < page.index("## a") < page.index("## b")
    assert counts(cells) == {"passed": 1, "refused": 1, "failed": 1, "untested": 1}


def test_the_command(tmp_path, monkeypatch):
    page = tmp_path / "deep" / "page.md"
    done = onnuri("matrix", "--family", "tabular", "--operation", "facts", "--out", page)
    assert (
        done.code == 0
        and done.out == "1 families x 0 operations and their facts: 1 passed, 0 refused, 0 failed, 0 untested\n"
    )
    assert "tabular" in done.err and "| facts | passed |" in page.read_text(encoding="utf-8")
    refused(onnuri("matrix", "--family", "tabula"), "did you mean tabular?")
    refused(onnuri("matrix", "--operation", "prunes"), "did you mean prune")
    monkeypatch.setattr(matrix, "check_family", lambda family: iter(()))
    monkeypatch.setattr(matrix, "run_cell", lambda *of, **_: Cell(of[0], of[1], "failed", "a fault"))
    done = onnuri("matrix", "--family", "tabular", "--operation", "prune", "--json")
    assert done.code == 2 and json.loads(done.out)["failed"] == 1 and done.err == ""
    assert json.loads(done.out)["cells"][0]["text"] == "a fault"
