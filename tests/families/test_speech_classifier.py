"""Sounds: our own SpeechNet and folders of transformers (wav2vec2, HuBERT, Whisper), all tiny and random."""

import json
import os
import shutil
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

import folders as F
from onnuri import registry
from onnuri.data import Sound, records_of
from onnuri.errors import BadInput, BadSettings, Refusal
from onnuri.families.speech_classifier import FAMILY
from onnuri.family import Generators
from onnuri.model import claimed_by, open_model
from onnuri.nets import speech_net
from onnuri.operation import Quiet
from onnuri.registry import operation
from onnuri.sounds import resampled
from onnuri.sources import open_data


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch_of(records, assets, keys=None):
    return FAMILY.collate(records, assets, Generators(0, keys or range(len(records))))


@torch.no_grad()
def answers(net, assets, records, keys=None):
    return FAMILY.outputs(net, batch_of(records, assets, keys))[0][:, 0]


def unlike(count=6, rate=F.RATE, labels=F.LABELS):
    """Sounds of very unlike lengths, one shorter than a window of a net."""
    draw = np.random.default_rng(0)
    sizes = [60, 2000, 2001, 5000, 2000, 12000][:count]
    return [{"audio": Sound(draw.normal(0, 0.1, n).astype(np.float32), rate), "label": labels[n % 2]} for n in sizes]


@pytest.fixture(scope="module")
def toy():
    return FAMILY.toy(48, 0)


@pytest.fixture(scope="module")
def own(toy):
    return FAMILY.start(FAMILY.tiny(), toy, generator())


@pytest.fixture(scope="module", params=F.SOUNDS)
def foreign(request, tmp_path_factory):
    return request.param, F.save(request.param, tmp_path_factory.mktemp(request.param))


# --------------------------------------------------------------------------------------------------------- the own net


def test_own_round_trip(own, tmp_path):
    net, assets = own
    FAMILY.write(net, assets, tmp_path, True)
    assert FAMILY.claims(tmp_path)
    again, same = FAMILY.read(tmp_path, False)
    assert same == assets and again.design == net.design
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in net.state_dict().items())
    assert FAMILY.read(tmp_path, True)[0].state_dict().keys() == net.state_dict().keys()
    assert assets.labels == ("falling", "rising") and assets.rate == 4000 and 0.3 < assets.seconds <= 0.4


def test_no_sound_changes_anothers_answer_or_loss(own):
    """Whatever it is padded to, disturbed or not; what is left is the order of sums."""
    net, assets = deepcopy(own)
    records = [{**record, "label": assets.labels[i % 2]} for i, record in enumerate(unlike(rate=4000))]
    together = answers(net, assets, records)
    alone = torch.cat([answers(net, assets, [record]) for record in records])
    assert torch.allclose(together, alone, atol=1e-5) and together.std(0).min() > 1e-3
    net.drop.p = 0.0  # drawn for the whole batch, as every dropout
    total = FAMILY.loss(net.train(), batch_of(records, assets), "classifier")[0]
    singles = [FAMILY.loss(net, batch_of([r], assets, [i]), "classifier")[0] for i, r in enumerate(records)]
    assert torch.allclose(total, torch.cat(singles), atol=1e-5)


def test_only_the_loss_in_training_is_disturbed(own, toy):
    """Each record by its own numbers, the same however the batch is cut; validation and answers never."""
    net, assets = deepcopy(own)
    batch = batch_of(toy[:4].list(), assets)
    assert not torch.equal(batch["draws"][0], batch["draws"][1])
    other = {**batch, "draws": torch.rand(4, speech_net.NUM_DRAWS, generator=generator(9))}
    clean = functional.cross_entropy(FAMILY.outputs(net.eval(), batch)[0][:, 0], batch["labels"], reduction="none")
    assert torch.equal(FAMILY.loss(net, batch, "classifier")[0], clean)
    assert torch.equal(FAMILY.loss(net, other, "classifier")[0], clean)
    net.drop.p = 0.0
    assert torch.equal(FAMILY.outputs(net.train(), batch)[0], FAMILY.outputs(net, other)[0])
    assert not torch.allclose(FAMILY.loss(net, batch, "x")[0], FAMILY.loss(net, other, "x")[0])
    same = {**batch, "draws": neutral(4)}
    # noise of an eighth of the floor is always there
    assert torch.allclose(FAMILY.loss(net, same, "classifier")[0], clean, atol=0.02)


def neutral(count):
    """Draws that change nothing but for noise at the floor: paces and warps of 1, no tilt, masks of no width."""
    draws = torch.zeros(count, speech_net.NUM_DRAWS)
    draws[:, 0] = np.log(1 / speech_net.FASTEST) / np.log(speech_net.SLOWEST / speech_net.FASTEST)
    draws[:, 1] = np.log(1 / speech_net.LOWEST) / np.log(speech_net.HIGHEST / speech_net.LOWEST)
    draws[:, [2, 3, 6]] = 0.5
    return draws


def test_a_disturbed_tone_moves_as_it_should():
    """Stretched twice, heard a third higher: time and band of the brightest place."""
    mel = torch.full((1, 40, 30), -6.0)
    mel[0, 20, 15] = 3.0
    draws = neutral(1)
    draws[0, 0], draws[0, 1] = 1.0, 1.0
    found, frames = speech_net.disturbed(mel, torch.tensor([40]), draws)
    brightest = np.unravel_index(int(found[0].argmax()), found[0].shape)
    assert int(frames) == round(40 * speech_net.SLOWEST)
    assert brightest == (round(20 * speech_net.SLOWEST), round(15 / speech_net.HIGHEST))


def test_the_spectrum_is_that_of_numpy_and_of_transformers():
    """Power by numpy's FFT, bands as transformers' own filters but for their heights; a tone is loud in its band."""
    from transformers.audio_utils import mel_filter_bank

    rate, mels = 8000, 24
    samples = torch.randn(1, 1000, generator=generator())
    mel, frames = speech_net.LogMel(rate, mels)(samples, torch.tensor([1000]))
    window, hop, size = 200, 80, 256
    assert frames.tolist() == [(1000 - window) // hop + 1] == [mel.shape[1]]
    x = (samples[0] / samples[0].square().mean().sqrt()).double().numpy()
    hann = torch.hann_window(window, dtype=torch.float64).numpy()
    power = [abs(np.fft.rfft(x[i * hop : i * hop + window] * hann, size)) ** 2 for i in range(int(frames))]
    bank = mel_filter_bank(size // 2 + 1, mels, 0, rate / 2, rate, mel_scale="htk")
    bands = np.array(power) / (hann**2).sum() @ (bank / bank.sum(0))
    assert np.abs(np.log(bands + speech_net.FLOOR) - mel[0].numpy()).max() < 0.05, "a triangle is never too narrow"
    tone = torch.sin(2 * np.pi * 1000 * torch.arange(2000) / rate).unsqueeze(0)
    loudest = speech_net.LogMel(rate, mels)(tone, torch.tensor([2000]))[0][0].mean(0).argmax()
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 4000 / 700), mels + 2) / 2595) - 1)
    assert edges[loudest] < 1000 < edges[loudest + 2]


def test_norm_is_group_norm_without_padding():
    norm = speech_net.Norm(16)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 16, 5, 9, generator=generator())
    wanted = functional.group_norm(x, 2, norm.weight, norm.bias)
    assert torch.allclose(norm(x, torch.ones(2, 1, 1, 9)), wanted, atol=1e-5)
    mask = torch.ones(2, 1, 1, 12)
    mask[..., 9:] = 0
    found = norm(torch.cat([x, torch.full((2, 16, 5, 3), 7.0)], 3), mask)
    assert torch.allclose(found[..., :9], wanted, atol=1e-5) and not found[..., 9:].any()


def test_it_learns_tones():
    data = open_data("toy:speech_classifier")
    settings = {"family": "speech_classifier", "config": FAMILY.tiny(), "steps": 90, "batch_size": 16}
    train = operation("train")
    model = train.apply(train.settings(**settings), Quiet(), data=data).model
    test = data.split("test").list()
    scores = FAMILY.score(
        test, FAMILY.sample(model.net, model.assets, test, Generators(0, range(len(test)))), model.assets
    )
    assert scores["accuracy"] >= 0.9


def test_what_is_beyond_its_seconds_is_not_heard(own):
    net, assets = own
    long = np.concatenate([unlike(4, 4000)[3]["audio"].samples] * 3)
    most = round(assets.seconds * 4000)
    cut = [{"audio": Sound(samples, 4000)} for samples in (long, long[:most])]
    assert torch.equal(*answers(net, assets, cut).split(1))


def test_rates_are_brought_to_the_nets(own):
    """A tone that was recorded at twice the rate is heard as the same."""
    net, assets = own
    tone = [
        Sound(np.sin(2 * np.pi * 700 * np.arange(int(0.3 * rate)) / rate).astype(np.float32), rate)
        for rate in (4000, 8000)
    ]
    one, other = answers(net, assets, [{"audio": sound} for sound in tone])
    assert torch.allclose(one, other, atol=0.02)  # the ends differ: before and behind it there is silence


def test_like_keep_and_adopt(own, toy, tmp_path):
    net, assets = own
    assert FAMILY.like(net, assets, 1.0, generator())[0].state_dict().keys() == net.state_dict().keys()
    assert FAMILY.like(net, assets, 0.4, generator())[0].design.width == 8
    deep, _ = FAMILY.start({**FAMILY.tiny(), "depth": 2}, toy, generator())
    kept, _ = FAMILY.keep(deep, assets, [name for name in FAMILY.blocks(deep) if name != "stages.1.0"])
    assert kept.design.depths == (2, 1, 2)
    assert torch.equal(kept.stages[1][0].conv1.weight, deep.stages[1][1].conv1.weight)
    batch = batch_of(toy[:3].list(), assets)
    assert FAMILY.outputs(kept, batch)[0].isfinite().all()
    with pytest.raises(Refusal):
        FAMILY.keep(net, assets, ["stages.0.0"])
    FAMILY.write(net, assets, tmp_path, True)
    rows = [{"clip": record["audio"], "word": "abc"[i % 3]} for i, record in enumerate(toy[:6].list())]
    other = records_of(rows, {"clip": "audio", "word": "category"}, "word")
    new, found = FAMILY.adopt(tmp_path, other, generator())
    assert found.labels == ("a", "b", "c") and found.question == "clip" and new.head.out_features == 3
    assert torch.equal(new.downs[0].weight, net.downs[0].weight)


def test_settings_and_folders_with_faults(own, toy, tmp_path):
    with pytest.raises(BadSettings, match=r"width.*\n.*depths"):
        FAMILY.start({"width": 0, "depth": -1}, toy, generator())
    with pytest.raises(BadSettings, match="seconds"):
        FAMILY.start({"seconds": -1}, toy, generator())
    with pytest.raises(BadSettings, match="did you mean mels"):
        FAMILY.start({"mel": 40}, toy, generator())
    with pytest.raises(BadInput, match="no column of kind audio"):
        FAMILY.start(
            {},
            records_of([{"a": 1.0, "b": "x"}, {"a": 2.0, "b": "y"}], {"a": "number", "b": "category"}, "b"),
            generator(),
        )
    with pytest.raises(BadInput, match="holds audio, a classifier needs labels"):
        FAMILY.start({}, records_of(toy.list(), toy.fields, "audio"), generator())
    FAMILY.write(*own, tmp_path, True)
    config = json.loads((tmp_path / "config.json").read_text())
    for change in ({"labels": ["a"]}, {"seconds": 0}, {"rate": "8000"}, {"depths": 3}, {"width": 12}, {"fields": {}}):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(BadInput):
            open_model(tmp_path)


# ------------------------------------------------------------------------------------------------ folders of transformers


def test_exactly_one_family_claims_each(foreign):
    assert claimed_by(foreign[1]).name == "speech_classifier"


def test_texts_stay_with_their_family(tmp_path):
    for name in ("bert", "gpt2"):
        F.save(name, tmp_path / name)
        assert [f.name for f in registry.families() if f.claims(tmp_path / name)] != ["speech_classifier"]


def test_every_architecture_of_the_library_has_one_family(tmp_path):
    """By config alone: all that transformers counts among classifiers of sound, and among those of texts."""
    from transformers.models.auto import modeling_auto as known

    def claimed(architecture):
        (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
        return [family.name for family in registry.families() if family.claims(tmp_path)]

    for architecture in known.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES.values():
        assert claimed(architecture) == ["speech_classifier"]
    texts = known.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values()
    assert all(claimed(name) == ["text_classifier"] for name in texts if name.endswith("ForSequenceClassification"))


def test_each_sound_is_answered_as_the_library_answers_it_alone(foreign):
    """Lengths of every kind in one batch; padding would change the answers, with a mask as well."""
    name, folder = foreign
    model, library = open_model(folder), F.reopen(name, folder)
    records = unlike()
    found = answers(model.net, model.assets, records)
    for record, logits in zip(records, found):
        samples = resampled(record["audio"], model.assets.rate)
        samples = np.pad(samples, (0, max(0, model.assets.rate // 4 - len(samples))))
        given = model.assets.extractor(samples, sampling_rate=model.assets.rate, return_tensors="pt")
        with torch.no_grad():
            assert torch.allclose(library(**given).logits[0], logits, atol=1e-6)
    order = [4, 0, 3, 1, 5, 2]
    assert torch.allclose(answers(model.net, model.assets, [records[i] for i in order]), found[order], atol=1e-6)


def test_padding_would_be_heard(tmp_path):
    """Why sounds of one length are computed together: normalization over time hears it, whatever mask is given."""
    model = open_model(F.save("wav2vec2", tmp_path))
    short = torch.randn(1, 3000, generator=generator())
    long, mask = functional.pad(short, (0, 3000)), functional.pad(torch.ones(1, 3000).long(), (0, 3000))
    with torch.no_grad():
        alone = model.net(short).logits
        spread = float(alone.abs().max())
        assert float((model.net(long).logits - alone).abs().max()) > 0.01 * spread
        assert float((model.net(long, attention_mask=mask).logits - alone).abs().max()) > 0.01 * spread


def test_loss_is_a_sum_that_a_gradient_follows(foreign):
    model = open_model(foreign[1])
    records = unlike(4)
    batch = batch_of(records, model.assets)
    total, count = FAMILY.loss(model.net, batch, "classifier")
    logits = answers(model.net, model.assets, records)
    assert torch.allclose(total, functional.cross_entropy(logits, batch["labels"], reduction="none"), atol=1e-6)
    assert count.tolist() == [1.0] * 4
    total.sum().backward()
    assert all(p.grad is not None for name, p in model.net.named_parameters() if "projector" in name)


def test_keep_like_and_a_student(foreign):
    model = open_model(foreign[1])
    names = list(FAMILY.blocks(model.net))
    kept, assets = FAMILY.keep(model.net, model.assets, names[:-1])
    assert len(FAMILY.blocks(kept)) == len(names) - 1
    assert answers(kept, assets, unlike(3)).isfinite().all()
    same, _ = FAMILY.like(model.net, model.assets, 1.0, generator())
    assert {n: v.shape for n, v in same.state_dict().items()} == {n: v.shape for n, v in model.net.state_dict().items()}
    small, _ = FAMILY.like(model.net, model.assets, 0.25, generator())
    assert sum(p.numel() for p in small.parameters()) < 0.5 * sum(p.numel() for p in same.parameters())


def test_blocks_name_the_axis_of_their_features(foreign, own):
    """Of two sounds of unlike length every other axis may differ, and time does where the net hears all of a sound."""
    for net, assets in (FAMILY.read(foreign[1], False), deepcopy(own)):
        blocks = FAMILY.blocks(net)
        seen = {name: [] for name in blocks}
        for name, (block, _) in blocks.items():
            block.register_forward_hook(lambda _, given, out, puts=seen[name].append: puts(out))
        for size in (1001, 1500):
            answers(net, assets, [{"audio": Sound(np.ones(size, np.float32) / 2, 4000)}])
        for name, (_, axis) in blocks.items():
            one, other = ((out[0] if isinstance(out, tuple) else out).shape for out in seen[name])
            assert one[axis] == other[axis] and axis % len(one) != 0, name
            assert unequal(one, other) or foreign[0] == "whisper_audio", name


def unequal(one, other):
    return {axis for axis, sizes in enumerate(zip(one, other)) if sizes[0] != sizes[1]}


def test_bodies_are_adopted(tmp_path):
    """One that was trained without labels, and an encoder whose decoder is left behind."""
    import transformers

    sounds = records_of(unlike(6, labels=("x", "y")), {"audio": "audio", "label": "category"}, "label")
    _, _, entries = F.DESIGNS["wav2vec2"]
    config = transformers.Wav2Vec2Config(**entries, codevector_dim=16, proj_codevector_dim=16)
    body = transformers.Wav2Vec2ForPreTraining(config)
    body.save_pretrained(tmp_path / "body")
    F.save_extractor("wav2vec2", tmp_path / "body")
    config = transformers.WhisperConfig(
        **F.DESIGNS["whisper_audio"][2], decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=48
    )
    whole = transformers.WhisperForConditionalGeneration(config)
    whole.save_pretrained(tmp_path / "whole")
    F.save_extractor("whisper_audio", tmp_path / "whole")
    for folder, part, old in (("body", "wav2vec2", body.wav2vec2), ("whole", "encoder", whole.model.encoder)):
        net, assets = FAMILY.adopt(tmp_path / folder, sounds, generator())
        mine, theirs = net.get_submodule(part).state_dict(), old.state_dict()
        changed = {name for name, value in mine.items() if name not in theirs or not torch.equal(value, theirs[name])}
        assert changed <= {"encoder.pos_conv_embed.conv.weight"} and assets.labels == ("x", "y")
        assert FAMILY.outputs(net, batch_of(sounds.list(), assets))[0].shape == (6, 1, 2)


def test_folders_with_faults(foreign, tmp_path):
    _, source = foreign
    folder = shutil.copytree(source, tmp_path / "in")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"problem_type": "multi_label_classification"}))
    with pytest.raises(BadInput, match="does not choose one label"):
        open_model(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "ViTImageProcessor"}))
    with pytest.raises(BadInput, match="states no sampling_rate"):
        open_model(folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(BadInput, match="no preprocessor_config"):
        open_model(folder)


# -------------------------------------------------------------------------------------------------------------- real data

REAL = Path(os.environ.get("ONNURI_DATA", "")) / "fsdd"


@pytest.mark.skipif(
    not os.environ.get("ONNURI_DATA") or not REAL.is_dir(), reason="ONNURI_DATA names no folder with fsdd"
)
def test_spoken_digits_are_read():
    data = open_data(str(REAL))
    assert data.records.fields["audio"] == "audio" and data.records.fields["label"] == "category"
    assert {name: len(rows) for name, rows in data.official.items()} == {"train": 2700, "test": 300}
    first = data.records[0]["audio"]
    assert first.rate == 8000 and 0.1 < len(first.samples) / first.rate < 3 and 0.01 < np.abs(first.samples).max() <= 1
