"""gan: the folder, the loss against the literature's own formula, what it makes and how that is judged."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.linalg import sqrtm
from torch.nn.functional import softplus

from onnuri.data import records_of
from onnuri.errors import BadInput, BadSettings, Refusal
from onnuri.families.gan import FAMILY, PENALTY, STEP
from onnuri.family import Generators
from onnuri.nets.pixels import averaging, frechet, guess_shape, image_field, pixel_features, to_images, to_tensor

KEYS = [3, 1, 4, 15, 9, 2, 6, 5]


def started(config: dict | None = None, n: int = 64):
    records = FAMILY.toy(n, 0)
    net, assets = FAMILY.start(config or FAMILY.tiny(), records, torch.Generator().manual_seed(1))
    return net, assets, records


def batch_of(records, assets, keys=KEYS):
    return FAMILY.collate([records[key] for key in keys], assets, Generators(0, keys))


def shapes_of(net) -> dict:
    return {name: value.shape for name, value in net.state_dict().items()}


def frechet_of(net, assets, n: int = 128) -> float:
    held = FAMILY.toy(n, 7).list()
    with torch.no_grad():
        made = FAMILY.sample(net, assets, held, Generators(5, range(n)))
    return FAMILY.score(held, made, assets)["frechet_pixels"]


def test_start_depends_on_the_generator_alone():
    first, _, _ = started()
    torch.manual_seed(99)
    again, _, _ = started()
    other, _ = FAMILY.start(FAMILY.tiny(), FAMILY.toy(8, 0), torch.Generator().manual_seed(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters()))
    assert not torch.equal(first.generator.project.weight, other.generator.project.weight)


def test_folder_round_trip(tmp_path):
    net, assets, records = started()
    FAMILY.write(net, assets, tmp_path, True)
    assert FAMILY.claims(tmp_path)
    again, found = FAMILY.read(tmp_path, False)
    assert found == assets
    assert shapes_of(again) == shapes_of(net)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in net.state_dict().items())
    batch = batch_of(records, assets)
    torch.testing.assert_close(FAMILY.outputs(again, batch)[0], FAMILY.outputs(net, batch)[0])


def test_column_of_images_survives(tmp_path):
    rows = [{"picture": row["image"], "label": "a"} for row in FAMILY.toy(4, 0)]
    records = records_of(rows, {"picture": "image", "label": "category"}, "label")
    net, assets = FAMILY.start(FAMILY.tiny(), records, torch.Generator().manual_seed(1))
    FAMILY.write(net, assets, tmp_path, True)
    assert FAMILY.fields(FAMILY.read(tmp_path, True)[1]) == ({}, ("picture", "image"))


@pytest.mark.parametrize("player", ["discriminator", "generator"])
def test_a_record_has_the_same_loss_in_every_batch(player):
    net, assets, records = started()
    whole, count = FAMILY.loss(net, batch_of(records, assets), player)
    parts = torch.cat([FAMILY.loss(net, batch_of(records, assets, [key]), player)[0] for key in KEYS])
    torch.testing.assert_close(whole, parts, atol=1e-5, rtol=1e-5)
    assert count.tolist() == [1] * len(KEYS)


def test_loss_is_r3gan_with_the_gradient_taken_exactly(monkeypatch):
    """The finite difference's square, averaged over directions, is the gradient's squared norm."""
    net, assets, records = started()
    batch = {name: value.double() for name, value in batch_of(records, assets, [0]).items()}
    net = net.double()
    made = net.generator(batch["latent"]).detach()
    penalty = 0.0
    for image in (batch["image"], made):
        image = image.clone().requires_grad_()
        penalty += torch.autograd.grad(net.discriminator(image).sum(), image)[0].square().sum().item()
    pair = softplus(net.discriminator(made) - net.discriminator(batch["image"])).item()
    directions = torch.randn(2000, 2, *assets.shape, generator=torch.Generator().manual_seed(0)).double()
    many = {name: value.expand(2000, *value.shape[1:]) for name, value in batch.items()}
    many["direction"] = directions
    monkeypatch.setattr("onnuri.families.gan.STEP", 1e-4)
    found = FAMILY.loss(net, many, "discriminator")[0].mean().item()
    assert found == pytest.approx(pair + PENALTY * penalty, rel=0.1)  # 2000 directions: 3 % of noise
    assert STEP > 0


def test_training_both_players_improves_the_headline():
    net, assets, records = started(n=256)
    before = frechet_of(net, assets)
    players = FAMILY.players(net)
    optimizers = {name: torch.optim.AdamW(part.parameters(), lr=1e-3) for name, part in players.items()}
    assert list(optimizers) == ["discriminator", "generator"]
    for step in range(40):
        batch = batch_of(records, assets, [(32 * step + i) % 256 for i in range(32)])
        for name, optimizer in optimizers.items():
            total, count = FAMILY.loss(net, batch, name)
            net.zero_grad()
            (total.sum() / count.sum()).backward()
            optimizer.step()
    assert frechet_of(net, assets) < 0.7 * before


def test_sample_is_a_function_of_each_record_alone():
    net, assets, records = started()
    with torch.no_grad():
        whole = FAMILY.sample(net, assets, records.list(slice(0, 4)), Generators(5, range(4)))
        part = FAMILY.sample(net, assets, [{}], Generators(5, [2]))
    difference = whole[2]["image"].astype(int) - part[0]["image"]
    assert np.abs(difference).max() <= 1  # another batch size may round otherwise
    assert whole[0]["image"].dtype == np.uint8 and whole[0]["image"].shape == (8, 8)
    assert "image_scores" in whole[0] and len(np.unique([row["image"].sum() for row in whole])) > 1


def test_answers_are_not_needed_and_not_read_by_outputs():
    net, assets, records = started()
    asked = FAMILY.collate([{}] * len(KEYS), assets, Generators(0, KEYS))
    assert set(asked) == {"latent"}
    values, mask = FAMILY.outputs(net, asked)
    assert torch.equal(values, FAMILY.outputs(net, batch_of(records, assets))[0])
    assert values.shape == (8, 1, 64) and mask.shape == (8, 1) and mask.all()


def test_outputs_can_be_traced_for_any_number_of_records():
    net, _, _ = started()

    class Asked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, latent):
            return FAMILY.outputs(self.net, {"latent": latent})

    shapes = {"latent": {0: torch.export.Dim("B", max=512)}}
    program = torch.export.export(Asked(), (torch.randn(3, 8),), dynamic_shapes=shapes).module()
    latent = torch.randn(100, 8)
    torch.testing.assert_close(program(latent)[0], FAMILY.outputs(net, {"latent": latent})[0])


def test_like_keeps_the_question_and_scales_the_widths():
    net, assets, _ = started()
    same, _ = FAMILY.like(net, assets, 1, torch.Generator().manual_seed(3))
    half, found = FAMILY.like(net, assets, 0.5, torch.Generator().manual_seed(3))
    assert shapes_of(same) == shapes_of(net)
    assert sum(p.numel() for p in half.parameters()) < 0.6 * sum(p.numel() for p in net.parameters())
    assert found == assets and FAMILY.axis(found) == FAMILY.axis(assets)
    assert FAMILY.outputs(half, {"latent": torch.randn(2, 8)})[0].shape == (2, 1, 64)


def test_blocks_put_out_pictures():
    net, assets, records = started()
    seen = {}
    for name, (module, axis) in FAMILY.blocks(net).items():
        module.register_forward_hook(lambda *given, at=name, to=axis: seen.update({at: given[2].size(to)}))
    FAMILY.loss(net, batch_of(records, assets), "generator")
    assert seen == {"generator.stages.0": 8, "discriminator.stages.0": 16}


def test_adopt_goes_on_with_other_images(tmp_path):
    net, assets, records = started()
    FAMILY.write(net, assets, tmp_path / "mine", True)
    kept, _ = FAMILY.adopt(tmp_path / "mine", records, torch.Generator())
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), net.parameters()))
    (tmp_path / "other").mkdir()
    with pytest.raises(Refusal, match="holds no GAN"):
        FAMILY.adopt(tmp_path / "other", records, torch.Generator())


def spoil_config(folder: Path, **entries) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **entries}))


def spoil_tensors(folder: Path, **tensors) -> None:
    known = load_file(folder / "model.safetensors")
    known.pop("generator.project.bias")
    save_file({**known, **tensors}, folder / "model.safetensors")


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda folder: spoil_config(folder, width="8", latent=0), "'width' must be .* found '8'"),
        (lambda folder: spoil_config(folder, width=10**9), "from 4 to 2048, found 1000000000"),
        (lambda folder: spoil_config(folder, answer=None), "'answer' must name"),
        (lambda folder: spoil_config(folder, latent=9), "mismatched tensor generator.project.weight"),
        (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no model.safetensors"),
        (lambda folder: spoil_tensors(folder, extra=torch.zeros(1)), "missing .*bias\n.*unexpected .*extra"),
    ],
)
def test_malformed_folders(tmp_path, spoil, message):
    net, assets, _ = started()
    FAMILY.write(net, assets, tmp_path, True)
    spoil(tmp_path)
    with pytest.raises(BadInput, match=message):
        FAMILY.read(tmp_path, False)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"wdith": 8}, "did you mean width"),
        ({"width": 6}, "multiple of 4"),
        ({"size": 30}, "multiple of 4"),
        ({"channels": 2}, "must be 1 or 3"),
        ({"latent": "many"}, "found 'many'"),
    ],
)
def test_bad_settings(config, message):
    with pytest.raises(BadSettings, match=message):
        started(config)


def test_shape_follows_the_first_record():
    draw = np.random.default_rng(0)
    rows = [{"image": draw.integers(0, 256, shape, dtype=np.uint8)} for shape in [(27, 14, 3), (30, 30)]]
    net, assets = FAMILY.start({"width": 4}, records_of(rows, {"image": "image"}, "image"), torch.Generator())
    assert assets.shape == (3, 28, 28)
    batch = FAMILY.collate(rows, assets, Generators(0, [0, 1]))
    assert FAMILY.outputs(net, batch)[0].shape == (2, 1, 3 * 28 * 28)
    with torch.no_grad():
        made = FAMILY.sample(net, assets, rows, Generators(0, [0, 1]))
    assert made[0]["image"].shape == (28, 28, 3)
    assert FAMILY.score(rows, made, assets)["frechet_pixels"] > 0


# ---------------------------------------------------------------------------- pixels, shared with diffusion


def test_pixels_come_back_as_they_went():
    draw = np.random.default_rng(0)
    for shape, image in [
        ((1, 4, 8), draw.integers(0, 256, (4, 8), dtype=np.uint8)),
        ((3, 4, 8), draw.integers(0, 256, (4, 8, 3), dtype=np.uint8)),
    ]:
        tensor = to_tensor(image, shape)
        assert tensor.shape == shape and tensor.abs().max() <= 1
        assert np.array_equal(to_images(tensor.reshape(1, 1, -1), shape)[0], image)
    assert guess_shape(np.zeros((3000, 2000, 3), dtype=np.uint8)) == (3, 64, 64)


def test_two_columns_of_images_are_an_error():
    with pytest.raises(BadInput, match="2 columns hold images"):
        image_field(records_of([], {"left": "image", "right": "image"}, None))


def test_frechet_is_the_formula_with_a_matrix_root():
    draw = np.random.default_rng(0)
    first, second = draw.normal(0, 1, (300, 5)), draw.normal(1, 2, (200, 5)) @ draw.normal(0, 1, (5, 5))
    spreads = [np.cov(rows, rowvar=False, bias=True) for rows in (first, second)]
    expected = ((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(
        spreads[0] + spreads[1] - 2 * sqrtm(spreads[0] @ spreads[1]).real
    )
    assert frechet(first, second) == pytest.approx(expected, rel=1e-9)
    assert frechet(first, first) == pytest.approx(0, abs=1e-9)
    assert frechet(first[:1], second[:1]) == pytest.approx(((first[0] - second[0]) ** 2).sum())


def test_the_score_sees_missing_modes_and_is_sound_for_one_record():
    _, assets, records = started(n=200)
    rows = records.list()
    same, one_mode = FAMILY.toy(200, 3).list(), [rows[0]] * 200
    good, bad = (FAMILY.score(rows, made, assets)["frechet_pixels"] for made in (same, one_mode))
    assert good < 0.2 * bad
    assert np.isfinite(FAMILY.score(rows[:1], same[:1], assets)["frechet_pixels"])


@pytest.mark.parametrize(("few", "many"), [(8, 28), (8, 32), (8, 8), (3, 7)])
def test_averaging_is_that_of_equal_parts_of_a_row(few, many):
    row = np.random.default_rng(0).random(many)
    fine = np.repeat(row, few).reshape(few, many).mean(1)  # every value split in `few`, so that parts fall between them
    np.testing.assert_allclose(averaging(few, many) @ row, fine, rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 8, 12)])
def test_pixel_features_average_the_pixels(shape):
    draw = np.random.default_rng(0)
    side = shape[1:] if shape[0] == 1 else (*shape[1:], 3)
    images = [draw.integers(0, 256, side, dtype=np.uint8) for _ in range(4)]
    found = pixel_features(images, shape)
    assert found.shape == (4, shape[0] * 64)
    np.testing.assert_allclose(found.mean(1), [image.mean() / 255 for image in images], rtol=1e-5)
    odd = np.kron(images[0], np.ones((2, 2) if shape[0] == 1 else (2, 2, 1))).astype(np.uint8)  # another size
    assert pixel_features([*images, odd], shape)[4].mean() == pytest.approx(found[0].mean(), abs=0.02)
