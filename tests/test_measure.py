"""The yardsticks against published figures and identities."""

import pytest
import torch

from onnuri import machine, measure, registry
from onnuri.data import records_of
from onnuri.model import Model, count_parameters
from onnuri.operation import Quiet
from onnuri.sources import open_data


def started(name: str):
    data, family = open_data(f"toy:{name}"), registry.family(name)
    return Model(family, *family.start(family.tiny(), data.records, torch.Generator().manual_seed(0))), data


@pytest.mark.parametrize(
    ("right", "n", "low", "high"), [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0)]
)
def test_wilson_equals_published_values(right, n, low, high):
    """Newcombe (1998), method 3; the values of statsmodels' proportion_confint(method="wilson")."""
    assert measure.wilson(right / n, n) == pytest.approx((low, high), abs=1e-4)


def test_the_kind_of_interval_is_seen_not_declared():
    model, data = started("tabular")
    found = measure.measure(model, data.split("test"))
    assert found["interval_method"].startswith("Wilson") and found["interval"][0] <= found["scores"]["accuracy"]
    model, data = started("causal_lm")
    found = measure.measure(model, data.split("test"))
    low, high = found["interval"]
    assert found["interval_method"].startswith("bootstrap") and low < found["scores"]["bits_per_byte"] < high


def test_it_is_told_how_many_records_are_judged():
    class Told(Quiet):
        def progress(self, done: int, total: int, text: str = "") -> None:
            told.append((done, total, text))

    told = list[tuple[int, int, str]]()
    model, data = started("tabular")
    measure.measure(model, data.records[:20], batch_size=8, log=Told())
    assert told == [(done, 20, "records judged") for done in (8, 16, 20)]


@pytest.mark.parametrize("name", list(registry.entries("families")))
def test_answers_do_not_depend_on_the_batch(name):
    model, data = started(name)
    records = data.records[:10]
    one, other = measure.answer(model, records, 0, 10), measure.answer(model, records, 0, 3)
    score = [model.family.score(records.list(), answers, model.assets)[model.headline[0]] for answers in (one, other)]
    assert score[0] == pytest.approx(score[1], rel=1e-3)


def test_texts_of_like_length_are_answered_together_and_the_answers_stand_as_asked(monkeypatch):
    model, _ = started("text_classifier")
    words = [1, 9, 2, 8, 1, 9, 2, 8, 5]
    rows = [{"text": "최고 " * count + str(row), "label": "kind"} for row, count in enumerate(words)]
    records = records_of(rows, {"text": "text", "label": "category"}, "label")
    groups, sample = list[list[int]](), Model.sample

    def seen(self, some, seed, keys):
        groups.append(list(keys))
        return sample(self, some, seed, keys)

    monkeypatch.setattr(Model, "sample", seen)
    answers = measure.answer(model, records, batch_size=2)
    assert [answer["text"] for answer in answers] == [row["text"] for row in rows]
    assert groups == [[1, 5], [3, 7], [8, 2], [6, 0], [4]]
    alone = [sample(model, [row], 0, [0])[0]["label_scores"]["kind"] for row in rows]
    assert [answer["label_scores"]["kind"] for answer in answers] == pytest.approx(alone, rel=1e-5)


def test_no_more_is_read_ahead_than_memory_and_patience_hold(monkeypatch):
    texts, pictures = started("text_classifier")[0], started("image_classifier")[0]
    assert texts.window(8) == 16 * 8 and pictures.window(8) == 8
    monkeypatch.setattr("onnuri.model.WORK", 20 * count_parameters(texts.net))
    assert texts.window(8) == 20 and texts.window(64) == 64


def test_difference_to_itself_is_nothing():
    model, data = started("tabular")
    assert measure.largest_difference(model, model, data.records[:40]) == 0


def test_energy_names_method_and_error():
    meter = machine.Meter()
    sum(range(10**6))
    energy = meter.energy()
    assert energy.joules > 0 and energy.method and 0 < energy.error < 1
    assert energy.share(2).joules == pytest.approx(2 * energy.joules)


def test_the_processors_own_counter_is_preferred(tmp_path, monkeypatch):
    counter = tmp_path / "intel-rapl:0"
    counter.mkdir()
    (counter / "name").write_text("package-0")
    (counter / "energy_uj").write_text("900")
    (counter / "max_energy_range_uj").write_text("1000")
    monkeypatch.setattr(machine, "RAPL", tmp_path)
    meter = machine.Meter()
    (counter / "energy_uj").write_text("100")
    energy = meter.energy()
    assert energy.joules == pytest.approx(200e-6) and "RAPL" in energy.method, "the counter wrapped at 1000"


@pytest.mark.parametrize("name", list(registry.entries("families")))
def test_the_interval_holds_the_value(name):
    model, data = started(name)
    found = measure.measure(model, data.split("test"))
    low, high = found["interval"]
    assert low <= found["scores"][model.headline[0]] <= high


def test_pictures_are_judged_by_some_of_them(monkeypatch):
    monkeypatch.setattr(measure, "DRAWN", 10)
    for name, judged in (("gan", 10), ("tabular", 20)):
        model, data = started(name)
        assert measure.measure(model, data.records[:20])["records"] == judged
