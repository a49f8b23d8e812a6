"""The peer for short texts without a net: character TF-IDF and logistic regression of scikit-learn.

python benchmarks/sides/reviews_sklearn.py --data DATA
"""

import argparse
import json
import time
from pathlib import Path

import polars as pl
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline


def read(data: Path, split: str) -> tuple[list[str], list[int]]:
    table = pl.read_parquet(data / f"{split}.parquet")
    return table["document"].fill_null("").to_list(), table["label"].to_list()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    chosen = parser.parse_args()
    began = time.perf_counter()
    texts, labels = read(chosen.data, "train")
    words = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), min_df=3, sublinear_tf=True)
    model = make_pipeline(words, LogisticRegression(C=4.0, max_iter=200)).fit(texts, labels)
    seconds = time.perf_counter() - began
    texts, labels = read(chosen.data, "test")
    print(json.dumps({"accuracy": float(model.score(texts, labels)), "seconds": seconds}))


if __name__ == "__main__":
    main()
