"""What one configuration costs: predicted and measured by `estimate` on an untrained net of random records.

python benchmarks/sides/estimates.py --family NAME --config NAME=VALUE,... --shape NAME=NUMBER,... --batch NUMBER
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

import numpy as np

WORDS = ("film", "영화", "good", "정말", "actor", "재미", "scene", "bad", "music", "연기", "story", "처음")
Make = Callable[[np.random.Generator, dict[str, int]], dict[str, Any]]


def row(draw: np.random.Generator, shape: dict[str, int]) -> dict[str, Any]:
    numbers = {f"number {i}": float(draw.normal()) for i in range(shape["columns"])}
    words = {f"word {i}": str(draw.choice(WORDS)) for i in range(shape["columns"] // 2)}
    return {**numbers, **words, "label": str(draw.choice(["no", "yes"]))}


def picture(draw: np.random.Generator, shape: dict[str, int]) -> dict[str, Any]:
    return {"image": draw.integers(0, 256, (shape["side"], shape["side"], 3), dtype=np.uint8)}


def labeled_picture(draw: np.random.Generator, shape: dict[str, int]) -> dict[str, Any]:
    return {**picture(draw, shape), "label": str(draw.integers(10))}


def text(draw: np.random.Generator, shape: dict[str, int]) -> dict[str, Any]:
    return {"text": " ".join(draw.choice(WORDS, shape["words"]))}


def labeled_text(draw: np.random.Generator, shape: dict[str, int]) -> dict[str, Any]:
    return {**text(draw, shape), "label": str(draw.choice(["kind", "unkind"]))}


def series(draw: np.random.Generator, shape: dict[str, int]) -> dict[str, Any]:
    return {
        name: draw.normal(size=(steps, shape["columns"])).astype(np.float32)
        for name, steps in (("past", shape["past"]), ("future", shape["past"] // 4))
    }


KINDS: dict[str, tuple[Make, dict[str, str], str]] = {
    "tabular": (row, {"label": "category"}, "label"),
    "image_classifier": (labeled_picture, {"image": "image", "label": "category"}, "label"),
    "text_classifier": (labeled_text, {"text": "text", "label": "category"}, "label"),
    "causal_lm": (text, {"text": "text"}, "text"),
    "diffusion": (picture, {"image": "image"}, "image"),
    "gan": (picture, {"image": "image"}, "image"),
    "sequence": (series, {"past": "series", "future": "series"}, "future"),
}
"""{family: (how a record is made, kinds of fields, answer)}"""


def model_of(family: str, config: dict[str, Any], shape: dict[str, int], batch: int) -> tuple[Any, Any]:
    """(the model, its data): `batch` records or more."""
    import torch

    from onnuri import registry
    from onnuri.data import Data, records_of
    from onnuri.model import Model

    make, kinds, answer = KINDS[family]
    draw = np.random.default_rng(0)
    rows = [make(draw, shape) for _ in range(max(batch, 64))]
    known = {name: "number" if isinstance(value, float) else "category" for name, value in rows[0].items()}
    records = records_of(rows, {**{n: k for n, k in known.items() if n not in kinds}, **kinds}, answer)  # type: ignore[arg-type]
    found = registry.family(family)
    net, assets = found.start(config, records, torch.Generator().manual_seed(0))
    return Model(found, net, assets), Data("random", records, {}, records)


def pairs(text: str) -> dict[str, Any]:
    found = dict(pair.split("=") for pair in text.split(",") if pair)
    return {name: int(value) if value.isdigit() else value for name, value in found.items()}


def main() -> None:
    from onnuri.operation import Quiet
    from onnuri.operations import estimate

    parser = argparse.ArgumentParser()
    parser.add_argument("--family", required=True)
    parser.add_argument("--config", type=pairs, default={})
    parser.add_argument("--shape", type=pairs, default={})
    parser.add_argument("--batch", type=int, required=True)
    chosen = parser.parse_args()
    model, data = model_of(chosen.family, chosen.config, chosen.shape, chosen.batch)
    settings = estimate.Settings(batch_size=chosen.batch)
    print(json.dumps(estimate.apply(settings, Quiet(), model, data).report))


if __name__ == "__main__":
    main()
