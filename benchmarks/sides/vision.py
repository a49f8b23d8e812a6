"""What every side of a race over picture models shares: the folder of a small ViT, the same pictures.

python benchmarks/sides/vision.py --data DATA --kept FOLDER     makes the folder
"""

import argparse
import io
from pathlib import Path

from language import Clock

SIDE, BATCH = 32, 128
SHAPE = {
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 3,
    "intermediate_size": 768,
    "patch_size": 4,
}
__all__ = ["BATCH", "Clock", "options", "pictures"]


def main() -> None:
    import polars as pl
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    from onnuri.family import seeded

    chosen = options()
    names = sorted(pl.read_parquet(chosen.data / "cifar10" / "test.parquet")["label"].unique())
    config = ViTConfig(
        **SHAPE, image_size=SIDE, id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)}
    )
    with seeded(torch.Generator().manual_seed(0)):
        net = ViTForImageClassification(config)
    net.save_pretrained(chosen.kept / "vit")
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(chosen.kept / "vit")
    print("{}")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--kept", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=14)
    return parser.parse_args()


def pictures(chosen: argparse.Namespace) -> list[dict]:
    """As many records as the steps need: {"image": PIL, "label": index}."""
    import polars as pl
    from PIL import Image

    table = pl.read_parquet(chosen.data / "cifar10" / "train.parquet")
    names = sorted(table["label"].unique())
    rows = table.sample(chosen.steps * BATCH, seed=0)
    return [
        {"image": Image.open(io.BytesIO(row["image"])).convert("RGB"), "label": names.index(row["label"])}
        for row in rows.iter_rows(named=True)
    ]


if __name__ == "__main__":
    main()
