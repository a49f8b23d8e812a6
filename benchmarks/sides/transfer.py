"""What the sides of the races over few labels share: the body that read without labels, and the labels in shares.

python benchmarks/sides/transfer.py --data DATA --kept FOLDER --steps N --body CONFIG     makes all
"""

import argparse
import subprocess
import sys
from pathlib import Path

SHARES = (1, 10, 100)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--kept", type=Path, required=True)
    parser.add_argument("--steps", required=True)
    parser.add_argument("--body", required=True)
    chosen = parser.parse_args()
    reviews = chosen.data / "nsmc"
    for share in SHARES:
        write_labels(reviews, chosen.kept / f"labels-{share}", share)
    texts = ["--data", str(reviews / "unlabelled.parquet"), "--answer", "text", "--fields", "text=text"]
    for name, how in (
        ("body", [chosen.steps, "--learning-rate", "0.002"]),
        ("nothing", ["1", "--learning-rate", "1e-12"]),
    ):
        words = [
            "train",
            "--family",
            "causal_lm",
            *texts,
            "--config",
            chosen.body,
            "--batch-size",
            "128",
            "--steps",
            *how,
        ]
        onnuri = Path(sys.executable).with_name("onnuri")
        subprocess.run([str(onnuri), *words, "--out", str(chosen.kept / name)], check=True)
    print("{}")


def write_labels(reviews: Path, folder: Path, share: int) -> None:
    """A share of the training reviews, drawn once; the test is whole."""
    import polars as pl

    folder.mkdir(exist_ok=True)
    for split in ("train", "test"):
        table = pl.read_parquet(reviews / f"{split}.parquet").select("document", "label").drop_nulls()
        if split == "train":
            table = table.sample(fraction=share / 100, seed=0, shuffle=True)
        table.write_parquet(folder / f"{split}.parquet")


if __name__ == "__main__":
    main()
