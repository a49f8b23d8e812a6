"""The peer for generators without a net: a mixture of Gaussians over principal components, by scikit-learn.

python benchmarks/sides/generator_sklearn.py --data DATA --seconds N --classifier CLASSIFIER
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from pictures_torch import read
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

sys.path.insert(0, str(Path(__file__).parents[1]))
from frechet import IMAGES, distances, save_grid

from onnuri.model import open_model

COMPONENTS, PARTS, ROWS = 60, 100, 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True, help="not used up: this peer is done when it is done")
    parser.add_argument("--classifier", required=True)
    parser.add_argument("--grid", type=Path)
    chosen = parser.parse_args()
    images = read(chosen.data, "train")[0].permute(0, 2, 3, 1).numpy()
    began = time.perf_counter()
    pixels = images[np.random.default_rng(0).permutation(len(images))[:ROWS]].reshape(ROWS, -1) / 255.0
    components = PCA(COMPONENTS, random_state=0).fit(pixels)
    mixture = GaussianMixture(PARTS, random_state=0, reg_covar=1e-4, max_iter=50).fit(components.transform(pixels))
    drawn = components.inverse_transform(mixture.sample(IMAGES)[0])
    seconds = time.perf_counter() - began
    made = (np.clip(drawn, 0, 1) * 255).round().astype(np.uint8).reshape(-1, *images.shape[1:])
    made = np.random.default_rng(0).permutation(made.squeeze(-1) if made.shape[-1] == 1 else made)
    if chosen.grid:
        save_grid(made, chosen.grid)
    print(json.dumps({**distances(open_model(chosen.classifier), str(chosen.data), list(made)), "seconds": seconds}))


if __name__ == "__main__":
    main()
