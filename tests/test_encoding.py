"""What a family says of its batches can be followed without it, number for number."""

import numpy as np
import pytest
import torch
from PIL import Image

from folders import PICTURES, TEXTS, save
from onnuri import encoding, registry
from onnuri.data import records_of
from onnuri.families import vocabulary
from onnuri.model import Model, open_model

ODD_TEXTS = [
    "",
    " ",
    "a  b",
    "[PAD] x[CLS]y the show[SEP] ",
    "정말 좋아요, the BOOK is\tgreat!?\n",
    "e\u0301 \u1112\u1161\u11ab글 İstanbul ΣΑΣ",
    "노래 " * 300,
    "\ud55c\U0001f600\U0001f600 ▁▁x «quoted» $5+3",
]


def started(name: str, config: dict | None = None, records=None) -> Model:
    family = registry.family(name)
    made = family.start(config or family.tiny(), records or family.toy(64, 0), torch.Generator().manual_seed(0))
    return Model(family, *made)


def apart(model: Model, records: list) -> float:
    """The largest difference of a batch of one record that is described from the one that `collate` makes."""
    described = model.family.encoding(model.assets)
    assert described
    return max(
        encoding.apart(encoding.encode(described, record), model.collate([record])) for record in model.asked(records)
    )


@pytest.mark.parametrize("name", ["tabular", "forest"])
def test_rows_become_the_same_numbers(name):
    model = started(name)
    rows = model.family.toy(40, 1).list()
    odd = {"height": float("inf"), "weight": None, "color": "mauve", "shape": None, "label": "yes"}
    far = {"height": -1e30, "weight": 3, "color": 1.0, "shape": "round", "label": "no"}
    assert apart(model, [*rows, odd, far]) <= 1e-6


def test_what_differs_is_seen():
    one = {"x": np.array([[1.0, np.nan]]), "n": np.array([[3]])}
    assert encoding.apart(one, {"x": torch.tensor([[1.0, np.nan]], dtype=torch.float64), "n": torch.tensor([[3]])}) == 0
    assert encoding.apart(one, one | {"x": np.array([[1.5, np.nan]])}) == 0.5
    for other in (
        {"x": np.array([[1.0, 0.0]])},
        {"n": np.array([[4]])},
        {"n": np.array([3])},
        {"n": np.array([[3.0]])},
    ):
        assert encoding.apart(one, one | other) == np.inf


def pictures(sizes: list, seed: int = 0) -> list[np.ndarray]:
    """Noise, each with an edge of black and white in it."""
    draw = np.random.default_rng(seed)
    found = [draw.integers(0, 256, size).astype(np.uint8) for size in sizes]
    for image in found:
        image[: len(image) // 3], image[-2:] = 0, 255
    return found


SIZES = [(8, 8), (28, 28), (5, 17), (61, 40), (1, 1), (33, 33, 3), (7, 90, 3), (224, 13, 3)]
WIDE = [(28, 28), (33, 33, 3), (7, 90, 3), (50, 60)]  # the rows of a tall picture come last since Pillow 13


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [[8, 8], [5, 9], [40, 12]])
def test_pictures_become_the_same_bytes(size, channels):
    config = {"width": 8, "image_size": size, "channels": channels}
    model = started("image_classifier", config)
    assert apart(model, [{"image": image} for image in pictures(SIZES)]) <= 1e-6


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_resizing_is_that_of_pillow(name):
    for image in pictures(SIZES):
        for height, width in ((8, 8), (3, 50), (100, 2)):
            step = {"height": height, "width": width, "filter": name}
            found = encoding.resize(image[..., None] if image.ndim == 2 else image, step)
            rows = Image.fromarray(image).resize((width, image.shape[0]), Image.Resampling[name.upper()])
            wanted = rows.resize((width, height), Image.Resampling[name.upper()])
            assert np.array_equal(found.squeeze(), np.asarray(wanted).squeeze())


def test_processors_of_transformers_are_described_or_left_alone(tmp_path):
    said = {}
    for name in PICTURES:
        model = open_model(save(name, tmp_path / name))
        said[name] = bool(model.family.encoding(model.assets))
        if said[name]:  # float32 sums in another order
            assert apart(model, [{model.assets.question: image} for image in pictures(WIDE)]) <= 1e-5
    assert said == {"vit": True, "swin": True, "mobilenet": True, "resnet": False, "convnext": False}


def test_bags_of_n_grams_are_the_same():
    model = started("text_classifier", {"width": 4, "longest": 5, "max_length": 200})
    rows = model.family.toy(30, 1).list()
    assert apart(model, [*rows, *({"text": text} for text in ODD_TEXTS)]) == 0


def test_tokens_are_the_same():
    rows = [{"text": text * 2, "label": "ab"[i % 2]} for i, text in enumerate(ODD_TEXTS * 3)]
    records = records_of(rows, {"text": "text", "label": "category"}, "label")
    for learnt in (None, records):
        model = started("text_classifier", records=learnt)
        rows = model.family.toy(30, 1).list()
        assert apart(model, [*rows, *({"text": text} for text in ODD_TEXTS)]) == 0


def test_other_tokenizers_are_left_alone(tmp_path):
    for name in TEXTS:
        model = open_model(save(name, tmp_path / name))
        assert model.family.encoding(model.assets) == {}
    assert vocabulary.encoding(vocabulary.learnt(iter(["a b"]), vocabulary.WRITTEN, 300, 16)) == {}
