"""The peer for tables: histogram gradient boosting of scikit-learn, with its categories named to it.

python benchmarks/sides/table_sklearn.py --data DATA [--answer income]
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import polars as pl
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import OrdinalEncoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--answer", default="income")
    chosen = parser.parse_args()
    began = time.perf_counter()
    train = pl.read_csv(chosen.data / "train.csv")
    names = [name for name in train.columns if name != chosen.answer]
    words = [name for name in names if train[name].dtype == pl.String]
    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan).fit(train.select(words).to_numpy())

    def read(table: pl.DataFrame) -> np.ndarray:
        numbers = [name for name in names if name not in words]
        coded = codes.transform(table.select(words).to_numpy())
        return np.hstack([table.select(numbers).to_numpy().astype(float), coded])

    categories = [False] * (len(names) - len(words)) + [True] * len(words)
    model = HistGradientBoostingClassifier(categorical_features=categories, random_state=0)
    model.fit(read(train), train[chosen.answer].to_list())
    seconds = time.perf_counter() - began
    test = pl.read_csv(chosen.data / "test.csv")
    likely, truth = model.predict_proba(read(test))[:, 1], test[chosen.answer].to_numpy() == model.classes_[1]
    accuracy = float(((likely > 0.5) == truth).mean())
    print(json.dumps({"auc": float(roc_auc_score(truth, likely)), "accuracy": accuracy, "seconds": seconds}))


if __name__ == "__main__":
    main()
