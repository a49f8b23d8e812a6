"""diffusion: folders, loss and samples against diffusers itself."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from torch.nn.functional import mse_loss

from onnuri.data import records_of
from onnuri.errors import BadInput, BadSettings, Refusal
from onnuri.families.diffusion import FAMILY, draw
from onnuri.family import Generators

KEYS = [3, 1, 4, 15, 9, 2]


def started(config: dict | None = None, n: int = 64):
    records = FAMILY.toy(n, 0)
    net, assets = FAMILY.start(config or FAMILY.tiny(), records, torch.Generator().manual_seed(1))
    return net, assets, records


def batch_of(records, assets, keys=KEYS):
    return FAMILY.collate([records[key] for key in keys], assets, Generators(0, keys))


def shapes_of(net) -> dict:
    return {name: value.shape for name, value in net.state_dict().items()}


def equal(net, other) -> bool:
    """Are all tensors of the two nets bitwise equal?"""
    return shapes_of(net) == shapes_of(other) and all(
        torch.equal(value, other.state_dict()[name]) for name, value in net.state_dict().items()
    )


def bare(folder: Path, **config) -> UNet2DModel:
    """A UNet's folder as diffusers writes it."""
    net = UNet2DModel(
        **{
            "sample_size": 8,
            "in_channels": 3,
            "out_channels": 3,
            "block_out_channels": (8, 16),
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "layers_per_block": 1,
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "norm_num_groups": 4,
        }
        | config
    )
    net.save_pretrained(folder)
    return net


def test_new_model_opens_in_diffusers(tmp_path):
    net, assets, records = started()
    FAMILY.write(net, assets, tmp_path, True)
    assert FAMILY.claims(tmp_path)
    pipeline = DDPMPipeline.from_pretrained(tmp_path, use_safetensors=True)
    assert equal(pipeline.unet, net) and pipeline.scheduler.config.num_train_timesteps == 100
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(num_inference_steps=2, output_type="np").images.shape == (1, 8, 8, 1)
    again, found = FAMILY.read(tmp_path, False)
    assert found == assets and equal(again, net)
    batch = batch_of(records, assets)
    torch.testing.assert_close(FAMILY.outputs(again, batch)[0], FAMILY.outputs(net, batch)[0])


@pytest.mark.parametrize("with_schedule", [True, False])
def test_bare_unet_keeps_its_layout(tmp_path, with_schedule):
    net = bare(tmp_path / "given")
    if with_schedule:
        scheduler = DDPMScheduler(num_train_timesteps=50, prediction_type="v_prediction")
        scheduler.save_pretrained(tmp_path / "given")
    opened, assets = FAMILY.read(tmp_path / "given", False)
    assert equal(opened, net) and assets.shape == (3, 8, 8)
    FAMILY.write(opened, assets, tmp_path / "written", True)
    names = {path.name for path in (tmp_path / "written").iterdir()}
    assert names == {path.name for path in (tmp_path / "given").iterdir()} | {"onnuri_sampling.json"}
    assert equal(UNet2DModel.from_pretrained(tmp_path / "written", use_safetensors=True), net)
    assert FAMILY.read(tmp_path / "written", False)[1] == assets


def test_ddim_pipeline_keeps_its_files(tmp_path):
    pipeline = DDIMPipeline(bare(tmp_path / "unet"), DDIMScheduler(num_train_timesteps=20))
    pipeline.save_pretrained(tmp_path / "given")
    net, assets = FAMILY.read(tmp_path / "given", False)
    FAMILY.write(net, replace(assets, answer="picture"), tmp_path / "written", True)
    for name in ("model_index.json", "scheduler/scheduler_config.json"):
        given, written = (json.loads((tmp_path / where / name).read_text()) for where in ("given", "written"))
        assert given == written
    assert type(DDIMPipeline.from_pretrained(tmp_path / "written").scheduler) is DDIMScheduler
    assert FAMILY.fields(FAMILY.read(tmp_path / "written", True)[1]) == ({}, ("picture", "image"))


def test_folder_without_weights(tmp_path):
    net, assets, _ = started()
    FAMILY.write(net, assets, tmp_path, False)
    assert not list(tmp_path.rglob("*.safetensors"))
    empty, found = FAMILY.read(tmp_path, True)
    assert shapes_of(empty) == shapes_of(net) and found == assets
    with pytest.raises(BadInput):
        FAMILY.read(tmp_path, False)


def test_a_record_has_the_same_loss_in_every_batch():
    net, assets, records = started()
    whole, count = FAMILY.loss(net, batch_of(records, assets), "unet")
    parts = torch.cat([FAMILY.loss(net, batch_of(records, assets, [key]), "unet")[0] for key in KEYS])
    torch.testing.assert_close(whole, parts, atol=1e-4, rtol=1e-5)
    assert count.tolist() == [64] * len(KEYS)


def test_loss_is_the_library_s_training_example():
    """As in diffusers' examples/unconditional_image_generation: add_noise of DDPMScheduler and mse_loss."""
    net, assets, records = started()
    total, count = FAMILY.loss(net, batch_of(records, assets), "unet")
    steps, noise = (torch.stack(part) for part in zip(*(draw(g, assets, 100) for g in Generators(0, KEYS))))
    clean = torch.stack([torch.from_numpy(records[key]["image"]).float()[None] / 127.5 - 1 for key in KEYS])
    noisy = DDPMScheduler(100, beta_schedule="squaredcos_cap_v2").add_noise(clean, noise, steps)
    expected = mse_loss(net(noisy, steps).sample, noise)
    torch.testing.assert_close(total.sum() / count.sum(), expected)


@pytest.mark.parametrize(
    "prediction, expected",
    [
        ("sample", lambda scheduler, image, noise, steps: image),
        ("v_prediction", lambda scheduler, image, noise, steps: scheduler.get_velocity(image, noise, steps)),
    ],
)
def test_other_predictions(prediction, expected):
    _, assets, records = started()
    other = replace(assets, scheduler=assets.scheduler | {"prediction_type": prediction})
    batch = batch_of(records, other)
    steps, noise = (torch.stack(part) for part in zip(*(draw(g, assets, 100) for g in Generators(0, KEYS))))
    clean = torch.stack([torch.from_numpy(records[key]["image"]).float()[None] / 127.5 - 1 for key in KEYS])
    target = expected(DDPMScheduler.from_config(other.scheduler), clean, noise, steps)
    torch.testing.assert_close(batch["target"], target)
    assert FAMILY.axis(other) != FAMILY.axis(assets)


def test_training_lowers_loss_and_headline():
    net, assets, records = started(n=256)
    held = FAMILY.toy(96, 7).list()

    def measured() -> tuple[float, float]:
        with torch.no_grad():
            total, count = FAMILY.loss(net, FAMILY.collate(held, assets, Generators(3, range(96))), "unet")
            made = FAMILY.sample(net, assets, held, Generators(5, range(96)))
        return (total.sum() / count.sum()).item(), FAMILY.score(held, made, assets)["frechet_pixels"]

    before, optimizer = measured(), torch.optim.AdamW(net.parameters(), lr=3e-3)
    for step in range(40):
        batch = batch_of(records, assets, [(32 * step + i) % 256 for i in range(32)])
        total, count = FAMILY.loss(net, batch, "unet")
        optimizer.zero_grad()
        (total.sum() / count.sum()).backward()
        optimizer.step()
    after = measured()
    assert after[0] < 0.5 * before[0] and after[1] < 0.7 * before[1]


def test_sample_is_the_library_s_ddim():
    net, assets, _ = started()
    with torch.no_grad():
        found = FAMILY.sample(net, assets, [{}, {}], Generators(5, [0, 1]))
    pipeline = DDIMPipeline(net, DDIMScheduler.from_config(assets.scheduler))
    pipeline.set_progress_bar_config(disable=True)
    generators = list(Generators(5, [0, 1]))
    for generator in generators:
        torch.randint(100, (), generator=generator)  # ours draws a step before the noise
    expected = pipeline(batch_size=2, generator=generators, num_inference_steps=10, output_type="np").images
    for row, image in zip(found, expected):
        assert np.abs(row["image"] / 255 - image[..., 0]).max() <= 0.51 / 255
        assert row["image"].dtype == np.uint8 and "image_scores" in row


def test_sample_is_a_function_of_each_record_alone():
    net, assets, records = started()
    with torch.no_grad():
        whole = FAMILY.sample(net, assets, records.list(slice(0, 4)), Generators(5, range(4)))
        part = FAMILY.sample(net, assets, [{}], Generators(5, [2]))
    assert np.abs(whole[2]["image"].astype(int) - part[0]["image"]).max() <= 1  # rounding by batch size


def test_outputs_need_no_answer():
    net, assets, _ = started()
    batch = FAMILY.collate([{}] * 3, assets, Generators(0, [0, 1, 2]))
    assert set(batch) == {"noisy", "timestep"} and batch["noisy"].shape == (3, 1, 8, 8)
    values, mask = FAMILY.outputs(net, batch)
    assert values.shape == (3, 1, 64) and mask.shape == (3, 1) and mask.dtype == torch.bool


def test_outputs_can_be_traced():
    net, assets, records = started()

    class Asked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, noisy, timestep):
            return FAMILY.outputs(self.net, {"noisy": noisy, "timestep": timestep})

    batch, free = batch_of(records, assets), {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(
        Asked(), (batch["noisy"], batch["timestep"]), dynamic_shapes={"noisy": free, "timestep": free}
    ).module()
    other = batch_of(records, assets, range(20))
    torch.testing.assert_close(program(other["noisy"], other["timestep"])[0], FAMILY.outputs(net, other)[0])


@pytest.mark.parametrize("scale, share", [(1, 1.0), (0.5, 0.4), (0.01, 0.4)])
def test_like_scales_the_widths(scale, share):
    net, assets, records = started()
    other, found = FAMILY.like(net, assets, scale, torch.Generator().manual_seed(3))
    numbers = [sum(p.numel() for p in part.parameters()) for part in (other, net)]
    assert numbers[0] <= share * numbers[1] and found == assets
    assert (shapes_of(other) == shapes_of(net)) == (scale == 1)
    assert FAMILY.outputs(other, batch_of(records, assets))[0].shape == (6, 1, 64)


def test_like_of_an_opened_folder(tmp_path):
    bare(tmp_path)
    net, assets = FAMILY.read(tmp_path, False)
    same, _ = FAMILY.like(net, assets, 1, torch.Generator().manual_seed(3))
    assert shapes_of(same) == shapes_of(net) and not equal(same, net)


def test_blocks_put_out_pictures():
    net, assets, records = started()
    seen = {}
    for name, (module, axis) in FAMILY.blocks(net).items():
        module.register_forward_hook(lambda *given, at=name, to=axis: seen.update({at: given[2].size(to)}))
    FAMILY.outputs(net, batch_of(records, assets))
    assert seen.keys() == FAMILY.blocks(net).keys() and len(seen) == 8 and set(seen.values()) == {8, 16}


def test_start_for_color_images_of_an_odd_size():
    noise = np.random.default_rng(0)
    rows = [{"photo": noise.integers(0, 256, (27, 14, 3), dtype=np.uint8), "label": "a"} for _ in range(2)]
    records = records_of(rows, {"photo": "image", "label": "category"}, "label")
    net, assets = FAMILY.start({"width": 8, "layers": 1, "steps": 1}, records, torch.Generator())
    assert assets.shape == (3, 28, 28) and len(net.down_blocks) == 3 and assets.answer == "photo"
    with torch.no_grad():
        made = FAMILY.sample(net, assets, rows, Generators(0, [0, 1]))
    assert made[0]["photo"].shape == (28, 28, 3) and made[0]["label"] == "a"
    assert FAMILY.score(rows, made, assets)["frechet_pixels"] > 0


@pytest.mark.parametrize(
    "config, message",
    [
        ({"wdith": 8}, "did you mean width"),
        ({"width": 12}, "multiple of 8"),
        ({"size": 30}, "multiple of 4"),
        ({"channels": 2}, "must be 1 or 3"),
        ({"timesteps": 20}, "'steps' must be .* from 1 to 20, found 50"),
        ({"timesteps": "x", "layers": 0, "schedule": "cosine"}, "(?s)'layers'.*'timesteps'.*'schedule'"),
    ],
)
def test_bad_settings(config, message):
    with pytest.raises(BadSettings, match=message):
        started(config)


def test_adopt_goes_on_with_other_images(tmp_path):
    net = bare(tmp_path / "given")
    records = records_of([], {"picture": "image"}, "picture")
    kept, assets = FAMILY.adopt(tmp_path / "given", records, torch.Generator())
    assert equal(kept, net) and assets.answer == "picture"
    (tmp_path / "other").mkdir()
    with pytest.raises(Refusal, match="holds no UNet"):
        FAMILY.adopt(tmp_path / "other", records, torch.Generator())


def spoil_json(path: Path, **entries) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def spoil_tensors(path: Path) -> None:
    tensors = load_file(path)
    tensors.pop("conv_in.bias")
    save_file({**tensors, "extra": torch.zeros(1)}, path)


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
SCHEDULE = "scheduler/scheduler_config.json"


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda folder: spoil_tensors(folder / WEIGHTS), "missing .*conv_in.bias\n.*unexpected .*extra"),
        (lambda folder: (folder / WEIGHTS).unlink(), "cannot be opened"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"no"), "cannot be opened"),
        (lambda folder: (folder / WEIGHTS).rename(folder / WEIGHTS.replace("safetensors", "bin")), "opened"),
        (lambda folder: spoil_json(folder / "unet/config.json", block_out_channels=[16, 16]), "cannot be opened"),
        (lambda folder: spoil_json(folder / "unet/config.json", block_out_channels=[8]), "cannot be opened"),
        (lambda folder: (folder / "unet/config.json").write_text("{"), "cannot be opened"),
        (lambda folder: (folder / SCHEDULE).unlink(), "does not exist"),
        (lambda folder: spoil_json(folder / SCHEDULE, beta_schedule="x"), "not implemented"),
        (lambda folder: spoil_json(folder / SCHEDULE, _class_name="X"), "scheduler 'X'"),
        (lambda folder: spoil_json(folder / SCHEDULE, prediction_type="x"), "prediction_type 'x'"),
        (lambda folder: spoil_json(folder / "unet/config.json", sample_size="8x8"), "sample_size must be"),
        (lambda folder: spoil_json(folder / "onnuri_sampling.json", steps=0), "'steps' a whole number"),
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
        ({"num_class_embeds": 4}, "asks for a class"),
        ({"out_channels": 6}, "maps 3 channels to 6"),
        ({"sample_size": None}, "sample_size must be"),
        ({"in_channels": 4, "out_channels": 4}, "1 to 1 or 3 to 3"),
    ],
)
def test_unets_of_another_kind(tmp_path, config, message):
    bare(tmp_path, **config)
    with pytest.raises(BadInput, match=message):
        FAMILY.read(tmp_path, False)


def test_other_folders_are_not_mine(tmp_path):
    assert not FAMILY.claims(tmp_path)
    for text in ('{"_class_name": "StableDiffusionPipeline"}', "{", "[]"):
        (tmp_path / "model_index.json").write_text(text)
        (tmp_path / "config.json").write_text('{"_class_name": ["UNet2DConditionModel"]}')
        assert not FAMILY.claims(tmp_path)
