"""Draws the picture of the README from a recipe's own evidence: python docs/picture.py runs/quickstart docs/quickstart.svg"""

import sys
from pathlib import Path

from onnuri import ledger
from onnuri.report import size_against_score

STYLE = "<style>.ko{display:none} svg{color:#1f2428;font-family:system-ui,sans-serif}</style>"
PAPER = '<rect x="-20" y="-20" width="900" height="440" fill="#fcfbf9"/>'


def main(run: Path, target: Path) -> None:
    """Every step that was measured, in the order in which it was made."""
    lines = {folder.name: ledger.read(folder)[-1] for folder in run.iterdir() if (folder / ledger.FILE).exists()}
    measured = [(name, line["after"]) for name, line in sorted(lines.items(), key=lambda item: item[1]["started"])]
    picture = size_against_score(measured)
    assert picture, "the recipe was not run"
    drawing = str(picture["wide"]).replace('viewBox="0 0 860 400"', 'viewBox="-20 -20 900 440"')
    head, rest = drawing.split(">", 1)
    target.write_text(f"{head}>{STYLE}{PAPER}{rest}\n", encoding="utf-8")


main(Path(sys.argv[1]), Path(sys.argv[2]))
