"""How near made pictures are to real ones: the Frechet distance in what a classifier of ours sees.

The distance of Heusel et al. 2017 (arXiv:1706.08500), with one difference: the features are what enters the head of a
classifier trained on the same data, not an Inception network's. Figures compare generators of one data set under one
classifier; they must not be compared with a published FID. It depends on the number of pictures: every side is
given the same number, and `real` says what other real pictures score.

    python benchmarks/frechet.py --model GENERATOR --classifier CLASSIFIER --data DATA --grid grid.png
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from onnuri.data import Record
from onnuri.family import Generators
from onnuri.model import Model, open_model
from onnuri.nets.pixels import frechet
from onnuri.sources import open_data

IMAGES = 2000
BATCH = 250


def features(classifier: Model, images: Sequence[np.ndarray]) -> np.ndarray:
    """(images, D): what enters the classifier's last layer."""
    seen: list[np.ndarray] = []
    hook = classifier.net.get_submodule("head").register_forward_pre_hook(
        lambda _, given: seen.append(given[0].detach().double().numpy())
    )
    question = next(iter(classifier.family.fields(classifier.assets)[0]))
    with torch.no_grad():
        for start in range(0, len(images), BATCH):
            part: list[Record] = [{question: image} for image in images[start : start + BATCH]]
            batch = classifier.family.collate(part, classifier.assets, Generators(0, range(len(part))))
            classifier.family.outputs(classifier.net, batch)
    hook.remove()
    return np.concatenate(seen)


def real_images(data: str, split: str, count: int) -> list[np.ndarray]:
    """`count` pictures of a split that the data themselves have, evenly spaced."""
    opened = open_data(data)
    records = opened.records[opened.official[split]].some(count)
    name = next(name for name, kind in records.fields.items() if kind == "image")
    return list(records.column(name))


def distances(classifier: Model, data: str, made: Sequence[np.ndarray]) -> dict[str, float]:
    """`frechet` of the made pictures to as many of the test split; `real`: of as many of the train split to them."""
    test, train = (features(classifier, real_images(data, split, len(made))) for split in ("test", "train"))
    return {"frechet": frechet(test, features(classifier, made)), "real": frechet(test, train)}


def made_by(model: Model, count: int) -> list[np.ndarray]:
    """`count` pictures that a generator of ours makes."""
    answer = model.family.fields(model.assets)[1][0]
    made: list[np.ndarray] = []
    with torch.no_grad():
        for start in range(0, count, BATCH):
            keys = range(start, min(start + BATCH, count))
            made += [record[answer] for record in model.sample([{} for _ in keys], 0, keys)]
    return made


def save_grid(images: Sequence[np.ndarray], path: Path, columns: int = 12) -> None:
    """The first pictures, columns x columns of them, as one."""
    chosen = list(images[: columns * columns])
    rows = [np.concatenate(chosen[i : i + columns], 1) for i in range(0, len(chosen) - columns + 1, columns)]
    Image.fromarray(np.concatenate(rows)).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--model", "--classifier", "--data"):
        parser.add_argument(name, required=True)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--grid", type=Path)
    chosen = parser.parse_args()
    began = time.perf_counter()
    made = made_by(open_model(chosen.model), chosen.images)
    seconds = time.perf_counter() - began
    if chosen.grid:
        save_grid(made, chosen.grid)
    found = distances(open_model(chosen.classifier), chosen.data, made)
    print(json.dumps({**found, "images": len(made), "seconds": seconds}))


if __name__ == "__main__":
    main()
