"""`python -m benchmarks NAME`: one benchmark, ours beside its peers; writes results/NAME.json and docs/benchmarks.md."""

import argparse
import importlib
from pathlib import Path

from . import page
from .harness import HERE, run

NAMES = sorted(path.stem for path in HERE.glob("bench_*.py"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[name.removeprefix("bench_") for name in NAMES])
    parser.add_argument("--repeats", type=int, help="turns of each side, instead of what the race says")
    parser.add_argument("--only", default="", help="only cases that contain these words")
    parser.add_argument(
        "--kept", type=Path, help="folder for what the races prepare, which a later run takes from there"
    )
    chosen = parser.parse_args()
    races = importlib.import_module(f".bench_{chosen.name}", __package__).RACES
    rows = run(chosen.name, races, chosen.repeats, chosen.only, chosen.kept)
    page.write()
    print(page.table(rows))


if __name__ == "__main__":
    main()
