"""A measured learning rate: what it chooses, what it leaves behind, what it costs, and when it cannot be had."""

import math

import pytest
import torch

from onnuri import registry
from onnuri.errors import BadSettings
from onnuri.figures import number
from onnuri.fit import rates
from onnuri.fit.loop import FitSettings, Loop, fit
from onnuri.fit.objective import objective_of
from onnuri.model import Model, tensor_digest
from onnuri.operation import Quiet


def tiny(name: str, records) -> Model:
    family = registry.family(name)
    return Model(family, *family.start(family.tiny(), records, torch.Generator().manual_seed(0)))


def fitted(name: str, log: Quiet | None = None, **settings):
    """(model, progress) of a training on toys."""
    records = registry.family(name).toy(32, 0)
    model = tiny(name, records)
    chosen = FitSettings.model_validate({"batch_size": 8, "steps": 150, "save_every": 1e9, **settings})
    return model, fit(objective_of(model), records, None, chosen, log or Quiet(), True)


@pytest.mark.parametrize("name", ["tabular", "image_classifier", "text_classifier"])
def test_a_measured_rate_is_that_rate_given_by_hand(name):
    """Nothing is left of the short runs: tensors and curves are those of a training that was told the rate. One family has batch
    norms, one packs of n-grams."""
    model, found = fitted(name, rate="measured")
    other, told = fitted(name, learning_rate=found.rate)
    assert tensor_digest(model.net) == tensor_digest(other.net)
    assert found.curves["loss"] == told.curves["loss"] and told.rate == 0.0


def test_short_trainings_cut_a_step_as_the_training_does():
    """Where records meet a step is whole, which is seen when the loss is first run."""
    records = registry.family("embedder").toy(40, 0)
    loop = Loop(objective_of(tiny("embedder", records)), records, None, FitSettings(batch_size=32), Quiet(), True)
    loop.look()
    loop.batches.parts = 4
    other = loop.again(steps=3)
    assert loop.meets is other.meets is True and other.batches.parts == 4


def test_a_rate_at_which_nothing_is_learnt_is_left():
    """Both from 3, a thousand times the usual one: measured, the loss ends below a third of the other."""
    log = Quiet()
    _, found = fitted("tabular", log, steps=640, learning_rate=3.0, rate="measured")
    _, usual = fitted("tabular", steps=640, learning_rate=3.0)
    means = [sum(loss for _, loss in one.curves["loss"][-20:]) / 20 for one in (found, usual)]
    assert found.rate < 1 and means[0] < means[1] / 3
    (curve,) = [curve for name, curve in found.curves.items() if name.startswith("loss by learning rate after")]
    assert found.rate == min(curve, key=lambda point: point[1])[0] and 3 <= len(curve) <= 5
    (said,) = [text for text in log.warnings if "measured by" in text]
    assert f"{len(curve)} trainings of 64 steps, {len(curve) * 10}% of the steps of this one" in said and "at 3" in said


def test_a_killed_training_keeps_its_choice(monkeypatch):
    """The second process takes the choice up and tries no rate again; it comes to the tensors of a run that nobody killed."""
    whole, _ = fitted("tabular", rate="measured")
    log, step = Quiet(), Loop.step

    def stops(loop, ahead=False):
        if loop.settings.rate == "measured" and loop.progress.step == 30:
            raise KeyboardInterrupt
        step(loop, ahead)

    monkeypatch.setattr(Loop, "step", stops)
    with pytest.raises(KeyboardInterrupt):
        fitted("tabular", log, rate="measured")
    monkeypatch.setattr(Loop, "step", step)
    monkeypatch.setattr(rates, "measure", lambda loop: pytest.fail("measured again"))
    assert log.state and log.state[1]["step"] == 0 and log.state[1]["rate"] > 0
    model, _ = fitted("tabular", log, rate="measured")
    assert tensor_digest(model.net) == tensor_digest(whole.net)


def test_a_rate_is_the_figure_that_is_shown():
    for usual in (2e-3, 1e-4, 3.0, 1.2345e-3):
        ladder = [rates.rate_at(usual, place) for place in range(-4, 5)]
        assert [float(number(rate, 2)) for rate in ladder] == ladder == sorted(set(ladder))


def test_rates_are_walked_downhill():
    def walk(losses: dict[int, float]) -> list[int]:
        tried: dict[int, float] = {}
        while (place := rates.proposed(tried)) is not None:
            tried[place] = losses[place]
        return list(tried)

    places = range(-9, 9)
    assert walk({place: abs(place + 2.0) for place in places}) == [0, -1, -2, -3]
    assert walk({place: abs(place - 1.0) for place in places}) == [0, -1, 1, 2]
    assert walk({place: math.inf if place > -3 else -place for place in places}) == [0, -1, -2, -3, -4]


def test_it_costs_no_more_than_its_share():
    for total in (144, 199, 300, 500, 1000, 100_000):
        steps, most = rates.afforded(total)
        assert steps >= rates.FEWEST and most >= rates.LEAST and most * steps <= rates.SHARE * total
    assert rates.afforded(100_000) == (rates.ENOUGH, rates.MOST)


def test_short_trainings_and_players_against_each_other_are_refused():
    with pytest.raises(BadSettings, match="needs a training of 144 steps or more, this one takes 143"):
        fitted("tabular", steps=143, rate="measured")
    with pytest.raises(BadSettings, match="those of players against each other"):
        fitted("gan", rate="measured")
