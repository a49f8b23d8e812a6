"""The peer for pictures without a net: principal components and a support vector machine of scikit-learn.

The machine cannot be stopped, so the number of rows is doubled until the next doubling would not fit into N seconds.

    python benchmarks/sides/pictures_sklearn.py --data DATA --seconds N
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from pictures_torch import read
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC

GROWTH = 4  # of the time when rows are doubled: kernels are square


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    chosen = parser.parse_args()
    (images, labels), (test, truth) = (read(chosen.data, split) for split in ("train", "test"))
    pixels, asked = (part.flatten(1).numpy().astype(np.float32) / 255 for part in (images, test))
    order, words = np.random.default_rng(0).permutation(len(pixels)), np.array(labels)
    began, rows, spent = time.perf_counter(), 2000, 0.0
    while True:
        start = time.perf_counter()
        part = order[:rows]
        machine = make_pipeline(PCA(60, random_state=0), SVC(C=5.0)).fit(pixels[part], words[part])
        spent = time.perf_counter() - start
        if rows >= len(pixels) or time.perf_counter() - began + GROWTH * spent > chosen.seconds:
            break
        rows = min(2 * rows, len(pixels))
    seconds = time.perf_counter() - began
    accuracy = float((machine.predict(asked) == np.array(truth)).mean())
    print(json.dumps({"accuracy": accuracy, "seconds": seconds, "rows": rows}))


if __name__ == "__main__":
    main()
