"""Our ConvNet's own parts: standardized filters, a stem that whitens, pictures moved in training, what is learnt."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional

from onnuri.data import records_of
from onnuri.errors import BadInput
from onnuri.families import pictures
from onnuri.families.image_classifier import FAMILY
from onnuri.family import Generators
from onnuri.nets.convnet import ConvNet, Design, StandardConv, moved, whiten

KEYS = [3, 1, 4, 15, 9, 2, 6, 5]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def shapes(n, seed, both_ways):
    """Grey 16 x 16 pictures of hooks that open upward or downward, and, if `both_ways`, to either side by chance."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        image, up = random.integers(0, 60, (16, 16)), bool(random.integers(2))
        image[3:13, 4:6] += 120
        image[slice(3, 5) if up else slice(11, 13), 4:12] += 120
        image = image[:, ::-1] if both_ways and random.integers(2) else image
        rows.append({"image": image.astype(np.uint8), "label": "up" if up else "down"})
    return records_of(rows, {"image": "image", "label": "category"}, "label")


def turns(n, seed):
    """Hooks that open to the left or to the right: what is seen changes when they are mirrored."""
    rows = [
        {"image": record["image"][:, :: -1 if place % 2 else 1], "label": "left" if place % 2 else "right"}
        for place, record in enumerate(shapes(n, seed, False))
    ]
    return records_of(rows, {"image": "image", "label": "category"}, "label")


@pytest.fixture(scope="module")
def started():
    records = shapes(64, 0, True)
    return *FAMILY.start({"width": 8, "shift": 2, "flip": True}, records, generator()), records


def batch_of(records, assets, keys=KEYS, seed=0):
    return FAMILY.collate([records[key] for key in keys], assets, Generators(seed, keys))


def test_filters_are_standardized_and_zeros_stay():
    conv = StandardConv(5, 7)
    with torch.no_grad():
        conv.weight[2] = 0
        conv.weight[3, 1] = 0
    pictures = torch.randn(2, 5, 6, 6)
    expected = conv.weight.detach().double()
    spread = expected.var((1, 2, 3), correction=0, keepdim=True)
    expected = (expected - expected.mean((1, 2, 3), keepdim=True)) / (spread + 1e-5).sqrt()
    expected[2], expected[3, 1] = 0, 0
    found = conv(pictures)
    torch.testing.assert_close(found, functional.conv2d(pictures, expected.float(), padding=1), atol=1e-4, rtol=1e-4)
    assert not found[:, 2].any()


def test_a_filters_own_scale_and_offset_change_nothing():
    net = ConvNet(Design((8, 8), 1, 8, 1, 2)).eval()
    image = torch.randn(3, 1, 8, 8)
    before = net(image)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, StandardConv):
                module.weight.mul_(3).add_(0.5)
    torch.testing.assert_close(net(image), before, atol=2e-3, rtol=2e-3)


def test_the_stem_whitens_the_patches():
    smooth = functional.avg_pool2d(torch.randn(64, 3, 20, 20, generator=generator()), 3, 1) * 4
    net = ConvNet(Design((18, 18), 3, 16, 1, 2))
    whiten(net, smooth)
    seen = net.stem(smooth)[:, :8].permute(1, 0, 2, 3).flatten(1)
    assert torch.allclose(torch.cov(seen), torch.eye(8), atol=0.05)
    assert torch.equal(net.stem.weight[8:], -net.stem.weight[:8])


def test_start_whitens_by_its_own_records(started):
    net, assets, records = started
    inside = FAMILY.collate(records.list(), assets, Generators(0, range(64)))["pixel_values"]
    assert net.stem(inside)[:, 0].std().item() == pytest.approx(1, abs=0.1)


def test_moved_shifts_and_mirrors():
    image = torch.arange(1.0, 17).reshape(1, 1, 4, 4).repeat(3, 2, 1, 1)
    down_left, mirrored, both = moved(image, torch.tensor([[1, -2, 0], [0, 0, 1], [0, 1, 1]]))
    assert torch.equal(mirrored, image[0].flip(2))
    assert torch.equal(down_left[:, 1:, :2], image[0][:, :3, 2:])
    assert not down_left[:, 0].any() and not down_left[:, :, 2:].any()
    assert torch.equal(both, functional.pad(image[0].flip(2), (1, 0))[:, :, :4])


def test_moves_belong_to_the_record_and_reach_their_bounds(started):
    _, assets, records = started
    whole = batch_of(records, assets)["moves"]
    assert torch.equal(whole, torch.cat([batch_of(records, assets, [key])["moves"] for key in KEYS]))
    assert not torch.equal(whole, batch_of(records, assets, seed=1)["moves"])
    many = pictures.moves_of(Generators(0, range(500)), assets.pixels)
    assert many[:, :2].min() == -2 and many[:, :2].max() == 2 and 200 < many[:, 2].sum() < 300
    still = pictures.moves_of(Generators(0, range(50)), pictures.Pixels((16, 16), (0.5,), (0.2,), 0, False))
    assert not still.any()


def test_pictures_move_in_training_only(started):
    net, assets, records = started
    batch = batch_of(records, assets)
    unmoved = {**batch, "moves": torch.zeros_like(batch["moves"])}
    net.train()
    loss = FAMILY.loss(net, batch, "classifier")[0]
    assert not torch.allclose(loss, FAMILY.loss(net, unmoved, "classifier")[0])
    alone = torch.cat([FAMILY.loss(net, batch_of(records, assets, [key]), "classifier")[0] for key in KEYS])
    torch.testing.assert_close(loss, alone, atol=1e-4, rtol=1e-4)
    assert torch.equal(FAMILY.outputs(net, batch)[0], FAMILY.outputs(net, unmoved)[0])
    net.eval()
    assert torch.equal(FAMILY.loss(net, batch, "classifier")[0], FAMILY.loss(net, unmoved, "classifier")[0])


def test_labels_are_smoothed_in_training_only():
    records = shapes(64, 0, True)
    net, assets = FAMILY.start({"width": 8, "shift": 0, "flip": False, "smoothing": 0.2}, records, generator())
    batch = batch_of(records, assets)
    nats = -FAMILY.outputs(net, batch)[0][:, 0].log_softmax(1)
    known = nats.gather(1, batch["labels"].unsqueeze(1)).squeeze(1)
    for training, expected in ((True, 0.8 * known + 0.2 * nats.mean(1)), (False, known)):
        torch.testing.assert_close(FAMILY.loss(net.train(training), batch, "classifier")[0], expected)


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        (shapes(300, 1, True), True),
        (turns(300, 1), False),
        (turns(20, 1), False),
        (records_of(list(shapes(6, 1, True)), shapes(1, 1, True).fields, "label"), False),
    ],
    ids=["hooks to both sides", "left or right", "few turns", "too few to be sure"],
)
def test_whether_pictures_are_mirrored_is_learnt(records, expected):
    _, assets = FAMILY.start({"width": 8}, records, generator())
    assert assets.pixels.flip is expected and assets.pixels.shift == 1


def test_labels_that_say_nothing_teach_no_mirroring():
    random = np.random.default_rng(0)
    values = random.integers(0, 256, (200, 8, 8, 1), dtype=np.uint8)
    assert not pictures.same_when_mirrored(values, [str(i) for i in random.integers(0, 4, 200)])


def test_the_disturbance_is_kept_in_the_folder_and_learnt_anew_by_adopt(started, tmp_path):
    net, assets, _ = started
    FAMILY.write(net, assets, tmp_path, True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["shift"] == 2 and config["flip"] is True
    assert FAMILY.read(tmp_path, False)[1].pixels == assets.pixels
    adopted = FAMILY.adopt(tmp_path, turns(300, 1), generator())[1].pixels
    assert adopted.flip is False and adopted.shift == 2


def test_a_folder_of_an_earlier_design_is_refused(started, tmp_path):
    net, assets, _ = started
    FAMILY.write(net, assets, tmp_path, True)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["shift"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match="shift"):
        FAMILY.read(tmp_path, True)


def noise(seed, size=(9, 11), channels=3):
    shape = size if channels == 1 else (*size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("size", "channels", "config", "stages"),
    [
        ((8, 8), 1, {}, 2),
        ((28, 28), 1, {"width": 16}, 3),
        ((32, 32), 3, {"depth": 2, "width": 8}, 3),
        ((300, 200), 3, {"width": 8}, 4),
        ((1, 5), 1, {"width": 8}, 2),
    ],
)
def test_own_net_fits_the_pictures(size, channels, config, stages):
    rows = [{"image": noise(i, size, channels), "label": i % 2} for i in range(4)]
    net, assets = FAMILY.start(config, records_of(rows, {"image": "image", "label": "number"}, "label"), generator())
    assert len(net.blocks) == stages * net.design.depth and assets.labels == ("0", "1")
    other = [{"image": noise(9, (12, 7), 4 - channels)}, rows[0]]
    batch = FAMILY.collate(other, assets, Generators(0, range(2)))
    assert batch["pixel_values"].shape == (2, channels, *net.design.image_size)
    assert max(assets.pixels.size) <= 64
    assert FAMILY.outputs(net, batch)[0].shape == (2, 1, 2) and "labels" not in batch
