"""The trained classifiers of the race over latency, each also as an ONNX file in fp32, which the peers begin with.

    python benchmarks/sides/latency_models.py NAME --data DATA --kept FOLDER [--steps N]

Trained by the command line for some minutes: only what 8 bits change is judged.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from vision import SHAPE, SIDE

CIFAR = ("--data", "{data}/cifar10", "--answer", "label")
REVIEWS = ("--data", "{data}/nsmc", "--fields", "document=text,label=category", "--answer", "label")
BERT = "net=bert,hidden_size=256,num_layers=4,num_heads=4,max_length=64"
LEARNING = ("--steps", "1000", "--batch-size", "64", "--learning-rate", "0.0005")  # at 0.002 it learns nothing
TRAININGS: dict[str, tuple[str, ...]] = {
    "BERT": ("--family", "text_classifier", "--config", BERT, *REVIEWS, *LEARNING),
    "ViT": ("{kept}/vit", *CIFAR, "--steps", "300", "--batch-size", "128", "--learning-rate", "0.001"),
    "ResNet": ("{kept}/resnet", *CIFAR, "--steps", "400", "--batch-size", "64", "--learning-rate", "0.001"),
    "ConvNet": ("--family", "image_classifier", *CIFAR, "--steps", "300", "--batch-size", "128"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=list(TRAININGS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--kept", type=Path, required=True)
    parser.add_argument("--steps", help="instead of those that the race says")
    chosen = parser.parse_args()
    if chosen.name in NEW:
        NEW[chosen.name](labels(chosen.data), chosen.kept / chosen.name.lower())
    words = [word.format(data=chosen.data, kept=chosen.kept) for word in TRAININGS[chosen.name]]
    if chosen.steps:
        words[words.index("--steps") + 1] = chosen.steps
    model = chosen.kept / chosen.name
    onnuri("train", *words, "--out", str(model))
    data = REVIEWS if chosen.name == "BERT" else CIFAR
    onnuri("export", str(model), *(word.format(data=chosen.data) for word in data), "--out", f"{model}-onnx")
    print("{}")


def onnuri(*words: str) -> None:
    subprocess.run([Path(sys.executable).parent / "onnuri", *words], check=True, stdout=sys.stderr)


def labels(data: Path) -> dict[str, Any]:
    """The two entries of a config that name the labels of these pictures."""
    import polars as pl

    names = dict(enumerate(sorted(map(str, pl.read_parquet(data / "cifar10" / "test.parquet")["label"].unique()))))
    return {"id2label": names, "label2id": {name: i for i, name in names.items()}}


def vit(labels: dict[str, Any], folder: Path) -> None:
    """A new ViT of transformers."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    write(ViTForImageClassification, ViTConfig(**SHAPE, image_size=SIDE, **labels), folder)
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)


def resnet(labels: dict[str, Any], folder: Path) -> None:
    """A new ResNet-18 of transformers, of pictures enlarged to 64 pixels: its stem makes them four times smaller."""
    from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

    config = ResNetConfig(depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic", **labels)
    write(ResNetForImageClassification, config, folder)
    ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)


def write(kind: Any, config: Any, folder: Path) -> None:
    import torch

    from onnuri.family import seeded

    with seeded(torch.Generator().manual_seed(0)):
        kind(config).save_pretrained(folder)


NEW = {"ViT": vit, "ResNet": resnet}

if __name__ == "__main__":
    main()
