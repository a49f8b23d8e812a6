"""The recordings divided by who speaks: a folder for each speaker, who is in its test part and nowhere in its train part.

python benchmarks/speakers.py --data DATA --out FOLDER
"""

import argparse
from pathlib import Path

import polars as pl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    table = pl.concat([pl.read_parquet(chosen.data / f"{split}.parquet") for split in ("train", "test")])
    for name in table["speaker"].unique().sort():
        folder = chosen.out / name
        folder.mkdir(parents=True, exist_ok=True)
        mine = pl.col("speaker") == name
        table.filter(~mine).select("audio", "label").write_parquet(folder / "train.parquet")
        table.filter(mine).select("audio", "label").write_parquet(folder / "test.parquet")
        print(folder)


if __name__ == "__main__":
    main()
