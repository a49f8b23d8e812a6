"""estimate: identities between its figures, hand formulas, and the model as it was before."""

from functools import cache

import pytest
import torch

from onnuri import peaks, registry
from onnuri.errors import BadSettings
from onnuri.model import Model, tensor_digest
from onnuri.operation import Quiet
from onnuri.operations import estimate, quantize
from onnuri.operations.estimate import Settings, apply
from onnuri.show import result_text
from onnuri.sources import open_data

measured = cache(peaks.measure_peaks)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The machine is measured once, and nothing is repeated for the sake of its timing."""
    monkeypatch.setattr(peaks, "SECONDS", 0.0)
    monkeypatch.setattr(peaks, "BUDGET", 0.0)
    monkeypatch.setattr(peaks, "measure_peaks", measured)
    monkeypatch.setattr(peaks, "reference", lambda: 1.0)


def started(name: str, **config):
    data, family = open_data(f"toy:{name}"), registry.family(name)
    made = family.start({**family.tiny(), **config}, data.records, torch.Generator().manual_seed(0))
    return Model(family, *made), data


def report_of(model, data, **settings) -> dict:
    log = Quiet()
    report = apply(Settings(**{"batch_size": 16, **settings}), log, model, data).report
    assert log.warnings == report["notes"]
    return report


@pytest.mark.parametrize("name", registry.entries("families"))
def test_every_family_has_a_whole_report_and_keeps_its_tensors(name):
    model, data = started(name)
    before = tensor_digest(model.net)
    report = report_of(model, data)
    assert tensor_digest(model.net) == before
    assert sum(report["parameters_by_role"].values()) == report["parameters"]
    assert report["uncounted_operators"] == {}
    works = {(one["work"], one["records"]): one for one in report["work"]}
    forward = works["forward pass", 1]
    if model.players:
        assert works["training step", 16]["flops"] > 2 * 16 * min(forward["flops"], report["forward_flops"])
        run, train = report["memory"]
        assert (
            train["predicted_bytes"] > run["predicted_bytes"] - 2**24 and train["largest_batch"] < run["largest_batch"]
        )
        assert forward["predicted_seconds"] > forward["roofline_seconds"] > 0
    else:
        assert forward["flops"] is None and forward["measured_seconds"] > 0
        assert [note.split()[0] for note in report["notes"]] == ["torch", "nothing"]
        assert report["memory"][0]["largest_batch"] is None
    assert report["summary"] in result_text({**report, "operation": "estimate"}, None) + report["summary"]


def test_a_language_model_against_arithmetic_on_paper():
    model, data = started("causal_lm")
    report, config = report_of(model, data, train_steps=0), model.net.config
    tokens = report["places"] + 1  # the last token asks for no next one
    size, wide, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    layer = 2 * tokens * (4 * size * size + 3 * size * wide) + 4 * tokens * tokens * size
    assert report["forward_flops"] == layers * layer + 2 * tokens * size * config.vocab_size
    assert report["parameters_by_role"]["embedding"] == size * config.vocab_size, "tied to the head, counted once"
    assert report["memory"][1]["moments_bytes"] == 8 * report["parameters"]


def test_an_answer_that_asks_the_net_many_times_costs_as_many_forward_passes():
    model, data = started("diffusion", steps=7)
    report = report_of(model, data, train_steps=0)
    assert report["answer_flops"] == 7 * report["forward_flops"]


def test_a_step_of_two_players_costs_both():
    model, data = started("gan")
    report = report_of(model, data, train_steps=0)
    batch = model.collate(data.records.list(slice(0, 16)))
    alone = 0
    for player in model.players:
        with estimate.watched() as watch:
            model.family.loss(model.net, batch, player)[0].sum().backward()
        alone += watch.total_flops
    # in training, a player's turn makes no gradients for the other one's weights
    assert report["forward_flops"] * 16 < report["step_flops"] < alone
    bytes_of = [4 * sum(p.numel() for p in part.parameters()) for part in model.players.values()]
    train = report["memory"][1]
    assert train["gradients_bytes"] == max(bytes_of) and train["moments_bytes"] == 2 * sum(bytes_of)


def test_packed_weights_keep_their_number_and_cannot_be_trained():
    model, data = started("tabular")
    floats = report_of(model, data, train_steps=0)
    packed = quantize.apply(quantize.Settings(scheme="int8-dynamic"), Quiet(), model, data).model
    report = report_of(packed, data)
    assert report["parameters"] == floats["parameters"] and report["forward_flops"] == floats["forward_flops"]
    assert report["parameters_by_role"] == floats["parameters_by_role"]
    assert report["bytes_in_memory"] < 0.6 * floats["bytes_in_memory"]
    assert [one["work"] for one in report["memory"]] == ["run"]


def test_settings_without_effect_are_refused():
    model, data = started("forest")
    with pytest.raises(BadSettings, match=r"train_steps.*no effect") as caught:
        apply(Settings(train_steps=2, batch_size=10**6), Quiet(), model, data)
    assert len(caught.value.faults) == 2


def test_what_does_not_fit_is_not_tried(monkeypatch):
    model, data = started("tabular")
    monkeypatch.setattr(peaks, "free_memory", lambda: 0)
    report = report_of(model, data)
    assert len(report["notes"]) == 2 and all("memory than is free" in note for note in report["notes"])
    assert report["memory"][0]["measured_bytes"] is None and report["memory"][1]["predicted_bytes"] > 0


def test_the_measured_peak_is_near_the_predicted_one():
    model, data = started("image_classifier", image_size=64, width=16)
    run, train = report_of(model, data, batch_size=64, train_steps=1)["memory"]
    if run["measured_bytes"] is None:
        pytest.skip("this system does not tell a process's peak")
    for one in (run, train):  # an allocator may hold as much again as is alive, or have room left from before
        part = (one["predicted_bytes"] - one["process_bytes"]) / (one["measured_bytes"] - one["process_bytes"])
        assert 0.5 < part < 2
