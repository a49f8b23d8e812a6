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
    how = ["--config", chosen.body, "--steps", chosen.steps, "--batch-size", "128", "--learning-rate", "0.002"]
    words = ["train", "--family", "causal_lm", *texts, *how, "--out", str(chosen.kept / "body")]
    subprocess.run([str(Path(sys.executable).with_name("onnuri")), *words], check=True)
    write_unlearnt(chosen.kept / "body", chosen.kept / "nothing")
    print("{}")


def write_unlearnt(body: Path, folder: Path) -> None:
    """The same design and tokens with fresh weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(body)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(body).save_pretrained(folder)


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
