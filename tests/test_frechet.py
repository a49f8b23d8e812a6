"""The distance by which the benchmarks judge generators: its features are a classifier's, its formula Heusel's."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.frechet import features, made_by, save_grid

from onnuri.families import gan, image_classifier
from onnuri.family import Generators
from onnuri.model import Model
from onnuri.nets.pixels import frechet


def new_model(family, n=40):
    return Model(family, *family.start(family.tiny(), family.toy(n, 0), torch.Generator().manual_seed(0)))


def test_diagonal_gaussians_have_their_closed_form():
    draw = np.random.default_rng(0)
    whole = np.linalg.qr(draw.normal(size=(400, 5)) - draw.normal(size=5))[0]
    whole = np.linalg.qr(whole - whole.mean(0))[0] * 20  # columns of mean 0 and variance 1, none with another
    means, spreads = draw.normal(size=(2, 5)), draw.uniform(0.5, 2, (2, 5))
    one, other = (whole * spread + mean for spread, mean in zip(spreads, means))
    expected = ((means[0] - means[1]) ** 2).sum() + ((spreads[0] - spreads[1]) ** 2).sum()
    assert frechet(one, other) == pytest.approx(expected, rel=1e-9)


def test_features_are_what_enters_the_head():
    model = new_model(image_classifier.FAMILY, 300)  # more than a batch
    records = model.family.toy(300, 1).list()
    found = features(model, [record["image"] for record in records])
    assert not model.net.get_submodule("head")._forward_pre_hooks
    batch = model.family.collate(records, model.assets, Generators(0, range(300)))
    with torch.no_grad():
        expected = model.family.outputs(model.net, batch)[0][:, 0]
        logits = model.net.get_submodule("head")(torch.from_numpy(found).float())
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_as_many_pictures_as_asked_for(tmp_path):
    made = made_by(new_model(gan.FAMILY), 260)
    assert len(made) == 260 and made[0].dtype == np.uint8
    save_grid(made, tmp_path / "grid.png", columns=4)
    assert (tmp_path / "grid.png").stat().st_size > 0
