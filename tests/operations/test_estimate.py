"""estimate: identities between its figures, hand formulas, and the model as it was before."""

from functools import cache

import pytest
import torch

from command import some
from onnuri import registry
from onnuri.costs import efficiency, peaks, targets
from onnuri.costs.count import watched
from onnuri.data import Data, records_of
from onnuri.errors import BadSettings
from onnuri.family import Generators
from onnuri.fit.objective import objective_of
from onnuri.model import Model, tensor_digest
from onnuri.operation import Quiet
from onnuri.operations import estimate, quantize
from onnuri.operations.estimate import Settings, apply
from onnuri.operations.estimate.look import longest_first
from onnuri.show import result_text
from onnuri.sources import open_data

measured = cache(peaks.measure_peaks)


@cache
def efficient():
    return efficiency.measure_efficiency(measured())


TARGETS = sorted(targets.known())


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The machine is measured once, and nothing is repeated for the sake of its timing."""
    monkeypatch.setattr(peaks, "SECONDS", 0.0)
    monkeypatch.setattr(peaks, "BUDGET", 0.0)
    monkeypatch.setattr(peaks, "measure_peaks", measured)
    monkeypatch.setattr(estimate, "efficiency_of", lambda best: efficient())
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


def learnt(model, records) -> dict[str, torch.Tensor]:
    """The batch of a training step."""
    objective = objective_of(model)
    pieces = objective.pieces(records)
    return objective.collate(pieces.list(slice(0, len(records))), Generators(0, range(len(records))))


def test_texts_that_share_rows_are_counted_as_they_are_trained():
    """One text is eight pieces: a step of twelve of these and short ones is seen on a line over rows."""
    rows = [{"text": "the cat sleeps " * (40 if i == 0 else 1 + i % 3)} for i in range(12)]
    records = records_of(rows, {"text": "text"}, "text")
    family = registry.family("causal_lm")
    made = family.start({**family.tiny(), "max_length": 32}, records, torch.Generator().manual_seed(0))
    model, data = Model(family, *made), Data("texts", records, {}, records)
    report = report_of(model, data, batch_size=12)
    objective = objective_of(model)
    pieces = longest_first(model, objective.pieces(records), Settings(batch_size=12)).list()
    batch = objective.collate(pieces, Generators(0, range(12)))
    assert len(batch["input_ids"]) < 12
    (step,) = [line for line in report["work"] if line["work"] == "training step"]
    share = len(objective.pieces(records)) / 12
    wanted = step["predicted_seconds"] * 1000 * share / step["records"]
    assert share > 1 and report["train_predicted_seconds_per_1000_records"] == pytest.approx(wanted)
    with watched([*model.net.parameters()]) as watch:
        objective.loss(batch, "net")[0].sum().backward()
    assert report["step_flops"] == pytest.approx(watch.total_flops, rel=1e-6)
    report_of(model, Data("one", records[:1], {}, records[:1]), batch_size=4, train_steps=0)
    with pytest.raises(BadSettings, match="the data have"):
        report_of(model, Data("one", records[:1], {}, records[:1]), batch_size=400)


@pytest.mark.parametrize("name", some(registry.entries("families"), ("causal_lm", "forest", "gan", "sequence")))
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
        rows = len(next(iter(learnt(model, data.records.some(16)).values())))  # texts share them
        assert works["training step", 16]["flops"] > 2 * rows * min(forward["flops"], report["forward_flops"])
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
        with watched() as watch:
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


@pytest.mark.parametrize("name", registry.entries("families"))
def test_every_family_is_estimated_for_a_target(name):
    model, data = started(name)
    report = report_of(model, data, target="raspberry-pi-5")
    assert report["target"]["title"].startswith("Raspberry Pi 5") and report["notes"][-1] == estimate.ASSUMED
    assert all(one["measured_seconds"] is None for one in report["work"])
    text = result_text({**report, "operation": "estimate"}, None)
    assert "target         raspberry-pi-5" in text and "\nthis machine " not in text
    if not model.players:
        assert report["memory"][0]["fits"] and "fleet" not in report
        return
    for one in report["work"]:
        assert one["predicted_seconds"] >= one["roofline_seconds"] * 0.99 or one["work"] != "forward pass"
        assert one["joules"] == pytest.approx(10 * one["predicted_seconds"])
        assert sum(one["predicted_parts"].values()) == pytest.approx(one["predicted_seconds"])
        assert one["bottleneck"] in ("compute", "memory bandwidth", "calls of operators")
    assert report["fleet"]["devices_needed"] == 1
    run, train = report["memory"]
    assert run["fits"] and train["fits"] and "process_bytes" not in run
    assert train["predicted_bytes"] > train["weights_bytes"] + train["gradients_bytes"] + train["moments_bytes"]


def test_a_text_that_is_written_token_by_token():
    """The first pass reads the question; each later one costs one token, cheaper than the question's."""
    model, data = started("causal_lm")
    answer = report_of(model, data, target="h200")["answer"]
    assert answer["piece"] == "token" and 1 < answer["pieces"] <= model.family.tiny()["max_new_tokens"]
    assert answer["pieces_per_second"] == pytest.approx(1 / answer["seconds_of_each_later"])
    model, data = started("diffusion", steps=7)
    answer = report_of(model, data, target="h200")["answer"]
    assert (answer["piece"], answer["pieces"]) == ("pass", 7)
    assert answer["seconds_to_first"] == pytest.approx(answer["seconds_of_each_later"], rel=0.5)
    model, data = started("tabular")
    assert "answer" not in report_of(model, data, target="h200"), "one pass is an answer"


def test_packed_weights_count_their_bytes_on_a_target():
    model, data = started("tabular", width=256, layers=4)
    floats = report_of(model, data, target="phone")["memory"][0]["weights_bytes"]
    packed = quantize.apply(quantize.Settings(scheme="int8-dynamic"), Quiet(), model, data).model
    assert report_of(packed, data, target="phone")["memory"][0]["weights_bytes"] < 0.4 * floats


def small(memory: float) -> targets.Target:
    return targets.known()["h200"].model_copy(update={"memory_bytes": memory, "usable": 1.0})


def test_a_target_into_which_nothing_fits_says_what_would(monkeypatch):
    model, data = started("causal_lm", hidden_size=128)

    def notes(memory: float) -> list[str]:
        monkeypatch.setattr(targets, "find", lambda name: small(memory))
        return report_of(model, data, target="h200")["notes"]

    report = report_of(model, data, target="h200")
    weights, need = report["memory"][0]["weights_bytes"], report["memory"][0]["predicted_bytes"]
    assert "does not" not in " ".join(report["notes"])
    batch = notes(weights + (need - weights) / 2)[0]
    assert "a batch of 16 does not fit" in batch and batch.endswith(("7 would", "6 would", "8 would"))
    assert "with its weights in fp16 it would" in notes(0.7 * weights)[0]
    assert "with its weights in int8 it would" in notes(0.4 * weights)[0]
    assert "what would fit is a net of" in notes(0.11 * weights)[0]
    assert "with no weights at all" in notes(1000.0)[0]
    assert "devices hold it" in notes(0.7 * weights)[1]


def test_a_batch_that_several_devices_share():
    model, data = started("tabular")
    alone, shared = (report_of(model, data, target="h200", devices=n)["fleet"] for n in (1, 4))
    size = sum(4 * p.numel() for p in model.net.parameters())
    assert alone["all_reduce_seconds"] == 0 and shared["records_per_device"] == 4
    assert shared["all_reduce_seconds"] == pytest.approx(2 * 3 / 4 * size / 4.5e11)
    assert shared["all_reduce_share"] == pytest.approx(shared["all_reduce_seconds"] / shared["step_seconds"])
    assert shared["step_joules"] == pytest.approx(4 * 700 * shared["step_seconds"])


@pytest.mark.parametrize(
    ("family", "settings", "said"),
    [
        ("tabular", {"devices": 2}, "no effect here"),
        ("forest", {"devices": 2, "target": "h200"}, "nothing in this model can be trained"),
        ("tabular", {"devices": 2, "target": "phone"}, "nothing links phone"),
        ("tabular", {"devices": 17, "batch_size": 16, "target": "h200"}, "a batch has 16 records"),
        ("tabular", {"train_steps": 2, "target": "phone"}, "nothing is timed on a target"),
    ],
)
def test_settings_of_a_target_without_effect_are_refused(family, settings, said):
    model, data = started(family)
    with pytest.raises(BadSettings, match=said):
        apply(Settings(**settings), Quiet(), model, data)


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
