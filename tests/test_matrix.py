"""The central test: every family under every operation keeps its promises or refuses, as docs/matrix.md says."""

from pathlib import Path

import pytest

from onnuri import registry
from onnuri.matrix import markdown, run_cell

PAGE = Path(__file__).parents[1] / "docs" / "matrix.md"
OPERATIONS = ["train", *(name for name in registry.entries("operations") if name != "train")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("matrix")


@pytest.mark.parametrize("family", registry.entries("families"))
def test_family(family, folder):
    cells = [run_cell(family, operation, folder / family) for operation in OPERATIONS]
    assert {cell.operation: cell.outcome for cell in cells} == stated(family)
    assert all(len(cell.text) > 5 for cell in cells)
    assert not [cell for cell in cells if cell.outcome == "failed"]


def stated(family: str) -> dict[str, str]:
    """{operation: outcome} of the page that is published."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {family}\n")[1].split("\n## ")[0]
    rows = [line.split("|") for line in section.splitlines() if line.startswith("| ") and "operation" not in line]
    return {row[1].strip(): row[2].strip() for row in rows}


def test_the_page_counts_its_cells():
    from onnuri.matrix import Cell

    page = markdown([Cell("a", "x", "passed", "1", 10), Cell("a", "y", "refused", "why", 0)])
    assert "1 cells passed, 1 refused, 0 failed" in page and "| a | yes | refuses |" in page
